# Types for the compiled form of runner.py.
cimport cython

from edgebus._waiting cimport Lock
from edgebus.attached cimport HubFront
from edgebus.runner_sections cimport Sections
from edgebus.sockets cimport Sockets


cdef double _NEVER
cdef long long _NOBODY, _OWN


cdef class Runner(Sections):
    cdef public object _stop_linger_ms, _thread
    cdef public Lock _who
    cdef public list _following
    cdef public bint _own_asleep, _own_polls

    @cython.locals(left_s=double, looked=bint, lead=bint, in_poll=bint, me=cython.longlong, before=cython.longlong, calls=bint)
    cpdef wait(self, item, double until)
    @cython.locals(
        sockets=Sockets, hub=HubFront, now=double, sleeps_until=double, timeout_s=double, me=cython.longlong, depth=long,
        num_lent=long, calls=bint
    )
    cpdef _drive(self, item, double until, long long who)
    cpdef _leave(self)
