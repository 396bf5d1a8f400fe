# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: freethreading_compatible=False
"""libzmq's own functions for small messages, and the kernel's for waiting.

libzmq's are those of the library which pyzmq has loaded, found by name: pyzmq checks and wraps at every call what never
changes here. Nothing is linked: pyzmq brings libzmq along, and a second copy could not work its sockets. With another
backend of pyzmq, where they cannot be found, a port goes through pyzmq.
"""
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINTR, errno
from libc.math cimport ceil
from libc.stdint cimport uintptr_t
from libc.string cimport memcmp, strcmp

import time



cdef extern from "dlfcn.h" nogil:
    void* dlopen(const char* name, int flags)
    void* dlsym(void* handle, const char* name)
    enum: RTLD_LAZY
    enum: RTLD_LOCAL

cdef extern from "sys/epoll.h" nogil:
    enum: EPOLLIN
    enum: EPOLL_CLOEXEC
    enum: EPOLL_CTL_ADD
    enum: EPOLL_CTL_DEL
    ctypedef union epoll_data_t:
        int fd
    struct epoll_event:
        unsigned int events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event* event)
    int epoll_wait(int epfd, epoll_event* events, int maxevents, int timeout)

cdef extern from "pythread.h" nogil:
    enum: NOWAIT_LOCK
    enum: PY_LOCK_ACQUIRED
    PyThread_type_lock PyThread_allocate_lock()
    void PyThread_free_lock(PyThread_type_lock lock)
    int PyThread_acquire_lock(PyThread_type_lock lock, int waitflag)
    int PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds, int intr_flag)
    void PyThread_release_lock(PyThread_type_lock lock)
    unsigned long PyThread_get_thread_ident()

cdef extern from "unistd.h" nogil:
    int c_close "close"(int fd)

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
    MOST = 64
    ZMQ_POLLIN = 1


cdef double FOREVER_S = 1e6


cdef void* find(void* library, str name) except NULL:
    cdef bytes encoded = name.encode()
    cdef void* found = dlsym(library, encoded)
    if found == NULL:
        raise ImportError(f"pyzmq does not bring {name}")
    return found


cdef void load() except *:
    import zmq.backend.cython._zmq as _backend

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


zmq = None  # imported with the first port: there is more in here than ports
cdef bint is_loaded = False


cdef void prepare() except *:
    global zmq, is_loaded
    import zmq as pyzmq

    zmq = pyzmq
    try:
        load()
        is_loaded = True
    except ImportError:  # another backend
        pass


cdef class Port:
    """A socket's way in and out for small messages; see port.PlainPort, which does the same through pyzmq."""

    def __init__(self, sock, bint is_router, bint is_secure):
        if zmq is None:
            prepare()
        if is_loaded:
            self.handle = <void*> <uintptr_t> sock.underlying
        else:
            from edgebus.port import PlainPort

            self.plain = PlainPort(sock, is_router, is_secure)
        self.is_router, self.is_secure = is_router, is_secure
        self.route = b""
        self.key = None
        self.more = False

    cpdef send(self, bytes route, bytes frame):
        if self.handle == NULL:
            if self.plain is not None:
                return self.plain.send(route, frame)
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
            return None if self.plain is None else self.take_plain()
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
            return self.plain is not None and self.plain.readable()
        while zmq_getsockopt(self.handle, ZMQ_EVENTS, &events, &size) < 0:
            if zmq_errno() != EINTR:
                return False
        return (events & ZMQ_POLLIN) != 0

    def close(self):
        self.handle, self.plain = NULL, None

    cdef bytes take_plain(self):
        frame = self.plain.take()
        self.route, self.key, self.more = self.plain.route, self.plain.key, self.plain.more
        return frame

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


