# Types for the compiled form of ranges.py.
cimport cython


cdef class FreeRanges:
    cdef public list _starts, _ends

    @cython.locals(index=cython.Py_ssize_t, start=cython.longlong)
    cpdef take(self, long long size, long long below)
    @cython.locals(index=cython.Py_ssize_t, end=cython.longlong, joins_left=bint, joins_right=bint)
    cpdef give(self, long long start, long long size)
