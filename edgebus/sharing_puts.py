"""Arrays that go into shared memory for a message: copied there, or filled there on loan; and those not sent after all.

`put`, `loan` and `unput` may be called from any thread. Sharing builds on this.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgebus import messages as m
from edgebus import shm
from edgebus.arrays import Array, describe_arrays
from edgebus.config import Limits
from edgebus.loans import Loan, claim, loan_bytes, make_loan, put_back
from edgebus.sharing_numbers import SharingNumbers
from edgebus.shm.pool import Lease
from edgebus.streams import Specs

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from edgebus.attached import Attached

_ident = threading.get_ident
_Block, _ndarray = m.Block, np.ndarray
_MAX_ARRAYS = 32  # in one message: their blocks have to fit into the smallest header


class SharingPuts(SharingNumbers):
    """Messages whose arrays lie in our memory, from the copy to the last time they are sent."""

    def __init__(self, limits: Limits, wake: Callable[[], None]) -> None:
        super().__init__(limits, wake)
        self._from_bytes = limits.share_from_bytes
        # How an array was described last, where a message had one alone:
        self._dtype: Any = None
        self._shape: tuple[int, ...] = ()
        self._specs: Specs = ()
        self._loans: dict[int, weakref.KeyedRef[tuple[Attached, int], Loan]] = {}  # by lease
        self._unsent_loans: set[int] = set()  # leases whose loan nobody has sent
        self._sent_loans: set[int] = set()  # leases that went without a copy
        self._dropped: deque[tuple[Attached, list[int]]] = deque()  # leases of what is not sent

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
            block = block_on_wire(memory[1])
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

    def _done_with_dropped(self) -> None:
        while self._dropped:
            self.done(*self._dropped[0])
            self._dropped.popleft()  # then: whatever exception of a signal handler comes, it is done


def _to_wire(lease: Lease) -> m.Block:
    """A block of a pool as messages name it, by the pool's number."""
    info = lease.info
    return _Block(lease.lease_id, info[0], info[1], info[2], info[3], lease.offset, lease.size)


def block_on_wire(block: shm.Block) -> m.Block:
    """The same of what the pool gives out to Python."""
    info = block.segment
    return _Block(block.lease_id, info.pid, info.fd, info.size, info.nonce, block.offset, block.size)
