"""The sending side: a bounded amount of shared memory, lent to peers block by block."""

from __future__ import annotations

import mmap
import weakref
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgebus.locks import open_lock
from edgebus.shm.arena import Arena, Budget
from edgebus.shm.forks import leave_when_forked
from edgebus.shm.segments import COMMIT_BYTES, HEADER_BYTES, Segment, SegmentInfo, available

ALIGN_BYTES = 64
MAX_LEASES = 4096
"""Of one owner at once; bounds the search for free memory and what a peer has to report."""
FOR_EVER = -1.0  # of `wait_s`

Bytes = npt.NDArray[np.uint8]


class PoolBusy(Exception):
    """The pool was held for longer than whoever wanted something of it could wait."""


class Block(NamedTuple):
    """Bytes lent to a peer: where they are, and the number under which they come back (it only grows)."""

    segment: SegmentInfo
    offset: int
    size: int
    lease_id: int


@dataclass(frozen=True, slots=True)
class PoolStats:
    """What a pool has.

    Attributes:
        in_use_bytes: lent now, rounded up to whole blocks.
        committed_bytes: memory taken from the system, orphans included; never over the bound.
        orphan_bytes: of it, memory of retired owners that somebody still maps.
        copied_bytes: copied by `put`; a loan copies nothing.
        refused: put or loan that found no room.
        stray_releases: leases given back that the owner did not have.
    """

    in_use_bytes: int = 0
    committed_bytes: int = 0
    segments: int = 0
    leases: int = 0
    orphan_segments: int = 0
    orphan_bytes: int = 0
    copied_bytes: int = 0
    refused: int = 0
    stray_releases: int = 0


_ndarray = np.ndarray
_block: Callable[[tuple[Any, ...]], Block] = partial(tuple.__new__, Block)  # without a frame of Python


class Lease:
    """A block and who still needs it: the peer, we ourselves for a resend, the application that writes in it.

    Attributes:
        lease_id, offset, size: as Block has them.
        info: of its segment, as a plain tuple.
        span: bytes it takes.
    """

    lease_id: int
    segment: Segment
    info: tuple[Any, ...]
    offset: int
    size: int
    span: int
    kept: bool
    written: bool
    with_peer: bool

    def block(self) -> Block:
        """It as others see it."""
        return _block((self.segment.info, self.offset, self.size, self.lease_id))


