# Types for the compiled form of express.py.
cimport cython

from edgebus.answerer cimport Answerer
from edgebus.attached cimport Attached, HubFront, LinkFront, Traffic
from edgebus.calls cimport Pending
from edgebus.requests cimport Caller


cdef class Express:
    cdef public HubFront _hub
    cdef public object _sockets, _runner, _deliver, _on_frames, desk, free_leases
    cdef public dict _by_route, inboxes

    @cython.locals(caller=Caller, link=LinkFront, traffic=Traffic, hub=HubFront)
    cpdef request(self, Attached attached, service, payload, Pending pending, double now)
    @cython.locals(caller=Caller, link=LinkFront, traffic=Traffic, hub=HubFront)
    cpdef request_whole(self, Attached attached, service, specs, frames, Pending pending, double now)
    @cython.locals(link=LinkFront, traffic=Traffic)
    cpdef answer(self, Attached attached, Answerer answerer, request_id, payload)
    cpdef take(self, opened, event)
    cpdef _take(self, opened, event)
    @cython.locals(attached=Attached, link=LinkFront, hub=HubFront)
    cpdef receive_small(self, route, frame, key)
    @cython.locals(link=LinkFront, hub=HubFront, traffic=Traffic, pending=Pending, now=double)
    cpdef receive_header(self, Attached attached, header, long frame_bytes)
    @cython.locals(attached=Attached, link=LinkFront, hub=HubFront, now=double)
    cpdef receive_large(self, route, frames, key)
    @cython.locals(link=LinkFront, hub=HubFront, traffic=Traffic)
    cpdef _receive_whole(self, Attached attached, header, content, long long frames_bytes, double now)
    @cython.locals(link=LinkFront, hub=HubFront, traffic=Traffic)
    cpdef _receive_chunk(self, Attached attached, chunk, frame, long long frames_bytes, double now)
    @cython.locals(link=LinkFront, hub=HubFront, traffic=Traffic, now=double)
    cpdef _credited(self, Attached attached, credit, long frame_bytes)
    cpdef deliver(self, Attached attached, arrived)
    @cython.locals(caller=Caller)
    cpdef _free_leases(self, Attached attached, double now)
