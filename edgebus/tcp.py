"""What the kernel says of TCP connections that are libzmq's, and how one is ended.

Where _tcp is built that does it: a signal handler that raises between two steps here may leave a descriptor behind.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import socket
import stat
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

_RECEIVED = struct.Struct("Q")
_RECEIVED_AT = 128  # tcpi_bytes_received in struct tcp_info, since Linux 4.1
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def can_look() -> bool:
    """Whether the kernel counts the bytes of a connection."""
    if sys.platform != "linux":
        return False
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_STREAM) as unconnected:
        return len(unconnected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)) >= _RECEIVED_AT + _RECEIVED.size
    return False


class Came(NamedTuple):
    """What the kernel says of a connection.

    Attributes:
        inode: whose descriptor this is: another connection may have it by the next look.
        num_bytes: received and handed to libzmq since the connection is there.
        local_port, remote_port: of TCP.
        remote: as text.
    """

    inode: int
    num_bytes: int
    local_port: int
    remote_port: int
    remote: str


@contextlib.contextmanager
def _same(fd: int) -> Iterator[socket.socket]:
    """The socket of a descriptor, by another descriptor: libzmq may close its own at any time.

    Not that of a file, by which closing the other one would give up the locks that this process has on it.
    """
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
    double = os.dup(fd)
    try:  # socket.fromfd leaves its own behind where this is no socket (any more)
        same = socket.socket(fileno=double)
    except BaseException:
        os.close(double)
        raise
    with same:
        yield same


def came(fd: int) -> tuple[Any, ...] | None:
    """The fields of `Came`."""
    with contextlib.suppress(OSError, struct.error), _same(fd) as same:
        info = same.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        (received,) = _RECEIVED.unpack_from(info, _RECEIVED_AT)
        (queued,) = struct.unpack("i", fcntl.ioctl(same, termios.FIONREAD, bytes(4)))
        local, remote = same.getsockname(), same.getpeername()
        inode = os.fstat(same.fileno()).st_ino
        return inode, received - queued, local[1], remote[1], f"{remote[0]}:{remote[1]}"
    return None


def end(fd: int, inode: int) -> bool:
    """Shut a connection down if the descriptor is still its own."""
    with contextlib.suppress(OSError), _same(fd) as same:
        if os.fstat(same.fileno()).st_ino == inode:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            same.shutdown(socket.SHUT_RDWR)
            return True
    return False


def pages() -> int:
    """Pages of memory that this process has, -1 if that cannot be known."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:  # a third of what pathlib takes
            return int(file.read(100).split()[1])
    except OSError:
        return -1


def _best() -> tuple[Callable[[int], tuple[Any, ...] | None], Callable[[int, int], bool], Callable[[], int]]:
    try:
        from edgebus import _tcp
    except ImportError:  # not built
        return came, end, pages
    return _tcp.came, _tcp.end, _tcp.pages


_came, _end, _pages = _best()


class Kernel:
    """What the operating system is asked and told."""

    def came(self, fd: int) -> Came | None:
        """What came by a descriptor of libzmq's; None if it is no TCP connection (any more)."""
        found = _came(fd)
        return None if found is None else Came(*found)

    def end(self, fd: int, inode: int) -> bool:
        """End a connection of libzmq's, which drops what it has of it; False if the descriptor is another one's by now.

        It is doubled before it is looked at, unless no descriptor is left: in between libzmq cannot give it to another
        connection. When libzmq closes it the peer hears of that at once, though its window may be closed.
        """
        return _end(fd, inode)

    def resident_bytes(self) -> float:
        """Memory that this process has; inf if that cannot be known, as where no descriptor is left to ask by."""
        count = _pages()
        return math.inf if count < 0 else count * _PAGE


class Guard(Protocol):
    """Bounds what comes by a node's connections while it does not look at them (_guard.Guard).

    It asks the node to look when the memory of the process has grown. Where that does not happen soon, what comes is
    what nobody reads, and a connection by which too much comes is held back: TCP sends again what the kernel drops.

    Attributes:
        num_paused: connections that are held back, with listening sockets,
        num_ever_paused: and how many were, without those.
    """

    num_paused: int
    num_ever_paused: int

    def fileno(self) -> int:
        """A descriptor which is readable when the node is to look."""

    def know(self, fd: int, inode: int, is_accepted: bool, tcp_port: int, address: str) -> bool:
        """A connection is there, which came in by this port and address ("": any of ours), or was dialled there.

        False if it cannot be looked after, nor any other any more: nobody is held back then.
        """

    def forget(self, is_accepted: bool, tcp_port: int, address: str) -> None:
        """Connections of that kind are not the node's any more."""

    def looked(self, resumes: bool, left_bytes: int) -> None:
        """The node has looked; so many bytes are unread (-1: as before). With `resumes` nobody is held back now."""

    def close(self) -> None:
        """The node ends."""


def open_guard(most_bytes: int, allowed_bytes: int) -> Guard | None:
    """A guard that allows so many unread bytes, of all together and of each beside that; None if there is none."""
    if not can_look():
        return None
    try:
        from edgebus import _guard
    except ImportError:  # not built
        return None
    try:
        guard: Guard = _guard.Guard(most_bytes, allowed_bytes)
    except OSError:
        return None
    return guard
