"""The near lane: messages about shared memory go from process to process through a pipe, past libzmq's threads.

Where two nodes of one host share memory, what announces a tensor costs more than the tensor: four threads are woken for
it. A near lane is a pipe each way (`edgebus/shm/pipes.py`), offered with the probe of docs/spec/bus-shm.md. It may lose
what it likes: whatever is sent again goes by the control lane. Every method is called with the runner's lock held.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from edgebus import shm
from edgebus.attached import Attached, NearLane, Route
from edgebus.errors import NodeClosed
from edgebus.handed import MOST_ARRAYS, as_handed
from edgebus.interrupts import is_of_signal
from edgebus.link_states import State
from edgebus.messages import INLINE_BYTES, Block, Message, Request, decode_header
from edgebus.readiness import DescriptorTaker
from edgebus.requests import ttl_of
from edgebus.sharing import LARGE_BYTES, total_bytes
from edgebus.shm.pipes import PACKET_BYTES
from edgebus.sockets import Sockets
from edgebus.streams import Frames, Specs
from edgebus.wire import spec_fault

if TYPE_CHECKING:
    from edgebus.arrays import Array
    from edgebus.calls import Pending
    from edgebus.desk import Shared
    from edgebus.express import Express
    from edgebus.hub import Hub
    from edgebus.messages import ArraySpec, WireLimits
    from edgebus.sharing import Sharing

NEAR_SOCKET = 0
"""First part of the routes of near lanes: libzmq's sockets count from 1, those of this process from -1 downwards."""
_GREETING = b""  # the first packet of whoever found the pipes: from then on the maker may use them
_MOST_LANES = 3  # of one link: one for each end that offers, and one more while another is offered anew
_MOST_PACKETS = 256  # taken at once, whoever fills the pipe meanwhile
_UP = State.UP
_ident, _now = threading.get_ident, time.monotonic
_log = logging.getLogger("edgebus")


_encode_here = msgspec.msgpack.Encoder().encode
_decode_here = msgspec.msgpack.Decoder(Block).decode


def decode_here(frame: bytes) -> Block | None:
    """Where a greeting says that a board is; None if it is malformed."""
    try:
        return _decode_here(frame)
    except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError) as error:
        if is_of_signal(error):
            raise
        return None


