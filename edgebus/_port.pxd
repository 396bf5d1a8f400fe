cdef class Port:
    cdef void* handle
    cdef object plain
    cdef public bint is_router
    cdef public bint is_secure
    cdef public bytes route
    cdef public object key
    cdef public bint more
    cdef bytes key_bytes

    cpdef send(self, bytes route, bytes frame)
    cpdef send_all(self, bytes route, frames)
    cpdef take_rest(self, list frames)
    cpdef bytes take(self)
    cpdef bint readable(self) except -1
    cdef bytes take_plain(self)
    cdef void set_key(self, const char* text) except *


cpdef long take_back() except -1


cdef extern from "pythread.h":
    ctypedef void* PyThread_type_lock


cdef class Lock:
    cdef PyThread_type_lock lock
    cdef unsigned long owner
    cdef long depth, waiting
    cdef bint is_locked

    cpdef bint acquire(self) except -1
    cdef void wait_for_it(self, unsigned long me, int by_signals) except *
    cpdef release(self)


cdef class Poller:
    cdef int fd

    cpdef register(self, int fd)
    cpdef unregister(self, int fd)
    cpdef list poll(self, double timeout_s)
    cpdef close(self)
    cdef void shut(self) noexcept
