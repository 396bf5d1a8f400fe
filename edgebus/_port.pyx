# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: freethreading_compatible=False
"""libzmq's own functions for messages.

libzmq's are those of the library which pyzmq has loaded, found by name: pyzmq checks and wraps at every call what never
changes here. Nothing is linked: pyzmq brings libzmq along, and a second copy could not work its sockets. With another
backend of pyzmq, where they cannot be found, a port goes through pyzmq.

Large frames are lent to libzmq. Its threads say that they are done with one without the GIL, by putting it on a list;
take_back() drops what is on it. pyzmq has a thread of its own for that, which is woken for each frame.
"""
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINTR
from libc.stdint cimport uintptr_t
from libc.stdlib cimport atoi, calloc, free, malloc
from libc.string cimport memcmp, memcpy, strcmp

import os


cdef extern from "dlfcn.h" nogil:
    void* dlopen(const char* name, int flags)
    void* dlsym(void* handle, const char* name)
    enum: RTLD_LAZY
    enum: RTLD_LOCAL

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
    LEND_BYTES = 131072  # rawzmq.ZERO_COPY_BYTES
    KEEP_BYTES = 32768  # rawzmq.KEEP_BYTES
    MOST_TALLIES = 512  # of connections: those for which libzmq has nothing are forgotten then
    ZMQ_POLLIN = 1
    CURVE_BYTES = 33  # port.CURVE_BYTES


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


@cython.final
cdef class Source:
    """A connection that messages came by, and their bytes on the wire since they were asked for."""


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
        self.wire_bytes = -1
        self.sources = {}
        self.source = None

    def count(self, bint is_encrypted):
        if self.plain is not None:
            self.plain.count(is_encrypted)
        else:
            self.wire_bytes = CURVE_BYTES if is_encrypted else 0

    cpdef take_counts(self):
        cdef Source each
        if self.plain is not None:
            return self.plain.take_counts()
        sources, self.sources, self.source = self.sources, {}, None
        return [(each.fd, each.num_bytes) for each in sources.values()]

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
            if self.source is not None:
                self.source.num_bytes += on_wire(msg_size(&msg), self.wire_bytes)
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
                self.source = None
        if pull(&msg, self.handle) >= 0:
            frame = PyBytes_FromStringAndSize(<char*> msg_data(&msg), msg_size(&msg))
            self.more = msg_more(&msg)
            if self.wire_bytes >= 0:
                if self.source is None:  # that of a dialler is asked for anew with each connection
                    self.find_source(&msg)
                self.source.num_bytes += on_wire(msg_size(&msg), self.wire_bytes)
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

    cdef find_source(self, void* msg):
        """Make the connection of the message that was taken last the current one."""
        cdef const char* fd
        found = self.sources.get(self.route)
        if found is None:
            fd = msg_gets(<eb_msg*> msg, "__fd")
            found = self.sources[self.route] = Source.__new__(Source)
            (<Source> found).fd = -1 if fd == NULL else atoi(fd)
        self.source = <Source> found

    cdef void set_key(self, const char* text) except *:
        cdef bytes before = self.key_bytes
        if text == NULL:
            self.key_bytes, self.key = None, ""  # no key at all: nobody's
        elif before is None or strcmp(text, PyBytes_AS_STRING(before)) != 0:
            self.key_bytes = <bytes> text
            self.key = self.key_bytes.decode()


cdef inline long long on_wire(size_t num_bytes, long beside) noexcept:
    """Bytes of a frame as ZMTP 3.1 sends it (RFC 37), with so many that CURVE puts beside its content (RFC 26)."""
    num_bytes += beside
    return num_bytes + (2 if num_bytes <= 255 else 9)


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
