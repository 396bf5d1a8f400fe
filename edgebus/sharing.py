"""Arrays through shared memory between nodes of one host: what the engine knows of pool, mappings and leases.

A peer on the same host (its greeting says so) is asked once whether it can really see our memory; until it says yes,
and whenever there is no room, arrays go by the bulk lane. Rules: docs/spec/bus-shm.md.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from edgebus import messages as m
from edgebus import shm
from edgebus.arrays import Array, describe_arrays
from edgebus.config import Limits
from edgebus.streams import Frames, Specs

if TYPE_CHECKING:
    from edgebus.attached import Attached

_PROBE = b"edgebus"
_SWEEP_S = 5.0
_SEGMENT_BYTES = 64 << 20
_MAX_ARRAYS = 32  # in one message: their blocks have to fit into the smallest header
REPORT_S = 0.005
REPORT_LEASES = 8
"""Leases that are given back are told together: after so long, or when there are so many, or much of the peer's
memory is theirs. Each report wakes a thread at both ends, which costs as much as a whole small message."""
REPORT_SHARE = 8  # of a segment of the peer's, this part given back and not told is much


class Sharing:
    """Shared memory of one node; `put` may be called from any thread, the rest with the runner's lock held.

    Args:
        limits: how much of it there may be.
        wake: has `take_back` called soon; used on any thread, at any moment.
    """

    def __init__(self, limits: Limits, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._returned: deque[tuple[Attached, shm.Ledger, int]] = deque()  # the garbage collector only appends
        self._returned_share = 0.0  # of the segments they lie in, together
        self._is_due_soon = False  # take_back will be called anyhow: nobody need be woken
        self.report_at = math.inf  # when take_back is to be called
        self._from_bytes = limits.share_from_bytes
        self._ledgers: dict[int, tuple[Attached, shm.Ledger]] = {}
        self._numbers: dict[int, tuple[Attached, shm.Numbers]] = {}
        self._putting: set[int] = set()  # threads
        # What a signal handler that came in the middle of a put could not do, with the pool's lock taken under it.
        self._postponed: deque[Callable[[], None]] = deque()
        self._pool: shm.Pool | None = None
        self._swept_at = 0.0
        self.share: m.Share | None = None
        if limits.share_bytes >= shm.COMMIT_BYTES and shm.available():
            started = shm.process_start_time(os.getpid()) or 0
            self.share = m.Share(shm.host_id(), os.getpid(), started)
            # A segment is mapped as a whole: one larger than all we may have would be over the bounds of the peer.
            self._pool = shm.Pool(limits.share_bytes, min(_SEGMENT_BYTES, limits.share_bytes))
            self._mapper = shm.Mapper(4 * limits.share_bytes, limits.share_bytes * 2)

    # -- sending ------------------------------------------------------------------------------------

    def wants(self, attached: Attached, arrays: Sequence[Array]) -> bool:
        """True if these arrays should go through shared memory, or it should be found out whether they can."""
        if self._pool is None or attached.link.peer_share is None or attached.sharing == "no":
            return False
        return sum(getattr(array, "nbytes", 0) for array in arrays) >= self._from_bytes

    def put(self, attached: Attached, arrays: Sequence[Array]) -> tuple[Specs, tuple[m.Block, ...]] | None:
        """Copy arrays to where the peer can see them; None if that cannot be done now.

        Raises:
            TypeError, ValueError: an array that does not travel.
        """
        if attached.sharing != "yes" or self._pool is None or len(arrays) > _MAX_ARRAYS:
            return None
        me = threading.get_ident()
        if me in self._putting:
            return None  # a signal handler, in the middle of another put
        specs, contiguous = describe_arrays(arrays)
        self._putting.add(me)
        try:
            blocks = self._pool.put(contiguous, attached.peer_id, keep=True)
        finally:
            self._putting.discard(me)
            if self._postponed:
                self._wake()
        if blocks is None:
            return None
        return specs, tuple(_to_wire(block) for block in blocks)

    def ask(self, attached: Attached) -> None:
        """Find out whether the peer can see our memory."""
        share = attached.link.peer_share
        if attached.sharing != "unknown" or self._pool is None or share is None or self.share is None:
            return
        if self._is_putting:
            return  # the next one asks
        attached.sharing = "no"
        if share.host_id == self.share.host_id and attached.link.version >= 2:
            probe = self._pool.put([_PROBE], attached.peer_id)
            if probe is not None:
                attached.sharing = "asked"
                block = _to_wire(probe[0])
                number = self._names(attached).number(block.lease)
                self._names(attached).done([block.lease])
                attached.link.say(m.Probe(msgspec.structs.replace(block, lease=number)))

    def done(self, attached: Attached, leases: Sequence[int]) -> None:
        """Messages with these leases will not be sent again."""
        if self._pool is not None:
            self._give_free(attached, self._names(attached).done(leases), list(leases))

    def number(self, attached: Attached, header: m.Content) -> m.Content:
        """A message is about to leave: its header with the leases as this link calls them from now on."""
        assert header.blocks is not None
        names = self._names(attached)
        blocks = tuple(msgspec.structs.replace(block, lease=names.number(block.lease)) for block in header.blocks)
        return msgspec.structs.replace(header, blocks=blocks)

    def recover(self, blocks: Sequence[m.Block]) -> Frames | None:
        """Arrays out of our own shared memory, for a message that has to go by sockets after all."""
        if self._pool is None or self._is_putting:
            return None
        frames = [self._pool.read(block.lease, block.size) for block in blocks]
        return None if None in frames else tuple(frame for frame in frames if frame is not None)

    # -- receiving ----------------------------------------------------------------------------------

    def resolve(self, attached: Attached, header: m.Content) -> tuple[Any, ...] | None:
        """Views of the arrays of a message; None if they cannot be seen."""
        assert header.blocks is not None
        blocks = header.blocks
        ledger = self._ledger(attached)
        if self._pool is None or not ledger.admit([block.lease for block in blocks]):
            attached.link.say(m.Seen(False))  # it shall use sockets
            return None
        views: list[Any] = []
        for number, block in enumerate(blocks):
            view = self._view(attached, block, ledger)
            if view is None:
                for left in blocks[number:]:
                    self._give_back(attached, ledger, left)
                attached.link.say(m.Seen(False))
                return None
            views.append(view)
        return tuple(views)

    def take_back(self, now: float) -> list[Attached]:
        """Views have gone: if it is time, tell their owners, which may use the memory again. Returns the links told."""
        while self._postponed and not self._is_putting:
            self._postponed.popleft()()
        if now < self.report_at and not self._is_much:
            if self._returned:
                self._is_due_soon = True
                self.report_at = min(self.report_at, now + REPORT_S)
            return []
        self._is_due_soon = False  # before anything is taken: what comes from now on wakes somebody again
        self.report_at = math.inf
        self._returned_share = 0.0
        told: dict[int, tuple[Attached, shm.Ledger]] = {}
        while self._returned:
            attached, ledger, lease = self._returned.popleft()
            known = self._ledgers.get(id(attached))
            if known is not None and known[1] is ledger:  # else it was lent by an earlier life of the peer
                ledger.give_back(lease)
                told[id(attached)] = known
        for attached, ledger in told.values():
            if (report := ledger.report()) is not None:
                attached.link.say(m.Leases(*report))
        return [attached for attached, _ in told.values()]

    def news(self, attached: Attached, header: m.Probe | m.Seen | m.Leases) -> None:
        """A word of the peer about its memory or ours."""
        match header:
            case m.Probe():
                view = self._view(attached, header.block, None) if self._pool is not None else None
                attached.link.say(m.Seen(view is not None and bytes(view[: len(_PROBE)]) == _PROBE))
            case m.Seen():
                attached.sharing = "yes" if header.ok and attached.sharing in ("asked", "yes") else "no"
            case m.Leases() if self._pool is not None:
                self._give_free(attached, self._names(attached).settle(header.upto, header.held), [])

    # -- links that come and go ---------------------------------------------------------------------

    def up(self, attached: Attached) -> None:
        """A link is up (again): tell what is still in use here, and do not trust what was found out before."""
        attached.sharing = "unknown"
        incarnation = attached.link.peer_incarnation
        if attached.shared_with not in (b"", incarnation):
            # Another life of the peer: what the last one had in use it cannot give back.
            self.gone(attached)
        attached.shared_with = incarnation
        known = self._ledgers.get(id(attached))
        if known is not None and (report := known[1].report()) is not None:
            attached.link.say(m.Leases(*report))

    def gone(self, attached: Attached) -> None:
        """A link has ended: its memory is not used again before the peer is known to have let go."""
        if self._pool is None:
            return
        share = attached.link.peer_share
        dead = share is not None and not shm.process_alive(share.pid, share.started)
        if self._is_putting:
            self._postponed.append(partial(self._pool.retire, attached.peer_id, dead=dead))
        else:
            self._pool.retire(attached.peer_id, dead=dead)
        self._mapper.forget(attached.peer_id)
        self._ledgers.pop(id(attached), None)
        self._numbers.pop(id(attached), None)

    def sweep(self, now: float) -> None:
        """Look from time to time which memory of links that have ended is free."""
        if self._pool is not None and now >= self._swept_at + _SWEEP_S and not self._is_putting:
            self._swept_at = now
            self._pool.sweep()

    def close(self) -> None:
        """Let go of everything; views that live keep their memory."""
        if self._pool is not None:
            self._pool.close()
            self._mapper.close()

    def _ledger(self, attached: Attached) -> shm.Ledger:
        known = self._ledgers.get(id(attached))
        if known is None:
            known = self._ledgers[id(attached)] = (attached, shm.Ledger())
        return known[1]

    def _names(self, attached: Attached) -> shm.Numbers:
        known = self._numbers.get(id(attached))
        if known is None:
            known = self._numbers[id(attached)] = (attached, shm.Numbers())
        return known[1]

    @property
    def _is_putting(self) -> bool:
        """True for a signal handler that came in the middle of a put of its own thread."""
        return threading.get_ident() in self._putting

    def _give_free(self, attached: Attached, unused: list[int], done: list[int]) -> None:
        """Our leases that the peer does not use, and those that are not sent again."""
        assert self._pool is not None
        if self._is_putting:
            self._postponed.append(partial(self._give_free, attached, unused, done))
            return
        self._pool.release(unused, attached.peer_id)
        self._pool.done(done, attached.peer_id)

    @property
    def _is_much(self) -> bool:
        return len(self._returned) >= REPORT_LEASES or self._returned_share * REPORT_SHARE >= 1.0

    def _give_back(self, attached: Attached, ledger: shm.Ledger, block: m.Block) -> None:
        """Nobody looks at a block any more; from the garbage collector, on any thread."""
        self._returned.append((attached, ledger, block.lease))
        self._returned_share += block.size / max(1, block.segment_bytes)
        if not self._is_due_soon or self._is_much:
            self._wake()

    def _view(self, attached: Attached, block: m.Block, ledger: shm.Ledger | None) -> memoryview | None:
        info = shm.SegmentInfo(block.pid, block.fd, block.segment_bytes, block.nonce)

        def on_release() -> None:
            if ledger is not None:
                self._give_back(attached, ledger, block)

        try:
            return self._mapper.view(attached.peer_id, info, block.offset, block.size, on_release)
        except shm.SegmentUnavailable:
            return None


def _to_wire(block: shm.Block) -> m.Block:
    info = block.segment
    return m.Block(block.lease_id, info.pid, info.fd, info.size, info.nonce, block.offset, block.size)
