"""What is done with sockets for every small message: in, out, waiting. edgebus._port, where it is built, is quicker."""

from __future__ import annotations

import math
import select
from collections.abc import Callable
from typing import Any

import zmq

from edgebus.rawzmq import EVENTS, MORE, NOBLOCK, POLLIN, get, recv, send


class PlainPort:
    """Sends and takes small messages through pyzmq.

    Args:
        sock: whose messages these are.
        is_router: every message begins with a routing id.
        is_secure: every message is by a peer with a key.

    Attributes:
        route, key, more: of the message that was taken last: its routing id, the key of its sender, and whether it
            has more frames.
    """

    def __init__(self, sock: Any, is_router: bool, is_secure: bool) -> None:
        self._sock = sock
        self.is_router, self.is_secure = is_router, is_secure
        self.route = b""
        self.key: str | None = None
        self.more = False

    def send(self, route: bytes, frame: bytes) -> None:
        """Send a frame without waiting, to this routing id if there is one.

        Raises:
            zmq.Again: the queue is full.
            zmq.ZMQError: nobody is there.
        """
        if route:
            send(self._sock, route, MORE)
        send(self._sock, frame, NOBLOCK)

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

    def close(self) -> None:
        """Let go of the descriptor."""
        self._epoll.close()


open_port: Callable[[Any, bool, bool], PlainPort] = PlainPort
"""The best port for a socket."""
open_poller: Callable[[], PlainPoller] = PlainPoller
try:
    from edgebus import _port

    open_port, open_poller = _port.Port, _port.Poller
except ImportError:  # not built
    pass
