# Types for the compiled form of pipes.py.
cimport cython


cdef class Pipes:
    cdef object __weakref__
    cdef public long read_fd, _write_fd
    cdef public object _closer

    @cython.locals(first=bytes, packet=bytes, size=cython.Py_ssize_t)
    cpdef bint send(self, frames) except -1
    @cython.locals(packet=bytes, size=cython.Py_ssize_t)
    cpdef take(self)
