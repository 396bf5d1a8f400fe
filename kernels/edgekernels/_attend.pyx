# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=True
"""Thin face of the C kernels of paged attention, without the GIL. Callers check shapes and dtypes."""
import os

from cpython.buffer cimport PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int32_t, int64_t


cdef extern from "attend.h" nogil:
    ctypedef struct ek_paged:
        const void* query
        const void* keys
        const void* values
        void* out
        const int32_t* page_table
        const int64_t* page_starts
        const int64_t* token_starts
        const int64_t* past
        int64_t spans
        int64_t heads
        int64_t kv_heads
        int64_t page_tokens
        int64_t dim
        int64_t key_stride
        int64_t value_stride
        int64_t window
        float scale
        float softcap
        int32_t bfloat16

    ctypedef struct ek_attend:
        const char* name

    int EK_SOUND
    int ek_check_paged(const ek_paged*, int64_t tokens, int64_t pages, int64_t table) noexcept
    int ek_attend_all(const ek_attend*, const ek_paged*, int threads) noexcept
    const ek_attend* ek_find_attend(const char* name) noexcept
    bint ek_offers_attend(int level) noexcept


cdef extern from "cpu.h" nogil:
    const char* ek_level_name(int level) noexcept


cdef const ek_attend* LEVEL = NULL
NAME = "cython"


def levels():
    """Names of the levels for which there are kernels and which this processor has, best first."""
    cdef int number = 0
    found = []
    while ek_level_name(number) != NULL:
        if ek_offers_attend(number):
            found.insert(0, ek_level_name(number).decode())
        number += 1
    return tuple(found)


def set_level(str name):
    """Use the kernels of this level from now on, or the best below it; "" is the best level there is."""
    global LEVEL
    cdef const ek_attend* found = ek_find_attend(name.encode())
    if found == NULL:
        raise ValueError(f"level {name!r} is not available here; use one of {', '.join(levels())}")
    LEVEL = found


def level():
    """Name of the level whose kernels are in use."""
    return LEVEL.name.decode()


cdef const int64_t* numbers(const int64_t[::1] array) noexcept:
    return &array[0] if array.shape[0] else NULL


def attend(query, keys, values, const int32_t[::1] page_table, const int64_t[::1] page_starts,
           const int64_t[::1] token_starts, const int64_t[::1] past, *, float scale, int64_t window, float softcap,
           out, int num_threads):
    """Write the answers of all rows; False, and nothing done, if the numbers in the arrays do not fit together."""
    cdef const ek_attend* kernels = LEVEL
    cdef Py_buffer[4] views
    cdef ek_paged what
    cdef int held = 0, failed = 0, i
    cdef bint sound
    try:
        PyObject_GetBuffer(query, &views[0], PyBUF_STRIDES)
        held = 1
        PyObject_GetBuffer(keys, &views[1], PyBUF_STRIDES)
        held = 2
        PyObject_GetBuffer(values, &views[2], PyBUF_STRIDES)
        held = 3
        PyObject_GetBuffer(out, &views[3], PyBUF_STRIDES | PyBUF_WRITABLE)
        held = 4
        what.query, what.keys, what.values, what.out = views[0].buf, views[1].buf, views[2].buf, views[3].buf
        what.page_table = &page_table[0] if page_table.shape[0] else NULL
        what.page_starts, what.token_starts = numbers(page_starts), numbers(token_starts)
        what.past = numbers(past)
        what.spans, what.heads, what.dim = past.shape[0], views[0].shape[1], views[0].shape[2]
        what.kv_heads, what.page_tokens = views[1].shape[1], views[1].shape[2]
        what.key_stride = views[1].strides[0] // views[1].itemsize
        what.value_stride = views[2].strides[0] // views[2].itemsize
        what.window, what.scale, what.softcap = window, scale, softcap
        what.bfloat16 = views[0].itemsize == 2
        with nogil:
            sound = ek_check_paged(&what, views[0].shape[0], views[1].shape[0], page_table.shape[0]) == EK_SOUND
            if sound:
                failed = ek_attend_all(kernels, &what, num_threads)
    finally:
        for i in range(held):
            PyBuffer_Release(&views[i])
    if failed:
        raise MemoryError(f"no memory for the scratch of {num_threads} threads and {past.shape[0]} spans")
    return sound


set_level(os.environ.get("EDGEKERNELS_LEVEL", ""))
