# Types for the compiled form of mapper.py.
cimport cython


cdef class _Mapped:
    cdef public long long max_bytes, max_segments, num_bytes, num_segments


cdef class Mapper:
    cdef object __weakref__
    cdef public object _max_peer_bytes, _max_peer_segments, _cached, _lock, _pid, _forks, _views_ended, _unmapped
    cdef public tuple _last
    cdef public _Mapped _all
    cdef public dict _peers
    cdef public long long _num_mapped, _num_views, _refused

    cpdef view(self, peer, info, long long offset, long long size, on_release)
    cpdef _check(self, info, long long offset, long long size)
    @cython.locals(key=tuple, last=tuple)
    cpdef _mapping(self, peer, info)
