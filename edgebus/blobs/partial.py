"""A blob on its way to the disk: any chunk may come at any time, and a crash costs only what was in the air.

Nothing on disk says which chunks are there: a chunk is there if its bytes are what the manifest says. So there is no
state that could be wrong after a crash, and several processes may write the same blob at once, since all of them
write the same bytes to the same places.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from edgebus.blobs.blob import Blob, map_blob
from edgebus.blobs.disk import Directory, Sort, is_disk_full
from edgebus.blobs.errors import BlobStoreBusy
from edgebus.blobs.manifest import Data, Manifest
from edgebus.files import write_whole


def save_manifest(directory: Directory, manifest: Manifest) -> None:
    """Put the manifest beside its blob (lock held).

    Raises:
        BlobStoreFull: no space.
    """
    path = directory.path / f"{manifest.blob_id}{Sort.MANIFEST.value}"
    directory.with_room(manifest.head.manifest_bytes, lambda: write_whole(path, manifest.encode()))


def write_at(directory: Directory, fd: int, data: Data, offset: int) -> None:
    """Write all of it.

    Raises:
        BlobStoreFull: no space; what was written before stays right.
    """
    view = memoryview(data).cast("B")
    try:
        while view:
            done = os.pwrite(fd, view, offset)
            view, offset = view[done:], offset + done
    except OSError as error:
        if is_disk_full(error):
            raise directory.disk_full(len(view)) from None
        with directory.telling():
            raise


class Partial:
    """A blob that is being written; made by BlobStore.begin or BlobStore.resume.

    Args:
        directory: the store's.
        manifest: what it will be.

    Raises:
        BlobStoreFull: it has no place; nothing is left of it.
    """

    def __init__(self, directory: Directory, manifest: Manifest) -> None:
        self.manifest = manifest
        self._directory = directory
        self._path = directory.path / f"{manifest.blob_id}{Sort.PART.value}"
        with directory.telling(), directory.locked():
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = directory.with_room(1, lambda: os.open(self._path, flags, 0o600))
            try:
                fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # first, so that it is not evicted for itself
                self._reserve()
            except BaseException:
                try:
                    if os.fstat(self._fd).st_size == 0:
                        directory.remove(self._path.name)
                finally:
                    self.close()
                raise

    def _reserve(self) -> None:
        directory, manifest = self._directory, self.manifest
        had = os.fstat(self._fd).st_size
        beside = directory.path / f"{manifest.blob_id}{Sort.MANIFEST.value}"
        beside_size = beside.stat().st_size if beside.exists() else 0
        needed = manifest.size - had + manifest.head.manifest_bytes - beside_size
        if manifest.size + manifest.head.manifest_bytes > directory.budget_bytes:
            needed = manifest.size + manifest.head.manifest_bytes  # for the error: it will never fit
        directory.make_room(max(0, needed))
        directory.touch(self._path)
        save_manifest(directory, manifest)
        try:
            directory.allocate(self._fd, manifest.size)
        except BaseException:
            os.truncate(self._fd, had)
            raise

    def present(self) -> Iterator[int]:
        """The chunks that are there and right, found by reading them."""
        for index in range(self.manifest.num_chunks):
            if self._may_hold_data(index) and self.manifest.has_chunk(index, self.read(index)):
                yield index

    def read(self, index: int) -> bytes:
        """What lies in the place of a chunk; empty if the disk cannot read it."""
        try:
            return os.pread(self._fd, self.manifest.head.chunk_size(index), self.manifest.offset(index))
        except OSError:
            return b""

    def write(self, index: int, chunk: Data) -> None:
        """Put a verified chunk into its place.

        Raises:
            BlobStoreFull: no space; the other chunks stay.
        """
        write_at(self._directory, self._fd, chunk, self.manifest.offset(index))

    def finish(self) -> Blob:
        """All chunks are there: give the file its own name, once its bytes are on the disk. Close it all the same.

        Raises:
            BlobStoreFull: the disk had less place than it had said.
        """
        try:
            os.fsync(self._fd)
        except OSError as error:
            if is_disk_full(error):
                raise self._directory.disk_full(self.manifest.size) from None
            with self._directory.telling():
                raise
        blob_id = self.manifest.blob_id
        whole = self._directory.path / blob_id
        with self._directory.telling(), self._directory.locked():
            # The name may belong to another file by now: one that another process began after it had finished
            # this very one and somebody deleted it.
            if is_file(self._path, self._fd):
                os.replace(self._path, whole)
            path = whole if is_file(whole, self._fd) else None
            if path is not None:
                self._directory.touch(path)
            return map_blob(blob_id, self._fd, path)

    def close(self) -> None:
        """Let go; what is there stays, to be resumed. Closing twice is fine."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        try:
            # A directory that is gone, say: whoever used it has been told.
            with contextlib.suppress(BlobStoreBusy, OSError), self._directory.locked():
                if is_file(self._path, fd):  # writing gave it the clock's time, which may have gone back
                    self._directory.touch(self._path)
        finally:
            os.close(fd)

    def _may_hold_data(self, index: int) -> bool:
        """False where the file has a hole: never written, not worth reading."""
        begin = self.manifest.offset(index)
        try:
            return os.lseek(self._fd, begin, os.SEEK_DATA) < begin + self.manifest.head.chunk_size(index)
        except (OSError, AttributeError) as error:
            return getattr(error, "errno", None) != errno.ENXIO  # nothing but holes from there on


def is_file(path: Path, fd: int) -> bool:
    """Whether this open file is the one the path leads to (lock held)."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(fd))
    return False
