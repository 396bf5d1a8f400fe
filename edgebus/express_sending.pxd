# Types for the compiled form of express_sending.py.
cimport cython

from edgebus.answerer cimport Answerer
from edgebus.attached cimport Attached, HubFront, LinkFront, Traffic
from edgebus.calls cimport Pending
from edgebus.requests cimport Caller
from edgebus.runner cimport Runner
from edgebus.readiness cimport MessageTaker, Opened
from edgebus.sockets cimport Sockets


cdef class ExpressSending(MessageTaker):
    cdef public HubFront _hub
    cdef public Runner _runner
    cdef public Sockets _sockets

    @cython.locals(runner=Runner, done=bint, me=cython.longlong)
    cpdef bint ask(self, Attached attached, service, payload, Pending pending, double now) except -1
    @cython.locals(runner=Runner, done=bint, me=cython.longlong)
    cpdef bint give(self, Attached attached, Answerer answerer, request_id, payload) except -1
    @cython.locals(caller=Caller, link=LinkFront, traffic=Traffic, hub=HubFront, opened=Opened)
    cpdef bint request(self, Attached attached, service, payload, Pending pending, double now) except -1
    @cython.locals(caller=Caller, link=LinkFront, traffic=Traffic, hub=HubFront, size_bytes=cython.longlong)
    cpdef request_whole(self, Attached attached, service, specs, frames, Pending pending, double now)
    @cython.locals(link=LinkFront, traffic=Traffic, opened=Opened)
    cpdef bint answer(self, Attached attached, Answerer answerer, request_id, payload) except -1
    cpdef _post(self, Attached attached, Opened opened, frame)


@cython.locals(total=cython.longlong)
cpdef long long sum_bytes(frames) except -1
