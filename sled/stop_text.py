"""The text of an answer up to its stop text, told as it comes.

Pure. As with other services the stop text itself is left out of the text, while the tokens that complete it stay in the
answer. What may be the beginning of a stop text is held back until it is clear.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class AnswerText:
    """Decodes an answer's bytes and ends at the first stop text.

    Args:
        stop: the texts that end an answer.

    >>> text = AnswerText(["END"])
    >>> [text.add(piece) for piece in (b"a", b"bE", b"Nx", b"E", b"ND of it", b"more")]
    ['a', 'b', 'ENx', '', '', '']
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = list(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def fork(self) -> AnswerText:
        """Another one that stands where this one does."""
        other = AnswerText(self._stop)
        other._decoder.setstate(self._decoder.getstate())
        other._held, other.stopped = self._held, self.stopped
        return other

    def add(self, piece: bytes, *, last: bool = False) -> str:
        """What may be shown once this token has come; with `last`, all that was held back."""
        if self.stopped:
            return ""
        text = self._held + self._decoder.decode(piece, final=last)
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if last else self._may_begin(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _may_begin(self, text: str) -> int:
        """Characters at the end that a stop text begins with, at most."""
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:size]):
                    longest = size
                    break
        return longest
