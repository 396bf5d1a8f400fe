"""The sockets of a node: opening, receiving, sending, closing. No protocol in here, and no lock: the runner's is held.

libzmq's sockets may be used from any thread, one at a time, with a full fence in between; the runner's lock is one.
"""

from __future__ import annotations

import enum
import errno
import itertools
import logging
import os
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import zmq

from edgebus.attached import Route
from edgebus.config import Limits
from edgebus.errors import BindError, ConfigError
from edgebus.ipc import bind_kept_from_others, keep_what_is_there
from edgebus.keys import Keys
from edgebus.local import SCHEME, Local
from edgebus.port import PlainPort, open_port
from edgebus.queues import UNENDED_PENDING, most_sending_bytes, most_unread
from edgebus.rawzmq import BURST, ZmqSocket, end_message
from edgebus.readiness import Opened, Readiness, Taker
from edgebus.tcp import can_look, open_guard
from edgebus.unended import Unended
from edgebus.zap import ZAP_DOMAIN, ZAP_ENDPOINT, zap_denied

_log = logging.getLogger("edgebus")
_CURES = {
    errno.EADDRNOTAVAIL: "bind an address of this machine, or 0.0.0.0 for all of them",
    errno.ENODEV: "bind an address of this machine, or 0.0.0.0 for all of them",
    errno.ENOENT: "make its directory, of mode 0700",
    errno.EACCES: "choose a port from 1024 on, or a path that is ours to write",
}
_LANE_PATIENCE = 2.5
"""libzmq's beat on a connection that carries large contents one way waits behind them for its answer: on a slow link
for longer than silence_s. The link's own beat, on the control lane, does not."""
_LANE_BEAT_S = 1.0
"""A bulk lane beats no more often: a listener that beats less often would take the beats of weeks for a message without
an end (unended.py)."""
_GONE_S = 60.0  # what is known of a peer may be kept for days, or for ever; not a connection that it has left
_HANDSHAKE_MS = 2000  # libzmq's own 30 s lets idle raw connections pile up
_NOT_AGAIN_MS = 3_600_000  # with -1, no reconnect, libzmq throws away what came before the other side closed
_EVENT = struct.Struct("=hi")  # first frame of a monitor's message: what, and a value; the second one is an address
_MONITORED = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_CONNECT_DELAYED
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


class Receiver(Protocol):
    """Who is told what comes in."""

    def on_monitor(self, socket_id: int, event: str, value: int) -> None:
        """The transport of a socket changed."""

    def on_zap(self, frames: list[bytes]) -> list[bytes]:
        """A peer wants in."""

    def on_frames(self, route: Route, frames: list[Any], key: str | None) -> None:
        """A message came in from a node of this process."""

    def defer(
        self, function: Callable[..., object], *args: Any, if_closed: Callable[[], object] = lambda: None
    ) -> None:
        """Run a function with the lock held soon."""


