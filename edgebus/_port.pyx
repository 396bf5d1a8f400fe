# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: freethreading_compatible=False
"""libzmq's own functions for messages, and the kernel's for waiting.

libzmq's are those of the library which pyzmq has loaded, found by name: pyzmq checks and wraps at every call what never
changes here. Nothing is linked: pyzmq brings libzmq along, and a second copy could not work its sockets. With another
backend of pyzmq, where they cannot be found, a port goes through pyzmq.

Large frames are lent to libzmq. Its threads say that they are done with one without the GIL, by putting it on a list;
take_back() drops what is on it. pyzmq has a thread of its own for that, which is woken for each frame.
"""
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINTR, errno
from libc.math cimport ceil
from libc.stdint cimport uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, strcmp

import os
import time
from sys import is_finalizing as _is_finalizing

cdef object is_finalizing = _is_finalizing  # here it is found, too, when the names of all modules have been taken away


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

cdef extern from "fcntl.h" nogil:
    int c_open "open"(const char* path, int flags)

cdef extern from "sys/mman.h" nogil:
    int c_memfd_create "memfd_create"(const char* name, unsigned int flags)

cdef extern from "unistd.h" nogil:
    int c_pipe2 "pipe2"(int* fds, int flags)
    int c_close "close"(int fd)
    Py_ssize_t c_read "read"(int fd, void* data, size_t size)
    Py_ssize_t c_write "write"(int fd, const void* data, size_t size)

cdef extern from *:
    """
    #include <stdlib.h>
    typedef struct { unsigned char room[64]; } __attribute__((aligned(sizeof(void *)))) eb_msg; /* zmq_msg_t */
    """
    ctypedef struct eb_msg:
        pass

cdef extern from *:
    """
    /* Bytes of large messages that libzmq has for one connection; each loan that counts, and the port, holds it. */
    typedef struct eb_tally { long long bytes; long holders; } eb_tally;
    typedef struct eb_loan { Py_buffer view; struct eb_loan *next; eb_tally *tally; long long counted; } eb_loan;
    static eb_loan *eb_returned = NULL;

    static void eb_leave(eb_tally *tally) {
        if (__atomic_sub_fetch(&tally->holders, 1, __ATOMIC_ACQ_REL) == 0) free(tally);
    }
    static void eb_count(eb_loan *loan, eb_tally *tally, long long bytes) {
        __atomic_add_fetch(&tally->bytes, bytes, __ATOMIC_RELAXED);
        __atomic_add_fetch(&tally->holders, 1, __ATOMIC_RELAXED);
        loan->tally = tally; loan->counted = bytes;
    }
    static long long eb_counted(eb_tally *tally) { return __atomic_load_n(&tally->bytes, __ATOMIC_RELAXED); }

    /* Called by libzmq on any thread, without the GIL: nothing of Python may be touched. */
    static void eb_give_back(void *data, void *hint) {
        eb_loan *loan = (eb_loan *)hint;
        (void)data;
        if (loan->tally != NULL) {
            __atomic_sub_fetch(&loan->tally->bytes, loan->counted, __ATOMIC_RELAXED);
            eb_leave(loan->tally);
        }
        loan->next = __atomic_load_n(&eb_returned, __ATOMIC_RELAXED);
        while (!__atomic_compare_exchange_n(&eb_returned, &loan->next, loan, 1, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) {}
    }

    /* All that were given back; the list is only ever taken as a whole, so none can be taken twice. */
    static eb_loan *eb_take_returned(void) {
        if (__atomic_load_n(&eb_returned, __ATOMIC_RELAXED) == NULL) return NULL;
        return __atomic_exchange_n(&eb_returned, NULL, __ATOMIC_ACQUIRE);
    }

    /* How many were given back and not taken: for a forked child, whose only thread this is. */
    static long eb_count_returned(void) {
        long count = 0;
        for (eb_loan *loan = __atomic_load_n(&eb_returned, __ATOMIC_ACQUIRE); loan != NULL; loan = loan->next) count++;
        return count;
    }
    """
    ctypedef struct eb_tally:
        long holders
    ctypedef struct eb_loan:
        Py_buffer view
        eb_loan* next
        eb_tally* tally
        long long counted
    void eb_leave(eb_tally*) noexcept nogil
    void eb_count(eb_loan*, eb_tally*, long long) noexcept nogil
    long long eb_counted(eb_tally*) noexcept nogil
    void eb_give_back(void* data, void* hint) noexcept nogil
    eb_loan* eb_take_returned() noexcept nogil
    long eb_count_returned() noexcept nogil

