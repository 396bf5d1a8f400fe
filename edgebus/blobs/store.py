"""Blobs on disk within a byte budget; the longest unused go first. Rules: docs/spec/bus-blobs.md."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import BinaryIO, Concatenate, ParamSpec, TypeVar

from edgebus.blobs.blob import Blob, map_blob
from edgebus.blobs.disk import Directory, Sort
from edgebus.blobs.errors import BlobStoreBusy, BlobStoreFull
from edgebus.blobs.manifest import (
    CHUNK_BYTES,
    MAX_MANIFEST_BYTES,
    BlobId,
    Data,
    Manifest,
    ManifestBuilder,
    build,
    manifest_bytes,
    manifest_of,
    split,
)
from edgebus.blobs.partial import Partial, is_file, save_manifest, write_at
from edgebus.errors import ConfigError
from edgebus.files import cache_dir, telling
from edgebus.keyfiles import read_bounded

P = ParamSpec("P")
T = TypeVar("T")
DEFAULT_BUDGET_BYTES = 1 << 30
_CACHED_MANIFESTS = 8
_PUT_AT_ONCE = 64
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What lies in a store, and what this process saw of it since it opened it."""

    num_blobs: int
    blob_bytes: int
    num_partials: int
    used_bytes: int
    budget_bytes: int
    hits: int
    misses: int
    evictions: int
    corrupt: int


