# Types for the compiled form of arena.py.
cimport cython

from edgebus.shm.ranges cimport FreeRanges


cdef class Budget:
    cdef public long long max_bytes, used_bytes


cdef class Arena:
    cdef public Budget _budget
    cdef public long long _segment_bytes, _max_bytes
    cdef public dict _free

    @cython.locals(free=FreeRanges)
    cpdef take(self, long long size)
    @cython.locals(free=FreeRanges)
    cpdef give(self, segment, long long offset, long long size)