ctypedef int (*init_t)(eb_msg*) noexcept nogil
ctypedef int (*close_t)(eb_msg*) noexcept nogil
ctypedef int (*receive_t)(eb_msg*, void*, int) noexcept nogil
ctypedef int (*send_t)(void*, const void*, size_t, int) noexcept nogil
ctypedef int (*send_msg_t)(eb_msg*, void*, int) noexcept nogil
ctypedef void (*give_back_t)(void*, void*) noexcept nogil
ctypedef int (*init_data_t)(eb_msg*, void*, size_t, give_back_t, void*) noexcept nogil
ctypedef int (*move_t)(eb_msg*, eb_msg*) noexcept nogil
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
cdef send_msg_t msg_send
cdef init_data_t msg_init_data
cdef move_t msg_move
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
    LEND_BYTES = 131072  # rawzmq.ZERO_COPY_BYTES
    KEEP_BYTES = 32768  # rawzmq.KEEP_BYTES
    MOST_TALLIES = 512  # of connections: those for which libzmq has nothing are forgotten then
    ZMQ_POLLIN = 1
    PACKET_BYTES = 4096  # shm.pipes.PACKET_BYTES
    HAS_MORE = 0x8000  # shm.pipes._HAS_MORE


cdef double FOREVER_S = 1e6


cdef void* find(void* library, str name) except NULL:
    cdef bytes encoded = name.encode()
    cdef void* found = dlsym(library, encoded)
    if found == NULL:
        raise ImportError(f"pyzmq does not bring {name}")
    return found


cdef void load() except *:
    import zmq.backend.cython._zmq as _backend

    global msg_send, msg_init_data, msg_move
    global msg_init, msg_close, msg_recv, zmq_send, msg_data, msg_size, msg_more, msg_gets, zmq_getsockopt, zmq_errno
    cdef bytes path = _backend.__file__.encode()
    cdef void* library = dlopen(path, RTLD_LAZY | RTLD_LOCAL)
    if library == NULL:
        raise ImportError(f"{_backend.__file__} cannot be opened")
    msg_init = <init_t> find(library, "zmq_msg_init")
    msg_close = <close_t> find(library, "zmq_msg_close")
    msg_recv = <receive_t> find(library, "zmq_msg_recv")
    zmq_send = <send_t> find(library, "zmq_send")
    msg_send = <send_msg_t> find(library, "zmq_msg_send")
    msg_init_data = <init_data_t> find(library, "zmq_msg_init_data")
    msg_move = <move_t> find(library, "zmq_msg_move")
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


@cython.final
cdef class Tally:
    """How many bytes of large messages libzmq has for one connection."""

    def __cinit__(self):
        self.counts = calloc(1, sizeof(eb_tally))
        if self.counts == NULL:
            raise MemoryError
        (<eb_tally*> self.counts).holders = 1

    def __dealloc__(self):
        if self.counts != NULL:
            eb_leave(<eb_tally*> self.counts)