def _told(method: Callable[Concatenate[BlobStore, P], T]) -> Callable[Concatenate[BlobStore, P], T]:
    """Have an OSError in a method of a store say which store it is and what to do."""

    @wraps(method)
    def telling_method(self: BlobStore, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._directory.telling():
            return method(self, *args, **kwargs)

    return telling_method


class BlobStore:
    """A directory of blobs, which several processes may use at once.

    A blob that is open (a Blob or a view of it is alive, in any process) is never evicted. A file that is not what its
    address says is never handed out: it becomes a partial blob, of which the next fetch brings only what is wrong.

    Args:
        directory: where; by default `~/.cache/edgebus/blobs`. Made if missing, for this user alone.
        budget_bytes: of everything in it, partial blobs and manifests included.

    Raises:
        ConfigError: a budget that is not positive.
        FileError: the directory cannot be made, read or written; any method may raise it. It is an OSError.

    >>> import tempfile
    >>> store = BlobStore(tempfile.mkdtemp())
    >>> with store.get(store.put(b"hello")) as blob:
    ...     blob.tobytes()
    b'hello'
    """

    def __init__(self, directory: Path | str | None = None, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> None:
        if budget_bytes <= 0:
            raise ConfigError(f"budget_bytes must be positive, got {budget_bytes!r}")
        self._directory = Directory(Path(directory) if directory is not None else cache_dir() / "blobs", budget_bytes)
        self._manifests: OrderedDict[BlobId, Manifest] = OrderedDict()
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.gc()

    @property
    def path(self) -> Path:
        """The directory."""
        return self._directory.path

    @property
    def budget_bytes(self) -> int:
        """Most bytes of all files together."""
        return self._directory.budget_bytes

    # -- in and out ---------------------------------------------------------------------------------

    @_told
    def put(self, source: Data | Path | str | BinaryIO, *, chunk_bytes: int = CHUNK_BYTES) -> BlobId:
        """Keep a blob: it is there whole, and on the disk, when this returns.

        Args:
            source: bytes, the path of a file, or a file open for reading.
            chunk_bytes: part of the address; the default unless peers cannot take frames of that size.

        Raises:
            BlobStoreFull: it does not fit.
            FileError: the source cannot be read.
            ValueError: a chunk size that cannot be, more than 2**20 chunks, or a file that changed while it was read.
        """
        ManifestBuilder(chunk_bytes)
        if isinstance(source, (str, Path)):
            with telling("read", source):
                opened = open(source, "rb")  # noqa: SIM115 - closed by the with below
            with opened as file:
                size = os.fstat(file.fileno()).st_size
                if (known := self._known(build(_chunks(file, chunk_bytes, size), chunk_bytes).blob_id)) is not None:
                    return known
                file.seek(0)
                return self._write(_chunks(file, chunk_bytes, size), size, chunk_bytes)
        if isinstance(source, (bytes, bytearray, memoryview)):
            if (known := self._known(manifest_of(source, chunk_bytes).blob_id)) is not None:
                return known
            return self._write(split(source, chunk_bytes), memoryview(source).nbytes, chunk_bytes)
        return self._write(_chunks(source, chunk_bytes, None), None, chunk_bytes)

    @_told
    def put_many(self, contents: Sequence[Data]) -> list[BlobId]:
        """Keep several small blobs, of the default chunk size, for about the price of one in waiting for the disk.

        Raises:
            BlobStoreFull: those of a group of 64 do not fit together; the groups before it are kept.
        """
        kept = []
        for at in range(0, len(contents), _PUT_AT_ONCE):
            group = {manifest_of(content): content for content in contents[at : at + _PUT_AT_ONCE]}
            kept += [manifest.blob_id for manifest in group]
            new = {manifest.blob_id: (manifest, content) for manifest, content in group.items()}
            self._write_group([pair for blob_id, pair in new.items() if self._known(blob_id) is None])
        return kept

    @_told
    def get(self, blob_id: str, *, verify: bool = True, max_bytes: int | None = None) -> Blob | None:
        """A blob, or None if it is not there whole; it counts as used now.

        Args:
            blob_id: its address.
            verify: read and hash all of it first; False only compares the size.
            max_bytes: most that it can have as far as the caller knows; a larger file without a manifest is damaged.
        """
        blob_id = BlobId(blob_id)
        fd = self._open(blob_id)
        if fd is None:
            self._count("misses")
            return None
        try:
            manifest = self._manifest_beside(blob_id, fd, max_bytes)
            if (
                manifest is not None
                and os.fstat(fd).st_size == manifest.size
                and (not verify or _is_right(fd, manifest))
            ):
                self._count("hits")
                return map_blob(blob_id, fd, self.path / blob_id)
            self._distrust(blob_id, fd, manifest)
            self._count("misses")
            return None
        finally:
            os.close(fd)

    @_told
    def has(self, blob_id: str) -> bool:
        """Whether a blob is there whole; not verified, and not a use."""
        return (self.path / BlobId(blob_id)).is_file()

    @_told
    def delete(self, blob_id: str) -> bool:
        """Remove a blob, whole or partial, even while it is open: views of it stay valid. True if it was there."""
        blob_id = BlobId(blob_id)
        with self._directory.locked():
            names = [f"{blob_id}{sort.value}" for sort in (Sort.WHOLE, Sort.PART)]
            found = [name for name in names if (self.path / name).exists()]
            for name in names:
                self._directory.remove(name)
        return bool(found)

    @_told
    def ids(self) -> list[BlobId]:
        """The blobs that are there whole, longest unused first."""
        return [BlobId(entry.name) for entry in self._directory.entries() if entry.sort is Sort.WHOLE]

    @_told
    def gc(self) -> int:
        """Remove what killed processes left and what is over the budget; returns the bytes freed."""
        with self._directory.locked():
            return self._directory.clean()

    @_told
    def stats(self) -> StoreStats:
        """What lies here."""
        entries = self._directory.entries()
        whole = [entry.size for entry in entries if entry.sort is Sort.WHOLE]
        return StoreStats(
            num_blobs=len(whole),
            blob_bytes=sum(whole),
            num_partials=sum(entry.sort is Sort.PART for entry in entries),
            used_bytes=sum(entry.size for entry in entries),
            budget_bytes=self.budget_bytes,
            hits=self._counts["hits"],
            misses=self._counts["misses"],
            evictions=self._directory.evictions,
            corrupt=self._counts["corrupt"],
        )

    # -- for serving --------------------------------------------------------------------------------

    def size(self, blob_id: BlobId) -> int | None:
        """Bytes of a blob that is there whole."""
        with contextlib.suppress(OSError):
            return (self.path / blob_id).stat().st_size
        return None

    @_told
    def manifest(self, blob_id: BlobId) -> Manifest | None:
        """The manifest of a blob that is there whole; a use."""
        fd = self._open(blob_id)
        if fd is None:
            return None
        try:
            return self._manifest_beside(blob_id, fd)
        finally:
            os.close(fd)

    @_told
    def chunk(self, blob_id: BlobId, index: int) -> bytes | None:
        """A chunk of a blob that is there whole, verified; a use. None if there is no such blob or chunk."""
        fd = self._open(blob_id)
        if fd is None:
            return None
        try:
            manifest = self._manifest_beside(blob_id, fd)
            if manifest is not None:
                if index >= manifest.num_chunks:
                    return None
                chunk = _read(fd, manifest, index)
                if manifest.has_chunk(index, chunk):
                    return chunk
            self._distrust(blob_id, fd, manifest)
            return None
        finally:
            os.close(fd)

    # -- for fetching -------------------------------------------------------------------------------

    @_told
    def begin(self, manifest: Manifest) -> Partial:
        """A place for a blob that is about to come, or what is there of it already.

        Raises:
            BlobStoreFull: it does not fit.
        """
        return Partial(self._directory, manifest)

    @_told
    def resume(self, blob_id: BlobId) -> Partial | None:
        """What an earlier fetch left, if it got as far as the manifest.

        Raises:
            BlobStoreFull: what is missing of it does not fit any more.
        """
        if not (self.path / f"{blob_id}{Sort.PART.value}").exists():
            return None
        manifest = self._load_manifest(blob_id)
        return None if manifest is None else self.begin(manifest)

    # -- inside -------------------------------------------------------------------------------------

    def _known(self, blob_id: BlobId) -> BlobId | None:
        blob = self.get(blob_id)
        return None if blob is None else blob.id

    def _write(self, chunks: Iterable[Data], size: int | None, chunk_bytes: int) -> BlobId:
        """Write under a name of its own, then give it its address."""
        directory = self._directory
        builder = ManifestBuilder(chunk_bytes)
        path = self.path / f"{secrets.token_hex(16)}{Sort.PUT.value}"
        with directory.locked():
            if size is not None:
                directory.make_room(size + manifest_bytes(size, chunk_bytes))
            fd = directory.with_room(1, lambda: os.open(path, _NEW, 0o600))
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                directory.allocate(fd, size or 0)
            except BaseException:
                directory.remove(path.name)
                os.close(fd)
                raise
        try:
            written = 0
            for chunk in chunks:
                builder.add(chunk)
                if size is None:
                    with directory.locked():
                        directory.make_room(len(chunk))
                        directory.allocate(fd, written + len(chunk))
                write_at(directory, fd, chunk, written)
                written += len(chunk)
            os.fsync(fd)
            manifest = builder.finish()
            with directory.locked():
                if size is None:
                    directory.make_room(manifest.head.manifest_bytes)
                save_manifest(directory, manifest)
                os.replace(path, self.path / manifest.blob_id)
                directory.touch(self.path / manifest.blob_id)
                fcntl.flock(fd, fcntl.LOCK_UN)  # it is anybody's now
            return manifest.blob_id
        except BaseException:
            with directory.locked():
                directory.remove(path.name)
            raise
        finally:
            os.close(fd)

    def _write_group(self, group: Sequence[tuple[Manifest, Data]]) -> None:
        """Write all, then wait for the disk, then give them their addresses: one wait serves them all."""
        directory, fds = self._directory, dict[Path, int]()
        try:
            with directory.locked():
                directory.make_room(sum(manifest.size + manifest.head.manifest_bytes for manifest, _ in group))
                for manifest, _ in group:
                    path = self.path / f"{secrets.token_hex(16)}{Sort.PUT.value}"
                    fds[path] = fd = directory.with_room(1, partial(os.open, path, _NEW, 0o600))
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    directory.allocate(fd, manifest.size)
            for fd, (_, content) in zip(fds.values(), group, strict=True):
                write_at(directory, fd, content, 0)
            for fd in fds.values():
                os.fsync(fd)
            with directory.locked():
                for (path, fd), (manifest, _) in zip(fds.items(), group, strict=True):
                    save_manifest(directory, manifest)
                    os.replace(path, self.path / manifest.blob_id)
                    directory.touch(self.path / manifest.blob_id)
                    directory.remove(f"{manifest.blob_id}{Sort.PART.value}")  # of one that was damaged, if it was
                    fcntl.flock(fd, fcntl.LOCK_UN)  # it is anybody's now
        finally:
            with contextlib.suppress(BlobStoreBusy, OSError), directory.locked():
                for path in fds:
                    directory.remove(path.name)  # what has its address is not there any more
            for fd in fds.values():
                os.close(fd)

    def _open(self, blob_id: BlobId) -> int | None:
        """A whole blob's file, marked as used and locked against eviction."""
        path = self.path / blob_id
        with self._directory.locked():
            try:
                # Without waiting: the file may be a pipe that somebody put there.
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            except FileNotFoundError:
                return None
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                self._directory.touch(path)
            except BaseException:
                os.close(fd)
                raise
        return fd

    def _load_manifest(self, blob_id: BlobId) -> Manifest | None:
        with self._lock:
            if (manifest := self._manifests.get(blob_id)) is not None:
                self._manifests.move_to_end(blob_id)
                return manifest
        try:
            content, _ = read_bounded(self.path / f"{blob_id}{Sort.MANIFEST.value}", MAX_MANIFEST_BYTES)
            manifest = Manifest.decode(content, blob_id)
        except (OSError, ValueError):
            return None
        with self._lock:
            self._manifests[blob_id] = manifest
            if len(self._manifests) > _CACHED_MANIFESTS:
                self._manifests.popitem(last=False)
        return manifest

    def _manifest_beside(self, blob_id: BlobId, fd: int, max_bytes: int | None = None) -> Manifest | None:
        """The manifest of a whole blob; where it was lost it is made anew from the content, which proves itself.

        What is larger than it can be is not read: a sparse file may say that it has a terabyte.
        """
        manifest = self._load_manifest(blob_id)
        if manifest is not None:
            return manifest
        size = os.fstat(fd).st_size
        if size > min(self.budget_bytes, self.budget_bytes if max_bytes is None else max_bytes):
            return None
        with contextlib.suppress(OSError, ValueError), open(fd, "rb", closefd=False) as file:
            file.seek(0)
            made = build(_chunks(file, CHUNK_BYTES, size), CHUNK_BYTES)
            if made.blob_id == blob_id:
                with self._directory.locked(), contextlib.suppress(BlobStoreFull):
                    self._directory.make_room(made.head.manifest_bytes)
                    save_manifest(self._directory, made)
                return made
        return None

    def _distrust(self, blob_id: BlobId, fd: int, manifest: Manifest | None) -> None:
        """Take a file that is not what its name says out of the way, keeping its good chunks where they can be told."""
        with self._directory.locked():
            if not is_file(self.path / blob_id, fd):
                return  # somebody has done so, or even replaced it
            part = self.path / f"{blob_id}{Sort.PART.value}"
            if manifest is not None and not part.exists():
                os.replace(self.path / blob_id, part)
                if os.fstat(fd).st_size > manifest.size:
                    os.truncate(part, manifest.size)  # or it would count for more than it will be
            else:
                self._directory.remove(blob_id)
        self._count("corrupt")
        _log.warning("blob %s in %s is damaged and must be fetched again: check the disk", blob_id, self.path)

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1


def _chunks(file: BinaryIO, chunk_bytes: int, size: int | None) -> Iterator[bytes]:
    """The rest of a file, chunk by chunk; size is what it must have, if that is known.

    Raises:
        ValueError: it has less; more than that is not read.
    """
    left = size
    while left is None or left > 0:
        wanted = chunk_bytes if left is None else min(chunk_bytes, left)
        parts, missing = [], wanted
        while missing and (part := _read_some(file, missing)):  # pipes give less than asked for
            parts.append(part)
            missing -= len(part)
        if left is not None:
            if missing:
                raise ValueError(f"a file of {size} bytes ended {left - wanted + missing} bytes early: it was changed")
            left -= wanted
        if parts:
            yield parts[0] if len(parts) == 1 else b"".join(parts)
        if missing:
            return


def _read_some(file: BinaryIO, most: int) -> bytes:
    with telling("read", getattr(file, "name", "the file given")):
        return file.read(most)


def _read(fd: int, manifest: Manifest, index: int) -> bytes:
    """What lies in the place of a chunk; nothing if the disk cannot read it."""
    try:
        return os.pread(fd, manifest.head.chunk_size(index), manifest.offset(index))
    except OSError:
        return b""


def _is_right(fd: int, manifest: Manifest) -> bool:
    return all(manifest.has_chunk(index, _read(fd, manifest, index)) for index in range(manifest.num_chunks))
