# Types for the compiled form of bulk_receiver.py.
cimport cython


cdef class _Incoming:
    cdef public object header, name, sizes, filling, credited_at, came_at
    cdef public list frames
    cdef public long long total, filled, received, credited
    cdef public bint admitted, rewinding, stale


cdef class _Later:
    cdef public object name
    cdef public long long total
    cdef public double due_at


cdef class BulkReceiver:
    cdef object __weakref__
    cdef public object _partial, _asked
    cdef public dict _later, _later_of
    cdef public list _messages, _whole
    cdef public long long _max_bytes, _window_bytes, _credit_step, _later_bytes, copied_bytes
    cdef public long overruns
    cdef public double credit_at

    cpdef took_whole(self, header, double now)
    cpdef answered(self, request_id)
    @cython.locals(later=_Later, everything=bint)
    cpdef credit_due(self, double now, is_known)
    cpdef headers_to_send(self)
    @cython.locals(later=_Later)
    cpdef _forget_later(self, number)
    @cython.locals(later=_Later)
    cpdef _credit_later(self, number, name, long long total, double came_at)
    cpdef _fill(self, _Incoming incoming, long long frame_bytes, frame, long long size)
    cpdef _complete(self, number, _Incoming incoming, double now=*)
    cpdef _give_credit(self, number, _Incoming incoming, double now)
