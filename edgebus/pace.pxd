# Types for the compiled form of pace.py.
cimport cython


cdef class Pace:
    cdef public long long _max_chunk_bytes, window_bytes, _most_bytes, _marked_bytes, _credited_bytes, _judged_bytes
    cdef public long long proven_bytes
    cdef public double _rate, _marked_at, _small_at, _round_trip_s
    cdef public object _sent

    cpdef small(self, double now)
    cpdef sent(self, long long total_bytes, double now)
    @cython.locals(gained_bytes=cython.longlong, elapsed_s=double, rate=double)
    cpdef credited(self, long long total_bytes, double now, bint in_flight)
    @cython.locals(chunk=cython.longlong, ahead=cython.longlong, polite=cython.longlong)
    cpdef tuple chunk_and_window(self, double now)
    cpdef _learn(self, long long total_bytes, long long gained_bytes, double now)
