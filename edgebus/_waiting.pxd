cdef extern from "pythread.h":
    ctypedef void* PyThread_type_lock


cdef class Lock:
    cdef PyThread_type_lock lock
    cdef unsigned long owner
    cdef long depth, waiting
    cdef bint is_locked

    cpdef bint acquire(self) except -1
    cpdef bint enter(self, double wait_s=*) except -1
    cdef bint wait_for_it(self, unsigned long me, long long wait_us, int by_signals) except -1
    cpdef bint is_mine(self) except -1
    cpdef release(self)


cdef class Poller:
    cdef int fd

    cpdef register(self, int fd)
    cpdef unregister(self, int fd)
    cpdef list poll(self, double timeout_s)
    cpdef close(self)
    cdef void shut(self) noexcept


cdef class Seat:
    cdef PyThread_type_lock calls
    cdef bint is_called
    cdef public long long driver
    cdef public long leads
    cdef public double left_at

    cpdef call(self)
