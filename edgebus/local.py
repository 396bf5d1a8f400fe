"""inproc://NAME: nodes of one process talk without sockets, and frames change hands as the same objects.

A process has one table of names. What crosses from one node to another goes through the other one's `defer`: no thread
ever holds the locks of two nodes. Who may connect is asked as libzmq would ask it, so that nothing is allowed here that
tcp would refuse. A forked child begins with an empty table. Socket ids are negative, which tells them from libzmq's.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from edgebus.attached import Route
from edgebus.config import Limits
from edgebus.errors import BindError, ConfigError
from edgebus.handshake import PATIENCE
from edgebus.keys import Keys
from edgebus.zap import ZAP_DOMAIN

_log = logging.getLogger("edgebus")
SCHEME = "inproc://"
MAX_NAME_CHARS = 256
QUEUE_MESSAGES = 1000
"""Messages under way in one direction, as libzmq's high water mark; more are left to the protocol's resends."""


class Owner(Protocol):
    """The runner of a node, as far as it is needed here."""

    def defer(
        self, function: Callable[..., object], *args: Any, if_closed: Callable[[], object] = lambda: None
    ) -> None:
        """Run a function with the node's lock held soon; from any thread."""

    def on_frames(self, route: Route, frames: list[Any], key: str | None) -> None:
        """A message came in; lock held."""

    def on_monitor(self, socket_id: int, event: str, value: int) -> None:
        """The transport of a socket changed; lock held."""

    def on_zap(self, frames: list[bytes]) -> list[bytes]:
        """A peer wants in; lock held."""


@dataclass(eq=False, slots=True)
class _End:
    """One end of a connection: where its node gets the messages from, and who is there by its key.

    `sent` and what has `taken` are each written by one node only, and read by the other one.
    """

    local: Local
    route: Route
    key: str | None
    is_open: bool = True
    peer: _End = field(init=False)
    sent: int = 0
    sent_bytes: int = 0
    taken: int = 0
    taken_bytes: int = 0


@dataclass(eq=False, slots=True)
class _Listener:
    """A bound name."""

    local: Local
    socket_id: int
    name: str
    keys: Keys | None
    knocking: set[_Dialler] = field(default_factory=set)  # diallers that have not been answered


@dataclass(eq=False, slots=True)
class _Dialler:
    """A dialling socket, as long as it is open."""

    local: Local
    socket_id: int
    name: str
    key: str | None
    server_key: str | None
    asked: _Listener | None = None  # who is about to let it in, or has turned it away last
    end: _End | None = None
    is_open: bool = True


_listeners: dict[str, _Listener] = {}
_waiting: dict[_Dialler, None] = {}
"""Diallers whose name nobody has bound, or only somebody who turned them away.

Neither table has a lock: each use is one operation that is atomic in itself. Who waits enters here first and then looks
who listens; who listens enters there first and then looks who waits."""


def _forget_all() -> None:
    _listeners.clear()
    _waiting.clear()


os.register_at_fork(after_in_child=_forget_all)