class NearLanes:
    """The near lanes of one node, and the short way of plain requests with arrays in shared memory over them.

    Args:
        hub: whose links they belong to.
        sockets: tell when something has come.
        express: takes plain small messages, and has what a request is delivered by.
        sharing: whose memory is spoken of.
        on_frames: takes any other message.
        bulk_from_bytes: payloads from this size on go in pieces, with all that belongs to them.
    """

    def __init__(
        self,
        hub: Hub,
        sockets: Sockets,
        express: Express,
        sharing: Sharing,
        on_frames: Callable[[Route, list[Any], str | None], None],
        bulk_from_bytes: int,
    ) -> None:
        self._hub, self._sockets = hub, sockets
        self._express, self._sharing, self._on_frames = express, sharing, on_frames
        self._bulk_from_bytes = bulk_from_bytes
        self._lanes: dict[Route, NearLane] = {}
        self._of: dict[str, list[NearLane]] = {}  # by link, the oldest first
        self._next = 0
        self._fitting: ArraySpec | None = None  # what was found to fit its bytes last
        self._fitting_bytes = 0

    def offer(self, attached: Attached) -> bytes:
        """Make a lane; returns what the peer finds it by, b"" if there is none to be made."""
        if attached.near is not None or (made := shm.make_pipes()) is None:
            return b""
        pipes, names = made
        lane = self._watch(attached, pipes)
        if lane is None:
            return b""
        lane.offered = names.pack()
        return lane.offered

    def accept(self, attached: Attached, pid: int, offered: bytes) -> None:
        """Use the lane that a peer offers, if it can be found: who offers one has no other, whatever we think."""
        names = shm.PipeNames.unpack(offered)
        if names is None or any(lane.offered == offered for lane in self._lanes.values()):
            return  # nothing, or what we offer ourselves, thrown back
        try:
            pipes = shm.find_pipes(pid, names)
        except shm.SegmentUnavailable as error:
            _log.debug("edgebus: no near lane: %s", error)
            return
        lane = self._watch(attached, pipes)
        if lane is not None and self._greet(lane):
            attached.near = lane

    def send(self, route: Route, frames: list[Any]) -> bool:
        """Send a message; False if it has to go another way."""
        lane = self._lanes.get(route)
        if lane is None:  # dropped in this very turn: it is sent again if it is still wanted
            return True
        if not self._sharing.in_order(lane.attached) or not lane.pipes.send(frames):
            return False
        self._sharing.collect(lane.attached)  # what the peer has given back, while it is at work
        return True

    def go_round(self, route: Route) -> Route:
        """A message goes by the control lane, whose route is returned: the next ones do not overtake it."""
        attached = self._lanes[route].attached
        self._sharing.went_round(attached)
        return attached.route

    def catch_up(self, route: Route) -> None:
        """A message has come by another route: those in the pipe are older, if it had to go round."""
        attached = self._hub.by_route.get(route)
        if attached is None or attached.near is None or route[0] == NEAR_SOCKET:
            self._sharing.came_round = None
            return
        for lane in tuple(self._of.get(attached.peer_id, ())):
            for _ in range(_MOST_PACKETS):
                if not self._take(lane):
                    break
        self._sharing.came_round = attached

    def flush(self, attached: Attached) -> None:
        """Something was said to a peer in the middle of taking in what came from it."""
        self._hub.touch(attached, now=_now())

    def put(self, attached: Attached, payload: bytes, arrays: Sequence[Array]) -> Shared | None:
        """Put arrays where a peer sees them that has a near lane; from any thread, without the lock. None if that
        cannot be done now.

        What the peer has given back is seen once the message has gone, while the peer is at work; before it only where
        the arrays are large, for which the same memory is better than more of it, or find no room.

        Raises:
            TypeError, ValueError: an array that does not travel.
        """
        sharing, runner = self._sharing, self._express._runner
        total = total_bytes(arrays)
        if runner._owner == _ident() or len(payload) >= self._bulk_from_bytes or not sharing.wants(attached, total):
            return None  # for a signal handler in the middle of the node's work, which may be the pool's, likewise
        if total >= LARGE_BYTES and not self._collect(attached):
            return None
        shared = sharing.put(attached, arrays)
        if shared is None and self._collect(None):
            shared = sharing.put(attached, arrays)
        return shared

    def _collect(self, attached: Attached | None) -> bool:
        """See what the peer has given back, or all peers; from any thread, without the lock. False if the node is
        closed."""
        runner, sharing, me = self._express._runner, self._sharing, _ident()
        try:
            try:
                runner.open_section()
                if attached is None:
                    sharing.collect_all()
                else:
                    sharing.collect(attached)
                runner.sent()
            except NodeClosed:
                return False
            finally:
                runner.close_section()
        finally:
            if runner._owner == me:
                runner._depth = runner._owner = 0
            runner._lock.release()
        return True

    def ask(
        self,
        attached: Attached,
        service: str,
        payload: bytes,
        specs: Specs,
        blocks: tuple[Block, ...],
        pending: Pending,
        now: float,
    ) -> bool:
        """Like `request`, without the lock; as Runner.do_small."""
        runner = self._express._runner
        me = _ident()
        if runner._owner == me:
            return False
        try:
            try:
                runner.open_section()
                done = self.request(attached, service, payload, specs, blocks, pending, now)
                runner.sent()
            finally:
                runner.close_section()
        finally:
            if runner._owner == me:
                runner._depth = runner._owner = 0
            runner._lock.release()
        runner.call_back()
        return done

    def request(
        self,
        attached: Attached,
        service: str,
        payload: bytes,
        specs: Specs,
        blocks: tuple[Block, ...],
        pending: Pending,
        now: float,
    ) -> bool:
        """Start and send a plain request whose arrays lie in shared memory; False if it has to go the usual way."""
        lane, link, hub, sharing = attached.near, attached.link, self._hub, self._sharing
        caller, limits, payload_bytes = link.caller, link.peer_limits, len(payload)
        if (
            lane is None
            or link.state is not _UP
            or limits is None
            or hub.taps
            or payload_bytes > INLINE_BYTES
            or len(specs) > MOST_ARRAYS
            or caller.outstanding_bytes + payload_bytes > caller.max_bytes
            or (limits is not lane.checked_limits and not self._suits(lane, limits))
        ):
            return False
        if not sharing.in_order(attached):
            sharing.collect(attached)  # perhaps it is then
            return False
        request_id, deadline_at = caller.claim_id(), pending.deadline_at
        ttl_ms, oldest = ttl_of(deadline_at - now), caller.oldest_or(request_id)
        number = sharing.number_new(attached, blocks)
        frame = lane.writer.write(request_id, service, ttl_ms, oldest, specs, payload, blocks, number)
        if frame is None or not lane.pipes.send_one(frame):
            return False
        # Sent first: what follows is done while the peer is at work. Blocks go by the pool's numbers on this side.
        pending.request_id = request_id
        header = Request(request_id, service, ttl_ms, oldest, specs, payload, None, None, blocks)
        caller.start_sent(header, (payload,), payload_bytes, deadline_at, pending, now)
        traffic, shared_bytes = attached.traffic, 0
        for block in blocks:
            shared_bytes += block.size
        traffic.messages_sent += 1
        traffic.bytes_sent += len(frame)
        traffic.content_bytes_sent += payload_bytes + shared_bytes
        traffic.copied_bytes_sent += shared_bytes if not sharing._sent_loans else sharing.copied_bytes(blocks)
        at = caller.first_due_at
        if at < attached.scheduled_at:
            hub.schedule(attached, at)
        sharing.collect(attached)
        return True

    def _suits(self, lane: NearLane, limits: WireLimits) -> bool:
        """Whether a peer of these limits takes whatever goes the short way."""
        if (
            limits.max_frame_bytes < INLINE_BYTES
            or limits.max_header_bytes < PACKET_BYTES
            or limits.max_frames < 2 + MOST_ARRAYS
        ):
            return False
        lane.checked_limits = limits
        return True

    def drop(self, attached: Attached) -> None:
        """A link has ended, or its peer is another one."""
        attached.near = None
        self._drop(attached)

    def close(self) -> None:
        """Close all lanes."""
        for lane in list(self._lanes.values()):
            self.drop(lane.attached)

    def _drop(self, attached: Attached) -> None:
        boards = {lane.board for lane in self._of.get(attached.peer_id, ()) if lane.board is not None}
        for lane in tuple(self._of.get(attached.peer_id, ())):
            self._close_lane(lane)
        for board in boards:
            board.close()

    def _close_lane(self, lane: NearLane) -> None:
        attached = lane.attached
        lanes = self._of[attached.peer_id]
        lanes.remove(lane)
        if not lanes:
            del self._of[attached.peer_id]
        if attached.near is lane:
            attached.near = None
        del self._lanes[lane.route]
        self._hub.by_route.pop(lane.route, None)
        self._sockets.unwatch_fd(lane.pipes.read_fd)
        lane.pipes.close()

    def _greet(self, lane: NearLane) -> bool:
        """Say that this end is there, and where its board is."""
        mine = [other.board for other in self._of[lane.attached.peer_id] if other.board is not None]
        try:
            lane.board = mine[0] if mine else shm.Board() if shm.ORDERED else None
        except OSError:
            lane.board = None
        if lane.board is None:
            return lane.pipes.send((_GREETING,))
        info = lane.board.info
        here = Block(0, info.pid, info.fd, info.size, info.nonce, shm.HEADER_BYTES, shm.BOARD_BYTES)
        return lane.pipes.send((_GREETING, _encode_here(here)))

    def _greeted(self, lane: NearLane, frames: list[bytes]) -> None:
        """The other end is there."""
        attached = lane.attached
        if len(frames) == 2 and lane.peer_board is None:
            here = decode_here(frames[1])
            if here is None:
                self._hub.malformed += 1
                return
            lane.peer_board = self._sharing.view_board(attached, here)
        if lane.board is None and attached.near is not lane:  # we made the pipes: now it knows our board, too
            self._greet(lane)
        if attached.near is None:
            attached.near = lane

    def _watch(self, attached: Attached, pipes: shm.Pipes) -> NearLane | None:
        if len(lanes := self._of.get(attached.peer_id, [])) >= _MOST_LANES:
            self._close_lane(lanes[0])
        self._next += 1
        lane = NearLane(attached, (NEAR_SOCKET, self._next.to_bytes(8, "big")), pipes)
        try:
            self._sockets.watch_fd(pipes.read_fd, LaneTaker(self, lane))
        except OSError:
            pipes.close()
            return None
        self._lanes[lane.route] = lane
        self._of.setdefault(attached.peer_id, []).append(lane)
        self._hub.by_route[lane.route] = attached
        return lane

    def _take(self, lane: NearLane) -> bool:
        """Take in one message; False if there was none."""
        frames = lane.half_taken if lane.half_taken is not None else lane.pipes.take()
        if frames is None:
            return False
        lane.half_taken = None
        attached = lane.attached
        self._sharing.came_round = None
        try:
            if frames and frames[0] == _GREETING:
                self._greeted(lane, frames)
            elif len(frames) != 1 or not self._receive(lane, attached, frames[0]):
                self._on_frames(lane.route, frames, attached.key)
        except BaseException as error:
            if isinstance(error, Exception) and not is_of_signal(error):
                self._take_once_more(lane, frames)
            else:  # what was done of it is known, as of a resend
                lane.half_taken = frames
                self._sockets.touched.add(lane.pipes.read_fd)
                raise
        return True

    def _take_once_more(self, lane: NearLane, frames: list[bytes]) -> None:
        """A message has failed by a fault of ours on the short way: the usual one gives up what fails there, too."""
        _log.exception("edgebus: internal error while a message was taken in")
        if frames and frames[0] != _GREETING:
            try:
                self._on_frames(lane.route, frames, lane.attached.key)
            except Exception:
                _log.exception("edgebus: internal error while a message was taken in")

    def _receive(  # noqa: PLR0911, PLR0912 - the hot path
        self, lane: NearLane, attached: Attached, frame: bytes
    ) -> bool:
        """Take a message of one frame; False if it has to go the usual way."""
        link, hub = attached.link, self._hub
        if link.state is not _UP or hub.taps:
            return False
        handed = lane.reader.read(frame)
        if handed is None:
            try:
                header = decode_header(frame)
            except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError) as error:
                if is_of_signal(error):
                    raise
                return False
            if type(header) is not Request or header.blocks is None:
                return self._express.receive_header(attached, header, len(frame))
            handed = as_handed(header)
            if handed is None:
                return False
        answerer, now, content_bytes = link.answerer, _now(), len(handed.payload)
        if hub.outbox or hub.news or link.receiver._partial:  # contents that wait come first
            return False
        for pos, place in enumerate(handed.places):
            spec = handed.specs[pos]
            if spec is not self._fitting or place.size != self._fitting_bytes:  # mostly it is the one before
                if spec_fault(spec, place.size) is not None:
                    return False
                self._fitting, self._fitting_bytes = spec, place.size
            content_bytes += place.size
        judge = hub.judge if attached.hello_id is not None else None
        if answerer.knows(handed.id) or (
            judge is not None and judge(attached.key, handed.service, len(handed.payload), now) is not None
        ):
            return False  # asked again on the usual way, which refuses it; what is denied costs nothing
        views = self._sharing.views(attached, handed.places)
        if views is None:
            return False  # asked again likewise
        frames: Frames = (handed.payload, *views)
        arrived = answerer.receive_new(
            handed.id, handed.service, handed.ttl_ms, handed.settled_below, handed.specs, frames, content_bytes, now
        )
        if arrived is None:
            link.receive(Message(handed.header(), frames), now=now)
            hub.touch(attached, now=now)
        else:
            link.heard_at = now
            self._express.deliver(attached, arrived)
            if answerer.has_news:
                hub.touch(attached, now=now)
        attached.traffic.took(len(frame), content_bytes)
        return True


class LaneTaker(DescriptorTaker):
    """For the sockets: takes one message at a time, the descriptor goes on telling."""

    def __init__(self, lanes: NearLanes, lane: NearLane) -> None:
        self._near, self._lane = lanes, lane

    def take(self, event: int) -> bool:
        """See DescriptorTaker."""
        self._near._take(self._lane)
        return False
