"""Arrays through shared memory between nodes of one host: what the engine knows of pool, mappings and leases.

A peer on the same host (its greeting says so) is asked once whether it can really see our memory; until it says yes,
and whenever there is no room, arrays go by the bulk lane. Rules: docs/spec/bus-shm.md.
"""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edgebus import messages as m
from edgebus import shm
from edgebus.again import Again
from edgebus.arrays import Array, describe_arrays
from edgebus.config import Limits
from edgebus.handed import places_of
from edgebus.loans import Loan, claim, loan_bytes, make_loan, put_back
from edgebus.shm.mapper import Place
from edgebus.shm.pool import Lease
from edgebus.streams import Frames, Specs

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from edgebus.attached import Attached
    from edgebus.near import NearLanes

_replace = msgspec.structs.replace
_ident = threading.get_ident
_Block, _ndarray = m.Block, np.ndarray
_PROBE = b"edgebus"
_PROBE_BYTES = 64  # with what a near lane is found by
_SWEEP_S = 5.0
_POOL_S = 0.02  # that whoever drives waits for the pool, which mostly is taken for microseconds
_SEGMENT_BYTES = 64 << 20
LARGE_BYTES = 2 << 20
"""A second place for so much, while the first is not known to be free, costs more than to look."""
_MAX_ARRAYS = 32  # in one message: their blocks have to fit into the smallest header
REPORT_S = 0.005
REPORT_LEASES = 8
"""Leases that are given back are told together: after so long, or when there are so many, or much of the peer's
memory is theirs. Each report wakes a thread at both ends, which costs as much as a whole small message."""
TOLD_S = 0.1
TOLD_LEASES = 256
TOLD_WEIGHT = 0.125
"""The same where they stand on a board as well: the peer looks at it itself, if only at the oldest."""
REPORT_SHARE = 8  # of a segment of the peer's, this part given back and not told is much