class Local:
    """The in-process transport of one node; every method is called with its runner's lock held.

    Args:
        limits: of the node.
        owner: its runner.
    """

    def __init__(self, limits: Limits, owner: Owner) -> None:
        self._owner = owner
        self._max_bytes = limits.max_pending_bytes
        self._ids = itertools.count(-2, -1)
        self._routing_ids = itertools.count(1)
        self._listening: dict[int, _Listener] = {}
        self._diallers: dict[int, _Dialler] = {}
        self._ends: dict[Route, _End] = {}

    # -- what the node does -------------------------------------------------------------------------

    def reserve(self) -> int:
        """A socket id."""
        return next(self._ids)

    def bind(self, endpoint: str, keys: Keys | None, socket_id: int | None = None) -> str:
        """Take a name; with keys only diallers that expect these and are let in by on_zap may connect.

        Raises:
            BindError: the name is taken in this process.
            ConfigError: it is no name.
        """
        name = _name(endpoint)
        listener = _Listener(self, next(self._ids) if socket_id is None else socket_id, name, keys)
        self._listening[listener.socket_id] = listener
        if _listeners.setdefault(name, listener) is not listener:
            del self._listening[listener.socket_id]
            raise BindError(f"cannot bind {endpoint}: a node of this process has that name; choose another one")
        for dialler in list(_waiting):
            if dialler.name == name:
                dialler.local._owner.defer(dialler.local._try, dialler)
        return endpoint

    def dial(self, endpoint: str, keys: Keys | None, server_key: str | None, socket_id: int | None = None) -> int:
        """Look for a name, now and whenever it is bound; on_monitor tells how it goes. Returns the socket id."""
        key = keys.public if keys is not None and server_key is not None else None
        socket_id = next(self._ids) if socket_id is None else socket_id
        dialler = _Dialler(self, socket_id, _name(endpoint), key, server_key)
        self._diallers[dialler.socket_id] = dialler
        self._owner.defer(self._try, dialler)  # not now: nobody knows yet whose news this would be
        return dialler.socket_id

    def send(self, route: Route, frames: Sequence[Any]) -> bool | None:
        """Hand a message over: True if it is on its way, False if there is no room, None without a connection."""
        end = self._ends.get(route)
        if end is None or not end.peer.is_open:
            return None
        peer, size = end.peer, sum(map(len, frames))
        under_way = end.sent - peer.taken
        if under_way >= QUEUE_MESSAGES:
            return False
        if under_way and end.sent_bytes - peer.taken_bytes + size > peer.local._max_bytes:
            return False
        # What the other end will have taken with it: one that a signal handler interrupts is sent again as the same.
        sent, sent_bytes = end.sent + 1, end.sent_bytes + size
        peer.local._owner.defer(peer.local._take, peer, frames, sent, sent_bytes)
        end.sent, end.sent_bytes = sent, sent_bytes
        return True

    def close(self, socket_id: int) -> None:
        """Close a socket; what was sent before arrives. Every step may come twice: a signal handler may raise."""
        if (listener := self._listening.get(socket_id)) is not None:
            self._leave_name(listener)
            del self._listening[socket_id]
            return
        dialler = self._diallers.get(socket_id)
        if dialler is None:
            return
        dialler.is_open = False
        _waiting.pop(dialler, None)
        if dialler.asked is not None:
            dialler.asked.knocking.discard(dialler)
        if dialler.end is not None:
            self._hang_up(dialler.end)
        self._diallers.pop(socket_id, None)

    def shut(self) -> None:
        """Give up all names and connections."""
        for listener in self._listening.values():
            self._leave_name(listener)
        for socket_id in list(self._diallers):
            self.close(socket_id)
        for end in list(self._ends.values()):
            self._hang_up(end)

    # -- the dialling side --------------------------------------------------------------------------

    def _try(self, dialler: _Dialler) -> None:
        """Knock at whoever has the name, or wait for somebody to take it."""
        if not dialler.is_open or dialler.end is not None:
            return
        before = dialler.asked
        if before is not None and dialler in before.knocking:
            return
        _waiting[dialler] = None
        listener = _listeners.get(dialler.name)
        if listener is None:
            self._owner.on_monitor(dialler.socket_id, "CONNECT_DELAYED", 0)
        elif listener is not before:
            _waiting.pop(dialler, None)
            try:
                dialler.asked = listener
                listener.knocking.add(dialler)  # before it is told: one that ends tells all that are in here
                self._owner.on_monitor(dialler.socket_id, "CONNECTED", 0)
                there = listener.local
                there._owner.defer(there._let_in, listener, dialler, if_closed=lambda: _turn_away(dialler, listener))
            except BaseException:  # of a signal handler: it is tried again
                dialler.asked = before
                listener.knocking.discard(dialler)
                raise

    def _opened(self, dialler: _Dialler, end: _End) -> None:
        if not dialler.is_open or (dialler.end is not None and dialler.end is not end):
            self._hang_up(end)  # nobody wants it, or it was let in twice
            return
        dialler.end, dialler.asked = end, None
        self._ends[end.route] = end
        self._owner.on_monitor(dialler.socket_id, "HANDSHAKE_SUCCEEDED", 0)

    def _turned_away(self, dialler: _Dialler, events: Sequence[tuple[str, int]]) -> None:
        """The listener said no, or is no more: wait for another one, if the node has not given up over it."""
        for event in events:
            self._owner.on_monitor(dialler.socket_id, *event)
        self._try(dialler)

    # -- the listening side -------------------------------------------------------------------------

    def _let_in(self, listener: _Listener, dialler: _Dialler) -> None:
        """Open a connection, or say why not in the words of libzmq's monitor; see handshake.py."""
        if dialler not in listener.knocking:
            return
        events = self._faults(listener, dialler)
        if events:
            self._owner.on_monitor(listener.socket_id, events[0][0], events[0][1])
            _turn_away(dialler, listener, events)
            return
        route = (listener.socket_id, next(self._routing_ids).to_bytes(8, "big"))
        here = _End(self, route, dialler.key)
        there = _End(dialler.local, (dialler.socket_id, b""), None)
        here.peer, there.peer = there, here
        try:
            self._ends[route] = here
            listener.knocking.discard(dialler)
            dialler.local._owner.defer(
                dialler.local._opened, dialler, there, if_closed=lambda: self._owner.defer(self._leave, here)
            )
        except BaseException:  # of a signal handler: it is let in again
            listener.knocking.add(dialler)
            raise

    def _faults(self, listener: _Listener, dialler: _Dialler) -> list[tuple[str, int]]:
        keys = listener.keys
        if (keys is None) != (dialler.key is None):
            return [("HANDSHAKE_FAILED_PROTOCOL", 0)]
        if keys is None:
            return []
        if dialler.server_key != keys.public:
            return [("HANDSHAKE_FAILED_NO_DETAIL", errno.EPIPE)] * PATIENCE  # here there is no doubt
        if not self._is_allowed(dialler.key or ""):
            return [("HANDSHAKE_FAILED_AUTH", 400)]
        return []

    def _is_allowed(self, key: str) -> bool:
        from zmq.utils import z85

        try:
            answer = self._owner.on_zap([b"1.0", b"", ZAP_DOMAIN, b"", b"", b"CURVE", z85.decode(key)])
        except Exception:  # whatever happens, there is an answer, and it is no
            _log.exception("edgebus: internal error while a peer was let in")
            return False
        return answer[2] == b"200" and answer[4] == key.encode()

    # -- both ---------------------------------------------------------------------------------------

    def _leave_name(self, listener: _Listener) -> None:
        if _listeners.get(listener.name) is listener:
            del _listeners[listener.name]
        for dialler in list(listener.knocking):
            _turn_away(dialler, listener)

    def _take(self, end: _End, frames: list[Any], taken: int, taken_bytes: int) -> None:
        end.taken, end.taken_bytes = taken, taken_bytes
        if end.is_open:
            self._owner.on_frames(end.route, frames, end.key)

    def _hang_up(self, end: _End) -> None:
        """End a connection from here."""
        end.is_open = False
        self._forget(end)
        peer = end.peer
        peer.local._owner.defer(peer.local._leave, peer)

    def _forget(self, end: _End) -> None:
        if self._ends.get(end.route) is end:  # a dialler that was let in twice has another one by this route
            del self._ends[end.route]

    def _leave(self, end: _End) -> None:
        """The other end is no more. A listener's node learns it when it sends, as with libzmq."""
        if not end.is_open:
            return
        try:
            end.is_open = False
            self._forget(end)
            dialler = self._diallers.get(end.route[0])
            if dialler is not None and dialler.end in (None, end):
                dialler.end = None
                self._owner.on_monitor(dialler.socket_id, "DISCONNECTED", 0)
                self._try(dialler)
        except BaseException:  # of a signal handler: it is told again
            end.is_open = True
            raise


def _name(endpoint: str) -> str:
    name = endpoint.removeprefix(SCHEME)
    if not 0 < len(name) <= MAX_NAME_CHARS:
        raise ConfigError(f"{SCHEME}NAME needs a name of 1..{MAX_NAME_CHARS} characters, got {len(name)}")
    return name


def _turn_away(dialler: _Dialler, listener: _Listener, events: Sequence[tuple[str, int]] = ()) -> None:
    """Tell a dialler that it was not let in; may be called from any thread."""
    try:
        listener.knocking.discard(dialler)
        dialler.local._owner.defer(dialler.local._turned_away, dialler, events)
    except BaseException:  # of a signal handler: it is turned away again
        listener.knocking.add(dialler)
        raise
