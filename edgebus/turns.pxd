# Types for the compiled form of turns.py.


cdef class Turns:
    cdef public object _ring
    cdef public dict _queues
    cdef public bint waiting

    cpdef long num_owners(self) except -1
    cpdef long num(self, owner) except -1
    cpdef put(self, owner, token, thing)
    cpdef take(self)
    cpdef drop(self, owner, token)
