from edgebus.handed cimport Handed
from edgebus.shm.mapper cimport Place


cdef struct Cursor:
    const unsigned char* at
    const unsigned char* end


cdef class Reader:
    cdef bytes service_bytes, specs_bytes, nonce
    cdef object service, specs

    cpdef Handed read(self, bytes frame)
    cdef Place place(self, Cursor* cursor)


cdef class Writer:
    cdef object service, specs, nonce
    cdef bytes service_bytes, specs_bytes, segment_bytes

    cpdef bytes write(
        self, long long request_id, service, long long ttl_ms, long long settled_below, tuple specs, bytes payload,
        tuple blocks, long long number
    )
    cdef bytes segment(self, block)