cdef class Port:
    """A socket's way in and out; see port.PlainPort, which does the same through pyzmq."""

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
        self.max_sending_bytes = 0
        self.tallies = {}

    cpdef send(self, bytes route, bytes frame):
        if self.handle == NULL:
            if self.plain is not None:
                return self.plain.send(route, frame)
            raise zmq.ZMQError(zmq.ENOTSOCK)
        if PyBytes_GET_SIZE(route):
            push(self.handle, route, DONTWAIT | SNDMORE)
        push(self.handle, frame, DONTWAIT)

    cpdef send_all(self, bytes route, frames):
        cdef Py_ssize_t index = 0, last = len(frames) - 1
        cdef int flags
        if self.handle == NULL:
            if self.plain is not None:
                return self.plain.send_all(route, frames)
            raise zmq.ZMQError(zmq.ENOTSOCK)
        cdef long long num_bytes = 0
        cdef Tally tally = None
        for frame in frames:
            num_bytes += len(frame)
        if num_bytes >= KEEP_BYTES and self.max_sending_bytes:
            tally = self.tally(route)
            if eb_counted(<eb_tally*> tally.counts) and eb_counted(<eb_tally*> tally.counts) + num_bytes > self.max_sending_bytes:
                raise zmq.Again(EAGAIN)
        if PyBytes_GET_SIZE(route):
            push(self.handle, route, DONTWAIT | SNDMORE)
        for frame in frames:
            flags = DONTWAIT if index == last else DONTWAIT | SNDMORE
            if index == last and tally is not None:
                # The frame that goes last stands for the message: it is lent whatever its size, to hear when it went.
                push_buffer(self.handle, frame, flags, tally, num_bytes)
            elif type(frame) is bytes and PyBytes_GET_SIZE(frame) < LEND_BYTES:
                push(self.handle, <bytes> frame, flags)
            else:
                push_buffer(self.handle, frame, flags, None, 0)
            index += 1

    cdef Tally tally(self, bytes route):
        """How many bytes libzmq has for this connection."""
        found = self.tallies.get(route)
        if found is not None:
            return <Tally> found
        if len(self.tallies) >= MOST_TALLIES:
            self.tallies = {
                key: each for key, each in self.tallies.items() if eb_counted(<eb_tally*> (<Tally> each).counts)
            }
        made = self.tallies[route] = Tally()
        return made

    cpdef long long take_rest(self, list frames) except -1:
        cdef eb_msg msg
        cdef Received received
        cdef bint more = True
        cdef long long num_bytes = 0
        if self.handle == NULL:
            return self.plain.take_rest(frames) if self.plain is not None else 0
        while more:
            msg_init(&msg)
            if pull(&msg, self.handle) < 0:
                msg_close(&msg)
                raise zmq.ZMQError(zmq_errno())
            more = msg_more(&msg)
            num_bytes += msg_size(&msg)
            if msg_size(&msg) >= KEEP_BYTES:
                received = Received.__new__(Received)
                msg_move(&received.msg, &msg)
                frames.append(memoryview(received))
            else:
                frames.append(PyBytes_FromStringAndSize(<char*> msg_data(&msg), msg_size(&msg)))
            msg_close(&msg)
        return num_bytes

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


cdef int push_buffer(void* handle, frame, int flags, Tally tally, long long counted) except -1:
    """Send a frame that is any buffer: large ones are lent, and so is one that stands for so many bytes of a tally."""
    cdef eb_msg msg
    cdef eb_loan* loan
    cdef int number
    if len(frame) < LEND_BYTES:
        frame = bytes(frame)  # of bytes themselves that is no copy
        if tally is None:
            return push(handle, frame, flags)
    loan = <eb_loan*> malloc(sizeof(eb_loan))
    if loan == NULL:
        raise MemoryError
    try:
        PyObject_GetBuffer(frame, &loan.view, PyBUF_SIMPLE)
    except BaseException:
        free(loan)
        raise
    loan.tally, loan.counted = NULL, 0
    if msg_init_data(&msg, loan.view.buf, loan.view.len, eb_give_back, loan) < 0:
        PyBuffer_Release(&loan.view)
        free(loan)
        raise MemoryError
    global num_lent
    num_lent += 1
    if tally is not None:
        eb_count(loan, <eb_tally*> tally.counts, counted)
    while msg_send(&msg, handle, flags) < 0:
        number = zmq_errno()
        if number != EINTR:
            msg_close(&msg)  # which gives it back
            if number == EAGAIN:
                raise zmq.Again(number)
            raise zmq.ZMQError(number)
    return 0


cdef long num_lent = 0  # frames that libzmq has, or has given back and nobody has taken back yet


cpdef long take_back() except -1:
    """Drop the frames that libzmq is done with; returns how many it has."""
    cdef eb_loan* loan = eb_take_returned()
    cdef eb_loan* following
    global num_lent
    while loan != NULL:
        following = loan.next
        num_lent -= 1
        PyBuffer_Release(&loan.view)
        free(loan)
        loan = following
    return num_lent


def _leave_lent():
    """In a forked child: libzmq's threads are not there to give back what the parent has lent them."""
    global num_lent
    num_lent = eb_count_returned()


os.register_at_fork(after_in_child=_leave_lent)


