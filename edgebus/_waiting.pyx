# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: freethreading_compatible=False
"""What threads wait at: a lock that its owner may take again, descriptors that become readable, a seat to be free."""
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from libc.errno cimport EINTR, errno
from libc.math cimport INFINITY, ceil

import time
from sys import is_finalizing as _is_finalizing

cdef object is_finalizing = _is_finalizing  # here it is found, too, when the names of all modules have been taken away

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

cdef extern from "time.h" nogil:
    enum: CLOCK_MONOTONIC
    ctypedef long time_t
    struct timespec:
        time_t tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec* at)

cdef extern from "unistd.h" nogil:
    int c_close "close"(int fd)

cdef enum:
    MOST = 64  # events taken at once
    LOOKS = 20  # at a driver who does not change, before the node's own thread asks to be told when he leaves
    ASLEEP_US = 1000000

cdef double FOREVER_S = 1e6


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
            self.wait_for_it(me, -1, 1)
        else:
            self.owner, self.depth = me, 1
        return True

    cpdef bint enter(self, double wait_s=-1.0) except -1:
        cdef unsigned long me = PyThread_get_thread_ident()
        if self.depth and self.owner == me:
            return False
        if self.depth or self.waiting:
            return self.wait_for_it(me, -1 if wait_s < 0.0 else <long long> ceil(wait_s * 1e6), 1)
        self.owner, self.depth = me, 1
        return True

    cdef bint wait_for_it(self, unsigned long me, long long wait_us, int by_signals) except -1:
        cdef int done
        cdef double until = 0.0
        if is_finalizing():
            # The interpreter has ended all other threads wherever they were, whoever had this or waited for it among them.
            if self.depth:
                raise RuntimeError("the interpreter ends: the thread that was in the middle of this has been ended")
            self.waiting, self.is_locked, self.owner, self.depth = 0, False, me, 1
            return True
        if wait_us > 0:
            until = time.monotonic() + wait_us * 1e-6
        if self.depth and not self.is_locked:
            PyThread_acquire_lock(self.lock, NOWAIT_LOCK)
            self.is_locked = True
        self.waiting += 1
        try:
            while True:
                with nogil:
                    done = PyThread_acquire_lock_timed(self.lock, wait_us, by_signals)
                if done == PY_LOCK_ACQUIRED:
                    break
                PyErr_CheckSignals()
                if wait_us > 0:
                    wait_us = <long long> ceil(max(0.0, until - time.monotonic()) * 1e6)
                if wait_us == 0:
                    return False
        finally:
            self.waiting -= 1
        self.is_locked, self.owner, self.depth = True, me, 1
        return True

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
            self.wait_for_it(PyThread_get_thread_ident(), -1, 0)
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


cdef class Seat:
    """Who drives a node's sockets, and where the node's own thread rests; see seat.PlainSeat."""

    def __cinit__(self):
        self.left_at = -INFINITY
        self.calls = PyThread_allocate_lock()
        if self.calls == NULL:
            raise MemoryError
        PyThread_acquire_lock(self.calls, NOWAIT_LOCK)

    def __dealloc__(self):
        if self.calls != NULL:
            PyThread_free_lock(self.calls)

    cpdef call(self):
        if not self.is_called:
            self.is_called = True
            PyThread_release_lock(self.calls)

    def rest(self, double grace_s, bint asleep):
        # Without the GIL, which the threads that work want just then. What is read here may be old by a moment: the
        # caller looks again with it.
        cdef long long wait_us = ASLEEP_US if asleep else <long long> ceil(grace_s * 1e6)
        cdef long seen = self.leads
        cdef int looks = 0
        cdef bint taken = False
        cdef timespec at
        cdef double left_s
        with nogil:
            while True:
                taken = PyThread_acquire_lock_timed(self.calls, wait_us, 0) == PY_LOCK_ACQUIRED
                if taken or asleep:
                    break
                left_s = grace_s
                if self.driver:
                    looks = looks + 1 if self.leads == seen else 0
                    seen = self.leads
                    if looks == LOOKS:
                        break
                else:
                    clock_gettime(CLOCK_MONOTONIC, &at)
                    left_s += self.left_at - (at.tv_sec + at.tv_nsec * 1e-9)
                    if left_s <= 0.0:
                        break
                wait_us = <long long> ceil(left_s * 1e6)
        # Not before: whoever called has set what he calls for, which the caller is going to look at. He may have called
        # since the time was over: given back once more the lock would be free twice.
        if self.is_called and not taken:
            PyThread_acquire_lock(self.calls, NOWAIT_LOCK)
        self.is_called = False
