"""Drafted tokens that are shown though nobody has verified them, until they are verified or retracted.

Pure: no sockets, clock or randomness.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from sled.events import Retracted, Unverified
from sled.stop_text import AnswerText


class Released:
    """What is shown behind the committed text.

    At any time the user has before him the committed tokens and these; whenever the target commits something else than
    the next of them, they are retracted first. So when the answer has ended at the target, what is shown is the answer.

    Args:
        stop_ids: tokens that end an answer.
        piece: the bytes of a token.

    >>> released = Released({0}, lambda token: b"<%d>" % token)
    >>> [released.show(token, AnswerText()).text for token in (7, 8, 9)]
    ['<7>', '<8>', '<9>']
    >>> released.commit(7, 20), released.commit(5, 21), released.tokens
    (None, Retracted(from_pos=21), [])
    """

    def __init__(self, stop_ids: Collection[int], piece: Callable[[int], bytes]) -> None:
        self._stop_ids, self._piece = frozenset(stop_ids), piece
        self._shown: AnswerText | None = None
        self._texts: list[str] = []
        self._confidences: list[float] = []
        self.tokens: list[int] = []

    @property
    def text(self) -> str:
        """Of the tokens."""
        return "".join(self._texts)

    @property
    def guesses(self) -> list[tuple[int, float]]:
        """The tokens with the drafter's confidences."""
        return list(zip(self.tokens, self._confidences, strict=True))

    @property
    def ended(self) -> bool:
        """Whether they end the answer, if they are right: with a stop token or a stop text."""
        stopped = self._shown is not None and self._shown.stopped
        return bool(self.tokens) and (stopped or self.tokens[-1] in self._stop_ids)

    def show(self, token: int, committed: AnswerText, pos: int = 0, confidence: float = 1.0) -> Unverified:
        """One more.

        Args:
            token: its id.
            committed: the text shown before the first of them; it is not changed.
            pos: where it stands.
            confidence: the drafter's.
        """
        if self._shown is None:
            self._shown = committed.fork()
        text = self._shown.add(self._piece(token))
        self.tokens.append(token)
        self._confidences.append(confidence)
        self._texts.append(text)
        return Unverified(token, pos, text)

    def commit(self, token: int, pos: int) -> Retracted | None:
        """The target has committed a token; what is to be said before it is."""
        if not self.tokens:
            return None
        if token == self.tokens[0]:
            del self.tokens[0], self._texts[0], self._confidences[0]
            if not self.tokens:
                self._shown = None
            return None
        return self.retract(pos)

    def retract(self, pos: int) -> Retracted | None:
        """All of them are wrong, as when the answer ends before them; None if there are none."""
        if not self.tokens:
            return None
        self.tokens.clear()
        self._texts.clear()
        self._confidences.clear()
        self._shown = None
        return Retracted(pos)

    def restore(self, guesses: Sequence[tuple[int, float]], committed: AnswerText, pos: int) -> list[Unverified]:
        """Those that were shown before this process began."""
        return [self.show(token, committed, pos + i, confidence) for i, (token, confidence) in enumerate(guesses)]