cdef class Lock:
    """A lock that its owner may take again; see locks.PlainLock.

    While nobody else wants it there is no more to it than who has it: all of this is done with the GIL. Whoever finds
    it taken waits at a lock of the system, which its owner has from then on as well.
    """

    def __cinit__(self):
        self.lock = PyThread_allocate_lock()
        if self.lock == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.lock != NULL:
            PyThread_free_lock(self.lock)

    cpdef bint acquire(self) except -1:
        cdef unsigned long me = PyThread_get_thread_ident()
        if self.depth and self.owner == me:
            self.depth += 1
        elif self.depth or self.waiting:
            self.wait_for_it(me, 1)
        else:
            self.owner, self.depth = me, 1
        return True

    cdef void wait_for_it(self, unsigned long me, int by_signals) except *:
        cdef int done
        if self.depth and not self.is_locked:
            PyThread_acquire_lock(self.lock, NOWAIT_LOCK)
            self.is_locked = True
        self.waiting += 1
        try:
            while True:
                with nogil:
                    done = PyThread_acquire_lock_timed(self.lock, -1, by_signals)
                if done == PY_LOCK_ACQUIRED:
                    break
                PyErr_CheckSignals()
        finally:
            self.waiting -= 1
        self.is_locked, self.owner, self.depth = True, me, 1

    cpdef release(self):
        if not self.depth or self.owner != PyThread_get_thread_ident():
            return
        self.depth -= 1
        if not self.depth and self.is_locked:
            self.is_locked = False
            PyThread_release_lock(self.lock)

    def __enter__(self):
        self.acquire()

    def __exit__(self, kind, error, trace):
        self.release()

    # What threading.Condition asks of a lock that can be taken again:

    def _is_owned(self):
        return self.depth > 0 and self.owner == PyThread_get_thread_ident()

    def _release_save(self):
        cdef long depth = self.depth
        self.depth = 1
        self.release()
        return depth

    def _acquire_restore(self, long depth):
        # Whatever signals come: a condition goes on to forget that it waits, which has to be done with the lock.
        if self.depth or self.waiting:
            self.wait_for_it(PyThread_get_thread_ident(), 0)
        self.owner, self.depth = PyThread_get_thread_ident(), depth


cdef class Poller:
    """What waits for descriptors to be readable; see port.PlainPoller."""

    def __cinit__(self):
        self.fd = epoll_create1(EPOLL_CLOEXEC)
        if self.fd < 0:
            PyErr_SetFromErrno(OSError)

    def __dealloc__(self):
        self.shut()

    cpdef register(self, int fd):
        cdef epoll_event event
        event.events, event.data.fd = EPOLLIN, fd
        if epoll_ctl(self.fd, EPOLL_CTL_ADD, fd, &event) < 0:
            PyErr_SetFromErrno(OSError)

    cpdef unregister(self, int fd):
        cdef epoll_event event
        event.events, event.data.fd = EPOLLIN, fd
        if epoll_ctl(self.fd, EPOLL_CTL_DEL, fd, &event) < 0:
            PyErr_SetFromErrno(OSError)

    cpdef list poll(self, double timeout_s):
        cdef epoll_event events[MOST]
        cdef int count, index, epfd, timeout_ms = -1
        cdef double until = 0.0
        if timeout_s == 0.0:
            timeout_ms = 0
        elif timeout_s < FOREVER_S:
            until = time.monotonic() + timeout_s
            timeout_ms = <int> ceil(timeout_s * 1000.0)
        while True:
            epfd = self.fd  # it may be closed while somebody sleeps
            with nogil:
                count = epoll_wait(epfd, events, MOST, timeout_ms)
            if count >= 0:
                break
            if errno != EINTR:
                PyErr_SetFromErrno(OSError)
            PyErr_CheckSignals()
            if timeout_ms > 0:
                timeout_ms = <int> ceil(max(0.0, until - time.monotonic()) * 1000.0)
        return [(events[index].data.fd, events[index].events) for index in range(count)]

    cpdef close(self):
        self.shut()

    cdef void shut(self) noexcept:
        if self.fd >= 0:
            c_close(self.fd)
            self.fd = -1
