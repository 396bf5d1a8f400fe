"""The directory of a blob store: its lock, its clock, its budget. Several processes may share one.

Who uses a file holds a shared `flock` on it, which ends with the process, however that ends; who removes one needs the
exclusive lock. Everything that adds, renames or removes files happens under the lock of the directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import NamedTuple, TypeVar

from edgebus.blobs.errors import BlobStoreBusy, BlobStoreFull
from edgebus.files import telling

T = TypeVar("T")
_NAME = re.compile(r"([0-9a-f]{64})(|\.part|\.manifest)|[0-9a-f]{32}\.put")
_STALE = re.compile(r"\.[0-9a-f]{64}\.manifest-.*")  # what a killed process was writing
_LOCK_WAIT_S = 10.0
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_CANNOT_ALLOCATE = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class Sort(Enum):
    """What a file in the directory is."""

    WHOLE = ""
    PART = ".part"
    MANIFEST = ".manifest"
    PUT = ".put"


class Entry(NamedTuple):
    """One file of the store."""

    name: str
    sort: Sort
    size: int
    used_at: int


class Directory:
    """Files named by their address, within a budget.

    Args:
        path: where; made if missing, for this user alone.
        budget_bytes: of all files together.

    Raises:
        FileError: it cannot be made.
    """

    def __init__(self, path: Path, budget_bytes: int) -> None:
        self.path = path
        self.budget_bytes = budget_bytes
        self.evictions = 0
        with self.telling():
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock_path = path / ".lock"
        self._thread = threading.RLock()
        self._pid = os.getpid()
        self._depth = 0

    def telling(self) -> contextlib.AbstractContextManager[None]:
        """Have an OSError say where, and what to do; it is a FileError then."""
        return telling("use the blob store", self.path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory against all threads and processes; may be nested.

        Raises:
            BlobStoreBusy: somebody else holds it too long.
        """
        if self._pid != os.getpid():  # a forked child: another thread may have held the lock at the fork
            self._thread, self._pid, self._depth = threading.RLock(), os.getpid(), 0
        with self._thread:
            if self._depth:
                yield
                return
            fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self._wait_for(fd)
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
                    # Not by close alone: a child forked meanwhile has the descriptor too, and would keep the lock.
                    fcntl.flock(fd, fcntl.LOCK_UN)
            finally:
                os.close(fd)

    def tick(self) -> int:
        """A time in nanoseconds that is later than every one before, whatever the clock does (lock held)."""
        last = self._lock_path.stat().st_mtime_ns
        now = max(time.time_ns(), last + 1)
        os.utime(self._lock_path, ns=(now, now))
        return now

    def touch(self, path: Path) -> None:
        """This file is in use now (lock held)."""
        now = self.tick()
        with contextlib.suppress(OSError):  # removed by hand, or not ours: it keeps its old place in the order
            os.utime(path, ns=(now, now))

    def entries(self) -> list[Entry]:
        """Every file of the store, longest unused first; a directory under such a name is somebody else's."""
        found = []
        with os.scandir(self.path) as files:
            for file in files:
                if _NAME.fullmatch(file.name) and not file.is_dir(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):
                        status = file.stat(follow_symlinks=False)
                        sort = Sort(file.name[64:] if len(file.name) >= 64 else file.name[32:])
                        found.append(Entry(file.name, sort, status.st_size, status.st_mtime_ns))
        return sorted(found, key=lambda entry: (entry.used_at, entry.name))

    def make_room(self, needed: int) -> None:
        """Evict the longest unused until `needed` more bytes are within the budget (lock held).

        Raises:
            BlobStoreFull: they never are, or what there is is in use; then nothing was evicted.
        """
        if needed > self.budget_bytes:
            raise BlobStoreFull(
                f"{needed} bytes are over the budget of {self.budget_bytes} of {self.path}: "
                "give it a larger budget_bytes, or fetch with if_full='memory'"
            )
        used = sum(entry.size for entry in self.entries())
        short = used + needed - self.budget_bytes
        if short > 0 and self._evict(short) < short:
            raise BlobStoreFull(
                f"{needed} bytes do not fit into {self.path}: {used} of its {self.budget_bytes} bytes are taken and "
                f"too many of them in use: close blobs, or give it a larger budget_bytes"
            )

    def allocate(self, fd: int, size: int) -> None:
        """Give a file its size and, where the file system can, its place on the disk (lock held).

        Raises:
            BlobStoreFull: the disk has not that much left, evictions counted in.
        """
        while True:
            try:
                _allocate(fd, size)
                return
            except OSError as error:
                if error.errno not in _DISK_FULL:
                    raise
                free = os.statvfs(self.path).f_bavail * os.statvfs(self.path).f_frsize
                missing = max(1, size - os.fstat(fd).st_blocks * 512 - free)
                if self._evict(missing) < missing:
                    raise self.disk_full(size) from None

    def with_room(self, size: int, write: Callable[[], T]) -> T:
        """Do something small that takes place on the disk, evicting as long as there is none (lock held).

        Raises:
            BlobStoreFull: nothing is left that could go.
        """
        while True:
            try:
                return write()
            except OSError as error:
                if not is_disk_full(error):
                    raise
                status = os.statvfs(self.path)
                missing = max(1, size - status.f_bavail * status.f_frsize)  # what is left counts as well
                if self._evict(missing) < missing:
                    raise self.disk_full(size) from None

    def disk_full(self, size: int) -> BlobStoreFull:
        """The error for a disk without room."""
        status = os.statvfs(self.path)
        return BlobStoreFull(
            f"the disk of {self.path} is full: {size} bytes wanted, {status.f_bavail * status.f_frsize} left: "
            "free some, or fetch with if_full='memory'"
        )

    def remove(self, name: str) -> None:
        """Remove a file, and the manifest that nobody needs after that (lock held); directories are not ours."""
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            (self.path / name).unlink()
        address = name[:64]
        if not any((self.path / f"{address}{sort.value}").exists() for sort in (Sort.WHOLE, Sort.PART)):
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                (self.path / f"{address}{Sort.MANIFEST.value}").unlink()

    def clean(self) -> int:
        """Remove what killed processes left, then what is over the budget; returns the bytes freed (lock held)."""
        before = self.entries()
        names = {entry.name for entry in before}
        for entry in before:
            address = entry.name[:64]
            if entry.sort is Sort.PUT:
                self._evict_unused(entry.name)
            elif entry.sort is Sort.MANIFEST and not {address, f"{address}{Sort.PART.value}"} & names:
                self.remove(address)
        with os.scandir(self.path) as files:
            stale = [file.path for file in files if _STALE.fullmatch(file.name)]
        for path in stale:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        over = sum(entry.size for entry in self.entries()) - self.budget_bytes
        if over > 0:
            self._evict(over, all_or_nothing=False)
        return sum(entry.size for entry in before) - sum(entry.size for entry in self.entries())

    def _evict(self, short: int, *, all_or_nothing: bool = True) -> int:
        """Evict the longest unused files of at least so many bytes; returns how many they had.

        One over the whole budget, its manifest included, goes first: it has no place here whatever else goes, and no
        blob is that large.
        """
        entries = self.entries()
        manifests = {entry.name[:64]: entry.size for entry in entries if entry.sort is Sort.MANIFEST}
        entries.sort(key=lambda entry: max(entry.size, manifests.get(entry.name[:64], 0)) <= self.budget_bytes)
        left = {entry.name for entry in entries}
        freed = 0
        chosen: list[tuple[str, int]] = []
        try:
            for entry in entries:
                if freed >= short:
                    break
                if entry.sort is not Sort.MANIFEST and (fd := self._claim(entry.name)) is not None:
                    chosen.append((entry.name, fd))
                    freed += entry.size
                    left.discard(entry.name)
                    address = entry.name[:64]
                    if not {address, f"{address}{Sort.PART.value}"} & left:
                        freed += manifests.get(address, 0)
            if freed < short and all_or_nothing:
                return 0
            for name, _ in chosen:
                self.remove(name)
            self.evictions += len(chosen)
            return freed
        finally:
            for _, fd in chosen:
                os.close(fd)

    def _evict_unused(self, name: str) -> None:
        if (fd := self._claim(name)) is not None:
            try:
                self.remove(name)
            finally:
                os.close(fd)

    def _claim(self, name: str) -> int | None:
        """A file's exclusive lock, None if it is in use."""
        try:
            fd = os.open(self.path / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return None
        return fd

    def _wait_for(self, fd: int) -> None:
        give_up_at = time.monotonic() + _LOCK_WAIT_S
        pause_s = 0.0005
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > give_up_at:
                    raise BlobStoreBusy(
                        f"another process has held {self._lock_path} for {_LOCK_WAIT_S:.0f} s: "
                        "see whether one that uses this store is stopped, or its disk hangs"
                    ) from None
            time.sleep(pause_s)
            pause_s = min(0.02, 2 * pause_s)


def is_disk_full(error: OSError) -> bool:
    """No space, or no quota."""
    return error.errno in _DISK_FULL


def _allocate(fd: int, size: int) -> None:
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno not in _CANNOT_ALLOCATE:
                raise
    os.truncate(fd, size)
