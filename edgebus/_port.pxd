cdef class Tally:
    cdef void* counts  # eb_tally, which only the module itself knows


cdef class Source:
    cdef int fd
    cdef long long num_bytes


cdef class Port:
    cdef void* handle
    cdef object plain
    cdef public bint is_router
    cdef public bint is_secure
    cdef public bytes route
    cdef public object key
    cdef public bint more
    cdef bytes key_bytes
    cdef public long long max_sending_bytes
    cdef dict tallies
    cdef long wire_bytes
    cdef dict sources
    cdef Source source

    cpdef take_counts(self)
    cpdef send(self, bytes route, bytes frame)
    cpdef send_all(self, bytes route, frames)
    cpdef long long take_rest(self, list frames) except -1
    cpdef bytes take(self)
    cpdef bint readable(self) except -1
    cdef Tally tally(self, bytes route)
    cdef bytes take_plain(self)
    cdef void set_key(self, const char* text) except *
    cdef find_source(self, void* msg)


cpdef long take_back() except -1
