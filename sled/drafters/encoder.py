"""Text to token ids with nothing but the bytes each id stands for.

Byte-pair encoding needs to know which pair is merged first. Trainers number tokens in the order in which they were
merged, so the id of the merged token is its rank, as in tiktoken's files. How a tokenizer divides text beforehand is
read off its tokens too: none of them goes over a border. `tests/sled/test_reencoding.py` holds the result against real
tokenizers; where it is wrong drafts are worse, never the answer.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise

from sled.messages import Vocabulary

_MOST_WORDS = 1 << 14  # remembered
_LONGEST_WORD = 256  # characters; what is longer is cut
_LETTERS = r"[^\W\d_]"
_OTHERS = r"(?:[^\s\w]|_)"
_CONTRACTIONS = r"'(?:[sdmt]|ll|ve|re)"


class PieceEncoder:
    """The tokenizer of a vocabulary, rebuilt from its pieces.

    Args:
        vocabulary: the bytes of every id.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        special = set(vocabulary.special_ids)
        block = _byte_block(vocabulary.pieces)
        self.by_characters = block >= 0  # SentencePiece, whose characters fall back to bytes; else all text is bytes
        self.ids: dict[bytes, int] = {bytes([byte]): block + byte for byte in range(256)} if block >= 0 else {}
        fallback = set(self.ids)
        for index, piece in enumerate(vocabulary.pieces):
            if not piece or index in special or (block >= 0 and block <= index < block + 256):
                continue
            if piece not in self.ids or piece in fallback:
                self.ids[piece] = index  # a character comes before the byte; of others alike the first was learned
                fallback.discard(piece)
        self._words = None if self.by_characters else re.compile(_pattern(self.ids))
        self._encode_word = lru_cache(_MOST_WORDS)(self._merge)

    def encode(self, text: bytes) -> list[int]:
        """The ids of a text; bytes that no token stands for are left out.

        >>> PieceEncoder(Vocabulary([b"a", b"b", b"ab", b"<s>"], [3])).encode(b"abba")
        [2, 1, 0]
        """
        ids: list[int] = []
        for word in self._divide(text.decode("utf-8", "surrogateescape")):
            for at in range(0, len(word), _LONGEST_WORD):
                ids += self._encode_word(word[at : at + _LONGEST_WORD])
        return ids

    def _divide(self, text: str) -> list[str]:
        if self._words is not None:
            return self._words.findall(text)
        return re.findall(r" *[^ ]+| +", text)

    def _merge(self, word: str) -> tuple[int, ...]:
        """Byte-pair encoding of one word: the pair whose token has the lowest id first, of several the leftmost."""
        ids = self.ids
        if self.by_characters:
            raws = (char.encode("utf-8", "surrogateescape") for char in word)
            parts = [part for raw in raws for part in ([raw] if raw in ids else [bytes([byte]) for byte in raw])]
        else:
            raw = word.encode("utf-8", "surrogateescape")
            parts = [raw[at : at + 1] for at in range(len(raw))]
        ranks = [ids.get(a + b, -1) for a, b in pairwise(parts)]
        while True:
            best = min((rank for rank in ranks if rank >= 0), default=-1)
            if best < 0:
                return tuple(ids[part] for part in parts if part in ids)
            at = ranks.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
            del ranks[at]
            if at < len(ranks):
                ranks[at] = ids.get(parts[at] + parts[at + 1], -1)
            if at:
                ranks[at - 1] = ids.get(parts[at - 1] + parts[at], -1)


def _byte_block(pieces: list[bytes]) -> int:
    """Where the 256 bytes stand in their order, as SentencePiece has them; -1 if they do not."""
    for start in range(len(pieces) - 255):
        if pieces[start] == b"\x00" and all(pieces[start + byte] == bytes([byte]) for byte in range(256)):
            return start
    return -1


def _pattern(ids: dict[bytes, int]) -> str:
    """How a byte-level tokenizer divides text, read off its tokens: GPT-2's way, or that of cl100k and its heirs."""
    digits = max((len(piece) for piece in ids if piece.isdigit()), default=1)
    joined = any(piece in ids for piece in (b".com", b"(self", b"_id", b"\tint", b"(a", b"-s"))
    if not joined:
        if digits == 1:  # each alone, and the space before it too
            return rf"\d|{_CONTRACTIONS}| ?{_LETTERS}+| ?{_OTHERS}+|\s+(?![^\s\d])|\s+(?=\d)|\s+"
        return rf"{_CONTRACTIONS}| ?{_LETTERS}+| ?\d+| ?{_OTHERS}+|\s+(?!\S)|\s+"
    number = r"\d" if digits == 1 else rf"\d{{1,{min(digits, 3)}}}"
    return rf"(?i:{_CONTRACTIONS})|(?:[^\r\n\w]|_)?{_LETTERS}+|{number}| ?{_OTHERS}+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
