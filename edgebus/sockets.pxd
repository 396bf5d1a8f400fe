# Types for the compiled form of sockets.py.
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


cdef class Sockets:
    cdef object __weakref__
    cdef public object _limits, _receiver, _local, _context, _zap, _ids, unended
    cdef public MessageTaker messages
    cdef public Poller _poller
    cdef public dict by_id, _monitors, _ports, _untold, _takers, _fds
    cdef public list _unanswered
    cdef public set touched

    cpdef poll(self, double timeout_s)
    @cython.locals(opened=Opened)
    cpdef send(self, tuple route, frames)
    @cython.locals(left=long)
    cpdef take(self, list ready)
    cpdef take_touched(self)
    @cython.locals(port=Port)
    cpdef bint _take_monitor(self, socket_id, port) except -1
    @cython.locals(port=Port)
    cpdef bint _take_zap(self, port) except -1
