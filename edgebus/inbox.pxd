# Types for the compiled form of inbox.py.
from edgebus.answerer cimport Answerer
from edgebus.attached cimport Attached


cdef class Request:
    cdef object __weakref__
    cdef public bint _answered, is_one_way, is_stream, _has_key
    cdef public object service, from_pos, _id, _desk, payload, arrays
    cdef public Answerer _answerer
    cdef public Attached _attached
    cdef public double _expires_at, arrived_at

    cpdef remaining_s(self)
    cpdef acknowledge(self)
    cpdef _claim(self)


cdef class Inbox:
    cdef object __weakref__
    cdef public object services, _unregister, _wait, _nudge, _waiting, _pid, _forks, _mutex, _filled
    cdef public dict _held
    cdef public long _depth, _share, _followers
    cdef public double _looked_at
    cdef public bint _closed, _woken

    cpdef put(self, Request request)
    cpdef _look(self, double until)
    cpdef Request _take(self, token)
