"""Arrays to be filled in place and then sent as they lie: in memory that the peer sees, where there is such memory."""

from __future__ import annotations

import math
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgebus.wire import ITEM_BYTES, MAX_ITEMS

if TYPE_CHECKING:
    from edgebus.attached import Attached
    from edgebus.messages import Block


class Loan(np.ndarray[Any, np.dtype[Any]]):
    """An array on loan, made by Link.loan or Request.loan; send it in `arrays` as any other.

    The first message it goes with takes its memory along without a copy, and from then on it is read-only. Sent again,
    or over another link, it is copied like any other array; so are its slices and what is computed of it. One that is
    never sent gives its memory back when nothing refers to it any more.

    Attributes:
        is_shared: True while it lies in memory that the peer sees and has not been sent.
    """

    _is_lent = False  # of what was made here; not of its slices, nor of what is computed of it
    _block: Block | None = None
    _attached: Attached | None = None

    @property
    def is_shared(self) -> bool:
        return self._block is not None


def make_loan(
    shape: int | tuple[int, ...], dtype: npt.DTypeLike, memory: tuple[memoryview, Block] | None, attached: Attached
) -> Loan:
    """A loan over memory that the peer of this link sees, or over ordinary memory."""
    loan: Loan = np.ndarray.__new__(Loan, shape, dtype, None if memory is None else memory[0])
    loan._is_lent = True
    if memory is not None:
        loan._block, loan._attached = memory[1], attached
    return loan


def loan_bytes(shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> int:
    """Size of a loan.

    Raises:
        TypeError: a dtype that does not travel.
        ValueError: a negative size, more than 8 dimensions, or more items than travel.
    """
    kind = np.dtype(dtype)
    sizes = (shape,) if isinstance(shape, int) else tuple(map(index, shape))  # numpy's own integers would overflow
    if f"{kind.kind}{kind.itemsize}" not in ITEM_BYTES or kind.newbyteorder("<") != kind:
        raise TypeError(f"dtype {kind} does not travel as it lies; use one of {' '.join(ITEM_BYTES)}, little-endian")
    if len(sizes) > 8 or min(sizes, default=0) < 0:
        raise ValueError(f"a loan has at most 8 dimensions of 0 and more, got {sizes}")
    if math.prod([size or 1 for size in sizes]) > MAX_ITEMS:
        raise ValueError(f"a loan of shape {sizes} has over 2**40 items")
    return math.prod(sizes) * kind.itemsize


def claim(loan: Loan, attached: Attached) -> Block | None:
    """Take the memory of a loan along with a message, once; None if it has to be copied."""
    if loan._attached is not attached or not loan.flags.c_contiguous:
        return None
    block: Block | None = loan.__dict__.pop("_block", None)  # one step: two threads may send it at once
    if block is not None:
        loan.flags.writeable = False
    return block


def put_back(loan: Loan, block: Block) -> None:
    """The message was not sent: the loan is as it was."""
    loan.flags.writeable = True
    loan._block = block
