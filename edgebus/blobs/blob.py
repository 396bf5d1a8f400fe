"""A blob that is whole: read-only bytes, on disk or in memory."""

from __future__ import annotations

import fcntl
import mmap
import os
from pathlib import Path
from types import TracebackType

from edgebus.blobs.manifest import BlobId, content_hash


class Blob:
    """The content of a blob; while it, or any view of it, is alive, no store of any process evicts it.

    Args:
        blob_id: its address.
        view: read-only content.
        path: the file it lies in, None if it is in memory alone.

    Attributes:
        id, view, path: as given; view is empty after close().
    """

    def __init__(self, blob_id: BlobId, view: memoryview, path: Path | None = None) -> None:
        assert view.readonly
        self.id = blob_id
        self.view = view
        self.path = path

    @property
    def size(self) -> int:
        """Bytes of content."""
        return len(self.view)

    def tobytes(self) -> bytes:
        """A copy of the content."""
        return self.view.tobytes()

    def content_hash(self) -> str:
        """Plain blake2b-256 of the content, as `b2sum -l 256` prints it."""
        return content_hash(self.view)

    def close(self) -> None:
        """Let go; views taken from it stay valid, and keep it from eviction until they are gone."""
        self.view = memoryview(b"")

    def __enter__(self) -> Blob:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def map_blob(blob_id: BlobId, fd: int, path: Path | None) -> Blob:
    """A blob over an open file; the caller keeps the descriptor, which may be closed at once."""
    if os.fstat(fd).st_size == 0:
        return Blob(blob_id, memoryview(b""), path)
    # The map holds a duplicate of the descriptor, and with it its shared lock, until the last view is gone.
    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return Blob(blob_id, memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_READ)), path)
