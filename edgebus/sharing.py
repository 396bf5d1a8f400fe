"""Arrays through shared memory between nodes of one host: what the engine knows of pool, mappings and leases.

A peer on the same host (its greeting says so) is asked once whether it can really see our memory; until it says yes,
and whenever there is no room, arrays go by the bulk lane. Rules: docs/spec/bus-shm.md.

Sharing stands on four rooms, each built on the one before: the memory and what waits for it (sharing_pool), what its
leases are called on a link (sharing_numbers), what is put there and lent (sharing_puts), and what the peers have put
there for us (sharing_views). Here is whether a peer sees our memory at all, and links that come and go.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edgebus import messages as m
from edgebus import shm
from edgebus.again import Again
from edgebus.arrays import Array
from edgebus.config import Limits
from edgebus.handed import places_of
from edgebus.sharing_pool import POOL_S
from edgebus.sharing_puts import block_on_wire
from edgebus.sharing_views import SharingViews

if TYPE_CHECKING:
    from edgebus.attached import Attached

LARGE_BYTES = 2 << 20
"""A second place for so much, while the first is not known to be free, costs more than to look."""
_PROBE = b"edgebus"
_PROBE_BYTES = 64  # with what a near lane is found by
_ndarray = np.ndarray


class Sharing(SharingViews):
    """Shared memory of one node; `put` may be called from any thread, the rest with the runner's lock held.

    Args:
        limits: how much of it there may be.
        wake: has `take_back` called soon; used on any thread, at any moment.
    """

    def __init__(self, limits: Limits, wake: Callable[[], None]) -> None:
        super().__init__(limits, wake)
        self._again = Again()
        self._probes: dict[int, int] = {}  # what their leases are called, until the peer has looked

    # -- whether a peer sees it ---------------------------------------------------------------------

    def wants(self, attached: Attached, total: int) -> bool:
        """True if so many bytes should go through shared memory, or it should be found out whether they can."""
        if total < self._from_bytes or self._pool is None:
            return False
        if attached.sharing == "yes":
            return True
        if attached.link.peer_share is None:
            return False
        if attached.sharing == "no":
            if not self._again.is_due(id(attached), time.monotonic()):
                return False
            attached.sharing = "unknown"
        return True

    def ask(self, attached: Attached) -> None:
        """Find out whether the peer can see our memory."""
        share = attached.link.peer_share
        if attached.sharing != "unknown" or self._pool is None or share is None or self.share is None:
            return
        if self._is_in_put():
            return  # the next one asks
        attached.sharing = "no"
        self._probed(attached)
        if share.host_id == self.share.host_id and attached.link.version >= 2:
            offered = self.near.offer(attached) if self.near is not None else b""
            probe = self._pool.put([_PROBE + offered], attached.peer_id)
            if probe is None and self.collect_all():
                probe = self._pool.put([_PROBE + offered], attached.peer_id)
            if probe is None:  # no room now: the next one asks
                if offered and self.near is not None:
                    self.near.drop(attached)
                attached.sharing = "unknown"
            else:
                attached.sharing = "asked"
                block = block_on_wire(probe[0])
                self._probes[id(attached)] = number = self._names(attached).number(block.lease)
                self._names(attached).done([block.lease])
                attached.link.say(m.Probe(msgspec.structs.replace(block, lease=number)))

    def _probed(self, attached: Attached) -> None:
        """The peer has looked at a probe, or is asked anew: it may never report it, if it sees nothing of ours."""
        number = self._probes.pop(id(attached), None)
        if number is not None:
            self._give_free(attached, self._names(attached).returned(number), [])

    def news(self, attached: Attached, header: m.Probe | m.Seen | m.Leases) -> None:
        """A word of the peer about its memory or ours."""
        match header:
            case m.Probe():
                view = self._view(attached, places_of((header.block,))[0], None) if self._pool is not None else None
                probe = bytes(view[:_PROBE_BYTES]) if view is not None else b""
                if self.near is not None and probe.startswith(_PROBE):
                    self.near.accept(attached, header.block.pid, probe[len(_PROBE) :])
                attached.link.say(m.Seen(probe.startswith(_PROBE)))
            case m.Seen():
                self._probed(attached)
                attached.sharing = "yes" if header.ok and attached.sharing in ("asked", "yes") else "no"
                if not header.ok:
                    self._again.refused(id(attached), time.monotonic())
            case m.Leases() if self._pool is not None:
                self._give_free(attached, self._names(attached).settle(header.upto, header.held), [])

    # -- links that come and go ---------------------------------------------------------------------

    def up(self, attached: Attached) -> None:
        """A link is up (again): tell what is still in use here, and do not trust what was found out before."""
        incarnation = attached.link.peer_incarnation
        if attached.shared_with not in (b"", incarnation):
            # Another life of the peer: what the last one had in use it cannot give back. A request that was started
            # since the link heard of it goes by sockets.
            for request_id in list(attached.link.caller.outstanding):
                if attached.link.caller.unshare(request_id, self.recover):
                    attached.link.caller.send_again(request_id, now=time.monotonic())
            self.gone(attached)
        attached.sharing = "unknown"
        self._again.forget(id(attached))
        attached.shared_with = incarnation
        known = self._ledgers.get(id(attached))
        if known is not None and (report := known[1].report()) is not None:
            attached.link.say(m.Leases(*report))

    def gone(self, attached: Attached) -> None:
        """A link has ended: its memory is not used again before the peer is known to have let go."""
        self._again.forget(id(attached))  # also where there is no memory: a peer may say no to nothing
        if self._pool is None:
            return
        self._probes.pop(id(attached), None)
        attached.sharing = "no"  # nothing is put or lent for it that nobody would ever take back
        if self.near is not None:
            self.near.drop(attached)
        share = attached.link.peer_share
        dead = share is not None and not shm.process_alive(share.pid, share.started)
        self._now_or_later(partial(self._pool.retire, attached.peer_id, dead=dead, wait_s=POOL_S))
        self._mapper.forget(attached.peer_id)
        self._lender = self._named = None
        self._ledgers.pop(id(attached), None)
        self._numbers.pop(id(attached), None)

    def close(self) -> None:
        """Let go of everything; views that live keep their memory."""
        if self.near is not None:
            self.near.close()
        if self._pool is not None:
            with suppress(shm.PoolBusy):  # a signal handler, in the middle of a put: its memory goes with the node
                self._pool.close()
            self._mapper.close()


def total_bytes(arrays: Sequence[Array]) -> int:
    """Bytes of arrays; of what is none, 0."""
    total = 0
    for array in arrays:
        total += array.nbytes if type(array) is _ndarray else getattr(array, "nbytes", 0)
    return total
