"""The target's vocabulary on the device: fetched once, kept on disk by its hash."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from edgebus.files import write_whole
from edgebus.payloads import decode, encode
from sled.errors import ProtocolError
from sled.messages import Vocabulary

_CHECKSUM_BYTES = 16


def vocabulary_hash(vocabulary: Vocabulary) -> bytes:
    """16 bytes that two vocabularies share if and only if every id stands for the same bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for piece in vocabulary.pieces:
        digest.update(len(piece).to_bytes(4, "little") + piece)
    return digest.digest()


def _checksum(raw: bytes) -> bytes:
    return hashlib.blake2b(raw, digest_size=_CHECKSUM_BYTES).digest()


class VocabularyCache:
    """A directory of vocabularies, each in a file named by its hash.

    A file that cannot be read, or that is not what its name says, is ignored and fetched again; a directory that
    cannot be written only means that the next start fetches again.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self, expected: bytes) -> Vocabulary | None:
        """The vocabulary with this hash, or None."""
        try:
            raw = self._path(expected).read_bytes()
            if _checksum(raw[_CHECKSUM_BYTES:]) != raw[:_CHECKSUM_BYTES]:
                return None
            vocabulary = decode(Vocabulary, raw[_CHECKSUM_BYTES:])
        except (OSError, ValueError):
            return None
        return vocabulary if vocabulary_hash(vocabulary) == expected else None

    def save(self, expected: bytes, vocabulary: Vocabulary) -> None:
        """Keep a vocabulary that was fetched.

        Raises:
            ProtocolError: it is not the one the server announced.
        """
        if vocabulary_hash(vocabulary) != expected:
            raise ProtocolError("the vocabulary the server sent does not match its announced hash; try again")
        raw = encode(vocabulary)
        with contextlib.suppress(OSError):
            write_whole(self._path(expected), _checksum(raw) + raw)

    def _path(self, expected: bytes) -> Path:
        return self._directory / f"vocabulary-{expected.hex()}.msgpack"
