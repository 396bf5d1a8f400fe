"""Arrays through shared memory between nodes of one host: what the engine knows of pool, mappings and leases.

A peer on the same host (its greeting says so) is asked once whether it can really see our memory; until it says yes,
and whenever there is no room, arrays go by the bulk lane. Rules: docs/spec/bus-shm.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgebus import messages as m
from edgebus import shm
from edgebus.arrays import Array, describe_arrays
from edgebus.config import Limits
from edgebus.streams import Specs

if TYPE_CHECKING:
    from edgebus.hub import Attached

_PROBE = b"edgebus"
_SWEEP_S = 5.0
_MAX_ARRAYS = 32  # in one message: their blocks have to fit into the smallest header


class Sharing:
    """Shared memory of one node; `put` may be called from any thread, the rest with the runner's lock held.

    Args:
        limits: how much of it there may be.
        give_back: called with a link and a lease when a view of its memory has gone; on any thread, at any moment.
    """

    def __init__(self, limits: Limits, give_back: Callable[[Attached, int], None]) -> None:
        self._give_back = give_back
        self._from_bytes = limits.share_from_bytes
        self._ledgers: dict[int, tuple[Attached, shm.Ledger]] = {}
        self._pool: shm.Pool | None = None
        self._swept_at = 0.0
        self.share: m.Share | None = None
        if limits.share_bytes and shm.available():
            started = shm.process_start_time(os.getpid()) or 0
            self.share = m.Share(shm.host_id(), os.getpid(), started)
            self._pool = shm.Pool(limits.share_bytes)
            self._mapper = shm.Mapper(4 * limits.share_bytes, limits.share_bytes * 2)

    # -- sending ------------------------------------------------------------------------------------

    def wants(self, attached: Attached, arrays: Sequence[Array]) -> bool:
        """True if these arrays should go through shared memory, or it should be found out whether they can."""
        if self._pool is None or attached.link.peer_share is None or attached.sharing == "no":
            return False
        return sum(array.nbytes for array in arrays) >= self._from_bytes

    def put(self, attached: Attached, arrays: Sequence[Array]) -> tuple[Specs, tuple[m.Block, ...]] | None:
        """Copy arrays to where the peer can see them; None if that cannot be done now.

        Raises:
            TypeError, ValueError: an array that does not travel.
        """
        if attached.sharing != "yes" or self._pool is None or len(arrays) > _MAX_ARRAYS:
            return None
        specs, contiguous = describe_arrays(arrays)
        blocks = self._pool.put(contiguous, attached.peer_id, keep=True)
        if blocks is None:
            return None
        return specs, tuple(_to_wire(block) for block in blocks)

    def ask(self, attached: Attached) -> None:
        """Find out whether the peer can see our memory."""
        share = attached.link.peer_share
        if attached.sharing != "unknown" or self._pool is None or share is None or self.share is None:
            return
        attached.sharing = "no"
        if share.host_id == self.share.host_id and attached.link.version >= 2:
            probe = self._pool.put([_PROBE], attached.peer_id)
            if probe is not None:
                attached.sharing = "asked"
                attached.link.say(m.Probe(_to_wire(probe[0])))

    def done(self, attached: Attached, leases: Sequence[int], unsent: Sequence[int]) -> None:
        """Messages with these leases will not be sent again; those unsent the peer has never heard of."""
        if self._pool is not None:
            self._pool.release(unsent, attached.peer_id)
            self._pool.done(leases, attached.peer_id)

    # -- receiving ----------------------------------------------------------------------------------

    def resolve(self, attached: Attached, header: m.Content) -> tuple[Any, ...] | None:
        """Views of the arrays of a message; None if they cannot be seen."""
        assert header.blocks is not None
        blocks = header.blocks
        if self._pool is None or not self._ledger(attached).admit([block.lease for block in blocks]):
            return None
        views: list[Any] = []
        for number, block in enumerate(blocks):
            view = self._view(attached, block)
            if view is None:
                for left in blocks[number:]:
                    self._give_back(attached, left.lease)
                return None
            views.append(view)
        return tuple(views)

    def take_back(self, attached: Attached, lease: int) -> None:
        """A view has gone: tell its owner, which may use the memory again."""
        known = self._ledgers.get(id(attached))
        if known is None:
            return
        ledger = known[1]
        ledger.give_back(lease)
        if (report := ledger.report()) is not None:
            attached.link.say(m.Leases(*report))

    def news(self, attached: Attached, header: m.Probe | m.Seen | m.Leases) -> None:
        """A word of the peer about its memory or ours."""
        match header:
            case m.Probe():
                view = self._view(attached, header.block, is_lease=False) if self._pool is not None else None
                attached.link.say(m.Seen(view is not None and bytes(view[: len(_PROBE)]) == _PROBE))
            case m.Seen():
                attached.sharing = "yes" if header.ok and attached.sharing in ("asked", "yes") else "no"
            case m.Leases() if self._pool is not None:
                self._pool.settle(attached.peer_id, header.upto, header.held)

    # -- links that come and go ---------------------------------------------------------------------

    def up(self, attached: Attached) -> None:
        """A link is up (again): tell what is still in use here, and do not trust what was found out before."""
        attached.sharing = "unknown"
        incarnation = attached.link.peer_incarnation
        if attached.shared_with not in (b"", incarnation):
            self.gone(attached)  # another life of the peer: what the last one had in use it cannot give back
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
        self._pool.retire(attached.peer_id, dead=dead)
        self._mapper.forget(attached.peer_id)
        self._ledgers.pop(id(attached), None)

    def sweep(self, now: float) -> None:
        """Look from time to time which memory of links that have ended is free."""
        if self._pool is not None and now >= self._swept_at + _SWEEP_S:
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

    def _view(self, attached: Attached, block: m.Block, *, is_lease: bool = True) -> memoryview | None:
        info = shm.SegmentInfo(block.pid, block.fd, block.segment_bytes, block.nonce)
        give_back, lease = self._give_back, block.lease

        def on_release() -> None:
            if is_lease:
                give_back(attached, lease)

        try:
            return self._mapper.view(attached.peer_id, info, block.offset, block.size, on_release)
        except shm.SegmentUnavailable:
            return None


def _to_wire(block: shm.Block) -> m.Block:
    info = block.segment
    return m.Block(block.lease_id, info.pid, info.fd, info.size, info.nonce, block.offset, block.size)
