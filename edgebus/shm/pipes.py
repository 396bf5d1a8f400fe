"""Two pipes between two processes of one host, for messages about what lies in shared memory: made, found, checked.

A packet is one message. Nothing of it has a name: like a segment a pipe is found as a descriptor of the process that
made it, and it is gone when nobody has it open.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

from edgebus.shm.descriptors import PlainDescriptor, open_file, open_pipe
from edgebus.shm.forks import leave_when_forked
from edgebus.shm.segments import SegmentUnavailable, available

if sys.platform == "linux":
    import fcntl
    import resource

PACKET_BYTES = 4096
"""The kernel's PIPE_BUF: a packet is written as a whole or not at all."""
_HEAD = struct.Struct("<H")
_HAS_MORE = 0x8000  # in the head: bytes after the first frame are a second one
_NAMES = struct.Struct("<iQiQ")
_made_here: set[tuple[int, int] | None] = set()  # inodes of what this process made and has not closed


class PipeNames(NamedTuple):
    """Where the maker's two pipes are: descriptors and inodes of what it writes to and of what it reads from."""

    written_fd: int
    written_inode: int
    read_fd: int
    read_inode: int

    def pack(self) -> bytes:
        """As bytes, for `unpack`."""
        return _NAMES.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> PipeNames | None:
        """What pack gave, None if this is something else."""
        return cls(*_NAMES.unpack(data)) if len(data) == _NAMES.size else None


class Pipes:
    """One end. Both descriptors are open for reading and writing: a peer that dies is no signal and no end of file.

    Args:
        read, written: what this end reads from and writes to; closed with it.
        made: inodes of what it writes to and reads from, at the end that made them.
    """

    def __init__(self, read: PlainDescriptor, written: PlainDescriptor, made: tuple[int, int] | None = None) -> None:
        self._files = (read, written)
        self.read_fd, self._write_fd = read.fileno(), written.fileno()
        self._closer = weakref.finalize(self, _made_here.discard, made)
        self._closer.atexit = False
        leave_when_forked(self)

    def send(self, frames: Sequence[bytes]) -> bool:
        """Send a message of one or two frames; False if it does not fit, now or ever."""
        if self._write_fd < 0 or len(frames) > 2:
            return False
        if len(frames) == 1:
            return _write(self._write_fd, frames[0], None)
        return len(frames[1]) < PACKET_BYTES and _write(self._write_fd, frames[0], bytes(frames[1]))

    def send_one(self, frame: bytes) -> bool:
        """The same of one frame."""
        return self._write_fd >= 0 and _write(self._write_fd, frame, None)

    def take(self) -> list[bytes] | None:
        """The frames of the next message, empty if it is none; None if there is none."""
        return _read(self.read_fd) if self.read_fd >= 0 else None

    def close(self) -> None:
        """Give up the descriptors; closing twice is fine."""
        self.read_fd = self._write_fd = -1
        self._closer()  # first: a number may be given again as soon as it is closed
        for file in self._files:
            file.close()

    def leave_to_parent(self) -> None:
        """In a forked child: its parent talks here, not we."""
        self.close()


def make_pipes() -> tuple[Pipes, PipeNames] | None:
    """This end of two new pipes, and what the other end finds them by; None where that does not work."""
    if not available():
        return None
    opened: list[PlainDescriptor] = []
    try:
        for _ in range(2):
            pair = open_pipe(os.O_CLOEXEC | os.O_NONBLOCK)
            opened.append(_reopened(pair[0].fileno()))
            for end in pair:
                end.close()
        _check_room(opened)
        written, read = (os.fstat(file.fileno()).st_ino for file in opened)
    except OSError:
        return None
    names = PipeNames(opened[0].fileno(), written, opened[1].fileno(), read)
    _made_here.add((written, read))
    return Pipes(opened[1], opened[0], (written, read)), names


def find_pipes(pid: int, names: PipeNames) -> Pipes:
    """The other end of what process `pid` made.

    Nothing is opened before it is known to be the very pipe that was announced, and ours to open.

    Raises:
        SegmentUnavailable: it is not.
    """
    if pid == os.getpid() and (names.written_inode, names.read_inode) not in _made_here:
        # A peer that lies about who it is must not have us read what our other pipes carry.
        raise SegmentUnavailable("not_a_segment", f"fd {names.written_fd} of our own is no near lane")
    opened: list[PlainDescriptor] = []
    try:
        for fd, inode in ((names.written_fd, names.written_inode), (names.read_fd, names.read_inode)):
            handle = open_file(f"/proc/{pid}/fd/{fd}", os.O_PATH | os.O_CLOEXEC)
            try:
                found = os.fstat(handle.fileno())
                if not stat.S_ISFIFO(found.st_mode) or found.st_ino != inode or found.st_uid != os.geteuid():
                    raise SegmentUnavailable("not_a_segment", f"pid {pid} fd {fd} is not the pipe that was announced")
                opened.append(_reopened(handle.fileno()))
            finally:
                handle.close()
        _check_room(opened)
    except (OSError, SegmentUnavailable) as error:
        for file in opened:  # at once, however long the exception is kept
            file.close()
        if isinstance(error, SegmentUnavailable):
            raise
        raise SegmentUnavailable("gone", f"pipes of pid {pid}: {error}") from None
    return Pipes(opened[0], opened[1])


def _reopened(fd: int) -> PlainDescriptor:
    """The pipe of a descriptor, open for both directions, without waiting, a packet a message."""
    both = open_file(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.fcntl(both.fileno(), fcntl.F_SETFL, os.O_NONBLOCK | os.O_DIRECT)
    except OSError:
        both.close()
        raise
    return both


def _check_room(opened: list[PlainDescriptor]) -> None:
    """Descriptors are given out from the lowest on: more than half of them in use are left to connections.

    Raises:
        OSError: it is so.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    highest = max(file.fileno() for file in opened)
    if most != resource.RLIM_INFINITY and 2 * highest >= most:
        raise OSError(errno.EMFILE, f"descriptor {highest} of {most}")


def _plain_write(fd: int, first: bytes, second: bytes | None) -> bool:
    """Write a message of one or two frames as a packet; False if it does not fit, now or ever."""
    size = len(first)
    if size + len(second or b"") > PACKET_BYTES - 2:
        return False
    packet = _HEAD.pack(size) + first if second is None else _HEAD.pack(size | _HAS_MORE) + first + second
    try:
        return os.write(fd, packet) == len(packet)
    except OSError:  # full
        return False


def _plain_read(fd: int) -> list[bytes] | None:
    """The frames of the next packet, empty if it is no message; None if there is none."""
    try:
        packet = os.read(fd, PACKET_BYTES)
    except OSError:
        return None
    if len(packet) < 2:
        return [] if packet else None
    size = packet[0] | packet[1] << 8
    if not size & _HAS_MORE:
        return [packet[2:]] if size == len(packet) - 2 else []
    size += 2 - _HAS_MORE
    return [packet[2:size], packet[size:]] if size <= len(packet) else []


_write: Callable[[int, bytes, bytes | None], bool] = _plain_write
_read: Callable[[int], list[bytes] | None] = _plain_read
try:
    from edgebus.shm import _files

    _write, _read = _files.write_packet, _files.read_packet
except ImportError:  # not built
    pass
