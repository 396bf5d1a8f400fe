# Types for the compiled form of pool.py.
cimport cython

from edgebus.shm.arena cimport Arena, Budget


cdef class _Lease:
    cdef public object segment
    cdef public long long offset, span
    cdef public bint kept, written, with_peer


cdef class _Account:
    cdef public Arena arena
    cdef public dict leases


cdef class Pool:
    cdef object __weakref__
    cdef public Budget _budget
    cdef public long long _max_owner_bytes, _segment_bytes, _in_use, _copied, _refused, _strays, _next_lease
    cdef public object _lock, _written
    cdef public bint _open
    cdef public dict _accounts
    cdef public list _orphans

    @cython.locals(sources=list, sizes=list, pos=cython.Py_ssize_t, blocks=list)
    cpdef put(self, buffers, owner, bint keep=*)
    @cython.locals(lease=_Lease, leases=dict)
    cpdef release(self, lease_ids, owner, double wait_s=*)
    @cython.locals(lease=_Lease, leases=dict)
    cpdef done(self, lease_ids, owner, double wait_s=*)
    cpdef bint _take_lock(self, double wait_s) except -1
    @cython.locals(offset=cython.longlong, size=cython.longlong, span=cython.longlong, total=cython.longlong,
                   copied=cython.longlong, leases=dict, account=_Account)
    cpdef _reserve(self, list sizes, owner, bint keep, bint written=*)
    @cython.locals(account=_Account)
    cpdef _place(self, owner, long long size, long count)
    @cython.locals(account=_Account)
    cpdef dict _leases(self, owner)
    @cython.locals(account=_Account, lease=_Lease)
    cpdef _drain(self)
    @cython.locals(account=_Account)
    cpdef _free_if_unused(self, owner, lease_id, _Lease lease)


@cython.locals(align=cython.longlong)
cdef long long _span(long long size) except -1

