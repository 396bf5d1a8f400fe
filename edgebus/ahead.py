"""Tensors that are announced on the near lane while they are still being copied.

The copy takes longer than all else about a tensor. Who sleeps meanwhile is woken by the announcement, reads where the
tensor will lie and makes its views; once it is copied, a header without arrays is all that is left to go. The
application sees nothing of it before. Rules: docs/spec/bus-shm.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from edgebus.attached import LEAST_PLAIN, Attached, NearLane, Route
from edgebus.errors import NodeClosed
from edgebus.link_states import State
from edgebus.messages import Block, Blocks, Message, Request, decode_header, encode_header
from edgebus.messages import Specs as WireSpecs
from edgebus.port import this_core
from edgebus.streams import Specs
from edgebus.wire import spec_fault

if TYPE_CHECKING:
    from edgebus.express import Express
    from edgebus.hub import Hub
    from edgebus.sharing import Sharing

COMING, HERE, NEVER = b"\x01", b"\x02", b"\x03"
"""First frames of packets: a message with these arrays will come, it is there, it will not come."""
MARK_BYTES = 8  # before the header of a message that was announced
MOST_ARRAYS = 8  # of a message that goes the short way: its header fits a packet
LOOK_S = 0.00015  # twice what a copy takes of what is left when it is announced (shm.pool.AHEAD_BYTES)
MOST_PLAIN = 512
"""Tensors that are not announced after one that was in vain, at most: twice as many each time, from LEAST_PLAIN on."""
_UP = State.UP
_ident, _now = threading.get_ident, time.monotonic


class Coming(Struct, array_like=True, gc=False):
    """What is announced.

    Attributes:
        arrays: what will come.
        blocks: what it is being copied into.
        mark: of this announcement; the message has it, too.
        core: what copies, -1 if that is not known.
    """

    arrays: WireSpecs
    blocks: Blocks
    mark: int
    core: int = -1


_encode: Callable[[Coming], bytes] = msgspec.msgpack.Encoder().encode
_decode: Callable[[bytes], Coming] = msgspec.msgpack.Decoder(Coming).decode


def decode_coming(frame: bytes) -> Coming | None:
    """What is announced, with a block of the right size for each array; None if it is malformed."""
    try:
        coming = _decode(frame)
    except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError):
        return None
    arrays, blocks = coming.arrays, coming.blocks
    if not blocks or len(blocks) != len(arrays) or len(blocks) > MOST_ARRAYS:
        return None
    for index, block in enumerate(blocks):
        if spec_fault(arrays[index], block.size):
            return None
    return coming


class Ahead:
    """Announcements of one node's near lanes, one at a time on each; called with the runner's lock held.

    Args:
        hub: whose links they belong to.
        express: has what a request is delivered by.
        sharing: whose memory is spoken of.
        on_frames: takes what is not plain.
    """

    def __init__(
        self,
        hub: Hub,
        express: Express,
        sharing: Sharing,
        on_frames: Callable[[Route, list[Any], str | None], None],
    ) -> None:
        self._hub, self._express, self._sharing, self._on_frames = hub, express, sharing, on_frames

    # -- sending ------------------------------------------------------------------------------------

    def may(self, attached: Attached) -> bool:
        """Whether the next tensor is to be announced, as far as one can tell without the lock."""
        lane = attached.near
        if lane is None or not lane.hears_ahead:
            return False
        if lane.plain:
            lane.plain -= 1
            return False
        return True

    def told(self, attached: Attached, blocks: tuple[Block, ...], was_alone: bool) -> None:
        """The copy of these blocks is done, and no other thread had this core meanwhile; or one had.

        Mostly that is the peer itself, which was woken too early where all cores are busy: the next ones go plain.
        """
        lane = attached.near
        if lane is None or lane.ahead is not blocks:  # not announced after all: it says nothing
            return
        if was_alone:
            lane.patience = max(LEAST_PLAIN, lane.patience // 2)
        else:
            lane.plain = lane.patience
            lane.patience = min(2 * lane.patience, MOST_PLAIN)

    def tell(self, attached: Attached, specs: Specs, blocks: tuple[Block, ...]) -> None:
        """Announce what is being copied; from any thread, without the lock. Nothing happens where that cannot be."""
        runner = self._express._runner
        if runner._owner == _ident():
            return
        try:
            runner.open_section()
            self.announce(attached, specs, blocks)
            runner.sent()
        except NodeClosed:
            pass  # whoever sends it is told
        finally:
            runner.close_section()

    def announce(self, attached: Attached, specs: Specs, blocks: tuple[Block, ...]) -> bool:
        """Say that these blocks are being filled, to a peer that has nothing else to do for us."""
        lane, link = attached.near, attached.link
        if (
            lane is None
            or not lane.hears_ahead
            or lane.ahead is not None
            or link.state is not _UP
            or link.caller.outstanding
            or self._hub.taps
            or len(specs) > MOST_ARRAYS
            or not self._sharing.in_order(attached)
        ):
            return False
        lane.ahead = blocks  # first: whatever comes in between, it is taken back with them
        numbered = self._sharing.number_new(attached, blocks)
        if lane.pipes.send((COMING, _encode(Coming(specs, numbered, blocks[0].lease, this_core())))):
            lane.owes_never = False  # this takes the place of what was announced before
            return True
        lane.ahead = None
        return False

    def take_back(self, attached: Attached) -> None:
        """What was announced goes another way, or not at all."""
        lane = attached.near
        if lane is not None and lane.ahead is not None:
            lane.ahead = None
            lane.owes_never = True
            self.say_never(lane)

    def say_never(self, lane: NearLane, again: bool = False) -> None:
        """What was announced does not come: until the peer hears so, it keeps its views, and this end the memory."""
        if not lane.owes_never or lane.attached.near is not lane:
            return
        if lane.pipes.send((NEVER, b"")):
            lane.owes_never = False
        elif lane.attached.link.state is _UP:  # full: once more when the peer has read, or when the link is up again
            self._sharing.soon(partial(self.say_never, lane, True), is_timed=again)

    def done(self, attached: Attached, leases: Sequence[int]) -> None:
        """A message with these leases is not sent (again)."""
        lane = attached.near
        if lane is not None and lane.ahead is not None and lane.ahead[0].lease in leases:
            self.take_back(attached)

    # -- receiving ----------------------------------------------------------------------------------

    def take(self, lane: NearLane, frames: list[bytes]) -> bool:
        """Take such a packet; True if the message that it speaks of should be looked for: another core is at it."""
        kind = frames[0]
        if kind == COMING:
            return self._coming(lane, frames[1])
        coming, views = lane.coming, lane.views
        lane.coming = lane.views = None
        if kind == HERE:
            # Of another announcement, which was lost: it comes again.
            if coming is not None and int.from_bytes(frames[1][:MARK_BYTES], "little") == coming.mark:
                self._here(lane.attached, lane.route, coming, views, frames[1][MARK_BYTES:])
        elif kind != NEVER:
            self._hub.malformed += 1
        return False

    def _coming(self, lane: NearLane, frame: bytes) -> bool:
        lane.coming = lane.views = None
        attached, coming, views = lane.attached, decode_coming(frame), None
        if coming is None:
            self._hub.malformed += 1
            return False
        if attached.link.state is _UP and not self._hub.taps:
            views = self._sharing.resolve(attached, coming)
            if views is None:
                self._hub.touch(attached, now=_now())
        lane.coming, lane.views = coming, views  # at last: interrupted before, it is as if it was lost
        return coming.core != this_core()

    def _here(
        self, attached: Attached, route: Route, coming: Coming, views: tuple[Any, ...] | None, frame: bytes
    ) -> None:
        link, hub = attached.link, self._hub
        try:
            header = decode_header(frame)
        except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError):
            hub.malformed += 1
            return
        if type(header) is not Request or header.inline is None or header.arrays or header.blocks is not None:
            hub.malformed += 1
            return
        header.arrays = coming.arrays
        if views is None or header.terms is not None or header.transfer is not None:
            header.blocks = coming.blocks
            self._on_frames(route, [encode_header(header)], attached.key)
            return
        if link.state is not _UP or hub.taps:
            return  # since the announcement: it comes again
        content, now = (header.inline, *views), _now()
        judge = hub.judge if attached.hello_id is not None else None
        if judge is not None and not link.answerer.knows(header.id):
            denial = judge(attached.key, header.service, len(header.inline), now)
            if denial is not None:
                link.answerer.deny(header, *denial)
                hub.touch(attached, now=now)
                return
        self.hand_on(attached, header, content, len(frame), now)

    def hand_on(
        self, attached: Attached, header: Request, content: tuple[Any, ...], frame_bytes: int, now: float
    ) -> None:
        """Give a plain request, whose arrays are views by now, to whoever serves it."""
        link, hub, size_bytes = attached.link, self._hub, 0
        for each in content:
            size_bytes += len(each)
        arrived = None
        if not (hub.outbox or hub.news or link.receiver):  # what came before, and contents that wait, go first
            arrived = link.answerer.receive_plain(header, content, now)
        if arrived is None:
            link.receive(Message(header, content), now=now)
            hub.touch(attached, now=now)
            attached.traffic.took(frame_bytes, size_bytes)
            return
        link.heard_at = now
        self._express.deliver(attached, arrived)
        if link.answerer.has_news:
            hub.touch(attached, now=now)
        attached.traffic.took(frame_bytes, size_bytes)
