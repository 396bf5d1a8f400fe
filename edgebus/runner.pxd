# Types for the compiled form of runner.py.
cimport cython

from edgebus._waiting cimport Lock, Seat
from edgebus.attached cimport HubFront
from edgebus.sockets cimport Sockets
from edgebus.turns cimport Turns


cdef double _NEVER
cdef long long _NOBODY, _OWN


cdef class Runner:
    cdef object __weakref__
    cdef public HubFront _hub
    cdef public object _handler, _pid, _forks, _deferred, _callbacks
    cdef public object _calling, _stop_linger_ms, _wake_read, _wake_write, _thread
    cdef public Seat _seat
    cdef public Sockets sockets
    cdef public Lock _lock, _who, _handlers_lock
    cdef public Turns _handlers
    cdef public long long _owner, _calls
    cdef public long _depth
    cdef public list _following
    cdef public double _sleeps_until, _next_at
    cdef public bint _own_asleep, _own_polls, _own_needed, stirred, _closed, _woken, _is_whole, _turn_wanted

    @cython.locals(left_s=double, looked=bint, lead=bint, in_poll=bint, me=cython.longlong, before=cython.longlong, calls=bint)
    cpdef wait(self, item, double until)
    cpdef check_fork(self)
    cpdef open_section(self)
    cpdef close_section(self)
    cpdef call_back(self)
    cpdef sent(self)
    cpdef nudge(self)
    @cython.locals(me=cython.longlong, nested=bint, whole=bint, over=bint, until=double, now=double, num_left=long)
    cpdef run_callbacks(self)
    cpdef _next_handler(self)
    cpdef _enter(self)
    cpdef _exit(self)
    @cython.locals(sockets=Sockets, now=double, until=double, left=bint)
    cpdef _turn(self)
    cpdef _interrupted(self)
    @cython.locals(
        sockets=Sockets, hub=HubFront, now=double, sleeps_until=double, timeout_s=double, me=cython.longlong, depth=long,
        num_lent=long, calls=bint
    )
    cpdef _drive(self, item, double until, long long who)
    cpdef _leave(self)
    cpdef _wake(self)
