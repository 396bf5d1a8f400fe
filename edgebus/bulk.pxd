# Types for the compiled form of bulk.py.
cimport cython


cpdef long long credit_step(long long window_bytes) except -1


cdef class _Outgoing:
    cdef public object number, name, message, asked
    cdef public long long total, sent, credited
    cdef public long lane
    cdef public bint announced, heard_of, asks, follows, went_whole


cdef class BulkSender:
    cdef object __weakref__
    cdef public object _queue, _arrived, _next_number
    cdef public dict _by_name
    cdef public long long _max_queue_bytes, queued_bytes, unsent_bytes, in_flight_bytes, credited_bytes
    cdef public double _retry_s, _retry_at
    cdef public long _backoff, rewinds
    cdef public bint _asking
    cdef public _Outgoing _at

    cpdef bint has_room_for_whole(self, long long total, long long chunk_bytes, long long window_bytes) except -1
    cpdef next_transfer(self, sizes)
    @cython.locals(outgoing=_Outgoing)
    cpdef sent_whole(self, message, long long total, long lane, double now)
    cpdef bint sends(self, request_id) except -1
    @cython.locals(outgoing=_Outgoing)
    cpdef bint answered(self, request_id, double now) except -1
    cpdef double next_timer(self) except? -1
    cpdef _next_chunk(self, _Outgoing outgoing, long long chunk_bytes)
    cpdef _add(self, _Outgoing outgoing)
    cpdef _set_sent(self, _Outgoing outgoing, long long sent)
    cpdef _arrive(self, _Outgoing outgoing)
    cpdef _finish(self, _Outgoing outgoing)
