"""The one thread that owns every socket of a node. No protocol in here: bytes, routes and wake-ups only."""

from __future__ import annotations

import contextlib
import enum
import logging
import math
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import zmq
from zmq.utils.monitor import parse_monitor_message

from edgebus.config import Limits
from edgebus.errors import BindError, ConfigError, NodeClosed
from edgebus.hub import Route
from edgebus.keys import Keys
from edgebus.zap import ZAP_DOMAIN, ZAP_ENDPOINT, zap_denied

T = TypeVar("T")
_log = logging.getLogger("edgebus")
_BURST = 64  # messages taken from one socket before the others get their turn
_HANDSHAKE_MS = 2000  # libzmq's own 30 s lets idle raw connections pile up
_MONITORED = (
    zmq.EVENT_CONNECT_DELAYED
    | zmq.EVENT_CONNECTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


class Sent(enum.Enum):
    """What became of a send: full queues and missing routes are left to the protocol's resends."""

    OK = enum.auto()
    FULL = enum.auto()
    GONE = enum.auto()


class Handler(Protocol):
    """What the runner drives; every method is called on its thread."""

    def on_frames(self, route: Route, frames: list[bytes], key: str | None, now: float) -> None:
        """A message came in."""

    def on_monitor(self, socket_id: int, event: str, value: int, now: float) -> None:
        """The transport of a socket changed."""

    def on_turn(self, now: float) -> float:
        """All that was ready has been handed over; returns the time of the next timer."""

    def on_zap(self, frames: list[bytes]) -> list[bytes]:
        """A peer wants in."""


class Runner:
    """Owns a zmq context, its sockets and the thread they live on.

    Args:
        name: of the thread.
        limits: bounds the sockets are given.
        handler: what is driven.
    """

    def __init__(self, name: str, limits: Limits, handler: Handler) -> None:
        self._limits = limits
        self._handler = handler
        self._pid = os.getpid()
        self._context = zmq.Context()
        # Two sockets per dialled link (it and its monitor) and a few of the node's own.
        most = int(self._context.get(zmq.SOCKET_LIMIT))
        self._context.set(zmq.MAX_SOCKETS, min(64 + 4 * limits.max_peers, most))
        self._poller = zmq.Poller()
        self._sockets: dict[int, zmq.Socket[bytes]] = {}
        self._secure: set[int] = set()
        self._monitors: dict[int, zmq.Socket[bytes]] = {}
        self._sources: dict[Any, Callable[[], None]] = {}  # by what the poller reports
        self._next_socket_id = 1
        self._commands: deque[tuple[Callable[..., object], tuple[Any, ...], Callable[[], object]]] = deque()
        # Reentrant: the garbage collector may drop a Request, and so submit its refusal, at any allocation.
        self._lock = threading.RLock()
        self._closed = False
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._woken = False
        self._stop_linger_ms: int | None = None
        self._add(self._wake_read.fileno(), self._on_wake)
        self._thread = threading.Thread(target=self._run, name=f"edgebus-{name}", daemon=True)
        self._thread.start()

    # -- any thread ---------------------------------------------------------------------------------

    def submit(
        self, function: Callable[..., object], *args: Any, if_closed: Callable[[], object] = lambda: None
    ) -> None:
        """Run a function on the runner thread soon; if that ends before its turn comes, `if_closed` instead.

        Raises:
            NodeClosed: the loop has ended, or this is a forked child; neither function will run.
        """
        self.check()
        with self._lock:
            if self._closed:
                raise NodeClosed("the node is closed: make a new Node")
            self._commands.append((function, args, if_closed))
            if not self._woken:
                self._woken = True
                with contextlib.suppress(BlockingIOError):  # full of wake-ups already
                    self._wake_write.send(b"\0")

    def submit_unless_closed(self, function: Callable[..., object], *args: Any) -> None:
        """Like submit, for what a closed node has done already."""
        with contextlib.suppress(NodeClosed):
            self.submit(function, *args)

    def call(self, function: Callable[..., T], *args: Any, timeout_s: float = 10.0) -> T:
        """Run a function on the runner thread and wait for what it returns or raises."""
        done = threading.Event()
        box: list[Any] = []

        def run() -> None:
            try:
                box.append((function(*args), None))
            except zmq.ZMQError as error:
                box.append((None, ConfigError(f"libzmq: {error.strerror}: lower max_peers, or see `ulimit -n`")))
            except Exception as error:
                box.append((None, error))
            done.set()

        def give_up() -> None:
            box.append((None, NodeClosed("the node was closed meanwhile: make a new Node")))
            done.set()

        self.submit(run, if_closed=give_up)
        if not done.wait(timeout_s):
            raise NodeClosed(f"the node's thread did not answer within {timeout_s:.0f} s: it is stuck")
        result, error = box[0]
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def check(self) -> None:
        """Raise NodeClosed in a forked child, before it takes a lock that another thread held at the fork."""
        if os.getpid() != self._pid:
            raise NodeClosed(
                f"the node belongs to process {self._pid}, this is its fork {os.getpid()}: make a new Node here"
            )

    @property
    def is_own_process(self) -> bool:
        """False in a forked child."""
        return os.getpid() == self._pid

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread to end; True if it has."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # -- the runner thread --------------------------------------------------------------------------

    def stop(self, linger_s: float) -> None:
        """End the loop after this turn; unsent bytes get linger_s seconds."""
        self._stop_linger_ms = max(0, int(linger_s * 1000))

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
        self._add(sock, lambda: self._receive_router(socket_id, sock))
        return sock.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")

    def dial(self, endpoint: str, keys: Keys | None, server_key: str | None) -> int:
        """Open a dialling socket; on_monitor tells how it goes. Returns its socket id."""
        sock = self._open(zmq.DEALER, endpoint)
        # Not IMMEDIATE: with it libzmq 4.3.5 throws away what was received and not yet read when a connection
        # ends (40 of 40 tails lost). What it is for, no stale requests at a new server, the greeting does:
        # a message that comes by a new connection ahead of hello is answered by a reset, never executed.
        sock.setsockopt(zmq.RECONNECT_IVL, 50)
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
        self._add(sock, lambda: self._receive_dealer(socket_id, sock))
        return socket_id

    def close_socket(self, socket_id: int, linger_s: float) -> None:
        """Close a socket; what it still has to send gets linger_s seconds in the background."""
        sock = self._sockets.get(socket_id)
        if sock is not None:
            sock.setsockopt(zmq.LINGER, int(linger_s * 1000))
            self._discard(sock)

    def send(self, route: Route, frames: Sequence[bytes]) -> Sent:
        """Hand a message to libzmq without waiting."""
        sock = self._sockets.get(route[0])
        if sock is None:
            return Sent.GONE
        parts = [route[1], *frames] if route[1] else frames
        try:
            sock.send_multipart(parts, flags=zmq.NOBLOCK, copy=True)
        except zmq.Again:
            return Sent.FULL
        except zmq.ZMQError:
            return Sent.GONE
        return Sent.OK

    # -- inside -------------------------------------------------------------------------------------

    def _run(self) -> None:
        next_at = math.inf
        try:
            while self._stop_linger_ms is None:
                wait_s = next_at - time.monotonic()
                wait_ms = None if wait_s == math.inf else max(0, math.ceil(wait_s * 1000))
                for source, _ in self._poller.poll(wait_ms):
                    # A source may have been closed by what another one brought in this turn.
                    if (receive := self._sources.get(source)) is not None:
                        self.guard(receive)
                next_at = self.guard(self._turn) or time.monotonic() + 0.1
        finally:
            self._give_up_commands()
            self._shut(self._stop_linger_ms or 0)

    def _turn(self) -> float:
        # What comes after the command to stop would find every link closed: it is given up instead.
        while self._commands and self._stop_linger_ms is None:
            function, args, _ = self._commands.popleft()
            self.guard(function, *args)
        return self._handler.on_turn(time.monotonic())

    def _give_up_commands(self) -> None:
        with self._lock:
            self._closed = True
            left = list(self._commands)
            self._commands.clear()
        for _, _, if_closed in left:
            self.guard(if_closed)

    def guard(self, function: Callable[..., T], *args: Any) -> T | None:
        """A fault in one message or command must not take the whole node down."""
        try:
            return function(*args)
        except Exception:
            _log.exception("edgebus: internal error in %r", function)
            return None

    def _on_wake(self) -> None:
        # First read, then clear, then take the commands. Cleared first, a byte written in between would be
        # read away and leave the flag set, and nobody would wake this thread any more.
        with contextlib.suppress(BlockingIOError):
            self._wake_read.recv(4096)
        self._woken = False

    def _receive_router(self, socket_id: int, sock: zmq.Socket[bytes]) -> None:
        secure = socket_id in self._secure
        for _ in range(_BURST):
            if not _readable(sock):
                return
            routing_id = sock.recv(zmq.NOBLOCK)
            first = sock.recv(zmq.NOBLOCK, copy=False)
            frames = [first.bytes]
            if first.more:
                frames += sock.recv_multipart(zmq.NOBLOCK)
            # Asked for every message: a route alone proves nothing about who sent it.
            key = str(first.get("User-Id")) if secure else None
            self.guard(self._handler.on_frames, (socket_id, routing_id), frames, key, time.monotonic())

    def _receive_dealer(self, socket_id: int, sock: zmq.Socket[bytes]) -> None:
        for _ in range(_BURST):
            if not _readable(sock):
                return
            frames = sock.recv_multipart(zmq.NOBLOCK)
            self.guard(self._handler.on_frames, (socket_id, b""), frames, None, time.monotonic())

    def _receive_monitor(self, socket_id: int, monitor: zmq.Socket[bytes]) -> None:
        for _ in range(_BURST):
            if monitor.closed or not _readable(monitor):
                return
            event = parse_monitor_message(monitor.recv_multipart(zmq.NOBLOCK))
            name = zmq.Event(event["event"]).name or ""
            self._handler.on_monitor(socket_id, name, int(event["value"]), time.monotonic())

    def _receive_zap(self, sock: zmq.Socket[bytes]) -> None:
        while _readable(sock):
            frames = sock.recv_multipart(zmq.NOBLOCK)
            # Whatever happens, there is an answer: without one the socket could not receive again.
            sock.send_multipart(self.guard(self._handler.on_zap, frames) or zap_denied(frames))

    def _open(self, kind: int, endpoint: str) -> zmq.Socket[bytes]:
        sock: zmq.Socket[bytes] = self._context.socket(kind)
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
        sock: zmq.Socket[bytes] = self._context.socket(zmq.REP)
        sock.setsockopt(zmq.LINGER, 0)
        sock.bind(ZAP_ENDPOINT)
        self._sockets[0] = sock
        self._add(sock, lambda: self._receive_zap(sock))

    def _watch(self, sock: zmq.Socket[bytes]) -> int:
        socket_id = self._next_socket_id
        self._next_socket_id += 1
        self._sockets[socket_id] = sock
        monitor: zmq.Socket[bytes] = sock.get_monitor_socket(_MONITORED)
        self._monitors[socket_id] = monitor
        self._add(monitor, lambda: self._receive_monitor(socket_id, monitor))
        return socket_id

    def _add(self, source: Any, receive: Callable[[], None]) -> None:
        self._sources[source] = receive
        self._poller.register(source, zmq.POLLIN)

    def _discard(self, sock: zmq.Socket[bytes]) -> None:
        socket_id = next((key for key, value in self._sockets.items() if value is sock), -1)
        monitor = self._monitors.pop(socket_id, None)
        for each in (sock, monitor):
            if self._sources.pop(each, None) is not None:
                self._poller.unregister(each)
        self._sockets.pop(socket_id, None)
        self._secure.discard(socket_id)
        if monitor is not None:
            sock.disable_monitor()
            monitor.close(linger=0)
        sock.close()

    def _shut(self, linger_ms: int) -> None:
        for socket_id, sock in list(self._sockets.items()):
            if socket_id:
                sock.setsockopt(zmq.LINGER, linger_ms)
            self._discard(sock)
        self._context.term()  # waits for lingering bytes, linger_ms at most
        self._wake_read.close()
        self._wake_write.close()


def _readable(sock: zmq.Socket[bytes]) -> bool:
    return bool(int(sock.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
