# Types for the compiled form of links.py.
cimport cython

from edgebus.attached cimport Attached, LinkFront
from edgebus.calls cimport Pending
from edgebus.express cimport Express
from edgebus.near cimport NearLanes


cdef class Link:
    cdef object __weakref__
    cdef public object _engine, _dialled, _wait, _do_small, _request_whole
    cdef public Express _express
    cdef public NearLanes _near
    cdef public Attached _attached
    cdef public LinkFront _link
    cdef public set _checked

    @cython.locals(now=double, pending=Pending)
    cpdef Pending _start_small(self, service, payload, timeout_s)
    @cython.locals(now=double, pending=Pending)
    cpdef Pending _start(self, service, payload, arrays, timeout_s, terms, copy)
    cpdef _start_whole(self, service, specs, frames, timeout_s)


cdef bint _is_small(payload, arrays)
