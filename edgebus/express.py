"""The short way for plain small messages: a request or reply of one frame on a link that is up, nothing special.

It does to the machines what the usual way through Hub and LinkMachine does, without their lists of messages and events;
whatever is special goes the usual way. A draft and its verdict are such messages, and their time is mostly ours: this
module is compiled where a compiler is (setup.py), and is ordinary Python else. tests/edgebus/test_express.py holds the
two ways against each other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import zmq

from edgebus.answerer import Answerer
from edgebus.attached import Attached, Route
from edgebus.calls import Pending
from edgebus.inbox import offer
from edgebus.link_states import State
from edgebus.messages import INLINE_BYTES, Header, Reply, Request, decode_header, encode_header
from edgebus.outcomes import Arrived
from edgebus.rawzmq import BURST, end_message, take_rest

if TYPE_CHECKING:
    from edgebus.desk import Desk
    from edgebus.hub import Hub
    from edgebus.inbox import Inbox
    from edgebus.runner import Runner
    from edgebus.sockets import Opened

_FRAME_BYTES = INLINE_BYTES + 2048
_UP = State.UP
_now = time.monotonic
_log = logging.getLogger("edgebus")


class Express:
    """The short way of one node; every method is called with the runner's lock held.

    Args:
        hub: its links.
        deliver: takes a request that is to be executed.
        on_frames: takes everything that is not plain and small.
        runner: whose sockets these are.
    """

    def __init__(
        self,
        hub: Hub,
        deliver: Callable[[Attached, Arrived], None],
        on_frames: Callable[[Route, list[Any], str | None], None],
        runner: Runner,
    ) -> None:
        self._hub = hub
        self._sockets = runner.sockets
        self._runner = runner
        self._deliver = deliver
        self._on_frames = on_frames
        self._by_route = hub.by_route
        self.inboxes: dict[str, Inbox] = {}  # by service
        self.desk: Desk | None = None  # where those are answered; set by whoever fills inboxes
        self.free_leases: Callable[[Attached, list[int]], None] | None = None  # told of memory that is done with

    def request(self, attached: Attached, service: str, payload: bytes, pending: Pending, now: float) -> bool:
        """Start and send a request; False if it has to go the usual way."""
        link = attached.link
        hub, caller = self._hub, link.caller
        limits = link.peer_limits
        if (
            link.state is not _UP
            or link.version < 2
            or limits is None
            or len(payload) > limits.max_frame_bytes
            or hub.taps
            or caller.outstanding_bytes + len(payload) > caller.max_bytes
        ):
            return False
        socket_id, routing_id = attached.route
        opened = self._sockets.by_id.get(socket_id)
        if opened is None:
            return False
        header = caller.small_header(service, payload, pending.deadline_at, now)
        frame = encode_header(header)
        try:
            opened.port.send(routing_id, frame)
        except zmq.ZMQError as error:
            self._not_sent(attached, error, now)
        except BaseException:
            end_message(opened.sock)
            raise
        # Sent first: what follows is done while the peer is at work.
        self._sockets.touched.add(opened.fd)
        pending.request_id = header.id
        caller.start_small(header, payload, pending.deadline_at, pending, now)
        traffic = attached.traffic
        traffic.messages_sent += 1
        traffic.bytes_sent += len(frame)
        traffic.content_bytes_sent += len(payload)
        at = caller.first_due_at
        if at < attached.scheduled_at:
            hub.schedule(attached, at)
        return True

    def answer(self, attached: Attached, answerer: Answerer, request_id: int, payload: bytes) -> bool:
        """Give and send an answer; False if it has to go the usual way."""
        link = attached.link
        limits = link.peer_limits
        if link.state is not _UP or link.version < 2 or link.answerer is not answerer or self._hub.taps:
            return False
        if link.receiver.waiting:
            return False  # the room this answer makes is for a content that waits
        if limits is None or len(payload) > limits.max_frame_bytes:
            return False
        socket_id, routing_id = attached.route
        opened = self._sockets.by_id.get(socket_id)
        if opened is None:
            return False
        if not answerer.is_plain(request_id):
            return False
        header = Reply(request_id, (), payload)
        frame = encode_header(header)
        if attached.near is None or not attached.near.pipes.send([frame]):
            try:
                opened.port.send(routing_id, frame)
            except zmq.ZMQError as error:
                self._not_sent(attached, error, _now())
            except BaseException:
                end_message(opened.sock)
                raise
            self._sockets.touched.add(opened.fd)
        answerer.answer_small(header, payload)
        traffic = attached.traffic
        traffic.messages_sent += 1
        traffic.bytes_sent += len(frame)
        traffic.content_bytes_sent += len(payload)
        return True

    def take(self, opened: Opened, event: int) -> bool:
        """Read from a socket; True if there may be more. `event` is 0 if that is a guess."""
        try:
            return self._take(opened, event)
        except Exception:
            _log.exception("edgebus: internal error while a message was taken in")
            return True

    def _take(self, opened: Opened, event: int) -> bool:
        port, socket_id = opened.port, opened.socket_id
        if not event:
            if not port.readable():
                opened.crowd = 0
                return False
            # There was more than was taken last time: asking costs less than another turn for each.
            opened.crowd = min(BURST, 2 * opened.crowd + 1)
        for left in range(opened.crowd, -1, -1):
            frame = port.take()
            if frame is None:
                return False
            route, key = (socket_id, port.route), port.key
            if port.more:
                frames = [frame]
                take_rest(opened.sock, frames)
                self._on_frames(route, frames, key)
            elif not self.receive_small(route, frame, key):
                self._on_frames(route, [frame], key)
            if left and not port.readable():
                return False
        return True

    def receive_small(self, route: Route, frame: bytes, key: str | None) -> bool:
        """Take a message of one frame; False if it has to go the usual way."""
        attached = self._by_route.get(route)
        if attached is None or len(frame) > _FRAME_BYTES or (attached.key != key and attached.key is not None):
            return False
        link, hub = attached.link, self._hub
        if link.state is not _UP or hub.taps:
            return False
        try:
            header = decode_header(frame)
        except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError):
            return False
        return self.receive_header(attached, header, len(frame))

    def receive_header(  # noqa: PLR0911 - the hot path
        self, attached: Attached, header: Header, frame_bytes: int
    ) -> bool:
        """Like receive_small, for a message that is decoded and came over a link that is up, with no taps."""
        link, hub = attached.link, self._hub
        kind = type(header)
        if kind is not Reply and kind is not Request:
            return False
        assert isinstance(header, Reply | Request)
        payload = header.inline
        if payload is None or header.arrays or header.transfer is not None or header.blocks is not None:
            return False
        now = _now()
        if isinstance(header, Reply):
            pending = link.caller.awaits_small(header)
            if pending is None or (link.sender and link.sender.sends(header.id)):
                return False
            assert isinstance(pending, Pending)
            # In this order: if a signal handler raises in between, the answer comes again and finds it settled.
            pending.settle_small(payload)
            link.caller.answered_small(header.id)
            if link.caller.leases_done:
                self._free_leases(attached, now)
            self._runner.stirred = True
            if pending.on_done is not None:
                self._runner.soon(pending.on_done)
            if link.sender:
                link.pace.small(now=now)
        else:
            if header.terms is not None or hub.outbox or hub.news or link.answerer.knows(header.id):
                return False  # busy: what came before it has not been handed out yet
            judge = hub.judge if attached.hello_id is not None else None
            if judge is not None and judge(attached.key, header.service, len(payload), now) is not None:
                return False  # asked again on the usual way, which refuses it; what is denied costs nothing
            arrived = link.answerer.receive_small(header, payload, now)
            if arrived is None:
                return False
            self.deliver(attached, arrived)
        link.heard_at = now
        traffic = attached.traffic
        traffic.messages_received += 1
        traffic.bytes_received += frame_bytes
        traffic.content_bytes_received += len(payload)
        return True

    def deliver(self, attached: Attached, arrived: Arrived) -> None:
        """Hand a plain request to whoever serves it."""
        inbox = self.inboxes.get(arrived.service)
        if inbox is None or self.desk is None:
            self._deliver(attached, arrived)
        else:
            self._runner.stirred = True
            offer(inbox, attached, arrived, self.desk)

    def _free_leases(self, attached: Attached, now: float) -> None:
        caller = attached.link.caller
        if self.free_leases is None:
            self._hub.touch(attached, now=now)
            return
        leases, caller.leases_done, caller.leases_unsent = caller.leases_done, [], []
        self.free_leases(attached, leases)

    def _not_sent(self, attached: Attached, error: zmq.ZMQError, now: float) -> None:
        self._hub.unroutable += 1
        if not isinstance(error, zmq.Again):
            self._hub.disconnected(attached.route, now=now)