class Sharing:
    """Shared memory of one node; `put` may be called from any thread, the rest with the runner's lock held.

    Args:
        limits: how much of it there may be.
        wake: has `take_back` called soon; used on any thread, at any moment.

    Attributes:
        near: what speaks of this memory may go by it.
        came_round: of whom a message is taken in that did not come by the near lane although there is one.
    """

    def __init__(self, limits: Limits, wake: Callable[[], None]) -> None:
        self._wake = wake
        self.near: NearLanes | None = None  # set by whoever has one
        self.came_round: Attached | None = None
        self._returned: deque[tuple[Attached, shm.Ledger, int]] = deque()  # the garbage collector only appends
        self._returned_share = 0.0  # of the segments they lie in, together
        self._num_untold = 0  # of them, those that stand on no board
        self._is_due_soon = False  # take_back will be called anyhow: nobody need be woken
        self.report_at = math.inf  # when take_back is to be called
        self._from_bytes = limits.share_from_bytes
        self._ledgers: dict[int, tuple[Attached, shm.Ledger]] = {}
        self._numbers: dict[int, tuple[Attached, shm.Numbers]] = {}
        # What was looked up there last:
        self._lender: Attached | None = None
        self._its_ledger: shm.Ledger | None = None
        self._named: Attached | None = None
        self._its_names: shm.Numbers | None = None
        # How an array was described last, where a message had one alone:
        self._dtype: Any = None
        self._shape: tuple[int, ...] = ()
        self._specs: Specs = ()
        self._putting: set[int] = set()  # threads
        # What a signal handler that came in the middle of a put could not do, with the pool's lock taken under it.
        self._postponed: deque[Callable[[], None]] = deque()
        self._loans: dict[int, weakref.KeyedRef[tuple[Attached, int], Loan]] = {}  # by lease
        self._unsent_loans: set[int] = set()  # leases whose loan nobody has sent
        self._sent_loans: set[int] = set()  # leases that went without a copy
        self._dropped: deque[tuple[Attached, list[int]]] = deque()  # leases of what is not sent
        self._pool: shm.Pool | None = None
        self._swept_at = 0.0
        self._again = Again()
        self._probes: dict[int, int] = {}  # what their leases are called, until the peer has looked
        self.share: m.Share | None = None
        if limits.share_bytes >= shm.COMMIT_BYTES and shm.available():
            started = shm.process_start_time(os.getpid()) or 0
            self.share = m.Share(shm.host_id(), os.getpid(), started)
            # A segment is mapped as a whole: one larger than all we may have would be over the bounds of the peer.
            self._pool = shm.Pool(limits.share_bytes, min(_SEGMENT_BYTES, limits.share_bytes))
            self._mapper = shm.Mapper(4 * limits.share_bytes, limits.share_bytes * 2)

    # -- sending ------------------------------------------------------------------------------------

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

    def put(self, attached: Attached, arrays: Sequence[Array]) -> tuple[Specs, tuple[m.Block, ...]] | None:
        """Copy arrays to where the peer can see them; None if that cannot be done now.

        Raises:
            TypeError, ValueError: an array that does not travel.
        """
        if attached.sharing != "yes" or self._pool is None or len(arrays) > _MAX_ARRAYS:
            return None
        me = _ident()
        if me in self._putting:
            return None  # a signal handler, in the middle of another put
        specs, contiguous = self._described(arrays)
        lent: list[m.Block | None] = []
        put: list[Lease] | None = None
        copied, blocks, pos = [], [], 0
        self._putting.add(me)
        try:
            for array in arrays:
                block = self._claim(attached, array) if type(array) is Loan else None
                lent.append(block)
                if block is None:
                    copied.append(contiguous[pos])
                pos += 1
            put = self._pool.put_leases(copied, attached.peer_id, True) if copied else []
            if put is None:
                self._putting.discard(me)
                self.unput(attached, [block for block in lent if block is not None])
                return None
            pos = 0
            for block in lent:
                if block is None:
                    block = _to_wire(put[pos])  # noqa: PLW2901
                    pos += 1
                blocks.append(block)
            self._putting.discard(me)
            if self._postponed:
                self._wake()
        except BaseException:  # interrupted: nobody will ever hear of what was put there
            self._putting.discard(me)
            self.unput(attached, [*[block for block in lent if block is not None], *map(_to_wire, put or ())])
            raise
        return specs, tuple(blocks)

    def _described(self, arrays: Sequence[Array]) -> tuple[Specs, list[Array]]:
        """As describe_arrays; mostly a message has one array that is like the one before."""
        array = arrays[0]
        if len(arrays) != 1 or type(array) is not _ndarray:
            return describe_arrays(arrays)
        dtype, shape = array.dtype, array.shape
        if dtype is self._dtype and shape == self._shape and array.flags.c_contiguous:
            return self._specs, [array]
        specs, ordered = describe_arrays(arrays)
        if ordered[0] is array:
            self._dtype = None  # first: another thread may be here as well, or a signal handler
            self._shape, self._specs = shape, specs
            self._dtype = dtype
        return specs, ordered

    def unput(self, attached: Attached, blocks: Sequence[m.Block]) -> None:
        """A message with these blocks is not sent: loans among them may go with another one. From any thread."""
        put = []
        for block in blocks:
            known = self._loans.get(block.lease)
            loan = None if known is None else known()
            if loan is None:
                put.append(block.lease)
            else:
                self._sent_loans.discard(block.lease)
                self._unsent_loans.add(block.lease)
                put_back(loan, block)
        if put:
            self._dropped.append((attached, put))
            self._wake()

    def loan(self, attached: Attached, shape: int | tuple[int, ...], dtype: DTypeLike) -> Loan:
        """An array to be filled in place, where the peer sees it if that can be.

        Raises:
            TypeError, ValueError: an array that does not travel.
        """
        size, me = loan_bytes(shape, dtype), _ident()
        memory = None
        if self._pool is not None and self.lends(attached, size):
            self._putting.add(me)
            try:
                memory = self._pool.loan(size, attached.peer_id, keep=True)
            finally:
                self._putting.discard(me)
        if memory is None:
            return make_loan(shape, dtype, None, attached)
        lease = memory[1].lease_id
        self._unsent_loans.add(lease)
        try:
            block = _on_wire(memory[1])
            loan = make_loan(shape, dtype, (memory[0], block), attached)
            # Not weakref.finalize, which is Python: there a signal handler's exception would leave the memory lent.
            self._loans[lease] = weakref.KeyedRef(loan, self._loan_ended, (attached, lease))
        except BaseException:  # interrupted: nobody will ever have it
            self._loans.pop(lease, None)
            self._give_unsent(attached, lease)
            raise
        return loan

    def lends(self, attached: Attached, size: int) -> bool:
        """True if a loan of so many bytes lies in shared memory where there is room."""
        wanted = size >= self._from_bytes and attached.sharing == "yes"
        return wanted and self._pool is not None and not self._is_in_put()

    def copied_bytes(self, blocks: Sequence[m.Block]) -> int:
        """How much of these blocks was copied there."""
        return sum([block.size for block in blocks if block.lease not in self._sent_loans])

    def _claim(self, attached: Attached, loan: Loan) -> m.Block | None:
        assert self._pool is not None
        block = claim(loan, attached)
        if block is None or block.size != loan.nbytes or not self._pool.has(block.lease, attached.peer_id):
            return (
                None  # its owner is another one by now: what it holds is copied, and stays as long as it is looked at
            )
        self._unsent_loans.discard(block.lease)
        self._sent_loans.add(block.lease)
        return block

    def _loan_ended(self, ended: weakref.KeyedRef[tuple[Attached, int], Loan]) -> None:
        """From the garbage collector: nobody has a loan any more."""
        attached, lease = ended.key
        self._loans.pop(lease, None)
        self._give_unsent(attached, lease)

    def _give_unsent(self, attached: Attached, lease: int) -> None:
        """The memory of a loan that was not sent is free."""
        if lease in self._unsent_loans:
            self._unsent_loans.discard(lease)
            self._dropped.append((attached, [lease]))
            self._wake()

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
                block = _on_wire(probe[0])
                self._probes[id(attached)] = number = self._names(attached).number(block.lease)
                self._names(attached).done([block.lease])
                attached.link.say(m.Probe(msgspec.structs.replace(block, lease=number)))

    def _probed(self, attached: Attached) -> None:
        """The peer has looked at a probe, or is asked anew: it may never report it, if it sees nothing of ours."""
        number = self._probes.pop(id(attached), None)
        if number is not None:
            self._give_free(attached, self._names(attached).returned(number), [])

    def done(self, attached: Attached, leases: Sequence[int]) -> None:
        """Messages with these leases will not be sent again."""
        if self._pool is not None:
            if self._sent_loans:
                self._sent_loans.difference_update(leases)
            if (
                id(attached) in self._numbers
            ):  # else its link has ended, or they were lent to an earlier life of the peer
                names = self._names(attached)
                self._give_free(attached, names.done(leases), list(leases))

    def number(self, attached: Attached, header: m.Content) -> tuple[m.Content, bool]:
        """A message is about to leave: its header with the leases as this link calls them from now on.

        Returns: the header, and whether the message may go by the near lane: it leaves for the first time, and would
            overtake nothing.
        """
        assert header.blocks is not None
        names = self._names(attached)
        if not names.in_order():
            self.collect(attached)  # perhaps it is then
        near, blocks = attached.near is not None and names.in_order(), []
        for block in header.blocks:
            if names.was_sent(block.lease):
                near = False
        for block in header.blocks:
            blocks.append(_replace(block, lease=names.number(block.lease)))
        if not near:
            names.went_round()
        return _replace(header, blocks=tuple(blocks)), near

    def in_order(self, attached: Attached) -> bool:
        """Whether a message with blocks may go by the near lane and overtake nothing."""
        names = self._names(attached)
        return names.in_order()

    def number_new(self, attached: Attached, blocks: Sequence[m.Block]) -> int:
        """Like number, for a message that leaves by the near lane for the first time, where `in_order` says it may.

        Returns: what the first of them is called; the others follow.
        """
        names = self._names(attached)
        first = names.upcoming()
        for block in blocks:
            names.number(block.lease)
        return first

    def went_round(self, attached: Attached) -> None:
        """A message that has its numbers goes by the control lane."""
        names = self._names(attached)
        names.went_round()

    def holds(self, blocks: Sequence[m.Block]) -> bool:
        """False if blocks that were put there have gone since: the peer has another life, which they were not for."""
        return self._pool is not None and (self._is_in_put() or all(self._pool.holds(each.lease) for each in blocks))

    def recover(self, blocks: Sequence[m.Block]) -> Frames | None:
        """Arrays out of our own shared memory, for a message that has to go by sockets after all."""
        if self._pool is None or self._is_in_put():
            return None
        frames = [self._pool.read(block.lease, block.size) for block in blocks]
        return None if None in frames else tuple(frame for frame in frames if frame is not None)

    # -- receiving ----------------------------------------------------------------------------------

    def resolve(self, attached: Attached, header: m.Content) -> tuple[Any, ...] | None:
        """Views of the arrays of a message; None if they cannot be seen."""
        assert header.blocks is not None
        views = self.views(attached, places_of(header.blocks))
        return None if views is None else tuple(views)

    def views(self, attached: Attached, places: list[Place]) -> list[Any] | None:
        """The same of the places where they lie."""
        ledger, near = self._ledger(attached), attached.near
        board, leases = None if near is None else near.board, []
        views: list[Any] = []
        for place in places:
            lease = place.lease
            if board is not None and board.tells(lease):
                # A message in the middle of which a signal handler raised: its owner may use the memory by now.
                return None
            leases.append(lease)
        if self._pool is None or not ledger.admit(leases):
            attached.link.say(m.Seen(False))  # it shall use sockets
            return None
        try:
            for place in places:
                view = self._view(attached, place, ledger)
                if view is None:
                    break
                views.append(view)
        finally:  # a signal handler may have raised: they are admitted again with the message
            if len(views) < len(places):
                for left in places[len(views) :]:
                    self._give_back(attached, ledger, left)
        if len(views) < len(places):
            attached.link.say(m.Seen(False))
            return None
        if self.near is not None and self.came_round is attached and (report := ledger.report()) is not None:
            attached.link.say(m.Leases(*report))  # before the answer: what comes next may take the near lane again
            self.near.flush(attached)
        return views

    def take_back(self, now: float) -> list[Attached]:
        """Views have gone: if it is time, tell their owners, which may use the memory again. Returns the links told."""
        for _ in range(0 if self._is_in_put() else len(self._postponed)):
            self._now_or_later(self._postponed[0])
            self._postponed.popleft()
        while self._dropped:
            self.done(*self._dropped[0])
            self._dropped.popleft()  # then: whatever exception of a signal handler comes, it is done
        if now < self.report_at and not self._is_much():
            if self._returned:
                self._is_due_soon = True
                self.report_at = min(self.report_at, now + (REPORT_S if self._num_untold else TOLD_S))
            return []
        self._is_due_soon = False  # before anything is taken: what comes from now on wakes somebody again
        self.report_at = now + REPORT_S if self._postponed else math.inf
        self._returned_share, self._num_untold = 0.0, 0
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

    def collect(self, attached: Attached, thorough: bool = False) -> bool:
        """Take the memory back that the peer's board says it does not use; True, as whoever calls this expects."""
        near = attached.near
        if near is not None and near.peer_board is not None:
            names = self._names(attached)
            free = names.read(near.peer_board, thorough)
            if free:
                self._give_free(attached, free, [])
        return True

    def collect_all(self) -> bool:
        """The same of all peers, since there is no room: each reports late what stands on its board."""
        for attached, _ in list(self._numbers.values()):
            self.collect(attached, True)
        return True

    def view_board(self, attached: Attached, block: m.Block) -> memoryview | None:
        """The board of a peer; None if it cannot be seen."""
        if self._pool is None or block.size != shm.BOARD_BYTES:
            return None
        view = self._view(attached, places_of((block,))[0], None)
        return None if view is None else view.cast("Q")

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
        self._now_or_later(partial(self._pool.retire, attached.peer_id, dead=dead, wait_s=_POOL_S))
        self._mapper.forget(attached.peer_id)
        self._lender = self._named = None
        self._ledgers.pop(id(attached), None)
        self._numbers.pop(id(attached), None)

    def sweep(self, now: float) -> None:
        """Look from time to time which memory of links that have ended is free."""
        if self._pool is not None and now >= self._swept_at + _SWEEP_S and not self._is_in_put():
            self._swept_at = now
            with suppress(shm.PoolBusy):
                self._pool.sweep(wait_s=_POOL_S)

    def close(self) -> None:
        """Let go of everything; views that live keep their memory."""
        if self.near is not None:
            self.near.close()
        if self._pool is not None:
            with suppress(shm.PoolBusy):  # a signal handler, in the middle of a put: its memory goes with the node
                self._pool.close()
            self._mapper.close()

    def _ledger(self, attached: Attached) -> shm.Ledger:
        if self._lender is attached and self._its_ledger is not None:
            return self._its_ledger
        known = self._ledgers.get(id(attached))
        if known is None:
            known = self._ledgers[id(attached)] = (attached, shm.Ledger())
        self._lender = None  # in this order: a signal handler may look up another one in between
        self._its_ledger = known[1]
        self._lender = attached
        return known[1]

    def _names(self, attached: Attached) -> shm.Numbers:
        if self._named is attached and self._its_names is not None:
            return self._its_names
        known = self._numbers.get(id(attached))
        if known is None:
            known = self._numbers[id(attached)] = (attached, shm.Numbers())
        self._named = None  # in this order, likewise
        self._its_names = known[1]
        self._named = attached
        return known[1]

    def _is_in_put(self) -> bool:
        """True for a signal handler that came in the middle of a put of its own thread."""
        return len(self._putting) > 0 and _ident() in self._putting

    def _give_free(self, attached: Attached, unused: list[int], done: list[int]) -> None:
        """Our leases that the peer does not use, and those that are not sent again."""
        assert self._pool is not None
        pool, owner = self._pool, attached.peer_id
        try:
            if not self._is_in_put():
                if unused:
                    pool.release(unused, owner, _POOL_S)
                    unused = []
                if done:
                    pool.done(done, owner, _POOL_S)
                    done = []
        except shm.PoolBusy:
            pass
        finally:  # also of what a signal handler has interrupted
            if unused:
                self._postpone(partial(self._release_late, unused, owner))
            if done:
                self._postpone(partial(self._done_late, done, owner))
            if unused or done:
                self._wake()  # nobody else comes for it before the next beat, if this was the short way

    def _release_late(self, leases: list[int], owner: str) -> None:
        assert self._pool is not None
        self._pool.release(leases, owner, _POOL_S)

    def _done_late(self, leases: list[int], owner: str) -> None:
        assert self._pool is not None
        self._pool.done(leases, owner, _POOL_S)

    def _now_or_later(self, function: Callable[[], None]) -> None:
        """Do something at the pool, unless a thread holds it that may be waiting for this one.

        A signal handler may come in the middle of a put and wait for an answer; whoever drives would wait for the put.
        """
        if not self._is_in_put():
            with suppress(shm.PoolBusy):
                function()
                return
        self._postpone(function)

    def soon(self, function: Callable[[], None], is_timed: bool = False) -> None:
        """Have something done with the lock held, within REPORT_S.

        Args:
            is_timed: whoever calls this looks at timers afterwards; after the short way nobody does for a beat.
        """
        self._postpone(function)
        if not is_timed:
            self._wake()

    def _postpone(self, function: Callable[[], None]) -> None:
        self._postponed.append(function)
        self._is_due_soon = True
        self.report_at = min(self.report_at, time.monotonic() + REPORT_S)

    def _is_much(self) -> bool:
        return (
            self._num_untold >= REPORT_LEASES
            or self._returned_share * REPORT_SHARE >= 1.0
            or len(self._returned) >= TOLD_LEASES
        )

    def _give_back(self, attached: Attached, ledger: shm.Ledger, place: Place) -> None:
        """Nobody looks at a block any more; from the garbage collector, on any thread."""
        near = attached.near
        board = None if near is None else near.board
        known = self._ledgers.get(id(attached))
        if known is None or known[1] is not ledger:
            board = None  # lent by an earlier life of the peer: this one's numbers are others
        lease = place.lease
        if board is not None:
            board.give_back(lease)
        self._returned.append((attached, ledger, lease))
        weight, sooner = TOLD_WEIGHT, False
        if board is None:
            sooner = not self._num_untold  # than what stands on boards
            self._num_untold += 1
            weight = 1.0
        self._returned_share += weight * place.size / max(1, place.segment_bytes)
        if sooner or not self._is_due_soon or self._is_much():
            self._wake()

    def _view(self, attached: Attached, place: Place, ledger: shm.Ledger | None) -> memoryview | None:
        on_release = _nothing if ledger is None else _Release(self, attached, ledger, place)
        try:
            return self._mapper.view_place(attached.peer_id, place, on_release)
        except shm.SegmentUnavailable:
            return None


def _nothing() -> None:
    """What happens when the view of a probe or a board is gone."""


class _Release:
    """What is called when nobody looks at a block any more; no closure, to be quick."""

    def __init__(self, sharing: Sharing, attached: Attached, ledger: shm.Ledger, place: Place) -> None:
        self._sharing, self._attached, self._ledger, self._place = sharing, attached, ledger, place

    def __call__(self) -> None:
        self._sharing._give_back(self._attached, self._ledger, self._place)


def total_bytes(arrays: Sequence[Array]) -> int:
    """Bytes of arrays; of what is none, 0."""
    total = 0
    for array in arrays:
        total += array.nbytes if type(array) is _ndarray else getattr(array, "nbytes", 0)
    return total


def _to_wire(lease: Lease) -> m.Block:
    """A block of a pool as messages name it, by the pool's number."""
    info = lease.info
    return _Block(lease.lease_id, info[0], info[1], info[2], info[3], lease.offset, lease.size)


def _on_wire(block: shm.Block) -> m.Block:
    info = block.segment
    return _Block(block.lease_id, info.pid, info.fd, info.size, info.nonce, block.offset, block.size)
