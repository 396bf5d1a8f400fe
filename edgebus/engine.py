"""Joins the pure hub to sockets, inboxes, handlers and pending requests, with the runner's lock held."""

from __future__ import annotations

import logging
import math
import os
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgebus.answerer import Answerer
from edgebus.arrays import Array
from edgebus.attached import Attached, Route
from edgebus.calls import Pending
from edgebus.config import Limits
from edgebus.desk import NodeDesk
from edgebus.dialling import Dialled, Dialling
from edgebus.engine_delivering import PING_SERVICE, Delivering, Handle
from edgebus.errors import NodeClosed, QueueFull
from edgebus.express import Express
from edgebus.hub import Hub, Judge
from edgebus.inbox import Inbox
from edgebus.keyed import KeyedAnswers
from edgebus.keys import AllowList, Keys
from edgebus.link_states import State, Surroundings
from edgebus.loans import Loan
from edgebus.messages import Block, Terms
from edgebus.near import NEAR_SOCKET, NearLanes
from edgebus.outcomes import Outcome, Settled
from edgebus.runner import Runner
from edgebus.sharing import Sharing, total_bytes
from edgebus.sockets import Sent
from edgebus.stats import NodeStats, link_stats
from edgebus.streams import Frames, Specs, content_bytes
from edgebus.zap import zap_answer

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

LIST_LOOK_S = 1.0
"""The allow-list is looked at so often; a key that was taken off it loses its links within two looks."""
_log = logging.getLogger("edgebus")


