# Types for the compiled form of runner.py.
cimport cython

from edgebus.attached cimport HubFront


cdef class Runner:
    cdef object __weakref__
    cdef public HubFront _hub
    cdef public object _handler, _pid, _forks, _lock, _owner, _who, _driver, _parked, _deferred, _callbacks
    cdef public object _calling, _calls, _stop_linger_ms, sockets, _wake_read, _wake_write, _thread
    cdef public long _depth, _leads, _followers
    cdef public double _left_at, _sleeps_until, _next_at
    cdef public bint _own_asleep, _own_polls, _own_needed, stirred, _closed, _woken

    cpdef wait(self, item, double until)
    cpdef nudge(self)
    cpdef run_callbacks(self)
    cpdef _enter(self)
    cpdef _exit(self)
    cpdef _turn(self)
    @cython.locals(hub=HubFront, now=double, sleeps_until=double)
    cpdef _drive(self, item, double until, who)
    cpdef _leave(self)
    cpdef _wake(self)