@cython.final
cdef class Received:
    """The memory that libzmq received a frame into, until nobody has a view of it any more."""

    cdef eb_msg msg

    def __cinit__(self):
        msg_init(&self.msg)

    def __dealloc__(self):
        msg_close(&self.msg)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, msg_data(&self.msg), <Py_ssize_t> msg_size(&self.msg), 1, flags)


cdef dict lent_arrays = {}  # by id: how often each is lent, of those that were writeable before
cdef dict waiting_arrays = {}  # by id: parts of such arrays, no longer lent themselves


@cython.final
@cython.no_gc_clear
cdef class Lent:
    """The bytes of an array, which is read-only while there is a view of them; see arrays.lend."""

    cdef object array
    cdef Py_buffer view
    cdef bint gives_back

    def __cinit__(self, array):
        PyObject_GetBuffer(array, &self.view, PyBUF_SIMPLE)
        self.array = array
        key = id(array)
        known = lent_arrays.get(key)
        if known is not None:
            lent_arrays[key] = known + 1
            self.gives_back = True
        elif array.flags.writeable or waiting_arrays.pop(key, None) is not None:
            array.flags.writeable = False
            lent_arrays[key] = 1
            self.gives_back = True

    def __dealloc__(self):
        PyBuffer_Release(&self.view)  # does nothing for what could not be had
        if self.gives_back:
            key = id(self.array)
            left = lent_arrays.pop(key) - 1
            if left:
                lent_arrays[key] = left
            else:
                give_back(self.array)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.view.buf, self.view.len, 1, flags)


cdef give_back(array):
    global waiting_arrays
    cdef dict waiting
    try:
        array.flags.writeable = True
    except ValueError:  # what it is a part of is read-only
        if is_part_of_lent(array):
            waiting_arrays[id(array)] = array
        return
    if waiting_arrays:
        waiting, waiting_arrays = waiting_arrays, {}
        for part in waiting.values():
            give_back(part)


cdef bint is_part_of_lent(array) except -1:
    base = getattr(array, "base", None)
    return base is not None and (id(base) in lent_arrays or is_part_of_lent(base))


def lend(array):
    """The bytes of an array; see arrays.lend."""
    return memoryview(Lent(array))


@cython.final
@cython.no_gc
cdef class Watched:
    """Bytes of a buffer whose end is told; see shm.mapper._plain_watch and shm.pool._plain_watch.

    The garbage collector does not look through it: what is to be called must not be cleared before it, in one cycle.
    """

    cdef object on_end
    cdef Py_buffer view
    cdef Py_ssize_t offset, size
    cdef bint writable

    def __cinit__(self, buffer, Py_ssize_t offset, Py_ssize_t size, on_end, bint writable):
        PyObject_GetBuffer(buffer, &self.view, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
        if offset < 0 or size < 0 or offset > self.view.len - size:
            raise ValueError(f"{size} bytes at {offset} of {self.view.len}")
        self.offset, self.size, self.on_end, self.writable = offset, size, on_end, writable

    def __dealloc__(self):
        PyBuffer_Release(&self.view)  # does nothing for what could not be had
        if self.on_end is not None and not is_finalizing():
            self.on_end()

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, <char*> self.view.buf + self.offset, self.size, not self.writable, flags)


def watch(buffer, Py_ssize_t offset, Py_ssize_t size, on_end, bint writable=False):
    """A view of bytes whose end is told; see shm.mapper._plain_watch and shm.pool._plain_watch."""
    return memoryview(Watched(buffer, offset, size, on_end, writable))


def copy_to(target, Py_ssize_t offset, source):
    """Copy all bytes of a buffer to a place in another; see shm.pool._plain_copy."""
    cdef Py_buffer into, out_of
    PyObject_GetBuffer(source, &out_of, PyBUF_SIMPLE)
    try:
        PyObject_GetBuffer(target, &into, PyBUF_WRITABLE)
        try:
            if offset < 0 or offset > into.len - out_of.len:
                raise ValueError(f"{out_of.len} bytes at {offset} of {into.len}")
            with nogil:
                memcpy(<char*> into.buf + offset, out_of.buf, out_of.len)
        finally:
            PyBuffer_Release(&into)
    finally:
        PyBuffer_Release(&out_of)


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

    cpdef bint is_mine(self) except -1:
        return self.depth > 0 and self.owner == PyThread_get_thread_ident()

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
        return self.is_mine()

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

    @property
    def closed(self):
        return self.fd < 0

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
