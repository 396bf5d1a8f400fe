# Types for the compiled form of sockets.py.
cimport cython

from edgebus._port cimport Port
from edgebus.readiness cimport Opened, Readiness


cdef class Sockets(Readiness):
    cdef public object _limits, _receiver, _local, _context, _zap, _ids, _guard, unended
    cdef public dict by_id, _monitors, _ports, _untold, _fds
    cdef public list _unanswered

    @cython.locals(opened=Opened)
    cpdef send(self, tuple route, frames)
    @cython.locals(port=Port)
    cpdef bint _take_monitor(self, socket_id, port) except -1
    @cython.locals(port=Port)
    cpdef bint _take_zap(self, port) except -1
