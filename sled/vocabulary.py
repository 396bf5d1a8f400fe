"""The target's vocabulary on the device: fetched once, kept on disk by its hash."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from sled.errors import ProtocolError
from sled.messages import Vocabulary, decode, encode

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
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._directory)
            with os.fdopen(handle, "wb") as file:
                raw = encode(vocabulary)
                file.write(_checksum(raw) + raw)
            Path(name).replace(self._path(expected))
        except OSError:
            return

    def _path(self, expected: bytes) -> Path:
        return self._directory / f"vocabulary-{expected.hex()}.msgpack"