class Sockets(Readiness):
    """A zmq context, its sockets and what tells that they are readable.

    Args:
        limits: bounds the sockets are given.
        receiver: who is told.
    """

    def __init__(self, limits: Limits, receiver: Receiver) -> None:
        super().__init__()
        self._limits = limits
        self._receiver = receiver
        self._local = Local(limits, receiver)
        self._context = zmq.Context()
        # Up to four sockets per dialled link (two lanes and their monitors) and a few of the node's own.
        most = int(self._context.get(zmq.SOCKET_LIMIT))
        self._context.set(zmq.MAX_SOCKETS, min(64 + 8 * limits.max_peers, most))
        self.by_id: dict[int, Opened] = {}
        self._zap: ZmqSocket | None = None
        self._monitors: dict[int, ZmqSocket] = {}
        self._ports: dict[ZmqSocket, PlainPort] = {}  # of monitors and of zap
        self._untold: dict[int, bytes] = {}  # events by socket, that the receiver was being told
        self._unanswered: list[Any] | None = None  # what zap was asked last
        self._fds: dict[ZmqSocket, int] = {}
        self._ids = itertools.count(1)
        most_bytes = UNENDED_PENDING * limits.max_pending_bytes
        # Of an honest peer as much comes as it has credit for.
        self._guard = open_guard(most_bytes, limits.max_frame_bytes + limits.bulk_bytes)
        self.unended = Unended(
            limits.max_frame_bytes, most_bytes, limits.heartbeat_s, guard=self._guard, touch=self._touch_all
        )
        if self._guard is not None:
            self.watch_fd(self._guard.fileno(), self._take_question)

    # -- sockets ------------------------------------------------------------------------------------

    def reserve(self, endpoint: str) -> int:
        """The id of a socket that is about to be opened; without the lock.

        Whoever keeps it before can close that socket however far its opening has come: a signal handler may raise
        between any two steps.
        """
        return self._local.reserve() if endpoint.startswith(SCHEME) else next(self._ids)

    def bind(self, endpoint: str, keys: Keys | None, socket_id: int | None = None) -> str:
        """Open a listening socket; with keys it speaks CURVE and asks on_zap, without it is plaintext."""
        socket_id = self.reserve(endpoint) if socket_id is None else socket_id
        if endpoint.startswith(SCHEME):
            return self._local.bind(endpoint, keys, socket_id)
        sock = self._open(zmq.ROUTER, endpoint, is_bulk=True)
        try:
            sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
            self._bound_unread(sock)
            if keys is not None:
                self._open_zap()
                sock.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
                sock.curve_server = True
                sock.curve_secretkey = keys.secret.encode()
            opened = self._watch(sock, socket_id, is_router=True, is_secure=keys is not None)
            if endpoint.startswith("ipc://"):
                keep_what_is_there(endpoint)
            if keys is None and endpoint.startswith("ipc://"):
                bind_kept_from_others(lambda: sock.bind(endpoint))
            else:
                sock.bind(endpoint)
            endpoint = sock.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
            _count(opened, endpoint, keys)
            self._add(sock, opened)
            return endpoint
        except zmq.ZMQError as error:
            self._discard(sock)
            cure = _CURES.get(error.errno or 0, "choose another port, or stop who has it")
            raise BindError(f"cannot bind {endpoint}: {error.strerror}; {cure}") from None
        except BaseException:  # of a signal handler
            self._discard(sock)
            raise

    def dial(
        self,
        endpoint: str,
        keys: Keys | None,
        server_key: str | None,
        *,
        is_bulk: bool = False,
        socket_id: int | None = None,
    ) -> int:
        """Open a dialling socket; on_monitor tells how it goes. Returns its socket id."""
        socket_id = self.reserve(endpoint) if socket_id is None else socket_id
        if endpoint.startswith(SCHEME):
            return self._local.dial(endpoint, keys, server_key, socket_id)
        sock = self._open(zmq.DEALER, endpoint, is_bulk=is_bulk)
        try:
            # Not IMMEDIATE: with it libzmq 4.3.5 throws away what was received and not yet read when a connection
            # ends (40 of 40 tails lost). What it is for, no stale requests at a new server, the greeting does:
            # a message that comes by a new connection ahead of hello is answered by a reset, never executed.
            sock.setsockopt(zmq.RECONNECT_IVL, 50)  # libzmq adds jitter of its own
            sock.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
            sock.setsockopt(zmq.CONNECT_TIMEOUT, 5000)
            if endpoint.startswith("ipc://"):  # nothing counts bytes there, and the kernel says who is gone
                self._bound_unread(sock)
            if is_bulk:
                sock.setsockopt(zmq.HEARTBEAT_IVL, int(max(self._limits.heartbeat_s, _LANE_BEAT_S) * 1000))
            if keys is not None and server_key is not None:
                sock.curve_publickey = keys.public.encode()
                sock.curve_secretkey = keys.secret.encode()
                sock.curve_serverkey = server_key.encode()
            opened = self._watch(sock, socket_id)
            _count(opened, endpoint, keys)
            sock.connect(endpoint)
            self._add(sock, opened)
        except zmq.ZMQError as error:
            self._discard(sock)
            raise ConfigError(f"cannot dial {endpoint}: {error.strerror}; expected tcp://HOST:PORT") from None
        except BaseException:  # of a signal handler
            self._discard(sock)
            raise
        return socket_id

    def open_raw(self, endpoint: str, take: Taker, keep: Callable[[ZmqSocket], object]) -> None:
        """A connection without a protocol, tried once; its pieces come behind a routing id, an empty one at each end.

        Args:
            endpoint: tcp or ipc.
            take: told that something is there.
            keep: called with the socket first of all.

        Raises:
            zmq.ZMQError: no more sockets, or not an endpoint of tcp or ipc.
        """
        sock = self._open(zmq.STREAM, endpoint, is_bulk=False)
        try:
            keep(sock)
            for option, value in ((zmq.LINGER, 0), (zmq.RECONNECT_IVL, _NOT_AGAIN_MS), (zmq.CONNECT_TIMEOUT, 5000)):
                sock.setsockopt(option, value)
            sock.setsockopt(zmq.RCVHWM, 100)  # pieces of 8 KiB at most, whatever a listener sends
            sock.connect(endpoint)
            self._add(sock, take)
        except BaseException:
            self._discard(sock, 0)
            raise

    def close_raw(self, sock: ZmqSocket) -> None:
        """Close such a connection."""
        self._discard(sock)

    def close(self, socket_id: int, linger_s: float) -> None:
        """Close a socket; what it still has to send gets linger_s seconds in the background."""
        opened = self.by_id.get(socket_id)
        if opened is not None:
            self._discard(opened.sock, int(linger_s * 1000))
        else:
            self._local.close(socket_id)

    def send(self, route: Route, frames: Sequence[Any]) -> Sent:
        """Hand a message to libzmq without waiting."""
        socket_id, routing_id = route
        opened = self.by_id.get(socket_id)
        if opened is None:
            return self._send_local(route, frames)
        # Sending handles commands of the io thread, and so may eat the news that something has come in.
        self.touched.add(opened.fd)
        try:
            opened.port.send_all(routing_id, frames)
        except zmq.Again:
            return Sent.FULL
        except zmq.ZMQError:
            return Sent.GONE
        except BaseException:
            end_message(opened.sock)
            raise
        return Sent.OK

    def shut(self, linger_ms: int) -> None:
        """Close everything; waits for lingering bytes, linger_ms at most."""
        self._local.shut()
        for opened in list(self.by_id.values()):
            self._discard(opened.sock, linger_ms)
        for sock in list(self._fds):  # that of zap, and raw ones: one left open would keep the context from ending
            self._discard(sock)
        if self._guard is not None:
            self.unwatch_fd(self._guard.fileno())
            self._guard.close()
        self._context.term()
        self._poller.close()

    # -- inside -------------------------------------------------------------------------------------

    def _send_local(self, route: Route, frames: Sequence[Any]) -> Sent:
        handed_over = self._local.send(route, frames)
        if handed_over is None:
            return Sent.GONE
        return Sent.OK if handed_over else Sent.FULL

    def _take_monitor(self, socket_id: int, port: PlainPort) -> bool:
        for _ in range(BURST):
            event = self._untold.get(socket_id)
            if event is None:
                event = port.take()
                if event is None:
                    return False
                if not port.more:  # the rest of one that a signal handler interrupted, which only pyzmq lets it
                    continue
                self._untold[socket_id] = event  # until it has been told, whatever a signal handler raises meanwhile
                port.take_rest([])
            what, value = _EVENT.unpack(event)
            if what in (zmq.EVENT_ACCEPTED, zmq.EVENT_CONNECTED):
                # Deferred, since the time of the next look counts from the next turn on.
                self._receiver.defer(self._connected, socket_id, value, what == zmq.EVENT_ACCEPTED)
            self._receiver.on_monitor(socket_id, zmq.Event(what).name or "", value)
            self._untold.pop(socket_id, None)
        return True

    def _touch_all(self) -> None:
        self.touched.update([opened.fd for opened in self.by_id.values()])

    def _take_question(self, event: int) -> bool:
        """The guard of the connections asks for a look at them."""
        if self._guard is not None:
            self._receiver.defer(self.unended.look_soon)
            with suppress(BlockingIOError):
                os.read(self._guard.fileno(), 8)
        return False

    def _connected(self, socket_id: int, fd: int, is_accepted: bool) -> None:
        opened = self.by_id.get(socket_id)
        if opened is not None and opened.tcp_port:
            address = _bound_to(opened.sock.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")) if is_accepted else ""
            now = time.monotonic()
            self.unended.opened(fd, opened.port, opened.tcp_port, is_accepted=is_accepted, now=now, address=address)

    def _take_zap(self, port: PlainPort) -> bool:
        while True:
            question = self._unanswered
            if question is None:
                first = port.take()
                if first is None:
                    return False
                question = self._unanswered = [first]  # likewise, until it has its answer
                if port.more:
                    port.take_rest(question)
            # Whatever happens, there is an answer: without one the socket could not receive again.
            try:
                answer = self._receiver.on_zap(question)
            except Exception:
                _log.exception("edgebus: internal error while a peer was let in")
                answer = zap_denied(question)
            with suppress(zmq.ZMQError):  # it has one already
                port.send_all(b"", answer)
            self._unanswered = None

    def _open(self, kind: int, endpoint: str, *, is_bulk: bool) -> ZmqSocket:
        sock: ZmqSocket = self._context.socket(kind)
        heartbeat_ms = int(self._limits.heartbeat_s * 1000)
        silence_s = self._limits.silence_s * (_LANE_PATIENCE if is_bulk else 1.0)
        try:
            for option, value in (
                (zmq.LINGER, 1000),
                (zmq.MAXMSGSIZE, max(self._limits.max_frame_bytes, self._limits.max_header_bytes)),
                (zmq.HANDSHAKE_IVL, _HANDSHAKE_MS),
                (zmq.HEARTBEAT_IVL, heartbeat_ms),
                (zmq.HEARTBEAT_TIMEOUT, int(silence_s * 1000)),
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

    def _bound_unread(self, sock: ZmqSocket) -> None:
        """Bound what is received and not read, in messages.

        What is full hears no answer to libzmq's beat either: who is only read late is not to be cut for it. Who is gone
        is known by the link's own beat; here it is for the connection that he has left.
        """
        gone_s = max(min(self._limits.forget_s, _GONE_S), _LANE_PATIENCE * self._limits.silence_s)
        sock.setsockopt(zmq.RCVHWM, most_unread(self._limits))
        sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, int(gone_s * 1000))

    def _open_zap(self) -> None:
        if self._zap is not None:
            return
        sock: ZmqSocket = self._context.socket(zmq.REP)
        try:
            sock.setsockopt(zmq.LINGER, 0)
            sock.bind(ZAP_ENDPOINT)
            port = self._ports[sock] = open_port(sock, False, False)
            self._add(sock, lambda event: self._take_zap(port))
            self._zap = sock
        except BaseException:
            self._discard(sock)
            raise

    def _watch(self, sock: ZmqSocket, socket_id: int, is_router: bool = False, is_secure: bool = False) -> Opened:
        port = open_port(sock, is_router, is_secure)
        port.max_sending_bytes = most_sending_bytes(self._limits)
        opened = self.by_id[socket_id] = Opened(sock, socket_id, int(sock.getsockopt(zmq.FD)), port)
        monitor: ZmqSocket = sock.get_monitor_socket(_MONITORED)
        self._monitors[socket_id] = monitor
        told = self._ports[monitor] = open_port(monitor, False, False)
        self._add(monitor, lambda event: self._take_monitor(socket_id, told))
        return opened

    def _add(self, sock: ZmqSocket, take: Taker | Opened) -> None:
        fd = int(sock.getsockopt(zmq.FD))
        self._fds[sock] = fd
        self.touched.add(fd)
        self.watch_fd(fd, take)

    def _discard(self, sock: ZmqSocket, linger_ms: int | None = None) -> None:
        try:
            self._let_go(sock, linger_ms)
        except BaseException:  # of a signal handler: every step may come twice, and none is left out
            self._let_go(sock, linger_ms)
            raise

    def _let_go(self, sock: ZmqSocket, linger_ms: int | None) -> None:
        socket_id = next((key for key, opened in self.by_id.items() if opened.sock is sock), -1)
        monitor = self._monitors.get(socket_id)
        for each in (sock, monitor):
            if each is not None and (fd := self._fds.get(each)) is not None:
                self.unwatch_fd(fd)
                del self._fds[each]
            if each is not None and (port := self._ports.pop(each, None)) is not None:
                port.close()
        if opened := self.by_id.get(socket_id):
            self.unended.closed(opened.port)
            opened.port.close()
        if not sock.closed:
            sock.disable_monitor()  # at once: its name is made of a descriptor, which the next socket may have
        if monitor is not None:
            monitor.close(linger=0)
        sock.close(linger=linger_ms)
        self._untold.pop(socket_id, None)
        self._monitors.pop(socket_id, None)
        self.by_id.pop(socket_id, None)


def _bound_to(endpoint: str) -> str:
    """The address a TCP socket listens at; empty for all of them."""
    address = endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    return "" if address in ("0.0.0.0", "::", "*") else address  # noqa: S104


def _count(opened: Opened, endpoint: str, keys: Keys | None) -> None:
    """Have the messages of a TCP socket counted by connection, before the first of them comes."""
    tcp_port = endpoint.rpartition(":")[2]
    if endpoint.startswith("tcp://") and tcp_port.isdecimal() and can_look():  # not *, which cannot be dialled
        opened.tcp_port = int(tcp_port)
        opened.port.count(keys is not None)
