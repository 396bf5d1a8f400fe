# Types for the compiled form of sharing_pool.py.
cimport cython

from edgebus.attached cimport Attached
from edgebus.shm.pool cimport Pool


cdef class SharingPool:
    cdef object __weakref__
    cdef public object _wake, _postponed, share
    cdef public set _putting
    cdef public Pool _pool
    cdef public double report_at, _swept_at
    cdef public bint _is_due_soon

    cpdef bint _is_in_put(self) except -1
    @cython.locals(pool=Pool)
    cpdef _give_free(self, Attached attached, list unused, list done)
    cpdef _do_postponed(self)
