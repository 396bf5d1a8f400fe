"""The short way for plain messages: a small request or reply, or a large request in one message, nothing special.

It does to the machines what the usual way through Hub and LinkMachine does, without their lists of messages and events;
whatever is special goes the usual way. A draft and its verdict are such messages, and their time is mostly ours: this
module is compiled where a compiler is (setup.py), and is ordinary Python else. tests/edgebus/test_express.py holds the
two ways against each other.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from edgebus.answerer import Answerer
from edgebus.attached import Attached, Route
from edgebus.calls import Pending
from edgebus.errors import WireError
from edgebus.express_sending import ExpressSending, sum_bytes
from edgebus.inbox import offer
from edgebus.interrupts import is_of_signal
from edgebus.link_states import State
from edgebus.messages import INLINE_BYTES, Chunk, Credit, Header, Message, Reply, Request, decode_header, encode_header
from edgebus.outcomes import Arrived
from edgebus.queues import DRAIN_BYTES, LARGE_BYTES, LOOK_BYTES
from edgebus.rawzmq import BURST, POLLIN
from edgebus.sockets import Sent
from edgebus.streams import Frames
from edgebus.wire import decode, encode

if TYPE_CHECKING:
    from edgebus.desk import Desk
    from edgebus.hub import Hub
    from edgebus.inbox import Inbox
    from edgebus.readiness import Opened
    from edgebus.runner import Runner

_FRAME_BYTES = INLINE_BYTES + 2048
_UP = State.UP
_PLAIN_TAGS = frozenset((encode_header(Chunk(0, 0))[1], encode_header(Request(0, "", 0, 0))[1]))
"""Second byte of the headers that receive_large is for: what else has frames is not decoded twice."""
_now = time.monotonic
_log = logging.getLogger("edgebus")


class Express(ExpressSending):
    """The short way of one node, called with the runner's lock held; what it sends stands in its base.

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
        super().__init__(hub, runner)
        self._deliver = deliver
        self._on_frames = on_frames
        self._by_route = hub.by_route
        self.inboxes: dict[str, Inbox] = {}  # by service
        self.desk: Desk | None = None  # where those are answered; set by whoever fills inboxes
        self.free_leases: Callable[[Attached, list[int]], None] | None = None  # told of memory that is done with
        self._half_taken: deque[tuple[Route, list[Any], str | None]] = deque()

    def take(self, opened: Opened, event: int) -> bool:
        """Read from a socket; True if there may be more. `event` is 0 if that is a guess."""
        try:
            return self._take(opened, event)
        except Exception as error:
            if is_of_signal(error):
                raise
            _log.exception("edgebus: internal error while a message was taken in")
            return True

    def _take(self, opened: Opened, event: int) -> bool:  # noqa: PLR0912 - the hot path
        port, socket_id, more, large_bytes, unseen_bytes = opened.port, opened.socket_id, opened.crowd, 0, 0
        if self._half_taken:
            self._take_again()
        while True:
            frame = port.take()
            if frame is None:
                if not event:
                    opened.crowd = 0
                return False
            if not event:
                # There was more than was taken last time: trying costs less than another turn for each.
                more = opened.crowd = min(BURST, 2 * opened.crowd + 1)
                event = POLLIN
            route, key = (socket_id, port.route), port.key
            frames, size_bytes = None, len(frame)
            if port.more:
                frames = [frame]
                size_bytes += port.take_rest(frames)
            if size_bytes >= LARGE_BYTES:
                # They are taken before anything else is done: libzmq bounds how many stand there, not their bytes.
                large_bytes += size_bytes
                unseen_bytes += size_bytes
                if unseen_bytes >= LOOK_BYTES:
                    unseen_bytes = 0
                    port.readable()
                if more == 0 and large_bytes < DRAIN_BYTES:
                    more = 1
            elif large_bytes:
                more = 0  # whoever waits for this one does not wait for all large ones that are there
            try:
                if frames is not None:
                    if not self.receive_large(route, frames, key):
                        self._on_frames(route, frames, key)
                elif not self.receive_small(route, frame, key):
                    self._on_frames(route, [frame], key)
            except BaseException as error:
                self._half_taken.append((route, [frame] if frames is None else frames, key))
                if not isinstance(error, Exception) or is_of_signal(error):
                    raise
                _log.exception("edgebus: internal error in the short way of a message, it goes the usual one")
                self._take_again()
            if not more:
                return True
            more -= 1

    def _take_again(self) -> None:
        """Messages in the middle of which something was raised: what was done of them is known, as of a resend.

        By a signal handler, as often as that comes; by a fault, once: the usual way gives up what fails there.
        """
        while self._half_taken:
            try:
                self._on_frames(*self._half_taken[0])
            except Exception as error:
                if is_of_signal(error):
                    raise
                _log.exception("edgebus: internal error while a message was taken in")
            self._half_taken.popleft()

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
        except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError) as error:
            if is_of_signal(error):
                raise
            return False
        return self.receive_header(attached, header, len(frame))

    def receive_header(  # noqa: PLR0911, PLR0912 - the hot path
        self, attached: Attached, header: Header, frame_bytes: int
    ) -> bool:
        """Like receive_small, for a message that is decoded and came over a link that is up, with no taps."""
        link, hub = attached.link, self._hub
        if type(header) is not Reply and type(header) is not Request:
            return type(header) is Credit and self._credited(attached, header, frame_bytes)
        payload = header.inline
        if payload is None or header.arrays or header.transfer is not None or header.blocks is not None:
            return False
        now = _now()
        if type(header) is Reply:
            pending = link.caller.awaits_small(header)
            if pending is None or (link.sender and not link.whole_answered(header.id, now)):
                return False
            assert type(pending) is Pending
            # In this order: if a signal handler raises in between, the answer comes again and finds it settled.
            pending.settle_small(payload)
            self._runner.stirred = True
            if pending.on_done is not None:
                self._runner.soon(pending.on_done)
            link.caller.answered_small(header.id)
            if link.caller.leases_done:
                self._free_leases(attached, now)
            if link.sender.unsent_bytes:
                hub.touch(attached, now=now)  # it may have room now
        elif type(header) is Request:
            if header.terms is not None or hub.outbox or hub.news:
                return False  # busy: what came before it has not been handed out yet
            judge = hub.judge if attached.hello_id is not None else None
            if judge is not None:
                if link.answerer.knows(header.id):
                    return False
                if judge(attached.key, header.service, len(payload), now) is not None:
                    return False  # asked again on the usual way, which refuses it; what is denied costs nothing
            arrived = link.answerer.receive_small(header, payload, now)
            if arrived is None:
                if link.answerer.knows(header.id):
                    return False
                return self._judged(attached, Message(header, (payload,)), frame_bytes, now)
            self.deliver(attached, arrived)
        link.heard_at = now
        attached.traffic.took(frame_bytes, len(payload))
        return True

    def receive_large(self, route: Route, frames: list[Any], key: str | None) -> bool:
        """Take a plain request that came with its arrays, or a piece; False if it has to go the usual way."""
        attached, hub = self._by_route.get(route), self._hub
        if len(frames[0]) < 2 or frames[0][1] not in _PLAIN_TAGS:
            return False
        if attached is None or attached.near is not None or (attached.key != key and attached.key is not None):
            return False
        link = attached.link
        if link.state is not _UP or hub.taps or hub.outbox or hub.news:
            return False
        try:
            message = decode(frames, link.answerer.limits)
        except WireError:
            return False
        header, content, now = message.header, message.frames, _now()
        frames_bytes = sum_bytes(frames)
        if isinstance(header, Chunk):
            return self._receive_chunk(attached, header, content[0], frames_bytes, now)
        return isinstance(header, Request) and self._receive_whole(attached, header, content, frames_bytes, now)

    def _receive_whole(
        self, attached: Attached, header: Request, content: Frames, frames_bytes: int, now: float
    ) -> bool:
        link, hub, size_bytes = attached.link, self._hub, sum_bytes(content)
        if header.terms is not None or header.blocks is not None or not content:
            return False
        if link.receiver or link.answerer.knows(header.id):  # contents that wait come first
            return False
        judge = hub.judge if attached.hello_id is not None else None
        if judge is not None and judge(attached.key, header.service, size_bytes, now) is not None:
            return False  # asked again on the usual way, which refuses it; what is denied costs nothing
        arrived = link.answerer.receive_plain(header, content, now)
        if arrived is None:
            return self._judged(attached, Message(header, content), frames_bytes, now)
        if header.transfer is not None:
            link.receiver.took_whole(header, now)
        link.heard_at = now
        self.deliver(attached, arrived)
        if link.has_news:
            hub.touch(attached, now=now)
        elif link.receiver.credit_at < attached.scheduled_at:
            hub.schedule(attached, link.receiver.credit_at)
        attached.traffic.took(frames_bytes, size_bytes)
        return True

    def _judged(self, attached: Attached, message: Message, frames_bytes: int, now: float) -> bool:
        """Take a request that there is no room for, and whose sender may ask: it is not to pay for it twice."""
        size_bytes = sum_bytes(message.frames)  # before its frames are let go of
        attached.link.receive(message, now=now)
        self._hub.touch(attached, now=now)
        attached.traffic.took(frames_bytes, size_bytes)
        return True

    def _receive_chunk(self, attached: Attached, chunk: Chunk, frame: Any, frames_bytes: int, now: float) -> bool:
        """Take a piece, and say at once how much may follow."""
        link, hub = attached.link, self._hub
        opened = self._sockets.by_id.get(attached.route[0])
        if link.receiver.waiting or opened is None:
            return False
        traffic = attached.traffic
        link.heard_at = now
        if link.receive_chunk(chunk, frame, now=now):
            hub.touch(attached, now=now)
            traffic.took(frames_bytes, len(frame))
            return True
        messages, num_done = link.receiver.headers_to_send(), 0
        try:
            for message in messages:
                credit = encode_header(message.header)
                traffic.messages_sent += 1
                traffic.bytes_sent += len(credit)
                self._post(attached, opened, credit)
                num_done += 1
        finally:
            if num_done < len(messages):  # a signal handler has raised: they go the usual way
                hub.outbox += [(attached.route, attached, message) for message in messages[num_done:]]
        traffic.took(frames_bytes, len(frame))
        return True

    def _credited(self, attached: Attached, credit: Credit, frame_bytes: int) -> bool:
        """More of a content may go; what else a receiver says has to go the usual way."""
        link, hub, now = attached.link, self._hub, _now()
        if credit.rewind or not credit.received or not link.bulk_up or hub.outbox or hub.news:
            return False
        link.heard_at = now
        traffic, failed = attached.traffic, link.failed
        link.credited(credit, now=now)
        by_lane = (attached.route, attached.bulk_route or attached.route)
        messages, num_done = link.bulk_to_send(now=now), 0
        try:
            for lane, message in messages:
                frames = encode(message, link.version)
                traffic.messages_sent += 1
                traffic.bytes_sent += sum_bytes(frames)
                traffic.content_bytes_sent += sum_bytes(message.frames)
                sent = self._sockets.send(by_lane[lane], frames)
                if sent is not Sent.OK:
                    hub.unroutable += 1
                    if sent is Sent.GONE:
                        hub.disconnected(by_lane[lane], now=now)
                num_done += 1
        finally:
            if num_done < len(messages):  # a signal handler has raised: they go the usual way
                hub.outbox += [(by_lane[lane], attached, message) for lane, message in messages[num_done:]]
        if link.has_news or link.failed != failed:
            hub.touch(attached, now=now)
        elif (at := link.sender.next_timer()) < attached.scheduled_at:
            hub.schedule(attached, at)
        traffic.took(frame_bytes, 0)
        return True

    def deliver(self, attached: Attached, arrived: Arrived) -> None:
        """Hand a plain request to whoever serves it."""
        answerer: Answerer = arrived.answerer
        try:
            if not answerer.claim(arrived.id):
                return
            inbox = self.inboxes.get(arrived.service)
            if inbox is None or self.desk is None:
                self._deliver(attached, arrived)
            else:
                self._runner.stirred = True
                offer(inbox, attached, arrived, self.desk)
        except BaseException as error:
            if isinstance(error, Exception) and not is_of_signal(error):
                _log.exception("edgebus: internal error as a request was handed over, it goes the usual way")
                self._deliver(attached, arrived)  # which sees whether it fails once more
            else:  # it is known here by now, and would not be delivered when it comes again
                answerer.claim(arrived.id)
                self._hub.news.insert(0, (attached, arrived))
                raise

    def _free_leases(self, attached: Attached, now: float) -> None:
        caller = attached.link.caller
        if self.free_leases is None:
            self._hub.touch(attached, now=now)
            return
        self.free_leases(attached, caller.leases_done)
        caller.leases_done, caller.leases_unsent = [], []
