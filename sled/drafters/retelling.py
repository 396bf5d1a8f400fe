"""A text of the target told in another vocabulary as it grows, and tokens of that vocabulary told in the target's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sled.drafters.encoder import PieceEncoder
from sled.drafters.following import agreed
from sled.proposal import Proposal, stated

_LONGEST_TAIL = 48  # tokens without a border between words
_BLANK = b" \t\r\n"
_BLANKS = (b"", b" ", b"\t", b"\r", b"\n")


class Retelling:
    """The target's text in a drafter's ids; only what stands behind the last border between words is encoded again.

    Args:
        pieces: the target's bytes of every id.
        encoder: of the drafter's vocabulary.
        specials: the drafter's id of each of the target's control tokens; None leaves it out.
        begin: the drafter's ids that come before every text.
    """

    def __init__(
        self,
        pieces: Sequence[bytes],
        encoder: PieceEncoder,
        specials: Mapping[int, int | None],
        begin: Sequence[int] = (),
    ) -> None:
        self._pieces, self._encoder, self._specials = pieces, encoder, specials
        self._text: list[int] = []
        self._own = list(begin)
        self._borders = [(0, len(self._own))]  # so many of the text's tokens are so many of the drafter's
        self._is_new = True
        self.tail_ids: list[int] = []

    def restart(self) -> None:
        """Another answer begins."""
        self._is_new = True

    @property
    def tail(self) -> bytes:
        """The text's bytes behind the last border."""
        return b"".join(map(self._piece, self.tail_ids))

    def follow(self, text: Sequence[int]) -> list[int]:
        """The drafter's ids of the text, a list of the caller's own."""
        keep = agreed(self._text, text, whole=self._is_new)
        self._is_new = False
        del self._text[keep:]
        self._text.extend(text[keep:])
        while len(self._borders) > 1 and self._borders[-1][0] >= keep:
            self._borders.pop()  # what follows it may be no word's beginning any more
        start, num_own = self._borders[-1]
        del self._own[num_own:]
        self.tail_ids = []
        for at in range(start, len(self._text)):
            token = self._text[at]
            if token in self._specials:
                self._border(at)
                own = self._specials[token]
                self._own += [] if own is None else [own]
                self._borders.append((at + 1, len(self._own)))
            else:
                if self._begins_word(at):
                    self._border(at)
                self.tail_ids.append(token)
        return self._own + self._encoder.encode(self.tail)

    def _border(self, at: int) -> None:
        """What stands before this token of the text is encoded for good."""
        if self.tail_ids:
            self._own += self._encoder.encode(self.tail)
            self._borders.append((at, len(self._own)))
            self.tail_ids = []

    def _begins_word(self, at: int) -> bool:
        """Whether no tokenizer joins this token with the one before."""
        if not self.tail_ids:
            return False
        piece, before = self._piece(self._text[at]), self._piece(self.tail_ids[-1])
        if len(self.tail_ids) >= _LONGEST_TAIL:
            return bool(piece) and not 0x80 <= piece[0] < 0xC0
        return len(piece) > 1 and piece[:1] == b" " and piece[1] not in _BLANK and before[-1:] not in _BLANKS

    def _piece(self, token: int) -> bytes:
        return self._pieces[token] if 0 <= token < len(self._pieces) else b""


class Writer:
    """Bytes that a drafter says, as the target's tokens behind a text.

    They are told as soon as their bytes are there; should later bytes make other tokens of them, that was it:
    `contradicted`.

    Args:
        encoder: of the target's vocabulary.
        tail: the text's bytes behind the last border, and `tail_ids` its tokens.
    """

    def __init__(self, encoder: PieceEncoder, tail: bytes, tail_ids: list[int], pieces: Sequence[bytes]) -> None:
        self._encoder, self._tail, self._tail_ids, self._pieces = encoder, tail, tail_ids, pieces
        self._said = b""
        self._told: list[int] = []
        self._starts: list[tuple[int, float]] = []
        self.contradicted = False

    @property
    def num_told(self) -> int:
        """Tokens of the target so far."""
        return len(self._told)

    def add(self, piece: bytes, confidence: float) -> list[Proposal]:
        """The tokens that these bytes complete; each is as sure as all pieces that begin within it."""
        self._starts.append((len(self._said), confidence))
        self._said += piece
        ids = self._encoded(whole_characters(self._said))
        num_told = len(self._told)
        if ids[:num_told] != self._told:
            self.contradicted = True
            return []
        self._told = ids
        end = sum(len(self._pieces[token]) for token in ids[:num_told])
        proposals = []
        for token in ids[num_told:]:
            start, end = end, end + len(self._pieces[token])
            sure = stated(math.prod(share for at, share in self._starts if start <= at < end))
            proposals.append(Proposal(token, sure))
        return proposals

    def _encoded(self, said: bytes) -> list[int]:
        """As the target would write it behind the tail; if it would write the tail differently, by itself."""
        ids = self._encoder.encode(self._tail + said)
        count = len(self._tail_ids)
        return ids[count:] if ids[:count] == self._tail_ids else self._encoder.encode(said)


def whole_characters(raw: bytes) -> bytes:
    """Without the first bytes of a character that is not complete.

    >>> whole_characters("é".encode()[:1]), whole_characters(b"a\\xff")
    (b'', b'a\\xff')
    """
    for back in range(1, min(4, len(raw) + 1)):
        byte = raw[-back]
        if byte >= 0xC0:
            wanted = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4 if byte < 0xF8 else 1
            return raw[:-back] if wanted > back else raw
        if byte < 0x80:
            break
    return raw
