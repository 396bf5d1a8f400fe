"""The sockets of a node: opening, receiving, sending, closing. No protocol in here, and no lock: the runner's is held.

libzmq's sockets may be used from any thread, one at a time, with a full fence in between; the runner's lock is one.
Their file descriptors are edge-triggered, so whoever has touched a socket looks whether it became readable.
"""

from __future__ import annotations

import enum
import logging
import select
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import zmq
import zmq.backend
from zmq.utils.monitor import parse_monitor_message

from edgebus.config import Limits
from edgebus.errors import BindError, ConfigError
from edgebus.hub import Route
from edgebus.keys import Keys
from edgebus.zap import ZAP_DOMAIN, ZAP_ENDPOINT, zap_denied

_log = logging.getLogger("edgebus")
_BURST = 64  # messages taken from one socket before the others get their turn
_HANDSHAKE_MS = 2000  # libzmq's own 30 s lets idle raw connections pile up
ZERO_COPY_BYTES = 128 * 1024  # below, copying is cheaper than telling libzmq whom to ask for the memory
_MONITORED = (
    zmq.EVENT_CONNECT_DELAYED
    | zmq.EVENT_CONNECTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
# The plain functions: the methods of pyzmq's Socket check and wrap at every call what does not change here.
_send: Callable[..., Any] = zmq.backend.Socket.send
_recv: Callable[..., Any] = zmq.backend.Socket.recv
_get: Callable[..., Any] = zmq.backend.Socket.get
_NOBLOCK = int(zmq.NOBLOCK)
_NOBLOCK_MORE = int(zmq.NOBLOCK) | int(zmq.SNDMORE)
_EVENTS, _RCVMORE, _POLLIN = int(zmq.EVENTS), int(zmq.RCVMORE), int(zmq.POLLIN)
ZmqSocket = zmq.Socket[bytes]


class Sent(enum.Enum):
    """What became of a send: full queues and missing routes are left to the protocol's resends."""

    OK = enum.auto()
    FULL = enum.auto()
    GONE = enum.auto()


class Receiver(Protocol):
    """Who is told what comes in."""

    def on_frames(self, route: Route, frames: list[Any], key: str | None) -> None:
        """A message came in."""

    def on_monitor(self, socket_id: int, event: str, value: int) -> None:
        """The transport of a socket changed."""

    def on_zap(self, frames: list[bytes]) -> list[bytes]:
        """A peer wants in."""


class Sockets:
    """A zmq context, its sockets and what tells that they are readable.

    Args:
        limits: bounds the sockets are given.
        receiver: who is told.
    """

    def __init__(self, limits: Limits, receiver: Receiver) -> None:
        self._limits = limits
        self._receiver = receiver
        self._context = zmq.Context()
        # Up to four sockets per dialled link (two lanes and their monitors) and a few of the node's own.
        most = int(self._context.get(zmq.SOCKET_LIMIT))
        self._context.set(zmq.MAX_SOCKETS, min(64 + 8 * limits.max_peers, most))
        self._epoll = select.epoll()
        self._sockets: dict[int, ZmqSocket] = {}
        self._secure: set[int] = set()
        self._monitors: dict[int, ZmqSocket] = {}
        self._takers: dict[int, Callable[[], bool]] = {}  # by file descriptor; True: there is more
        self._fds: dict[ZmqSocket, int] = {}
        self._touched: set[int] = set()  # descriptors whose sockets may be readable without saying so
        self._next_socket_id = 1

    # -- readiness ----------------------------------------------------------------------------------

    def watch_fd(self, fd: int, take: Callable[[], bool]) -> None:
        """Have `take` called when a descriptor is readable; it returns True if there may be more."""
        self._takers[fd] = take
        self._epoll.register(fd, select.EPOLLIN)

    def poll(self, timeout_s: float | None) -> list[int]:
        """Wait until something is readable; the only method that may be called without the lock."""
        try:
            return [fd for fd, _ in self._epoll.poll(timeout_s)]
        except (ValueError, OSError):  # it was closed meanwhile
            return []

    def take(self, fds: list[int]) -> None:
        """Read what is there, some messages of each."""
        for fd in fds:
            # A descriptor may have been closed by what another one brought in this turn.
            taker = self._takers.get(fd)
            if taker is not None and taker():
                self._touched.add(fd)

    @property
    def unfinished(self) -> bool:
        """True if a socket may be readable that no descriptor will tell of."""
        return bool(self._touched)

    def take_unfinished(self) -> None:
        """Read from sockets that were touched or not read empty."""
        touched, self._touched = self._touched, set()
        self.take(list(touched))

    # -- sockets ------------------------------------------------------------------------------------

    def bind(self, endpoint: str, keys: Keys | None) -> str:
        """Open a listening socket; with keys it speaks CURVE and asks on_zap, without it is plaintext."""
        sock = self._open(zmq.ROUTER, endpoint)
        sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
        try:
            if keys is not None:
                self._open_zap()
                sock.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
                sock.curve_server = True
                sock.curve_secretkey = keys.secret.encode()
            socket_id = self._watch(sock)
            sock.bind(endpoint)
        except zmq.ZMQError as error:
            self._discard(sock)
            raise BindError(
                f"cannot bind {endpoint}: {error.strerror}; choose another port, or stop who has it"
            ) from None
        if keys is not None:
            self._secure.add(socket_id)
        self._add(sock, lambda: self._take_router(socket_id, sock))
        return sock.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")

    def dial(self, endpoint: str, keys: Keys | None, server_key: str | None) -> int:
        """Open a dialling socket; on_monitor tells how it goes. Returns its socket id."""
        sock = self._open(zmq.DEALER, endpoint)
        # Not IMMEDIATE: with it libzmq 4.3.5 throws away what was received and not yet read when a connection
        # ends (40 of 40 tails lost). What it is for, no stale requests at a new server, the greeting does:
        # a message that comes by a new connection ahead of hello is answered by a reset, never executed.
        sock.setsockopt(zmq.RECONNECT_IVL, 50)  # libzmq adds jitter of its own
        sock.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        sock.setsockopt(zmq.CONNECT_TIMEOUT, 5000)
        try:
            if keys is not None and server_key is not None:
                sock.curve_publickey = keys.public.encode()
                sock.curve_secretkey = keys.secret.encode()
                sock.curve_serverkey = server_key.encode()
            socket_id = self._watch(sock)
            sock.connect(endpoint)
        except zmq.ZMQError as error:
            self._discard(sock)
            raise ConfigError(f"cannot dial {endpoint}: {error.strerror}; expected tcp://HOST:PORT") from None
        self._add(sock, lambda: self._take_dealer(socket_id, sock))
        return socket_id

    def close(self, socket_id: int, linger_s: float) -> None:
        """Close a socket; what it still has to send gets linger_s seconds in the background."""
        sock = self._sockets.get(socket_id)
        if sock is not None:
            sock.setsockopt(zmq.LINGER, int(linger_s * 1000))
            self._discard(sock)

    def send(self, route: Route, frames: Sequence[Any]) -> Sent:
        """Hand a message to libzmq without waiting."""
        socket_id, routing_id = route
        sock = self._sockets.get(socket_id)
        if sock is None:
            return Sent.GONE
        # Sending handles commands of the io thread, and so may eat the news that something has come in.
        self._touched.add(self._fds[sock])
        try:
            if routing_id:
                _send(sock, routing_id, _NOBLOCK_MORE, True, False)
            last = len(frames) - 1
            for index, frame in enumerate(frames):
                flags = _NOBLOCK if index == last else _NOBLOCK_MORE
                _send(sock, frame, flags, len(frame) < ZERO_COPY_BYTES, False)
        except zmq.Again:
            return Sent.FULL
        except zmq.ZMQError:
            return Sent.GONE
        return Sent.OK

    def shut(self, linger_ms: int) -> None:
        """Close everything; waits for lingering bytes, linger_ms at most."""
        for socket_id, sock in list(self._sockets.items()):
            if socket_id:
                sock.setsockopt(zmq.LINGER, linger_ms)
            self._discard(sock)
        self._context.term()
        self._epoll.close()

    # -- inside -------------------------------------------------------------------------------------

    def _take_router(self, socket_id: int, sock: ZmqSocket) -> bool:
        secure = socket_id in self._secure
        for _ in range(_BURST):
            if not _get(sock, _EVENTS) & _POLLIN:
                return False
            routing_id = _recv(sock, _NOBLOCK)
            if secure:
                first = _recv(sock, _NOBLOCK, False)
                frames: list[Any] = [first.bytes]
                # Asked for every message: a route alone proves nothing about who sent it.
                key = str(first.get("User-Id"))
            else:
                frames, key = [_recv(sock, _NOBLOCK)], None
            if _get(sock, _RCVMORE):
                _take_rest(sock, frames)
            self._receiver.on_frames((socket_id, routing_id), frames, key)
        return True

    def _take_dealer(self, socket_id: int, sock: ZmqSocket) -> bool:
        for _ in range(_BURST):
            if sock.closed or not _get(sock, _EVENTS) & _POLLIN:
                return False
            frames = [_recv(sock, _NOBLOCK)]
            if _get(sock, _RCVMORE):
                _take_rest(sock, frames)
            self._receiver.on_frames((socket_id, b""), frames, None)
        return True

    def _take_monitor(self, socket_id: int, monitor: ZmqSocket) -> bool:
        for _ in range(_BURST):
            if monitor.closed or not _get(monitor, _EVENTS) & _POLLIN:
                return False
            event = parse_monitor_message(monitor.recv_multipart(zmq.NOBLOCK))
            name = zmq.Event(event["event"]).name or ""
            self._receiver.on_monitor(socket_id, name, int(event["value"]))
        return True

    def _take_zap(self, sock: ZmqSocket) -> bool:
        while _get(sock, _EVENTS) & _POLLIN:
            frames = sock.recv_multipart(zmq.NOBLOCK)
            # Whatever happens, there is an answer: without one the socket could not receive again.
            try:
                answer = self._receiver.on_zap(frames)
            except Exception:
                _log.exception("edgebus: internal error while a peer was let in")
                answer = zap_denied(frames)
            sock.send_multipart(answer)
        return False

    def _open(self, kind: int, endpoint: str) -> ZmqSocket:
        sock: ZmqSocket = self._context.socket(kind)
        heartbeat_ms = int(self._limits.heartbeat_s * 1000)
        try:
            for option, value in (
                (zmq.LINGER, 1000),
                (zmq.MAXMSGSIZE, max(self._limits.max_frame_bytes, self._limits.max_header_bytes)),
                (zmq.HANDSHAKE_IVL, _HANDSHAKE_MS),
                (zmq.HEARTBEAT_IVL, heartbeat_ms),
                (zmq.HEARTBEAT_TIMEOUT, int(self._limits.silence_s * 1000)),
                (zmq.SNDHWM, 1000),
                (zmq.RCVHWM, 1000),
                # On an IPv4 address it would only make LAST_ENDPOINT unreadable ([::ffff:127.0.0.1]).
                (zmq.IPV6, int("[" in endpoint)),
            ):
                sock.setsockopt(option, value)
        except BaseException:
            sock.close(linger=0)  # one left open would keep the context from ending
            raise
        return sock

    def _open_zap(self) -> None:
        if 0 in self._sockets:
            return
        sock: ZmqSocket = self._context.socket(zmq.REP)
        sock.setsockopt(zmq.LINGER, 0)
        sock.bind(ZAP_ENDPOINT)
        self._sockets[0] = sock
        self._add(sock, lambda: self._take_zap(sock))

    def _watch(self, sock: ZmqSocket) -> int:
        socket_id = self._next_socket_id
        self._next_socket_id += 1
        self._sockets[socket_id] = sock
        monitor: ZmqSocket = sock.get_monitor_socket(_MONITORED)
        self._monitors[socket_id] = monitor
        self._add(monitor, lambda: self._take_monitor(socket_id, monitor))
        return socket_id

    def _add(self, sock: ZmqSocket, take: Callable[[], bool]) -> None:
        fd = int(sock.getsockopt(zmq.FD))
        self._fds[sock] = fd
        self._touched.add(fd)
        self.watch_fd(fd, take)

    def _discard(self, sock: ZmqSocket) -> None:
        socket_id = next((key for key, value in self._sockets.items() if value is sock), -1)
        monitor = self._monitors.pop(socket_id, None)
        for each in (sock, monitor):
            if each is not None and (fd := self._fds.pop(each, None)) is not None:
                del self._takers[fd]
                self._touched.discard(fd)
                self._epoll.unregister(fd)
        self._sockets.pop(socket_id, None)
        self._secure.discard(socket_id)
        if monitor is not None:
            sock.disable_monitor()
            monitor.close(linger=0)
        sock.close()


def _take_rest(sock: ZmqSocket, frames: list[Any]) -> None:
    """The frames after the first: large ones stay in the memory libzmq received them into."""
    more = True
    while more:
        frame = _recv(sock, _NOBLOCK, False)
        more = frame.more
        frames.append(frame.buffer if len(frame) >= ZERO_COPY_BYTES else frame.bytes)
