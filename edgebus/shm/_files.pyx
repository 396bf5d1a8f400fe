# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: freethreading_compatible=False
"""Descriptors that nothing of Python stands between and what closes them, and packets in pipes."""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_SetFromErrno
from libc.string cimport memcpy

import os

cdef extern from "fcntl.h" nogil:
    int c_open "open"(const char* path, int flags)

cdef extern from "sys/mman.h" nogil:
    int c_memfd_create "memfd_create"(const char* name, unsigned int flags)

cdef extern from "unistd.h" nogil:
    int c_pipe2 "pipe2"(int* fds, int flags)
    int c_close "close"(int fd)
    Py_ssize_t c_read "read"(int fd, void* data, size_t size)
    Py_ssize_t c_write "write"(int fd, const void* data, size_t size)

cdef enum:
    PACKET_BYTES = 4096  # shm.pipes.PACKET_BYTES
    HAS_MORE = 0x8000  # shm.pipes._HAS_MORE


def write_packet(int fd, bytes first, bytes second):
    """Write one packet to a pipe; see shm.pipes._plain_write."""
    cdef char packet[PACKET_BYTES]
    cdef Py_ssize_t size = PyBytes_GET_SIZE(first), rest = 0
    cdef Py_ssize_t head = size
    if second is not None:
        rest = PyBytes_GET_SIZE(second)
        head |= HAS_MORE
    if size > PACKET_BYTES - 2 or rest > PACKET_BYTES - 2 - size:
        return False
    packet[0], packet[1] = <char> (head & 255), <char> (head >> 8)
    memcpy(packet + 2, PyBytes_AS_STRING(first), size)
    if rest:
        memcpy(packet + 2 + size, PyBytes_AS_STRING(second), rest)
    size += 2 + rest
    return c_write(fd, packet, size) == size  # it never waits, so the GIL is kept


def read_packet(int fd):
    """Read one packet from a pipe; see shm.pipes._plain_read."""
    cdef char packet[PACKET_BYTES]
    cdef Py_ssize_t size = c_read(fd, packet, PACKET_BYTES), first  # it never waits, so the GIL is kept
    if size <= 0:
        return None
    if size < 2:
        return []
    first = (<unsigned char> packet[0]) | (<unsigned char> packet[1]) << 8
    if not first & HAS_MORE:
        return [PyBytes_FromStringAndSize(packet + 2, first)] if first == size - 2 else []
    first -= HAS_MORE
    if first > size - 2:
        return []
    return [
        PyBytes_FromStringAndSize(packet + 2, first), PyBytes_FromStringAndSize(packet + 2 + first, size - 2 - first)
    ]


@cython.final
cdef class Descriptor:
    """An open file that is closed with the last reference to it; see shm.descriptors.PlainDescriptor."""

    cdef int fd

    def __cinit__(self):
        self.fd = -1

    def __dealloc__(self):
        self.shut()

    def fileno(self):
        return self.fd

    def close(self):
        self.shut()

    cdef void shut(self) noexcept:
        if self.fd >= 0:
            c_close(self.fd)
            self.fd = -1


def open_file(str path, int flags):
    """As os.open; nothing of Python runs between the file and what closes it."""
    cdef Descriptor made = Descriptor.__new__(Descriptor)
    cdef bytes encoded = os.fsencode(path)
    made.fd = c_open(encoded, flags)
    if made.fd < 0:
        PyErr_SetFromErrno(OSError)
    return made


def open_memory(str name, unsigned int flags):
    """As os.memfd_create, likewise."""
    cdef Descriptor made = Descriptor.__new__(Descriptor)
    cdef bytes encoded = name.encode()
    made.fd = c_memfd_create(encoded, flags)
    if made.fd < 0:
        PyErr_SetFromErrno(OSError)
    return made


def open_pipe(int flags):
    """As os.pipe2, likewise."""
    cdef Descriptor read = Descriptor.__new__(Descriptor)
    cdef Descriptor write = Descriptor.__new__(Descriptor)
    cdef int[2] fds
    if c_pipe2(fds, flags) < 0:
        PyErr_SetFromErrno(OSError)
    read.fd, write.fd = fds[0], fds[1]
    return read, write
