# Types for the compiled form of desk.py.
from edgebus.answerer cimport Answerer
from edgebus.attached cimport Attached
from edgebus.express cimport Express


cdef class NodeDesk:
    cdef object __weakref__
    cdef public object _engine
    cdef public Express express

    cpdef now(self)
    cpdef answer_small(self, Attached attached, Answerer answerer, request_id, payload)
    cpdef wait(self, item, until)
