# Types for the compiled form of pool.py.
cimport cython

from edgebus._waiting cimport Lock
from edgebus.shm.arena cimport Arena, Budget


cdef class Lease:
    cdef public object segment
    cdef public tuple info
    cdef public long long lease_id, offset, size, span
    cdef public bint kept, written, with_peer


cdef class _Account:
    cdef public Arena arena
    cdef public dict leases


cdef class Pool:
    cdef object __weakref__
    cdef public Budget _budget
    cdef public long long _max_owner_bytes, _segment_bytes, _in_use, _copied, _refused, _strays, _next_lease
    cdef public object _written, _info
    cdef public tuple _plain_info
    cdef public Lock _lock
    cdef public bint _open
    cdef public dict _accounts
    cdef public list _orphans

    @cython.locals(sizes=list, pos=cython.Py_ssize_t, leases=list, lease=Lease)
    cpdef list put_leases(self, list sources, owner, bint keep)
    @cython.locals(lease=Lease, leases=dict)
    cpdef release(self, lease_ids, owner, double wait_s=*)
    @cython.locals(lease=Lease, leases=dict)
    cpdef done(self, lease_ids, owner, double wait_s=*)
    cpdef bint _take_lock(self, double wait_s=*) except -1
    @cython.locals(offset=cython.longlong, size=cython.longlong, span=cython.longlong, total=cython.longlong,
                   copied=cython.longlong, leases=dict, account=_Account, made=list, lease=Lease)
    cpdef tuple _reserve(self, list sizes, owner, bint keep, bint written=*)
    @cython.locals(account=_Account)
    cpdef _place(self, owner, long long size, long count)
    @cython.locals(account=_Account)
    cpdef dict _leases(self, owner)
    @cython.locals(account=_Account, lease=Lease)
    cpdef _drain(self)
    @cython.locals(account=_Account)
    cpdef _free_if_unused(self, owner, lease_id, Lease lease)


@cython.locals(align=cython.longlong)
cdef long long _span(long long size) except -1