class Engine(Delivering):
    """What a node does, piece by piece.

    Args:
        name: of the node.
        limits: its bounds.
        keys: its key pair, None if insecure.
        allow: who may connect, None for nobody.
        judge: who may ask for what.
    """

    def __init__(
        self, name: str, limits: Limits, keys: Keys | None, allow: AllowList | None, judge: Judge | None = None
    ) -> None:
        super().__init__()
        self._keys = keys
        self._allow = allow
        self.limits = limits
        self._lease_until = -math.inf
        self._next_look_at = math.inf if allow is None else time.monotonic() + LIST_LOOK_S
        jitter = random.Random(os.urandom(16))  # noqa: S311 - spreads resends, decides nothing
        self.sharing = Sharing(limits, lambda: self.runner.defer(self._take_leases))
        around = Surroundings(
            name=name,
            limits=limits,
            keyed=KeyedAnswers(),
            jitter=lambda: jitter.uniform(0.75, 1.25),
            stalled_ms=self._stalled_ms,
            lease_until=lambda: self._lease_until,
            share=lambda: self.sharing.share,
            recover=self.sharing.recover,
        )
        self.hub = Hub(
            around=around,
            new_incarnation=lambda: os.urandom(16),
            judge=judge,
            resolve=self.sharing.resolve,
            number=self.sharing.number,
            max_links=self._max_links,
        )
        self._desk = NodeDesk(self)
        self.runner = Runner(name, limits, self)
        self.dialling = Dialling(self.hub, self.runner.sockets, keys)
        self._dialled = self.dialling.by_socket
        self.express = Express(self.hub, self._deliver, self.on_frames, self.runner)
        self.express.inboxes, self.express.desk = self._inboxes, self._desk
        self.runner.sockets.messages = self.express
        self.near = NearLanes(
            self.hub, self.runner.sockets, self.express, self.sharing, self.on_frames, limits.bulk_from_bytes
        )
        self.sharing.near = self.near
        self.express.free_leases = self.sharing.done
        self.hub.taker = self

    # -- driven by the runner -----------------------------------------------------------------------

    def on_frames(self, route: Route, frames: list[Any], key: str | None) -> None:
        """A message came in that is not plain and small, or from a node of this process."""
        self.near.catch_up(route)
        self.hub.receive(route, frames, key, now=time.monotonic())

    def on_zap(self, frames: list[bytes]) -> list[bytes]:
        """A peer wants in."""
        return zap_answer(frames, self._allow)

    def on_monitor(self, socket_id: int, event: str, value: int) -> None:
        """A transport changed."""
        self.dialling.on_monitor(socket_id, event, value)

    def on_turn(self, now: float) -> float:
        """Timers, then everything the machines want done, until they want nothing more."""
        hub, runner = self.hub, self.runner
        if hub.next_timer() <= now:
            hub.handle_timer(now=now)
            self.sharing.sweep(now)
        if self.sharing.report_at <= now:
            self._take_leases()
        if self._allow is not None and now >= self._next_look_at:
            self._look_at_list(self._allow, now)
        unended = runner.sockets.unended
        if unended.look_at <= now:
            runner.guard(unended.look, now)
        while True:
            events = deque(hub.events())
            try:
                while events:
                    runner.guard(self._handle_event, *events[0])
                    events.popleft()
            finally:
                hub.put_back(events)  # a signal handler has raised: none of them may be lost
            sending = hub.frames_to_send(now=now)
            if not sending:
                return min(hub.next_timer(), self._next_look_at, self.sharing.report_at, unended.look_at)
            left = len(sending)
            try:
                for route, frames in sending:
                    self._send(route, frames, now)
                    left -= 1
            finally:
                if left:  # a signal handler has raised, likewise
                    runner.defer(self._send_left, sending[-left:])

    def look_again(self) -> None:
        """A signal handler has raised in the middle of something."""
        self.hub.look_again(now=time.monotonic())

    def _send(self, route: Route, frames: list[bytes], now: float) -> None:
        if route[0] == NEAR_SOCKET:
            if self.near.send(route, frames):
                return
            route = self.near.go_round(route)
        sent = self.runner.sockets.send(route, frames)
        if sent is not Sent.OK:
            self.hub.unroutable += 1
            if sent is Sent.GONE:
                self.hub.disconnected(route, now=now)

    def _send_left(self, sending: list[tuple[Route, list[bytes]]]) -> None:
        while sending:
            self.runner.guard(self._send, *sending[0], time.monotonic())
            del sending[0]

    # -- any thread, without the lock ---------------------------------------------------------------

    def put_shared(
        self, attached: Attached, payload: bytes, arrays: Sequence[Array]
    ) -> tuple[Specs, tuple[Block, ...]] | None:
        """Copy arrays to where a peer on this host sees them; None if they have to be sent."""
        if attached.near is not None and attached.sharing == "yes":
            return self.near.put(attached, payload, arrays) if arrays else None
        if self.runner.is_mine:
            return None  # a signal handler in the middle of the node's work, which may be the pool's
        if not arrays or attached.link.is_local or not self.sharing.wants(attached, total_bytes(arrays)):
            return None
        if len(payload) >= self.limits.bulk_from_bytes:
            return None  # it goes in pieces, and a content goes one way as a whole
        if not self._prepare_sharing(attached):
            return None
        return self.sharing.put(attached, arrays)

    def drop_shared(self, attached: Attached, blocks: Sequence[Block]) -> None:
        """What was put there for a message that will not be sent."""
        self.sharing.unput(attached, blocks)

    def loan(self, attached: Attached, shape: int | tuple[int, ...], dtype: DTypeLike) -> Loan:
        """An array to be filled in place and sent without a copy."""
        is_ours = not self.runner.is_mine and not attached.link.is_local
        if is_ours:
            self._prepare_sharing(attached)
        loan = self.sharing.loan(attached, shape, dtype)
        if is_ours and not loan.is_shared and self.sharing.lends(attached, loan.nbytes):
            # There is no room: other peers have given some back, and told nobody yet.
            self.runner.do_unless_closed(self.sharing.collect_all)
            loan = self.sharing.loan(attached, shape, dtype)
        return loan

    def _prepare_sharing(self, attached: Attached) -> bool:
        """Before memory is taken: find out whether the peer sees it, and what it has given back; False if closed."""
        if attached.sharing == "unknown":
            self.runner.do_unless_closed(self.share, attached)
        if attached.near is not None:
            try:
                self.runner.do_small(self.sharing.collect, attached)
            except NodeClosed:
                return False
        return True

    # -- commands of the application threads --------------------------------------------------------

    def bind(self, endpoint: str, socket_id: int) -> str:
        """Listen with a socket of this id; returns the real endpoint."""
        return self.runner.sockets.bind(endpoint, self._keys, socket_id)

    def unbind(self, socket_id: int) -> None:
        """Listen no more."""
        self.runner.sockets.close(socket_id, 0.0)

    def serve(self, inbox: Inbox) -> str | None:
        """Register an inbox; returns a service that is taken already, or None."""
        for service in inbox.services:
            if self._is_taken(service):
                return service
        self._inboxes.update(dict.fromkeys(inbox.services, inbox))
        return None

    def unserve(self, inbox: Inbox) -> None:
        """Requests for its services are refused from now on."""
        for service in inbox.services:
            if self._inboxes.get(service) is inbox:
                del self._inboxes[service]

    def handle(self, service: str, function: Handle) -> bool:
        """Have a function called with each request for a service; False if that is taken."""
        if self._is_taken(service):
            return False
        self._handlers[service] = function
        return True

    def has_undelivered(self) -> bool:
        """True while one-way messages of ours are on their way over links that are up."""
        return any(
            attached.link.state is State.UP and attached.link.caller.one_way() for attached in list(self.hub.links)
        )

    def services(self) -> list[str]:
        """What is served here, sorted."""
        return sorted({*self._inboxes, *self._handlers, PING_SERVICE})

    def tap(self, callback: Callable[..., None]) -> None:
        """Show every message to a function."""
        self.hub.taps.append(callback)

    def untap(self, callback: Callable[..., None]) -> None:
        """Show it no more."""
        if callback in self.hub.taps:
            self.hub.taps.remove(callback)

    def busy(self, seconds: float) -> None:
        """The application will not look at its requests for so long."""
        now = time.monotonic()
        self._lease_until = now + seconds
        for attached in self.hub.links:
            attached.link.tell_lease(now=now)
            self.hub.touch(attached, now=now)

    def dial(
        self, endpoint: str, server_key: str | None, other_keys: tuple[str, ...], keep: Callable[[Dialled], object]
    ) -> Dialled:
        """Open a link; its `settled` is set when it is up or has failed. Args: as Dialling.dial."""
        return self.dialling.dial(endpoint, server_key, other_keys, keep)

    def move(self, dialled: Dialled, endpoint: str, server_key: str | None) -> None:
        """Go on with a link at another address; what is outstanding goes there."""
        self.dialling.move(dialled, endpoint, server_key)

    def hang_up(self, dialled: Dialled, linger_s: float) -> None:
        """Close a dialled link; its requests end as NodeClosed."""
        if dialled.socket_id not in self._dialled:
            return
        try:
            self._hang_up(dialled, linger_s)
        except BaseException:  # of a signal handler: every step may come twice, and none is left out
            self._hang_up(dialled, linger_s)
            raise

    def _hang_up(self, dialled: Dialled, linger_s: float) -> None:
        self._dialled.pop(dialled.socket_id, None)
        _tell_given_up([dialled.attached])
        now = time.monotonic()
        dialled.attached.link.close(now=now)
        self.hub.touch(dialled.attached, now=now)
        self.on_turn(now)  # goodbye has to leave before its socket goes
        self.hub.drop(dialled.attached)
        self.sharing.gone(dialled.attached)
        self.dialling.close_sockets(dialled, linger_s)

    def request(
        self,
        dialled: Dialled,
        service: str,
        specs: Specs,
        frames: Frames,
        pending: Pending,
        terms: Terms | None = None,
        blocks: tuple[Block, ...] | None = None,
    ) -> bool:
        """Start a request; `pending` gets its one outcome.

        Returns:
            False if its blocks have gone since they were filled, and it was not started: the peer has another life.

        Raises:
            QueueFull: too much is waiting for an outcome already.
        """
        now = time.monotonic()
        if blocks is not None and not self.sharing.holds(blocks):
            return False
        caller = dialled.attached.link.caller
        if fault := caller.room_fault(content_bytes(frames)):
            self.hub.touch(dialled.attached, now=now)
            raise QueueFull(f"{fault} (max_outstanding_bytes): wait for outcomes, or see Limits.on_full")
        self._count_copies(dialled.attached, frames, blocks)
        pending.request_id = caller.start(
            service,
            specs,
            frames,
            deadline_at=pending.deadline_at,
            ref=pending,
            now=now,
            terms=terms,
            blocks=blocks,
        )
        if dialled.failure is not None:
            caller.fail(*dialled.failure)
        elif dialled.socket_id not in self._dialled:
            caller.close()
        self.hub.touch(dialled.attached, now=now)
        return True

    def request_late(
        self, dialled: Dialled, service: str, specs: Specs, frames: Frames, pending: Pending, terms: Terms | None
    ) -> None:
        """Start a request of a signal handler, which is not there any more to be told that there is no room."""
        if any(entry.ref is pending for entry in dialled.attached.link.caller.outstanding.values()):
            return  # another one has interrupted it meanwhile
        try:
            self.request(dialled, service, specs, frames, pending, terms)
        except QueueFull as error:
            pending.settle(Settled(pending, Outcome.REFUSED, "queue_full", str(error)))

    def cancel(self, dialled: Dialled, pending: Pending) -> None:
        """Give a request up."""
        if pending.request_id is not None:
            dialled.attached.link.caller.cancel(pending.request_id)
            self.hub.touch(dialled.attached, now=time.monotonic())

    def give_up(self, dialled: Dialled, pending: Pending) -> None:
        """Cancel a request whose start was interrupted, if it was started."""
        for entry in list(dialled.attached.link.caller.outstanding.values()):
            if entry.ref is pending:
                dialled.attached.link.caller.cancel(entry.id)
        self.hub.touch(dialled.attached, now=time.monotonic())

    def consume(self, dialled: Dialled, pending: Pending, pos: int) -> None:
        """The application took the parts of a stream below pos."""
        if pending.request_id is not None:
            dialled.attached.link.caller.consume(pending.request_id, pos)
            self.hub.touch(dialled.attached, now=time.monotonic())

    def share(self, attached: Attached) -> None:
        """Find out whether a peer can see our shared memory."""
        self.sharing.ask(attached)
        self.hub.touch(attached, now=time.monotonic())

    def push(
        self, attached: Attached, answerer: Answerer, request_id: int, specs: Specs, frames: Frames
    ) -> int | bool | None:
        """Send a part of a stream: its position, False if there is no room now, None if the stream has ended."""
        room = answerer.has_room(request_id, content_bytes(frames))
        if not room:
            return room
        pos = answerer.push(request_id, specs, frames)
        self._count_copies(attached, frames, None)
        self.hub.touch(attached, now=time.monotonic())
        return pos

    def when_room(self, answerer: Answerer, request_id: int, callback: Callable[[], object]) -> None:
        """Call back once, as soon as a stream takes more parts or has ended."""
        if answerer.is_full(request_id):
            self._rooms.setdefault((answerer, request_id), []).append(callback)
        else:
            self.runner.soon(callback)

    def health(self, dialled: Dialled) -> str:
        """up, busy, wedged or down."""
        return dialled.attached.link.health(time.monotonic()).value

    def stats(self) -> NodeStats:
        """Snapshot of everything."""
        now = time.monotonic()
        endpoints = self.dialling.endpoints()
        peers = {
            attached.peer_id: link_stats(attached, endpoints.get(attached.peer_id, ""), now)
            for attached in self.hub.links
        }
        total = sum(peers.values(), self.hub.gone)
        hub, unended = self.hub, self.runner.sockets.unended
        counts = self.dialling.rejected, hub.malformed, hub.unroutable, unended.num_ended, unended.num_held_back
        return NodeStats(total, peers, *counts)

    def shut_down(self, linger_s: float) -> None:
        """Refuse, cancel, say goodbye everywhere, and end the runner."""
        now = time.monotonic()
        self.dialling.let_go()
        _tell_given_up(self.hub.links)
        self.hub.close(now=now)
        self.on_turn(now)
        self.dialling.close(linger_s)
        for callbacks in self._rooms.values():
            for callback in callbacks:
                self.runner.soon(callback)
        self._rooms.clear()
        self.sharing.close()
        self.runner.stop(linger_s)

    # -- inside -------------------------------------------------------------------------------------

    def _look_at_list(self, allow: AllowList, now: float) -> None:
        """Cut the links of keys that may not stay."""
        self._next_look_at = now + LIST_LOOK_S
        if not allow.changed(now):
            return
        for attached in self.hub.links:
            if attached.hello_id is not None and attached.key and (why := allow.cut_reason(attached.key)):
                self.hub.cut(attached, why.code, why.detail, now=now)

    def _max_links(self, key: str) -> int | None:
        grant = self._allow.grant(key) if self._allow is not None else None
        return None if grant is None else grant.max_links

    def _take_leases(self) -> None:
        """Views of a peer's memory have gone: it is told, now or with others of the next moment."""
        now = time.monotonic()
        for attached in self.sharing.take_back(now):
            self.hub.touch(attached, now=now)

    def _is_taken(self, service: str) -> bool:
        return service in self._inboxes or service in self._handlers or service == PING_SERVICE

    def _stalled_ms(self, now: float) -> int:
        """How long the oldest request has been lying in an inbox, milliseconds; what it lay during a lease is none."""
        stalled_s = max((inbox.stalled_s(now) for inbox in self._inboxes.values()), default=0.0)
        return int(1000 * min(stalled_s, max(0.0, now - self._lease_until)))


def _tell_given_up(links: Sequence[Attached]) -> None:
    """These links are about to be closed: nobody may wait for what became of their one-way messages."""
    services = [service for attached in links for service in attached.link.caller.one_way()]
    if services:
        _log.warning(
            "closed before %d one-way message(s) were taken over there (%s): they are given up; allow close more time, "
            "or wait for their outcomes before",
            len(services),
            ", ".join(sorted(set(services))),
        )
