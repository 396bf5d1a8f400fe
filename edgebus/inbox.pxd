# Types for the compiled form of inbox.py.
cimport cython

from edgebus._waiting cimport Lock
from edgebus.answerer cimport Answerer
from edgebus.attached cimport Attached
from edgebus.turns cimport Turns


cdef Lock _claims


cdef class Request:
    cdef object __weakref__
    cdef public bint _answered, is_one_way, is_stream, _has_key
    cdef public object service, from_pos, _id, _desk, payload, arrays, owner
    cdef public Answerer _answerer
    cdef public Attached _attached
    cdef public double _expires_at, arrived_at

    cpdef remaining_s(self)
    cpdef acknowledge(self)
    cpdef _claim(self)


cdef class Inbox:
    cdef object __weakref__
    cdef public object services, _unregister, _wait, _nudge, _pid, _forks, _filled
    cdef public dict _waiting
    cdef public Turns _turns
    cdef public Lock _mutex
    cdef public long _depth, _share, _followers
    cdef public double _looked_at
    cdef public bint _closed, _woken, ready

    cpdef bint put(self, Request request) except -1
    cpdef _look(self, double until)
    cpdef _left(self, Request request)


@cython.locals(request=Request)
cpdef offer(Inbox inbox, Attached attached, arrived, desk)
