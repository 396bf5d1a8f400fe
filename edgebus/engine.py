"""The runner-thread half of a node: joins the pure hub to sockets, inboxes and pending requests."""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass, field

from edgebus.answerer import Answerer
from edgebus.calls import Pending
from edgebus.config import Limits
from edgebus.handshake import HandshakeWatch
from edgebus.hub import Attached, Hub, Route
from edgebus.inbox import Inbox, Request
from edgebus.keys import AllowList, Keys
from edgebus.link import Failed, Up
from edgebus.messages import Message, Reply
from edgebus.requests import Arrived, Frames, Settled, Specs, Withdrawn, refusal
from edgebus.runner import Runner, Sent
from edgebus.stats import NodeStats, link_stats
from edgebus.zap import zap_answer

PING_SERVICE = "edgebus.ping"
PING_BYTES = 1024
_log = logging.getLogger("edgebus")


@dataclass(eq=False)
class Dialled:
    """A link this node opened: how its transport does, and who waits for it."""

    socket_id: int
    attached: Attached
    watch: HandshakeWatch
    settled: threading.Event = field(default_factory=threading.Event)  # up once, or failed
    failure: Failed | None = None


class Engine:
    """Every method except the constructor runs on the runner thread.

    Args:
        name: of the node.
        limits: its bounds.
        keys: its key pair, None if insecure.
        allow: who may connect, None for nobody.
    """

    def __init__(self, name: str, limits: Limits, keys: Keys | None, allow: AllowList | None) -> None:
        self._keys = keys
        self._allow = allow
        self._hub = Hub(name=name, limits=limits, new_incarnation=lambda: os.urandom(16))
        self._dialled: dict[int, Dialled] = {}
        self._inboxes: dict[str, Inbox] = {}
        self._rejected = 0
        self._unroutable = 0
        self.runner = Runner(name, limits, self)

    # -- driven by the runner -----------------------------------------------------------------------

    def on_frames(self, route: Route, frames: list[bytes], key: str | None, now: float) -> None:
        """A message came in."""
        self._hub.receive(route, frames, key, now=now)

    def on_zap(self, frames: list[bytes]) -> list[bytes]:
        """A peer wants in."""
        return zap_answer(frames, self._allow)

    def on_monitor(self, socket_id: int, event: str, value: int, now: float) -> None:
        """A transport changed."""
        dialled = self._dialled.get(socket_id)
        if dialled is None:
            self._rejected += event.startswith("HANDSHAKE_FAILED")
            return
        route = dialled.attached.route
        verdict = dialled.watch.handle(event, value)
        if verdict is None:
            return
        match verdict.what:
            case "connected":
                self._hub.connected(route, now=now)
            case "disconnected":
                self._hub.disconnected(route, now=now)
            case "failed":
                self._hub.fail(route, verdict.code, verdict.detail, now=now)

    def on_turn(self, now: float) -> float:
        """Timers, then everything the machines want done, until they want nothing more."""
        self._hub.handle_timer(now=now)
        while True:
            for attached, event in self._hub.events():
                self.runner.guard(self._handle_event, attached, event)
            sending = self._hub.frames_to_send()
            if not sending:
                return self._hub.next_timer()
            for route, frames in sending:
                sent = self.runner.send(route, frames)
                if sent is not Sent.OK:
                    self._unroutable += 1
                if sent is Sent.GONE:
                    self._hub.disconnected(route, now=now)

    # -- commands of the application threads --------------------------------------------------------

    def bind(self, endpoint: str) -> str:
        """Listen; returns the real endpoint."""
        return self.runner.bind(endpoint, self._keys)

    def serve(self, inbox: Inbox) -> str | None:
        """Register an inbox; returns a service that is taken already, or None."""
        for service in inbox.services:
            if service in self._inboxes or service == PING_SERVICE:
                return service
        self._inboxes.update(dict.fromkeys(inbox.services, inbox))
        return None

    def unserve(self, inbox: Inbox) -> None:
        """Requests for its services are refused from now on."""
        for service in inbox.services:
            if self._inboxes.get(service) is inbox:
                del self._inboxes[service]

    def dial(self, endpoint: str, server_key: str | None) -> Dialled:
        """Open a link; its `settled` is set when it is up or has failed."""
        self._hub.make_room_to_dial(now=time.monotonic())
        keys = self._keys if server_key is not None else None
        socket_id = self.runner.dial(endpoint, keys, server_key)
        attached = self._hub.dial((socket_id, b""), now=time.monotonic())
        watch = HandshakeWatch(endpoint, secure=server_key is not None)
        dialled = self._dialled[socket_id] = Dialled(socket_id, attached, watch)
        return dialled

    def hang_up(self, dialled: Dialled, linger_s: float) -> None:
        """Close a dialled link; its requests end as NodeClosed."""
        if self._dialled.pop(dialled.socket_id, None) is None:
            return
        now = time.monotonic()
        dialled.attached.link.close(now=now)
        self._hub.touch(dialled.attached, now=now)
        self.on_turn(now)  # goodbye has to leave before its socket goes
        self._hub.drop(dialled.attached)
        self._close_socket(dialled, linger_s)

    def request(self, dialled: Dialled, service: str, specs: Specs, frames: Frames, pending: Pending) -> None:
        """Start a request; `pending` gets its one outcome."""
        now = time.monotonic()
        link = dialled.attached.link
        pending.request_id = link.caller.start(
            service, specs, frames, deadline_at=pending.deadline_at, ref=pending, now=now
        )
        if dialled.failure is not None:
            link.caller.fail(*dialled.failure)
        elif dialled.socket_id not in self._dialled:
            link.caller.close()
        self._hub.touch(dialled.attached, now=now)

    def cancel(self, dialled: Dialled, pending: Pending) -> None:
        """Give a request up."""
        if pending.request_id is not None:
            dialled.attached.link.caller.cancel(pending.request_id)
            self._hub.touch(dialled.attached, now=time.monotonic())

    def answer(self, attached: Attached, answerer: Answerer, request_id: int, message: Message) -> None:
        """Answer a request; nothing happens if nobody waits any more, or its link has another answerer by now."""
        answerer.answer(request_id, message)
        self._hub.touch(attached, now=time.monotonic())

    def stats(self) -> NodeStats:
        """Snapshot of everything."""
        peers = {attached.peer_id: link_stats(attached) for attached in self._hub.links}
        total = sum(peers.values(), self._hub.gone)
        return NodeStats(total, peers, self._rejected, self._hub.malformed, self._unroutable)

    def shut_down(self, linger_s: float) -> None:
        """Refuse, cancel, say goodbye everywhere, and end the runner."""
        now = time.monotonic()
        for dialled in self._dialled.values():
            dialled.settled.set()
        self._hub.close(now=now)
        self.on_turn(now)
        for dialled in self._dialled.values():
            self._close_socket(dialled, linger_s)
        self.runner.stop(linger_s)

    # -- inside -------------------------------------------------------------------------------------

    def _close_socket(self, dialled: Dialled, linger_s: float) -> None:
        # Without a connection there is nobody to wait for, whatever libzmq has queued.
        self.runner.close_socket(dialled.socket_id, linger_s if dialled.watch.handshaken else 0.0)

    def _handle_event(self, attached: Attached, event: object) -> None:
        match event:
            case Arrived():
                self._deliver(attached, event)
            case Withdrawn() if (inbox := self._inboxes.get(event.service)) is not None:
                inbox.withdraw(event.answerer, event.id)
            case Settled():
                assert isinstance(event.ref, Pending)
                event.ref.settle(event)
            case Up() if (dialled := self._dialled.get(attached.route[0])) is not None:
                dialled.settled.set()
            case Failed() if (dialled := self._dialled.get(attached.route[0])) is not None:
                dialled.failure = event
                dialled.settled.set()
                # libzmq would go on trying a wrong key for ever.
                self.runner.close_socket(dialled.socket_id, 0.0)

    def _deliver(self, attached: Attached, arrived: Arrived) -> None:
        if arrived.service == PING_SERVICE:
            self.answer(attached, arrived.answerer, arrived.id, _pong(arrived))
            return
        inbox = self._inboxes.get(arrived.service)
        if inbox is None:
            served = ", ".join(sorted(self._inboxes)) or "nothing"
            refused = refusal(
                arrived.id, "unknown_service", f"{arrived.service!r} is not served here; served: {served}"
            )
            self.answer(attached, arrived.answerer, arrived.id, refused)
            return
        request = Request(attached, arrived, self.submit_answer)
        if not inbox.put(request):
            request.refuse("busy", "the inbox of the service is full, or this peer's half of it: ask again later")

    def submit_answer(self, attached: Attached, answerer: Answerer, request_id: int, message: Message) -> None:
        """Answer from any thread; after the node is closed the peer has been told already."""
        self.runner.submit_unless_closed(self.answer, attached, answerer, request_id, message)


def _pong(arrived: Arrived) -> Message:
    # No more than it takes to measure a round trip: echoes to a peer that does not read would pile up here.
    if len(arrived.frames[0]) > PING_BYTES:
        return refusal(arrived.id, "too_large", f"{PING_SERVICE} echoes at most {PING_BYTES} B")
    return Message(Reply(arrived.id), arrived.frames[:1])
