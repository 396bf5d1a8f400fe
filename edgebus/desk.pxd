# Types for the compiled form of desk.py.
cdef class NodeDesk:
    cdef object __weakref__
    cdef public object _engine

    cpdef now(self)
    cpdef answer_small(self, attached, answerer, request_id, payload)
    cpdef wait(self, item, until)
