"""One shared memory segment: made and sealed by its sender; opened, checked and mapped by a receiver."""

from __future__ import annotations

import errno
import functools
import hashlib
import mmap
import os
import signal
import stat
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from edgebus.errors import RemoteError
from edgebus.shm.descriptors import PlainDescriptor, open_file, open_memory
from edgebus.shm.forks import leave_when_forked

if sys.platform == "linux":
    import fcntl

HEADER_BYTES = 4096
"""The first page of a segment: MAGIC, then its nonce."""
MAGIC = b"EDGESHM1"
NONCE_BYTES = 16
COMMIT_BYTES = 64 << 10
"""Memory is asked of the kernel in multiples of this."""
MAX_SEGMENT_BYTES = 1 << 48
_NOEXEC_SEAL = 0x8  # MFD_NOEXEC_SEAL of Linux 6.3; os has no name for it yet

Reason = Literal[
    "unavailable", "malformed", "gone", "forbidden", "no_resources", "not_a_segment", "not_sealed", "wrong_size",
    "wrong_nonce", "out_of_bounds", "too_much", "forked",
]  # fmt: skip


class SegmentUnavailable(RemoteError):
    """A segment that was announced cannot be used; send by socket instead.

    Args:
        reason: machine-readable.
        detail: one line with the numbers.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"shared memory not used ({reason}): {detail}")
        self.reason: Reason = reason


class SegmentInfo(NamedTuple):
    """Where a segment is: descriptor `fd` of process `pid`, `size` bytes, known by its nonce of 16 random bytes."""

    pid: int
    fd: int
    size: int
    nonce: bytes


class Segment:
    """A sender's segment: an unnamed file that can neither shrink nor grow, mapped for writing.

    Its memory is committed from the start upwards, so that a full machine is an error here and not a SIGBUS later.

    Args:
        size: bytes, the header page among them; a multiple of the page size.

    Raises:
        OSError: no memory, no descriptor, or not allowed.
    """

    def __init__(self, size: int) -> None:
        self._file = _make_file(size)
        self.fd = fd = self._file.fileno()
        self.committed = 0
        self._map: mmap.mmap | None = mmap.mmap(fd, size)
        self.memory: npt.NDArray[np.uint8] | None = np.frombuffer(self._map, np.uint8)
        self.info = SegmentInfo(os.getpid(), fd, size, os.urandom(NONCE_BYTES))
        self.commit(HEADER_BYTES)
        self._map[: len(MAGIC) + NONCE_BYTES] = MAGIC + self.info.nonce
        leave_when_forked(self)

    def missing(self, end: int) -> int:
        """Bytes that `commit(end)` will ask for."""
        return max(0, min(-(-end // COMMIT_BYTES) * COMMIT_BYTES, self.info.size) - self.committed)

    def commit(self, end: int) -> None:
        """Have memory behind every byte below `end`.

        Raises:
            OSError: the machine has none left.
        """
        missing = self.missing(end)
        if missing:
            os.posix_fallocate(self.fd, self.committed, missing)
            self.committed += missing

    def discard(self, start: int, end: int) -> int:
        """Give the memory of the pages within [start, end) back to the system, also where a receiver maps them.

        Returns: bytes given back.
        """
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = end // mmap.PAGESIZE * mmap.PAGESIZE - first
        if self._map is None or length <= 0:
            return 0
        try:
            self._map.madvise(mmap.MADV_REMOVE, first, length)
        except OSError:
            return 0
        return length

    def is_alone(self) -> bool:
        """Whether the kernel says that nobody else has this file open or mapped: a write lease is granted only then.

        Somebody who opens it in the moment between the two calls is told to try later, and we get a SIGURG, which
        is ignored unless the application wants it.
        """
        try:
            fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError:
            return False
        fcntl.fcntl(self.fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return True

    def unmap(self) -> None:
        """Stop writing; memory that an application still has on loan stays mapped until it lets go."""
        self.memory = self._map = None

    def close(self) -> None:
        """Unmap and give up the descriptor: nobody can open the segment any more."""
        self.unmap()
        self._file.close()

    def leave_to_parent(self) -> None:
        """In a forked child: this segment must not live longer through us."""
        self.close()


def _make_file(size: int) -> PlainDescriptor:
    """A new sealed memory file of this size."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        made = open_memory("edgebus", flags | _NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        made = open_memory("edgebus", flags)
    try:
        fd = made.fileno()
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        # The kernel counts readers and writers of files that were opened, not of those made open: open it once.
        file = open_file(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    finally:
        made.close()
    fcntl.fcntl(file.fileno(), fcntl.F_SETSIG, signal.SIGURG)  # see is_alone
    return file


def open_segment(info: SegmentInfo) -> mmap.mmap:
    """Map somebody's segment for reading, after checking that it is what was announced.

    Nothing is opened before it is known to be a regular file of ours, nothing read before it is known to be sealed.

    Raises:
        SegmentUnavailable: it is not.
    """
    _check_info(info)
    try:
        handle = open_file(f"/proc/{info.pid}/fd/{info.fd}", os.O_PATH | os.O_CLOEXEC)
        try:
            _check_file(os.fstat(handle.fileno()), info)
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            file = open_file(f"/proc/self/fd/{handle.fileno()}", flags)
        finally:
            handle.close()
        try:
            _check_seals(file.fileno(), info)
            mapping = mmap.mmap(file.fileno(), info.size, prot=mmap.PROT_READ)
        finally:
            file.close()
    except (OSError, OverflowError) as error:
        raise SegmentUnavailable(_reason(error), f"pid {info.pid} fd {info.fd}: {error}") from None
    if mapping[: len(MAGIC) + NONCE_BYTES] != MAGIC + info.nonce:
        mapping.close()
        raise SegmentUnavailable("wrong_nonce", f"pid {info.pid} fd {info.fd} is another segment than announced")
    return mapping


def _check_info(info: SegmentInfo) -> None:
    if not (0 < info.pid < 2**31 and 0 <= info.fd < 2**31 and len(info.nonce) == NONCE_BYTES):
        raise SegmentUnavailable("malformed", f"pid {info.pid}, fd {info.fd}, nonce of {len(info.nonce)} bytes")
    if not HEADER_BYTES < info.size <= MAX_SEGMENT_BYTES:
        raise SegmentUnavailable("malformed", f"{info.size} bytes is no size of a segment")


def _check_file(found: os.stat_result, info: SegmentInfo) -> None:
    name = f"pid {info.pid} fd {info.fd}"
    if not stat.S_ISREG(found.st_mode):
        raise SegmentUnavailable("not_a_segment", f"{name} is no file (mode {found.st_mode:o})")
    if found.st_uid != os.geteuid():
        raise SegmentUnavailable("forbidden", f"{name} belongs to uid {found.st_uid}, we are {os.geteuid()}")
    if found.st_size != info.size:
        raise SegmentUnavailable("wrong_size", f"{name} has {found.st_size} bytes, announced were {info.size}")


def _check_seals(fd: int, info: SegmentInfo) -> None:
    """Only a memory file can have these seals; one of huge pages may still fault when they run out."""
    name = f"pid {info.pid} fd {info.fd}"
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        raise SegmentUnavailable("not_a_segment", f"{name} is no memory file") from None
    if ~seals & (fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW):
        raise SegmentUnavailable("not_sealed", f"{name} could be truncated under us (seals {seals:#x})")
    if os.fstatvfs(fd).f_bsize != mmap.PAGESIZE:
        raise SegmentUnavailable("not_a_segment", f"{name} is made of huge pages")


def _reason(error: OSError | OverflowError) -> Reason:
    number = error.errno if isinstance(error, OSError) else errno.ENOMEM
    if number in (errno.EACCES, errno.EPERM):
        return "forbidden"
    if number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return "no_resources"
    return "gone"


@functools.cache
def available() -> bool:
    """Whether this process can make segments and open them the way a peer does: Linux, memfd, seals, its own /proc."""
    if sys.platform != "linux" or not hasattr(os, "memfd_create"):
        return False
    segment = None
    try:
        if os.readlink("/proc/self") != str(os.getpid()) or os.stat("/proc/self/fd").st_uid != os.geteuid():
            return False  # the /proc of another pid namespace; or a process that its own user may not look into
        segment = Segment(2 * HEADER_BYTES)
        open_segment(segment.info).close()
        _status_field("CapPrm")
    except (OSError, ValueError, AttributeError, SegmentUnavailable):
        return False
    finally:
        if segment is not None:
            segment.close()
    return True


def host_id() -> bytes:
    """16 bytes that are equal in two processes if they can open each other's segments; b"" if this one cannot.

    That takes the same boot, pid and user namespace, and what the kernel asks of who looks into another process:
    the same user and group ids, and no fewer capabilities (so the same ones, to hold for both).
    """
    if not available():
        return b""
    ids: dict[str, Any] = {
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "pid_namespace": os.readlink("/proc/self/ns/pid"),
        "user_namespace": os.readlink("/proc/self/ns/user"),
        "users": os.getresuid(),
        "groups": os.getresgid(),
        "capabilities": _status_field("CapPrm"),
    }
    return hashlib.blake2b(repr(ids).encode(), digest_size=16, person=b"edgebus shm").digest()


def _status_field(name: str) -> str:
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    raise ValueError(f"/proc/self/status has no {name}")
