# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=True
"""Thin face of the C kernels of paged attention, without the GIL. Callers check shapes and dtypes."""
import os

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int32_t, int64_t


cdef extern from "attend.h" nogil:
    int EK_SOUND
    int ek_check_paged(const ek_paged*, int64_t tokens, int64_t pages, int64_t table) noexcept
    int ek_attend_all(const ek_attend*, const ek_paged*, int threads) noexcept
    const ek_attend* ek_find_attend(const char* name) noexcept
    bint ek_offers_attend(int level) noexcept


cdef extern from "cpu.h" nogil:
    const char* ek_level_name(int level) noexcept


cdef const ek_attend* LEVEL = NULL
NAME = "cython"


cdef const ek_attend* kernels() noexcept nogil:
    return LEVEL


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


cdef enum:
    QUERY, KEYS, VALUES, OUT, PAGE_TABLE, PAGE_STARTS, TOKEN_STARTS, PAST, ARRAYS
    MAX_DIM = 1024


cdef bint holds(const Py_buffer* view, int ndim, char kind, char other) noexcept:
    """Whether an array has this many dimensions, and elements of one of two kinds, native and aligned."""
    return view.ndim == ndim and view.format[1] == 0 and (view.format[0] == kind or view.format[0] == other)


cdef bint is_whole(const Py_buffer* view, int first) noexcept:
    """Whether an array is C-contiguous from its dimension `first` on."""
    cdef Py_ssize_t size = view.itemsize
    cdef int d = view.ndim - 1
    while d >= first:
        if view.shape[d] != 1 and view.strides[d] != size:
            return False
        size *= view.shape[d]
        d -= 1
    return True


cdef Py_ssize_t extent(const Py_buffer* view) noexcept:
    """Bytes from the first element to behind the last one, strides being positive."""
    cdef Py_ssize_t last = view.itemsize
    cdef int d
    for d in range(view.ndim):
        if view.shape[d] == 0:
            return 0
        last += (view.shape[d] - 1) * view.strides[d]
    return last


cdef bint apart(const Py_buffer* a, const Py_buffer* b) noexcept:
    return <char*>a.buf + extent(a) <= <char*>b.buf or <char*>b.buf + extent(b) <= <char*>a.buf


cdef bint is_pool(const Py_buffer* pool, const Py_buffer* query) noexcept:
    """Whether these are pages of whole elements which go with the query."""
    cdef Py_ssize_t page = pool.shape[1] * pool.shape[2] * pool.shape[3] * pool.itemsize
    return (pool.format[0] == query.format[0] and pool.shape[3] == query.shape[2] and pool.shape[1] > 0
            and query.shape[1] % pool.shape[1] == 0 and pool.shape[2] > 0 and is_whole(pool, 1)
            and (pool.shape[0] < 2 or (pool.strides[0] >= page and pool.strides[0] % pool.itemsize == 0)))


cdef bint is_sound(const Py_buffer* views) noexcept:
    """Whether shapes, dtypes and strides are as docs/spec/kernels-attention.md asks."""
    cdef int i
    for i in range(PAGE_TABLE, ARRAYS):
        if not (views[i].ndim == 1 and views[i].format[1] == 0 and is_whole(&views[i], 0)
                and views[i].itemsize == (4 if i == PAGE_TABLE else 8)
                and (views[i].format[0] == b"l" or views[i].format[0] == b"q" or views[i].format[0] == b"i")):
            return False
    return (holds(&views[QUERY], 3, b"f", b"H") and holds(&views[OUT], 3, views[QUERY].format[0], b"\0")
            and holds(&views[KEYS], 4, views[QUERY].format[0], b"\0")
            and holds(&views[VALUES], 4, views[QUERY].format[0], b"\0")
            and is_whole(&views[QUERY], 0) and is_whole(&views[OUT], 0)
            and views[QUERY].shape[1] > 0 and 0 < views[QUERY].shape[2] <= MAX_DIM
            and views[OUT].shape[0] == views[QUERY].shape[0] and views[OUT].shape[1] == views[QUERY].shape[1]
            and views[OUT].shape[2] == views[QUERY].shape[2]
            and is_pool(&views[KEYS], &views[QUERY]) and is_pool(&views[VALUES], &views[QUERY])
            and views[VALUES].shape[0] == views[KEYS].shape[0] and views[VALUES].shape[1] == views[KEYS].shape[1]
            and views[VALUES].shape[2] == views[KEYS].shape[2]
            and views[PAGE_STARTS].shape[0] == views[PAST].shape[0] + 1
            and views[TOKEN_STARTS].shape[0] == views[PAST].shape[0] + 1
            and apart(&views[OUT], &views[QUERY]) and apart(&views[OUT], &views[KEYS])
            and apart(&views[OUT], &views[VALUES]))


cdef int run(const Py_buffer* views, float scale, int64_t window, float softcap, int num_threads) noexcept nogil:
    """Attend; 1 if the numbers in the arrays do not fit together, -1 without memory."""
    cdef ek_paged what
    what.query, what.keys, what.values, what.out = views[QUERY].buf, views[KEYS].buf, views[VALUES].buf, views[OUT].buf
    what.page_table = <const int32_t*>views[PAGE_TABLE].buf
    what.page_starts = <const int64_t*>views[PAGE_STARTS].buf
    what.token_starts = <const int64_t*>views[TOKEN_STARTS].buf
    what.past = <const int64_t*>views[PAST].buf
    what.spans, what.heads, what.dim = views[PAST].shape[0], views[QUERY].shape[1], views[QUERY].shape[2]
    what.kv_heads, what.page_tokens = views[KEYS].shape[1], views[KEYS].shape[2]
    what.key_stride = views[KEYS].strides[0] // views[KEYS].itemsize
    what.value_stride = views[VALUES].strides[0] // views[VALUES].itemsize
    what.window, what.scale, what.softcap = window, scale, softcap
    what.bfloat16 = views[QUERY].itemsize == 2
    if ek_check_paged(&what, views[QUERY].shape[0], views[KEYS].shape[0], views[PAGE_TABLE].shape[0]) != EK_SOUND:
        return 1
    return ek_attend_all(LEVEL, &what, num_threads)


def attend(query, keys, values, page_table, page_starts, token_starts, past, *, float scale, int64_t window,
           float softcap, out, int num_threads):
    """Write the answers of all rows; False, and nothing done, if the arguments are not sound: the caller says why."""
    cdef Py_buffer[ARRAYS] views
    cdef int held = 0, failed = 1, i
    try:
        for array in (query, keys, values, out, page_table, page_starts, token_starts, past):
            try:
                PyObject_GetBuffer(array, &views[held],
                                   PyBUF_STRIDES | PyBUF_FORMAT | (PyBUF_WRITABLE if held == OUT else 0))
            except (TypeError, BufferError, ValueError):
                return False
            held += 1
        if is_sound(views):
            with nogil:
                failed = run(views, scale, window, softcap, num_threads)
        if failed < 0:
            raise MemoryError(f"no memory for the scratch of {num_threads} threads and {len(past)} spans")
        return failed == 0
    finally:
        for i in range(held):
            PyBuffer_Release(&views[i])


set_level(os.environ.get("EDGEKERNELS_LEVEL", ""))
