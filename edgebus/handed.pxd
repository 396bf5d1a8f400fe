# Types for the compiled form of handed.py.
cdef class Handed:
    cdef public long long ttl_ms, settled_below
    cdef public object id
    cdef public str service
    cdef public tuple specs
    cdef public bytes payload
    cdef public list places
