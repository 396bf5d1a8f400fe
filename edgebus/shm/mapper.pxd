# Types for the compiled form of mapper.py.
cimport cython

from edgebus._waiting cimport Lock


cdef long long _FIRST_AT, _ALIGN_BYTES


cdef class Place:
    cdef public long long lease, pid, fd, segment_bytes, offset, size
    cdef public bytes nonce


@cython.locals(made=Place)
cpdef Place place(
    long long lease, long long pid, long long fd, long long segment_bytes, bytes nonce, long long offset, long long size
)


cdef class _Ended:
    cdef public object _pid, _ended, _on_release


cdef class _Mapped:
    cdef public long long max_bytes, max_segments, num_bytes, num_segments


cdef class Mapper:
    cdef object __weakref__
    cdef public object _max_peer_bytes, _max_peer_segments, _cached, _pid, _forks, _views_ended, _unmapped
    cdef public object _last_peer, _last_mapping
    cdef public Place _last
    cdef public Lock _lock
    cdef public _Mapped _all
    cdef public dict _peers
    cdef public long long _num_mapped, _num_views, _refused

    cpdef view_place(self, peer, Place where, on_release)
    @cython.locals(offset=cython.longlong, size=cython.longlong, end=cython.longlong)
    cpdef _check(self, Place where)
    @cython.locals(key=tuple, last=Place)
    cpdef _mapping(self, peer, Place where)
