cdef class Port:
    cdef void* handle
    cdef readonly bint is_router
    cdef readonly bint is_secure
    cdef readonly bytes route
    cdef readonly object key
    cdef readonly bint more
    cdef bytes key_bytes

    cpdef send(self, bytes route, bytes frame)
    cpdef bytes take(self)
    cpdef bint readable(self) except -1
    cdef void set_key(self, const char* text) except *
