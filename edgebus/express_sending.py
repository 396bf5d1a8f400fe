"""The sending half of the short way: plain requests and small answers, straight from the caller's thread to a socket.

What is special goes the usual way, by Hub and LinkMachine: each method returns False then, and has done nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import zmq

from edgebus.answerer import Answerer
from edgebus.attached import Attached
from edgebus.calls import Pending
from edgebus.link_states import State
from edgebus.messages import INLINE_BYTES, Message, Reply, encode_header
from edgebus.rawzmq import end_message
from edgebus.readiness import MessageTaker
from edgebus.sockets import Sent
from edgebus.streams import Frames, Specs
from edgebus.wire import INLINE_FRAMES

if TYPE_CHECKING:
    from edgebus.hub import Hub
    from edgebus.readiness import Opened
    from edgebus.runner import Runner

_UP = State.UP
_now, _ident = time.monotonic, threading.get_ident
_message: Callable[[tuple[Any, ...]], Message] = partial(tuple.__new__, Message)  # without a frame of Python


class ExpressSending(MessageTaker):
    """What Express sends; `ask` and `give` take the runner's lock, the rest is called with it held.

    Args:
        hub: whose links these are.
        runner: whose sockets these are.
    """

    def __init__(self, hub: Hub, runner: Runner) -> None:
        self._hub = hub
        self._sockets = runner.sockets
        self._runner = runner

    def ask(self, attached: Attached, service: str, payload: bytes, pending: Pending, now: float) -> bool:
        """Like `request`, without the lock; as Runner.do_small."""
        runner = self._runner
        me = _ident()
        if runner._owner == me:
            return False
        try:
            try:
                runner.open_section()
                done = self.request(attached, service, payload, pending, now)
                runner.sent()
            finally:
                runner.close_section()
        finally:
            if runner._owner == me:
                runner._depth = runner._owner = 0
            runner._lock.release()
        runner.call_back()
        return done

    def give(self, attached: Attached, answerer: Answerer, request_id: int, payload: bytes) -> bool:
        """Like `answer`, without the lock; as Runner.do_small."""
        runner = self._runner
        me = _ident()
        if runner._owner == me:
            return False
        try:
            try:
                runner.open_section()
                done = self.answer(attached, answerer, request_id, payload)
                runner.sent()
            finally:
                runner.close_section()
        finally:
            if runner._owner == me:
                runner._depth = runner._owner = 0
            runner._lock.release()
        runner.call_back()
        return done

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
        opened = self._sockets.by_id.get(attached.route[0])
        if opened is None:
            return False
        header = caller.small_header(service, payload, pending.deadline_at, now)
        frame = encode_header(header)
        self._post(attached, opened, frame)
        # Sent first: what follows is done while the peer is at work.
        pending.request_id = header.id
        caller.start_sent(header, (payload,), len(payload), pending.deadline_at, pending, now)
        traffic = attached.traffic
        traffic.messages_sent += 1
        traffic.bytes_sent += len(frame)
        traffic.content_bytes_sent += len(payload)
        at = caller.first_due_at
        if at < attached.scheduled_at:
            hub.schedule(attached, at)
        return True

    def request_whole(
        self, attached: Attached, service: str, specs: Specs, frames: Frames, pending: Pending, now: float
    ) -> bool:
        """Start and send a request with large arrays in one message; False if it has to go the usual way."""
        link, route, payload = attached.link, attached.bulk_route, frames[0]
        hub, caller, size_bytes = self._hub, link.caller, sum_bytes(frames)
        if (
            route is None
            or hub.taps
            or hub.outbox
            or size_bytes < caller.bulk_from_bytes
            or caller.outstanding_bytes + size_bytes > caller.max_bytes
            or not link.takes_whole(size_bytes, now)
        ):
            return False
        header = caller.small_header(service, payload, pending.deadline_at, now)
        header.arrays = specs
        header.transfer = link.sender.next_transfer(tuple(map(len, frames)))
        inline_bytes, beside = len(payload), frames[1:]
        if inline_bytes > INLINE_BYTES or len(frames) > INLINE_FRAMES:
            header.inline, inline_bytes, beside = None, 0, frames
        frame = encode_header(header)
        if self._sockets.send(route, (frame, *beside)) is not Sent.OK:
            return False  # sent again the usual way, which sees what became of the lane
        # Sent first: what follows is done while the peer is at work.
        pending.request_id = header.id
        caller.start_sent(header, frames, size_bytes, pending.deadline_at, pending, now)
        link.went_whole(_message((header, frames)), size_bytes, now)
        traffic = attached.traffic
        traffic.messages_sent += 1
        traffic.bytes_sent += len(frame) + size_bytes - inline_bytes
        traffic.content_bytes_sent += size_bytes
        for each in frames[1:]:
            if type(each) is bytes:
                traffic.copied_bytes_sent += len(each)
        at = min(caller.first_due_at, link.sender.next_timer())
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
        opened = self._sockets.by_id.get(attached.route[0])
        if opened is None:
            return False
        if not answerer.is_plain(request_id):
            return False
        header = Reply(request_id, (), payload)
        frame = encode_header(header)
        if attached.near is None or not attached.near.pipes.send([frame]):
            self._post(attached, opened, frame)
        answerer.answer_small(header, payload)
        link.receiver.answered(request_id)
        traffic = attached.traffic
        traffic.messages_sent += 1
        traffic.bytes_sent += len(frame)
        traffic.content_bytes_sent += len(payload)
        return True

    def _post(self, attached: Attached, opened: Opened, frame: bytes) -> None:
        """Send a frame through the socket of the control lane; it may fail, links are made for that."""
        try:
            opened.port.send(attached.route[1], frame)
        except zmq.ZMQError as error:
            self._hub.unroutable += 1
            if not isinstance(error, zmq.Again):
                self._hub.disconnected(attached.route, now=_now())
        except BaseException:
            end_message(opened.sock)
            raise
        self._sockets.touched.add(opened.fd)


def sum_bytes(frames: Sequence[bytes]) -> int:
    """Bytes of some frames; as content_bytes, in C."""
    total = 0
    for frame in frames:
        total += len(frame)
    return total
