# Types for the compiled form of ahead.py.
cimport cython

from edgebus.attached cimport Attached, HubFront, LinkFront, NearLane, Traffic
from edgebus.express cimport Express
from edgebus.runner cimport Runner
from edgebus.sharing cimport Sharing


cpdef decode_coming(frame)


cdef class Ahead:
    cdef object __weakref__
    cdef public HubFront _hub
    cdef public Express _express
    cdef public Sharing _sharing
    cdef public object _on_frames

    @cython.locals(lane=NearLane)
    cpdef bint may(self, Attached attached) except -1
    @cython.locals(lane=NearLane)
    cpdef told(self, Attached attached, tuple blocks, bint was_alone)
    @cython.locals(runner=Runner)
    cpdef tell(self, Attached attached, specs, tuple blocks)
    @cython.locals(lane=NearLane, link=LinkFront)
    cpdef bint announce(self, Attached attached, specs, tuple blocks) except -1
    @cython.locals(lane=NearLane)
    cpdef take_back(self, Attached attached)
    cpdef say_never(self, NearLane lane, bint again=*)
    @cython.locals(lane=NearLane)
    cpdef done(self, Attached attached, leases)
    cpdef bint take(self, NearLane lane, frames) except -1
    @cython.locals(attached=Attached)
    cpdef bint _coming(self, NearLane lane, frame) except -1
    @cython.locals(link=LinkFront, hub=HubFront, now=double)
    cpdef _here(self, Attached attached, route, coming, views, frame)
    @cython.locals(link=LinkFront, hub=HubFront, size_bytes=cython.longlong)
    cpdef hand_on(self, Attached attached, header, tuple content, long long frame_bytes, double now)
