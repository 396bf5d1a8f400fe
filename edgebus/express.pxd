# Types for the compiled form of express.py.
cimport cython

from edgebus.answerer cimport Answerer
from edgebus.attached cimport Attached, HubFront, LinkFront, Traffic
from edgebus.calls cimport Pending
from edgebus.express_sending cimport ExpressSending, sum_bytes
from edgebus.requests cimport Caller
from edgebus._port cimport Port
from edgebus.readiness cimport Opened


cdef class Express(ExpressSending):
    cdef public object _deliver, _on_frames, desk, free_leases, _half_taken
    cdef public dict _by_route, inboxes

    cpdef bint take(self, Opened opened, long event) except -1
    @cython.locals(
        port=Port, more=long, size_bytes=cython.longlong, large_bytes=cython.longlong,
        unseen_bytes=cython.longlong
    )
    cpdef bint _take(self, Opened opened, long event) except -1
    @cython.locals(attached=Attached, link=LinkFront, hub=HubFront)
    cpdef bint receive_small(self, tuple route, bytes frame, key) except -1
    @cython.locals(link=LinkFront, hub=HubFront, pending=Pending, now=double)
    cpdef bint receive_header(self, Attached attached, header, long frame_bytes) except -1
    @cython.locals(attached=Attached, link=LinkFront, hub=HubFront, now=double, frames_bytes=cython.longlong)
    cpdef receive_large(self, route, frames, key)
    @cython.locals(link=LinkFront, hub=HubFront, size_bytes=cython.longlong)
    cpdef _receive_whole(self, Attached attached, header, content, long long frames_bytes, double now)
    @cython.locals(link=LinkFront, hub=HubFront, traffic=Traffic)
    cpdef _receive_chunk(self, Attached attached, chunk, frame, long long frames_bytes, double now)
    @cython.locals(link=LinkFront, hub=HubFront, traffic=Traffic, now=double)
    cpdef _credited(self, Attached attached, credit, long frame_bytes)
    @cython.locals(answerer=Answerer)
    cpdef deliver(self, Attached attached, arrived)
    @cython.locals(caller=Caller)
    cpdef _free_leases(self, Attached attached, double now)
