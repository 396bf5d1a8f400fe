# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: freethreading_compatible=False
"""libzmq's own functions for small messages: those of the library which pyzmq has loaded, found by name.

pyzmq checks and wraps at every call what never changes here. Nothing is linked: pyzmq brings libzmq along, and a second
copy could not work its sockets.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINTR
from libc.stdint cimport uintptr_t
from libc.string cimport memcmp, strcmp

import zmq
import zmq.backend.cython._zmq as _backend


cdef extern from "dlfcn.h" nogil:
    void* dlopen(const char* name, int flags)
    void* dlsym(void* handle, const char* name)
    enum: RTLD_LAZY
    enum: RTLD_LOCAL

cdef extern from *:
    """
    typedef struct { unsigned char room[64]; } __attribute__((aligned(sizeof(void *)))) eb_msg; /* zmq_msg_t */
    """
    ctypedef struct eb_msg:
        pass

ctypedef int (*init_t)(eb_msg*) noexcept nogil
ctypedef int (*close_t)(eb_msg*) noexcept nogil
ctypedef int (*receive_t)(eb_msg*, void*, int) noexcept nogil
ctypedef int (*send_t)(void*, const void*, size_t, int) noexcept nogil
ctypedef void* (*data_t)(eb_msg*) noexcept nogil
ctypedef size_t (*size_t_)(const eb_msg*) noexcept nogil
ctypedef int (*more_t)(const eb_msg*) noexcept nogil
ctypedef const char* (*gets_t)(const eb_msg*, const char*) noexcept nogil
ctypedef int (*getsockopt_t)(void*, int, void*, size_t*) noexcept nogil
ctypedef int (*errno_t)() noexcept nogil

cdef init_t msg_init
cdef close_t msg_close
cdef receive_t msg_recv
cdef send_t zmq_send
cdef data_t msg_data
cdef size_t_ msg_size
cdef more_t msg_more
cdef gets_t msg_gets
cdef getsockopt_t zmq_getsockopt
cdef errno_t zmq_errno

cdef enum:
    DONTWAIT = 1
    SNDMORE = 2
    ZMQ_EVENTS = 15
    ZMQ_POLLIN = 1


cdef void* find(void* library, str name) except NULL:
    cdef bytes encoded = name.encode()
    cdef void* found = dlsym(library, encoded)
    if found == NULL:
        raise ImportError(f"{_backend.__file__} does not bring {name}")
    return found


cdef void load() except *:
    global msg_init, msg_close, msg_recv, zmq_send, msg_data, msg_size, msg_more, msg_gets, zmq_getsockopt, zmq_errno
    cdef bytes path = _backend.__file__.encode()
    cdef void* library = dlopen(path, RTLD_LAZY | RTLD_LOCAL)
    if library == NULL:
        raise ImportError(f"{_backend.__file__} cannot be opened")
    msg_init = <init_t> find(library, "zmq_msg_init")
    msg_close = <close_t> find(library, "zmq_msg_close")
    msg_recv = <receive_t> find(library, "zmq_msg_recv")
    zmq_send = <send_t> find(library, "zmq_send")
    msg_data = <data_t> find(library, "zmq_msg_data")
    msg_size = <size_t_> find(library, "zmq_msg_size")
    msg_more = <more_t> find(library, "zmq_msg_more")
    msg_gets = <gets_t> find(library, "zmq_msg_gets")
    zmq_getsockopt = <getsockopt_t> find(library, "zmq_getsockopt")
    zmq_errno = <errno_t> find(library, "zmq_errno")


load()


cdef class Port:
    """A socket's way in and out for small messages; see rawzmq.Port, which does the same through pyzmq."""

    def __init__(self, sock, bint is_router, bint is_secure):
        self.handle = <void*> <uintptr_t> sock.underlying
        self.is_router, self.is_secure = is_router, is_secure
        self.route = b""
        self.key = None
        self.more = False

    cpdef send(self, bytes route, bytes frame):
        if self.handle == NULL:
            raise zmq.ZMQError(zmq.ENOTSOCK)
        if PyBytes_GET_SIZE(route):
            push(self.handle, route, DONTWAIT | SNDMORE)
        push(self.handle, frame, DONTWAIT)

    cpdef bytes take(self):
        cdef eb_msg msg
        cdef bytes route
        cdef bytes frame = None
        cdef size_t size
        if self.handle == NULL:
            return None
        msg_init(&msg)
        if self.is_router:
            if pull(&msg, self.handle) < 0:
                msg_close(&msg)
                return None
            # Mostly the same few peers, one after the other: their names need not be made anew.
            route = self.route
            size = msg_size(&msg)
            if <size_t> PyBytes_GET_SIZE(route) != size or memcmp(PyBytes_AS_STRING(route), msg_data(&msg), size) != 0:
                self.route = PyBytes_FromStringAndSize(<char*> msg_data(&msg), msg_size(&msg))
        if pull(&msg, self.handle) >= 0:
            frame = PyBytes_FromStringAndSize(<char*> msg_data(&msg), msg_size(&msg))
            self.more = msg_more(&msg)
            if self.is_secure:
                self.set_key(msg_gets(&msg, "User-Id"))
        msg_close(&msg)
        return frame

    cpdef bint readable(self) except -1:
        cdef int events = 0
        cdef size_t size = sizeof(events)
        if self.handle == NULL:
            return False
        while zmq_getsockopt(self.handle, ZMQ_EVENTS, &events, &size) < 0:
            if zmq_errno() != EINTR:
                return False
        return (events & ZMQ_POLLIN) != 0

    def close(self):
        self.handle = NULL

    cdef void set_key(self, const char* text) except *:
        cdef bytes before = self.key_bytes
        if text == NULL:
            self.key_bytes, self.key = None, ""  # no key at all: nobody's
        elif before is None or strcmp(text, PyBytes_AS_STRING(before)) != 0:
            self.key_bytes = <bytes> text
            self.key = self.key_bytes.decode()


cdef int pull(eb_msg* msg, void* handle) noexcept:
    cdef int size = msg_recv(msg, handle, DONTWAIT)
    while size < 0 and zmq_errno() == EINTR:
        size = msg_recv(msg, handle, DONTWAIT)
    return size


cdef int push(void* handle, bytes frame, int flags) except -1:
    cdef int number
    while zmq_send(handle, PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame), flags) < 0:
        number = zmq_errno()
        if number == EAGAIN:
            raise zmq.Again(number)
        if number != EINTR:
            raise zmq.ZMQError(number)
    return 0
