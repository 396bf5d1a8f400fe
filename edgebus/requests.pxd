# Types for the compiled form of requests.py.
cimport cython


cdef double _INF


@cython.locals(left_ms=double, ttl_ms=cython.longlong)
cpdef long long ttl_of(double left_s) except? -1


cdef class _Outstanding:
    cdef public object id, header, frames, ref, stream, final
    cdef public long long size_bytes
    cdef public double deadline_at, due_at
    cdef public long attempts, backoff
    cdef public bint progressed


cdef class Caller:
    cdef public object _limits, _jitter, _not_answered
    cdef public long long _next_id
    cdef public long long max_bytes, outstanding_bytes, bulk_from_bytes, started, retries, late_answers, num_answered
    cdef public double _resend_s, _patient_until
    cdef public dict outstanding
    cdef public list _timers, _messages, _events, ended, _late_cancels, leases_done, leases_unsent
    cdef public bint _up
    cdef public str note

    cpdef long long claim_id(self) except? -1
    cpdef long long oldest_or(self, long long request_id) except? -1
    @cython.locals(request_id=cython.longlong)
    cpdef small_header(self, service, payload, double deadline_at, double now)
    @cython.locals(entry=_Outstanding, due_at=double, outstanding=dict, timers=list)
    cpdef start_sent(self, header, frames, long long size_bytes, double deadline_at, ref, double now)
    @cython.locals(entry=_Outstanding)
    cpdef awaits_small(self, reply)
    @cython.locals(entry=_Outstanding)
    cpdef answered_small(self, request_id)
    cpdef _give_room(self, _Outstanding entry)
