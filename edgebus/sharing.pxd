# Types for the compiled form of sharing.py.
cimport cython

from edgebus.attached cimport Attached
from edgebus.sharing_views cimport SharingViews


cdef class Sharing(SharingViews):
    cdef public object _again
    cdef public dict _probes

    cpdef bint wants(self, Attached attached, long long total) except -1


@cython.locals(total=cython.longlong)
cpdef long long total_bytes(arrays) except -1
