"""An answer as it is shown: what is settled, what is not, and what was taken back. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from sled.chat.clean import clean
from sled.events import Event, Retracted, RoundEnded, Speculative, Unverified
from sled.types import Token


class Kind(Enum):
    """What a piece of text is."""

    ACCEPTED = "accepted"  # drafted here, and the target agreed
    CORRECTED = "corrected"  # the target's, where it rejected a draft
    OWN = "own"  # the target's, where it was asked for its own
    SPECULATIVE = "speculative"  # drafted, no verdict yet
    UNVERIFIED = "unverified"  # shown because no server could be asked
    RETRACTED = "retracted"  # was shown unverified, and was wrong

    @property
    def settled(self) -> bool:
        """Whether it stays as it is."""
        return self not in (Kind.SPECULATIVE, Kind.UNVERIFIED)


@dataclass(slots=True)
class Piece:
    """Text of one kind; `pos` is that of its first token."""

    kind: Kind
    text: str
    pos: int = -1


class Transcript:
    """What is left to show of an answer, piece by piece.

    Attributes:
        text: what is committed, as the model wrote it.
        unverified: tokens shown that nobody has verified.
    """

    def __init__(self) -> None:
        self.text = ""
        self.unverified = 0
        self._pieces: list[Piece] = []
        self._speculative = Piece(Kind.SPECULATIVE, "")
        self._rejected_pos = -1
        self._end = 0

    def apply(self, event: Event) -> None:
        """What has happened."""
        match event:
            case Token():
                self._commit(event)
            case Speculative():
                self._speculative = Piece(Kind.SPECULATIVE, clean(event.text), event.from_pos)
            case RoundEnded() if event.tokens:
                self._rejected_pos = event.base + event.accepted if event.accepted < event.drafted else -1
            case Unverified():
                self._pieces.append(Piece(Kind.UNVERIFIED, clean(event.text), event.pos))
                self.unverified += 1
                self._end = event.pos + 1
            case Retracted():
                self._retract(event.from_pos)
            case _:
                pass

    @property
    def pieces(self) -> list[Piece]:
        """All there is, runs of one kind as one."""
        tail = [self._speculative] if self._speculative.pos >= self._end and self._speculative.text else []
        return merged([*self._pieces, *tail])

    def drop(self, chars: int) -> None:
        """The first so many characters need not be shown again; they were settled."""
        while chars > 0:
            first = self._pieces[0]
            assert first.kind.settled
            if len(first.text) > chars:
                first.text = first.text[chars:]
                return
            chars -= len(first.text)
            del self._pieces[0]

    def _commit(self, token: Token) -> None:
        wrong = token.pos == self._rejected_pos
        kind = Kind.ACCEPTED if token.drafted else Kind.CORRECTED if wrong else Kind.OWN
        self.text += token.text
        piece = Piece(kind, clean(token.text), token.pos)
        for at, shown in enumerate(self._pieces):
            if shown.kind is Kind.UNVERIFIED and shown.pos == token.pos:
                self._pieces[at] = piece
                self.unverified -= 1
                break
        else:
            self._pieces.append(piece)
        self._end = max(self._end, token.pos + 1)
        if len(self._pieces) > 64:
            self._join_settled()

    def _retract(self, from_pos: int) -> None:
        for piece in self._pieces:
            if piece.kind is Kind.UNVERIFIED and piece.pos >= from_pos:
                piece.kind = Kind.RETRACTED
                self.unverified -= 1
        self._end = from_pos

    def _join_settled(self) -> None:
        """Tokens become runs; those that may still change stay apart."""
        count = next((at for at, piece in enumerate(self._pieces) if not piece.kind.settled), len(self._pieces))
        self._pieces[:count] = merged(self._pieces[:count])


def merged(pieces: Iterable[Piece]) -> list[Piece]:
    """Neighbours of one kind as one piece."""
    runs: list[Piece] = []
    for piece in pieces:
        if runs and runs[-1].kind is piece.kind:
            runs[-1].text += piece.text
        elif piece.text:
            runs.append(Piece(piece.kind, piece.text, piece.pos))
    return runs
