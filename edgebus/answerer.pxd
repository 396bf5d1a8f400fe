# Types for the compiled form of answerer.py.
cimport cython

from edgebus.ids cimport IdRanges


cdef class _Entry:
    cdef public double expires_at
    cdef public object service, answer, parts, key
    cdef public long long size_bytes
    cdef public bint waits_for_key

    cpdef kept_bytes(self)


cdef class AnswererCounts:
    cdef public long long received, executed, duplicates, expired, forgotten, busy, answered, withdrawn, denied, stale
    cdef public long long repeated, failed, superseded


cdef class Answerer:
    cdef public AnswererCounts counts
    cdef public IdRanges gone
    cdef public object limits, keyed, owner, sending, repeated, _executing, _newest
    cdef public long long _max_pending, _max_pending_bytes, _cache_count, _cache_bytes
    cdef public long long _cached_bytes, pending_bytes, small_answers
    cdef public dict _entries, _answered, on_hand
    cdef public set handed
    cdef public list leases_done, _messages, _events
    cdef object __weakref__

    cpdef bint knows(self, request_id) except -1
    cpdef bint claim(self, request_id) except -1
    @cython.locals(gone=IdRanges, counts=AnswererCounts, entry=_Entry, expires_at=double, size_bytes=cython.longlong)
    cpdef receive_small(self, header, payload, double now)
    @cython.locals(size_bytes=cython.longlong)
    cpdef receive_plain(self, header, frames, double now)
    @cython.locals(expires_at=double, entry=_Entry)
    cpdef receive_new(
        self, request_id, service, long long ttl_ms, long long settled_below, specs, frames, long long size_bytes,
        double now
    )
    @cython.locals(entry=_Entry)
    cpdef bint is_plain(self, request_id) except -1
    @cython.locals(entry=_Entry)
    cpdef answer_small(self, header, payload)
    @cython.locals(entry=_Entry)
    cpdef bint wants(self, request_id) except -1
    cpdef _keep(self, request_id, _Entry entry, message)
    cpdef _list(self, request_id, long long size)
    cpdef trim(self)
    cpdef _settle_below(self, settled_below)
    @cython.locals(entry=_Entry)
    cpdef _forget(self, request_id)
