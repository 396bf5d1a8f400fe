"""What is done with sockets for every message: in, out, waiting; quicker in _port and _waiting, if they are built."""

from __future__ import annotations

import contextlib
import math
import select
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from edgebus.rawzmq import EVENTS, KEEP_BYTES, MORE, NOBLOCK, POLLIN, ZERO_COPY_BYTES, get, recv, send

CURVE_BYTES = 33
"""What CURVE sends with the content of a frame: a command's name, a nonce, flags and an authenticator (RFC 26)."""


def _on_wire(num_bytes: int) -> int:
    """Bytes of a frame as ZMTP 3.1 sends it (RFC 37)."""
    return num_bytes + (2 if num_bytes <= 255 else 9)


class PlainPort:
    """Sends and takes messages through pyzmq.

    Args:
        sock: whose messages these are.
        is_router: every message begins with a routing id.
        is_secure: every message is by a peer with a key.

    Attributes:
        route, key, more: of the message that was taken last: its routing id, the key of its sender, and whether it
            has more frames.
        max_sending_bytes: a large message goes only if libzmq has no more than so much for its connection with it, or
            nothing; 0 for any. Only _port.Port knows how much that is.
    """

    def __init__(self, sock: Any, is_router: bool, is_secure: bool) -> None:
        self._sock = sock
        self.is_router, self.is_secure = is_router, is_secure
        self.route = b""
        self.key: str | None = None
        self.more = False
        self.max_sending_bytes = 0
        self._wire_bytes: int | None = None
        self._counts: dict[int, int] = {}
        self._fd = -1

    def count(self, is_encrypted: bool) -> None:
        """Count the bytes of messages by connection from now on."""
        self._wire_bytes = CURVE_BYTES if is_encrypted else 0

    def take_counts(self) -> list[tuple[int, int]]:
        """Descriptors of connections, and the bytes on the wire of messages taken from them since the last call."""
        counts, self._counts = self._counts, {}
        return list(counts.items())

    def _count(self, num_bytes: int) -> None:
        if self._wire_bytes is not None:
            self._counts[self._fd] = self._counts.get(self._fd, 0) + _on_wire(num_bytes + self._wire_bytes)

    def send(self, route: bytes, frame: bytes) -> None:
        """Send a frame without waiting, to this routing id if there is one.

        Raises:
            zmq.Again: the queue is full.
            zmq.ZMQError: nobody is there.
        """
        if route:
            send(self._sock, route, MORE)
        send(self._sock, frame, NOBLOCK)

    def send_all(self, route: bytes, frames: Sequence[Any]) -> None:
        """Send a message of any frames likewise; large ones are lent to libzmq, and kept until it is done with them.

        Raises:
            As send; after any other exception it may have begun to go out.
        """
        if route:
            send(self._sock, route, MORE, True, False)
        last = len(frames) - 1
        for index, frame in enumerate(frames):
            flags = NOBLOCK if index == last else MORE
            send(self._sock, frame, flags, len(frame) < ZERO_COPY_BYTES, False)

    def take_rest(self, frames: list[Any]) -> int:
        """Append the frames after the first: large ones stay in the memory that libzmq received them into.

        Returns:
            Their bytes.
        """
        more, num_bytes = True, 0
        while more:
            frame = recv(self._sock, NOBLOCK, False)
            more = frame.more
            frames.append(frame.buffer if len(frame) >= KEEP_BYTES else frame.bytes)
            num_bytes += len(frame)
            self._count(len(frame))
        return num_bytes

    def take(self) -> bytes | None:
        """The first frame of the next message, None if there is none."""
        try:
            if self.is_router:
                self.route = recv(self._sock, NOBLOCK)
            first = recv(self._sock, NOBLOCK, False)
        except zmq.ZMQError:  # nothing there, or closed meanwhile
            return None
        # Asked for every message: a route alone proves nothing about who sent it.
        if self.is_secure:
            self.key = str(first.get("User-Id"))
        self.more = first.more
        if self._wire_bytes is not None:
            self._fd = -1
            with contextlib.suppress(zmq.ZMQError):  # of a peer before ZMTP 3.0 libzmq does not say it
                self._fd = int(first.get("__fd"))
            self._count(len(first))
        frame: bytes = first.bytes
        return frame

    def readable(self) -> bool:
        """Whether there is a message."""
        return not self._sock.closed and bool(get(self._sock, EVENTS) & POLLIN)

    def close(self) -> None:
        """The socket is closed: nothing comes or goes any more."""


class PlainPoller:
    """Waits for descriptors to be readable."""

    def __init__(self) -> None:
        self._epoll = select.epoll()

    def register(self, fd: int) -> None:
        """Watch a descriptor."""
        self._epoll.register(fd, select.EPOLLIN)

    def unregister(self, fd: int) -> None:
        """Watch it no more."""
        self._epoll.unregister(fd)

    def poll(self, timeout_s: float) -> list[tuple[int, int]]:
        """Those that are readable, each with its event; waits for the first so long, inf is for ever.

        Raises:
            OSError, ValueError: it was closed.
        """
        return self._epoll.poll(None if timeout_s == math.inf else timeout_s)

    @property
    def closed(self) -> bool:
        """True after close."""
        return self._epoll.closed

    def close(self) -> None:
        """Let go of the descriptor."""
        self._epoll.close()


def _take_back() -> int:
    return 0  # pyzmq has a thread that does it


open_port: Callable[[Any, bool, bool], PlainPort] = PlainPort
"""The best port for a socket."""
open_poller: Callable[[], PlainPoller] = PlainPoller
take_back: Callable[[], int] = _take_back
"""Drops the frames that libzmq is done with, and returns how many it still has. It may run anything that the
application has hung on the end of an array, so no lock may be held."""
try:
    from edgebus import _port, _waiting

    open_port, open_poller, take_back = _port.Port, _waiting.Poller, _port.take_back
except ImportError:  # not built
    pass
