# Types for the compiled form of readiness.py.
cimport cython

from edgebus._port cimport Port
from edgebus._waiting cimport Poller


cdef class Opened:
    cdef public object sock
    cdef public Port port
    cdef public long socket_id, fd, crowd, tcp_port


cdef class MessageTaker:
    cpdef bint take(self, Opened opened, long event) except -1


cdef class DescriptorTaker:
    cpdef bint take(self, long event) except -1


cdef class Readiness:
    cdef object __weakref__
    cdef public MessageTaker messages
    cdef public Poller _poller
    cdef public dict _takers
    cdef public set touched

    cpdef poll(self, double timeout_s)
    @cython.locals(left=long)
    cpdef take(self, list ready)
    cpdef take_touched(self)
