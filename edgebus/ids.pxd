# Types for the compiled form of ids.py.
cdef class IdRanges:
    cdef public list _starts, _ends
    cdef public object floor

    cpdef raise_floor(self, floor)
