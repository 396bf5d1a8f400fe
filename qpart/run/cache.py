"""Pieces on the device's disk, each in a file named by its address."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from edgebus.files import write_whole
from qpart.messages import MAX_NAMED_PIECES
from qpart.pieces import ID_BYTES, content_id

DEFAULT_MAX_BYTES = 256 << 20
_NAME = re.compile(rf"[0-9a-f]{{{2 * ID_BYTES}}}\.piece")


class PieceCache:
    """A directory of pieces; the longest unused go when it grows over its bound.

    A file that is not what its name says is removed and fetched again; a directory that cannot be written only means
    that the next start fetches again.

    Args:
        directory: where; made when something is kept.
        max_bytes: of all pieces.
    """

    def __init__(self, directory: Path, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._directory, self._max_bytes = directory, max_bytes

    def addresses(self) -> tuple[bytes, ...]:
        """What is there, latest use first; at most as many as a request may name."""
        return tuple(bytes.fromhex(path.stem) for _, path in self._by_use()[:MAX_NAMED_PIECES])

    def get(self, address: bytes) -> bytes | None:
        """A piece, or None; it is what its address says."""
        path = self._path(address)
        try:
            content = path.read_bytes()
            if content_id(content) == address:
                with contextlib.suppress(OSError):  # gone meanwhile, or not ours to touch
                    os.utime(path)
                return content
            path.unlink()
        except OSError:
            pass
        return None

    def put(self, address: bytes, content: bytes) -> None:
        """Keep a piece whose address has been checked."""
        with contextlib.suppress(OSError):
            write_whole(self._path(address), content)
            self._evict()

    def _evict(self) -> None:
        total = 0
        for _, path in self._by_use():
            total += path.stat().st_size
            if total > self._max_bytes:
                path.unlink()

    def _by_use(self) -> list[tuple[float, Path]]:
        found = []
        with contextlib.suppress(OSError):
            for path in self._directory.iterdir():
                if _NAME.fullmatch(path.name):
                    with contextlib.suppress(OSError):
                        found.append((path.stat().st_mtime, path))
        return sorted(found, reverse=True)

    def _path(self, address: bytes) -> Path:
        return self._directory / f"{address.hex()}.piece"
