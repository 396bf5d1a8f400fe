"""Arrays that end where the readable memory does."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
from numpy.typing import NDArray

PAGE = mmap.PAGESIZE
keep: list[mmap.mmap] = []  # a script clears what it is done with


def guarded(values: NDArray, front: bool = False, hidden: int = 0) -> NDArray:
    """A copy that ends, or with `front` begins, at unreadable pages; its last `hidden` pages cannot be read either."""
    values = np.ascontiguousarray(values)
    pages = -(-values.nbytes // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    keep.append(memory)
    start = PAGE if front else (pages + 1) * PAGE - values.nbytes
    copy = np.frombuffer(memory, values.dtype, values.size, start).reshape(values.shape)
    copy[...] = values
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (0, *range(pages + 1 - hidden, pages + 2)):
        assert libc.mprotect(first + page * PAGE, PAGE, 0) == 0
    return copy
