# Types for the compiled form of ids.py.
cdef class IdRanges:
    cdef public list _starts, _ends
    cdef public long long floor

    cpdef raise_floor(self, long long floor)
