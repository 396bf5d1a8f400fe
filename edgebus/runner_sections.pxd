# Types for the compiled form of runner_sections.py.
cimport cython

from edgebus._waiting cimport Lock
from edgebus.attached cimport HubFront
from edgebus.runner_calling cimport Calling
from edgebus.sockets cimport Sockets


cdef double _NEVER


cdef class Sections(Calling):
    cdef public HubFront _hub
    cdef public object _handler, _pid, _forks, _deferred
    cdef public Sockets sockets
    cdef public Lock _lock
    cdef public long long _owner
    cdef public long _depth
    cdef public double _next_at
    cdef public bint _is_whole

    cpdef check_fork(self)
    cpdef open_section(self)
    cpdef close_section(self)
    cpdef sent(self)
    cpdef _enter(self)
    cpdef _exit(self)
    @cython.locals(sockets=Sockets, now=double, until=double, left=bint)
    cpdef _turn(self)
    cpdef _interrupted(self)
