"""The way of small messages in and out of a socket, with libzmq's own functions where they can be had."""

from __future__ import annotations

from typing import Any, Protocol

import zmq

from edgebus.rawzmq import EVENTS, MORE, NOBLOCK, POLLIN, get, recv, send


class PortLike(Protocol):
    """What both ports are."""

    route: bytes
    key: str | None
    more: bool

    def __init__(self, sock: Any, is_router: bool, is_secure: bool) -> None: ...
    def send(self, route: bytes, frame: bytes) -> None: ...
    def take(self) -> bytes | None: ...
    def readable(self) -> bool: ...
    def close(self) -> None: ...


class Port:
    """Sends and takes small messages through pyzmq; edgebus._port, where it is built, does the same beneath it.

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


def open_port(sock: Any, is_router: bool, is_secure: bool) -> PortLike:
    """The best port for a socket."""
    return (_Compiled or Port)(sock, is_router, is_secure)


_Compiled: type[PortLike] | None = None
try:
    from edgebus import _port

    _Compiled = _port.Port
except ImportError:  # not built, or another backend of pyzmq
    pass
