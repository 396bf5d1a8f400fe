"""How many tokens a forward may have while the target's memory is short.

Pure: no sockets, clock or randomness.
"""

from __future__ import annotations

import math

_QUICK, _SLOW = 1.1, 1.002  # what a forward that fits adds, at first and at last
_LEARN = 4.0  # times slower after each forward that had grown too large again
_HOPE = 1.005  # times quicker with each forward that fits
_OVER = 2.0  # times the usual size, at which the shortage is forgotten


class Shortage:
    """Halves forwards that do not fit, and lets them grow again: quickly, but slower where memory stays short.

    A shortage that was short costs some tens of small forwards, one that lasted some hundreds; while it lasts, one
    in about two hundred of the forwards that are as large as they may be fails.

    Args:
        usual: tokens in a forward where memory suffices.

    >>> shortage = Shortage(usual=512)
    >>> shortage.failed(512)
    >>> shortage.most
    256
    >>> for _ in range(20):
    ...     shortage.fitted(int(min(512, shortage.most)))
    >>> shortage.most
    inf
    """

    def __init__(self, usual: int) -> None:
        self._usual = usual
        self._growth, self._grew = _QUICK, False
        self.most: float = math.inf
        """Tokens in the next forward."""

    def failed(self, tokens: int) -> None:
        """A forward of so many tokens did not fit, and parts of it may."""
        if self._grew:
            self._growth = max(_SLOW, 1.0 + (self._growth - 1.0) / _LEARN)
        self._grew = False
        self.most = min(self.most, max(1, tokens // 2))

    def fitted(self, tokens: int) -> None:
        """A forward of so many tokens was computed; far fewer than might have been tell nothing."""
        if self.most == math.inf or tokens < self.most / 2:
            return
        self.most *= self._growth
        self._growth = min(_QUICK, 1.0 + (self._growth - 1.0) * _HOPE)
        self._grew = True
        if self.most > _OVER * self._usual:
            self.forget()

    def forget(self) -> None:
        """What failed says nothing of other forwards, or memory is there again."""
        self._growth, self._grew, self.most = _QUICK, False, math.inf
