# Types for the compiled form of ledger.py.
cimport cython


cdef class Ledger:
    cdef public long long _max_held, _highest, _floor
    cdef public dict _held
    cdef public bint _has_news

    @cython.locals(held=dict, new=set)
    cpdef bint admit(self, lease_ids) except -1
    @cython.locals(count=long)
    cpdef give_back(self, lease_id)
