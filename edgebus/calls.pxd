# Types for the compiled form of calls.py.
cdef class Pending:
    cdef object __weakref__
    cdef public object _cancel, _endpoint, _service, _settled, _payload, _wait, _waiter
    cdef public object on_done, on_part, parts, request_id
    cdef public double _timeout_s, deadline_at
    cdef public bint _given_up, ready

    cpdef result(self)
    cpdef settle(self, settled)
    cpdef settle_small(self, payload)
