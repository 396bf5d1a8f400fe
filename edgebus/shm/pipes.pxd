# Types for the compiled form of pipes.py.

cdef class Pipes:
    cdef object __weakref__
    cdef public long read_fd, _write_fd
    cdef public object _closer
    cdef public tuple _files

    cpdef bint send(self, frames) except -1
    cpdef bint send_one(self, bytes frame) except -1
    cpdef take(self)
