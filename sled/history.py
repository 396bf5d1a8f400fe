"""The committed text of a session and the digests that tie a round to it.

Pure: no sockets, clock or randomness.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

DIGEST_BYTES = 8


class History:
    """Token ids of one session, prompt first; only ever grows.

    The digest of a length is a chain, d(n + 1) = blake2b(d(n) || token as 4 bytes little-endian), so that both sides
    extend it at constant cost and two texts that differ anywhere before a position differ in its digest.

    >>> history = History([5, 6])
    >>> history.extend([7])
    >>> len(history), history.digest(2) == History([5, 6]).digest(2)
    (3, True)
    """

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self.tokens: list[int] = []
        self._digests: list[bytes] = [bytes(DIGEST_BYTES)]
        self.extend(tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        """Commit further tokens."""
        last = self._digests[-1]
        for token in tokens:
            last = _next_digest(last, token)
            self.tokens.append(token)
            self._digests.append(last)

    def digest(self, length: int) -> bytes:
        """Digest of the first `length` tokens, 8 bytes.

        Raises:
            IndexError: the history is shorter than `length`.
        """
        if not 0 <= length <= len(self.tokens):
            raise IndexError(f"length {length} of a history of {len(self.tokens)} tokens")
        return self._digests[length]

    def digest_with(self, further: Iterable[int]) -> bytes:
        """Digest of the whole text and further tokens, which are not committed, 8 bytes."""
        last = self._digests[-1]
        for token in further:
            last = _next_digest(last, token)
        return last


def _next_digest(last: bytes, token: int) -> bytes:
    return hashlib.blake2b(last + token.to_bytes(4, "little"), digest_size=DIGEST_BYTES).digest()
