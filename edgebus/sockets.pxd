# Types for the compiled form of sockets.py.
cdef class Opened:
    cdef public object sock, socket_id, fd, port
    cdef public long crowd


cdef class Sockets:
    cdef object __weakref__
    cdef public object _limits, _receiver, _local, _context, _epoll, _zap, _next_socket_id, take_messages
    cdef public dict by_id, _monitors, _takers, _fds
    cdef public set touched

    cpdef poll(self, timeout_s)
    cpdef take(self, ready)
    cpdef take_touched(self)
