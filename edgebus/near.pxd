# Types for the compiled form of near.py.
cimport cython

from edgebus.attached cimport Attached, HubFront, LinkFront, NearLane, Traffic
from edgebus.calls cimport Pending
from edgebus.answerer cimport Answerer
from edgebus.express cimport Express
from edgebus.handed cimport Handed
from edgebus.requests cimport Caller
from edgebus.runner cimport Runner
from edgebus.sharing cimport Sharing
from edgebus.readiness cimport DescriptorTaker
from edgebus.shm.mapper cimport Place
from edgebus.sockets cimport Sockets


cdef class NearLanes:
    cdef object __weakref__
    cdef public HubFront _hub
    cdef public Sockets _sockets
    cdef public Express _express
    cdef public Sharing _sharing
    cdef public object _on_frames, _next, _fitting
    cdef public dict _lanes, _of
    cdef public long long _bulk_from_bytes, _fitting_bytes

    @cython.locals(lane=NearLane)
    cpdef send(self, route, frames)
    @cython.locals(attached=Attached, lane=NearLane)
    cpdef catch_up(self, route)
    @cython.locals(sharing=Sharing, runner=Runner, total=cython.longlong)
    cpdef put(self, Attached attached, payload, arrays)
    @cython.locals(runner=Runner, sharing=Sharing, me=cython.longlong)
    cpdef bint _collect(self, Attached attached) except -1
    @cython.locals(runner=Runner, done=bint, me=cython.longlong)
    cpdef bint ask(
        self, Attached attached, service, payload, specs, blocks, Pending pending, double now
    ) except -1
    @cython.locals(lane=NearLane, link=LinkFront, hub=HubFront, caller=Caller, traffic=Traffic, sharing=Sharing,
                   shared_bytes=cython.longlong, payload_bytes=cython.longlong, at=double, deadline_at=double,
                   ttl_ms=cython.longlong, oldest=cython.longlong, request_id=cython.longlong, number=cython.longlong,
                   frame=bytes)
    cpdef bint request(self, Attached attached, service, payload, specs, blocks, Pending pending, double now) except -1
    @cython.locals(attached=Attached)
    cpdef bint _take(self, NearLane lane) except -1
    @cython.locals(link=LinkFront, hub=HubFront, now=double, content_bytes=cython.longlong, pos=cython.Py_ssize_t,
                   handed=Handed, answerer=Answerer, place=Place)
    cpdef bint _receive(self, NearLane lane, Attached attached, bytes frame) except -1


cdef class LaneTaker(DescriptorTaker):
    cdef public NearLanes _near
    cdef public NearLane _lane