class _Account:
    """An owner's memory and leases, the oldest first."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.leases: dict[int, Lease] = {}


class Pool:
    """Shared memory for what we send (thread-safe).

    An owner is whatever one peer's leases are known by, such as its link. A block is free again when the peer gave it
    back, nobody keeps it and no loan's view is alive. What an owner that was retired still had is never written
    again: its memory counts until the kernel says that nobody else maps it, or the caller that the peer is dead.

    Args:
        max_bytes: memory taken from the system, at most.
        segment_bytes: size of a segment (address space; memory follows use). A larger message gets one of its own.
        max_owner_bytes: for one owner; None for no other bound.
    """

    def __init__(
        self, max_bytes: int = 256 << 20, segment_bytes: int = 64 << 20, max_owner_bytes: int | None = None
    ) -> None:
        owner_bytes = max_bytes if max_owner_bytes is None else max_owner_bytes
        if min(max_bytes, segment_bytes, owner_bytes) < COMMIT_BYTES:
            bounds = f"{max_bytes}, {segment_bytes} and {max_owner_bytes}"
            raise ValueError(f"bounds must be at least {COMMIT_BYTES} bytes, got {bounds}")
        self._budget = Budget(max_bytes)
        self._max_owner_bytes = owner_bytes
        self._segment_bytes = _round_up(segment_bytes, max(HEADER_BYTES, mmap.PAGESIZE))
        self._lock = open_lock()
        self._open = available()
        self._info: SegmentInfo | None = None  # of the segment that was used last, and as a plain tuple:
        self._plain_info: tuple[Any, ...] = (0, 0, 0, b"")
        self._accounts: dict[Hashable, _Account] = {}
        self._orphans: list[tuple[Hashable, Segment]] = []
        self._in_use = self._copied = self._refused = self._strays = self._next_lease = 0
        self._written: deque[tuple[Hashable, int]] = deque()  # the garbage collector only appends
        leave_when_forked(self)

    def put(self, buffers: Sequence[Any], owner: Hashable, keep: bool = False) -> list[Block] | None:
        """Copy buffers into one segment of the owner.

        Args:
            buffers: C-contiguous arrays or other buffers.
            keep: keep the blocks for a resend, until `done`, also where the peer gives them back.

        Returns: a block for each; None if there is no room now.

        Raises:
            ValueError: not contiguous.
        """
        sources = []
        for buffer in buffers:
            view = buffer if type(buffer) is _ndarray and buffer.flags.c_contiguous else memoryview(buffer)
            if type(view) is memoryview and not view.c_contiguous:
                raise ValueError(
                    f"a buffer of shape {view.shape}, strides {view.strides} is not C-contiguous; copy it first"
                )
            sources.append(view)
        leases = self.put_leases(sources, owner, keep)
        return None if leases is None else [lease.block() for lease in leases]

    def put_leases(self, sources: list[Any], owner: Hashable, keep: bool) -> list[Lease] | None:
        """Like put, for arrays and memoryviews that are known to be C-contiguous."""
        sizes, pos = [], 0
        for view in sources:
            sizes.append(view.nbytes)
        reserved = self._reserve(sizes, owner, keep)
        if reserved is None:
            return None
        memory, leases = reserved
        try:
            for view in sources:
                lease = leases[pos]
                _copy_to(memory, lease.offset, view)  # other threads run meanwhile
                pos += 1
        except BaseException:  # interrupted: nobody will ever hear of these blocks
            lease_ids = [lease.lease_id for lease in leases]
            self.done(lease_ids, owner)
            self.release(lease_ids, owner)
            raise
        return leases

    def loan(self, size: int, owner: Hashable, *, keep: bool = False) -> tuple[memoryview, Block] | None:
        """Memory of the owner to be written in place and then sent: no copy at all.

        The block is not used again while the view, or an array over it, is alive. A loan that is not sent is given
        back with `release`.

        Returns: a writable view and its block; None if there is no room now.
        """
        if size < 0:
            raise ValueError(f"size must not be negative, got {size}")
        reserved = self._reserve([size], owner, keep, True)
        if reserved is None:
            return None
        memory, [lease] = reserved
        try:
            return _watch(
                memory, lease.offset, size, partial(self._written.append, (owner, lease.lease_id)), True
            ), lease.block()
        except BaseException:  # interrupted: nobody will ever hear of this block
            self._written.append((owner, lease.lease_id))
            self.done([lease.lease_id], owner)
            self.release([lease.lease_id], owner)
            raise

    def release(self, lease_ids: Iterable[int], owner: Hashable, wait_s: float = FOR_EVER) -> None:
        """The peer needs these leases no longer; those it does not have are counted and nothing else.

        Args:
            wait_s: most seconds to wait for other threads that are at the pool.

        Raises:
            PoolBusy: they did not finish: nothing was done.
        """
        self._take_lock(wait_s)
        try:
            leases = self._leases(owner)
            for lease_id in lease_ids:
                lease = leases.get(lease_id)
                if lease is None or not lease.with_peer:
                    self._strays += 1
                else:
                    lease.with_peer = False
                    self._free_if_unused(owner, lease_id, lease)
        finally:
            self._lock.release()

    def settle(self, owner: Hashable, upto: int, held: Collection[int]) -> None:
        """The peer needs none of its leases up to `upto` (included) but those held: a report of its `Ledger`."""
        held = frozenset(held)
        self._take_lock()
        try:
            for lease_id, lease in list(self._leases(owner).items()):
                if lease_id > upto:
                    break
                if lease.with_peer and lease_id not in held:
                    lease.with_peer = False
                    self._free_if_unused(owner, lease_id, lease)
        finally:
            self._lock.release()

    def done(self, lease_ids: Iterable[int], owner: Hashable, wait_s: float = FOR_EVER) -> None:
        """We shall not resend what these leases hold: the end of `keep`. `wait_s` as in `release`."""
        self._take_lock(wait_s)
        try:
            leases = self._leases(owner)
            for lease_id in lease_ids:
                lease = leases.get(lease_id)
                if lease is not None and lease.kept:
                    lease.kept = False
                    self._free_if_unused(owner, lease_id, lease)
        finally:
            self._lock.release()

    def has(self, lease_id: int, owner: Hashable) -> bool:
        """Whether the owner has this lease, so that its block may be sent."""
        self._take_lock()
        try:
            return lease_id in self._leases(owner)
        finally:
            self._lock.release()

    def read(self, lease_id: int, size: int) -> bytes | None:
        """The content of a block, to go by another way; None if it is not in use."""
        self._take_lock()
        try:
            for account in self._accounts.values():
                if (lease := account.leases.get(lease_id)) is not None and lease.segment.memory is not None:
                    return lease.segment.memory[lease.offset : lease.offset + size].tobytes()
        finally:
            self._lock.release()
        return None

    def holds(self, lease_id: int) -> bool:
        """True while a block is in use: False once its peer was retired."""
        self._take_lock()
        try:
            return any(lease_id in account.leases for account in self._accounts.values())
        finally:
            self._lock.release()

    def retire(self, owner: Hashable, *, dead: bool = False, wait_s: float = FOR_EVER) -> None:
        """The peer is gone without giving back: write to nothing it had, ever.

        Args:
            dead: its process is known to be dead (`process_alive`). May follow in a later call.
            wait_s: as in `release`.
        """
        self._take_lock(wait_s)
        try:
            account = self._accounts.pop(owner, None)
            if account is not None:
                self._in_use -= sum([lease.span for lease in account.leases.values()])
                self._orphans += [(owner, segment) for segment in account.arena.abandon()]
            if dead:
                self._close_orphans([item for item in self._orphans if item[0] == owner])
            self._sweep()
        finally:
            self._lock.release()

    def sweep(self, *, wait_s: float = FOR_EVER) -> None:
        """Let go of orphans that nobody maps any more; also done where memory runs short. `wait_s` as in `release`."""
        self._take_lock(wait_s)
        try:
            self._sweep()
        finally:
            self._lock.release()

    def trim(self) -> None:
        """Sweep, and give memory behind the last blocks back to the system; also done where it runs short."""
        self._take_lock()
        try:
            self._trim()
        finally:
            self._lock.release()

    def close(self) -> None:
        """Retire everybody, let go of everything, lend no more; views that peers have stay as they are."""
        self._take_lock()
        try:
            self._open = False
            for owner, account in self._accounts.items():
                self._orphans += [(owner, segment) for segment in account.arena.abandon()]
            self._accounts.clear()
            self._in_use = 0
            self._close_orphans(self._orphans)
        finally:
            self._lock.release()

    def stats(self) -> PoolStats:
        """Snapshot."""
        self._take_lock()
        try:
            self._drain()
            accounts = self._accounts.values()
            return PoolStats(
                self._in_use,
                self._budget.used_bytes,
                sum(account.arena.num_segments for account in accounts),
                sum(len(account.leases) for account in accounts),
                len(self._orphans),
                sum(segment.committed for _, segment in self._orphans),
                self._copied,
                self._refused,
                self._strays,
            )
        finally:
            self._lock.release()

    def leave_to_parent(self) -> None:
        """In a forked child: the segments are closed by themselves, and nothing is lent."""
        self._lock = open_lock()
        self._open = False
        self._accounts, self._orphans, self._in_use = {}, [], 0
        self._budget = Budget(0)

    def _take_lock(self, wait_s: float = FOR_EVER) -> bool:
        if not self._lock.enter(wait_s):
            raise PoolBusy
        return True

    def _reserve(
        self, sizes: list[int], owner: Hashable, keep: bool, written: bool = False
    ) -> tuple[Bytes, list[Lease]] | None:
        """Blocks side by side in one segment, and its memory."""
        total = copied = 0
        for size in sizes:
            total += _span(size)
            copied += size
        self._take_lock()
        try:
            placed = self._place(owner, total, len(sizes))
            if placed is None:
                self._refused += 1
                return None
            segment, offset = placed
            account = self._accounts[owner]
            leases, made = account.leases, []
            if segment.info is not self._info:
                self._info, self._plain_info = segment.info, tuple(segment.info)
            for size in sizes:
                lease = Lease.__new__(Lease)
                lease.lease_id, self._next_lease = self._next_lease, self._next_lease + 1
                lease.segment, lease.info, lease.offset = segment, self._plain_info, offset
                lease.size, lease.span = size, _span(size)
                lease.kept, lease.written, lease.with_peer = keep, written, True
                leases[lease.lease_id] = lease
                made.append(lease)
                offset += lease.span
            self._in_use += total
            if not written:
                self._copied += copied
            assert segment.memory is not None
            return segment.memory, made
        finally:
            self._lock.release()

    def _place(self, owner: Hashable, size: int, count: int) -> tuple[Segment, int] | None:
        """Room for so many blocks of so many bytes together."""
        self._drain()
        if not self._open or size > self._budget.max_bytes:
            return None
        account = self._accounts.get(owner)
        if account is None:
            account = _Account(Arena(self._budget, self._segment_bytes, self._max_owner_bytes))
            self._accounts[owner] = account
        if len(account.leases) + count > MAX_LEASES:
            return None
        placed = account.arena.take(size)
        if placed is None:
            self._trim()
            placed = account.arena.take(size)
        return placed

    def _leases(self, owner: Hashable) -> dict[int, Lease]:
        self._drain()
        account = self._accounts.get(owner)
        return account.leases if account is not None else {}

    def _drain(self) -> None:
        """Take account of loans whose views are gone."""
        while self._written:
            owner, lease_id = self._written.popleft()
            account = self._accounts.get(owner)
            lease = account.leases.get(lease_id) if account is not None else None
            if lease is not None:
                lease.written = False
                self._free_if_unused(owner, lease_id, lease)

    def _free_if_unused(self, owner: Hashable, lease_id: int, lease: Lease) -> None:
        if not (lease.with_peer or lease.kept or lease.written):
            account = self._accounts[owner]
            del account.leases[lease_id]
            account.arena.give(lease.segment, lease.offset, lease.span)
            self._in_use -= lease.span

    def _trim(self) -> None:
        self._sweep()
        for account in self._accounts.values():
            account.arena.trim()

    def _sweep(self) -> None:
        self._close_orphans([item for item in self._orphans if item[1].is_alone()])

    def _close_orphans(self, items: list[tuple[Hashable, Segment]]) -> None:
        for _, segment in items:
            self._budget.used_bytes -= segment.committed
            segment.close()
        self._orphans = [item for item in self._orphans if item not in items]


def _span(size: int) -> int:
    align: int = ALIGN_BYTES
    return (size + align - 1) // align * align if size > 0 else align


def _round_up(size: int, step: int) -> int:
    return -(-size // step) * step


def _plain_copy(target: Bytes, offset: int, source: Any) -> None:
    """Copy all bytes of a contiguous buffer to a place in shared memory."""
    if source.nbytes:
        target[offset : offset + source.nbytes] = np.frombuffer(source, np.uint8)


def _plain_watch(
    buffer: Bytes, offset: int, size: int, on_end: Callable[[], None], writable: bool = False
) -> memoryview:
    """Bytes of a buffer; `on_end` is called when the last view of them is gone, unless the process ends."""
    base = np.frombuffer(buffer, np.uint8, size, offset)  # dies with the last view or array over it
    weakref.finalize(base, on_end).atexit = False
    return base.data


_copy_to: Callable[[Bytes, int, Any], None] = _plain_copy
_watch: Callable[[Bytes, int, int, Callable[[], None], bool], memoryview] = _plain_watch
try:
    from edgebus import _views

    # No frame of Python runs at the end of a view: there a signal handler's exception would leave the block lent.
    _copy_to, _watch = _views.copy_to, _views.watch
except ImportError:  # not built
    pass
