# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: freethreading_compatible=False
"""Views of memory that say when they end: arrays that are lent, and blocks of shared memory."""
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.string cimport memcpy

from sys import is_finalizing as _is_finalizing

cdef extern from *:
    """
    #include <pthread.h>
    /* Counted inside of fork itself: whatever Python then does in the child, it ends views of the parent's. */
    static long eb_forks = 0;
    static void eb_forked(void) { eb_forks++; }
    static int eb_count_forks(void) { return pthread_atfork(NULL, NULL, eb_forked); }
    """
    long eb_forks
    int eb_count_forks()

if eb_count_forks() != 0:
    raise MemoryError

cdef object is_finalizing = _is_finalizing  # here it is found, too, when the names of all modules have been taken away


cdef dict lent_arrays = {}  # by id: how often each is lent, of those that were writeable before
cdef dict waiting_arrays = {}  # by id: parts of such arrays, no longer lent themselves


@cython.final
@cython.no_gc_clear
cdef class Lent:
    """The bytes of an array, which is read-only while there is a view of them; see arrays.lend."""

    cdef object array
    cdef Py_buffer view
    cdef bint gives_back

    def __cinit__(self, array):
        PyObject_GetBuffer(array, &self.view, PyBUF_SIMPLE)
        self.array = array
        key = id(array)
        known = lent_arrays.get(key)
        if known is not None:
            lent_arrays[key] = known + 1
            self.gives_back = True
        elif array.flags.writeable or waiting_arrays.pop(key, None) is not None:
            array.flags.writeable = False
            lent_arrays[key] = 1
            self.gives_back = True

    def __dealloc__(self):
        PyBuffer_Release(&self.view)  # does nothing for what could not be had
        if self.gives_back:
            key = id(self.array)
            left = lent_arrays.pop(key) - 1
            if left:
                lent_arrays[key] = left
            else:
                give_back(self.array)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.view.buf, self.view.len, 1, flags)


cdef give_back(array):
    global waiting_arrays
    cdef dict waiting
    try:
        array.flags.writeable = True
    except ValueError:  # what it is a part of is read-only
        if is_part_of_lent(array):
            waiting_arrays[id(array)] = array
        return
    if waiting_arrays:
        waiting, waiting_arrays = waiting_arrays, {}
        for part in waiting.values():
            give_back(part)


cdef bint is_part_of_lent(array) except -1:
    base = getattr(array, "base", None)
    return base is not None and (id(base) in lent_arrays or is_part_of_lent(base))


def lend(array):
    """The bytes of an array; see arrays.lend."""
    return memoryview(Lent(array))


@cython.final
@cython.no_gc
cdef class Watched:
    """Bytes of a buffer whose end is told, but not in a forked child; see `watch`.

    The garbage collector does not look through it: what is to be called must not be cleared before it, in one cycle.
    """

    cdef object on_end
    cdef Py_buffer view
    cdef Py_ssize_t offset, size
    cdef long forks
    cdef bint writable

    def __dealloc__(self):
        PyBuffer_Release(&self.view)  # does nothing for what could not be had
        if self.on_end is not None and self.forks == eb_forks and not is_finalizing():
            self.on_end()

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, <char*> self.view.buf + self.offset, self.size, not self.writable, flags)


def watch(buffer, Py_ssize_t offset, Py_ssize_t size, on_end, bint writable=False):
    """A view of bytes whose end is told; see shm.mapper._plain_watch and shm.pool._plain_watch."""
    cdef Watched watched = Watched.__new__(Watched)
    PyObject_GetBuffer(buffer, &watched.view, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
    if offset < 0 or size < 0 or offset > watched.view.len - size:
        raise ValueError(f"{size} bytes at {offset} of {watched.view.len}")
    watched.offset, watched.size, watched.writable, watched.forks = offset, size, writable, eb_forks
    watched.on_end = on_end
    return PyMemoryView_FromObject(watched)


def copy_to(target, Py_ssize_t offset, source):
    """Copy all bytes of a buffer to a place in another; see shm.pool._plain_copy."""
    cdef Py_buffer into, out_of
    PyObject_GetBuffer(source, &out_of, PyBUF_SIMPLE)
    try:
        PyObject_GetBuffer(target, &into, PyBUF_WRITABLE)
        try:
            if offset < 0 or offset > into.len - out_of.len:
                raise ValueError(f"{out_of.len} bytes at {offset} of {into.len}")
            with nogil:
                memcpy(<char*> into.buf + offset, out_of.buf, out_of.len)
        finally:
            PyBuffer_Release(&into)
    finally:
        PyBuffer_Release(&out_of)
