# Types for the compiled form of answerer.py.
cdef class _Entry:
    cdef public double expires_at
    cdef public object service, answer, parts, key
    cdef public long long size_bytes
    cdef public bint waits_for_key

    cpdef kept_bytes(self)


cdef class AnswererCounts:
    cdef public long long received, executed, duplicates, expired, forgotten, busy, answered, withdrawn, denied, stale
    cdef public long long repeated, superseded


cdef class Answerer:
    cdef public AnswererCounts counts
    cdef public object limits, keyed, owner, gone, sending, _executing, _newest
    cdef public long long _max_pending, _max_pending_bytes, _cache_count, _cache_bytes
    cdef public long long _cached_bytes, pending_bytes, small_answers
    cdef public dict _entries, _answered
    cdef public list leases_done, _messages, _events
    cdef object __weakref__

    cpdef knows(self, request_id)
    cpdef receive_small(self, header, payload, double now)
    cpdef is_plain(self, request_id)
    cpdef answer_small(self, header, payload)
    cpdef wants(self, request_id)
    cpdef _keep(self, request_id, _Entry entry, message)
    cpdef trim(self)
    cpdef _settle_below(self, settled_below)
    cpdef _forget(self, request_id)
