"""A round that is drafted and not sent, compared with what the server decodes by itself.

Pure: no sockets, clock or randomness.
"""

from __future__ import annotations

from collections.abc import Sequence

from sled.pace import Pace

LEAST_TOKENS = 4  # drafted in any case


class Shadow:
    """What drafts would have brought from a length of the text on.

    Args:
        pace: says how long the round gets, and is told what came of it.
        base: length of the text that it continues.

    Attributes:
        tokens: its drafts so far, and some behind them that would not have been sent: they teach acceptance.
    """

    def __init__(self, pace: Pace, base: int) -> None:
        self._pace, self.base = pace, base
        self.tokens: list[int] = []
        self._confidences: list[float] = []
        self._size: int | None = None  # of the round, once it is known
        self._dry = False

    def wants(self, limit: int) -> bool:
        """Whether to draft one more token for it, of `limit` at most."""
        length = len(self.tokens)
        if self._size is None and (length >= limit or not self._pace.another(self._confidences, (), None)):
            self._size = length
        return not self._dry and length < limit and (self._size is None or length < LEAST_TOKENS)

    def add(self, token: int, confidence: float) -> None:
        """A token was drafted for it."""
        if not self._pace.more(self._confidences, confidence, ()) and self._size is None:
            self._size = len(self.tokens)
        self.tokens.append(token)
        self._confidences.append(confidence)

    def end(self) -> None:
        """The drafter has nothing further to say."""
        self._dry = True
        if self._size is None:
            self._size = len(self.tokens)

    def compared(self, text: Sequence[int]) -> bool:
        """Whether it is decided by now: its first wrong token is known, or that all are right; then the pace is told.

        Args:
            text: what the server has decoded from `base` on.
        """
        agreed = 0
        for mine, right in zip(self.tokens, text, strict=False):
            if mine != right:
                break
            agreed += 1
        length = len(self.tokens)
        wrong = agreed < min(length, len(text))
        if not wrong and (self._size is None or len(text) <= length):
            size = length if self._size is None else self._size
            self._pace.shadowing(self._confidences[:size], min(agreed, size))
            return False
        self._pace.shadowed(self._confidences, agreed, length if self._size is None else self._size)
        return True
