# Types for the compiled form of runner_calling.py.
cimport cython

from edgebus._waiting cimport Lock, Seat
from edgebus.turns cimport Turns


cdef double _NEVER
cdef long long _NOBODY, _OWN


cdef class Calling:
    cdef object __weakref__
    cdef public object _callbacks, _calling, _wake_read, _wake_write
    cdef public Seat _seat
    cdef public Lock _handlers_lock
    cdef public Turns _handlers
    cdef public long long _own_ident, _calls
    cdef public double _sleeps_until
    cdef public bint _own_needed, _turn_wanted, stirred, _closed, _woken

    cpdef call_back(self)
    cpdef nudge(self)
    @cython.locals(me=cython.longlong, nested=bint, whole=bint, over=bint, until=double, now=double, num_left=long)
    cpdef run_callbacks(self)
    cpdef _next_handler(self)
    cpdef _wake(self)
