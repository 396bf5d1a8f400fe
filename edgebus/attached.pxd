# Types for the compiled form of attached.py.
cimport cython

from edgebus._handed cimport Reader, Writer
from edgebus.answerer cimport Answerer
from edgebus.bulk cimport BulkSender
from edgebus.bulk_receiver cimport BulkReceiver
from edgebus.pace cimport Pace
from edgebus.requests cimport Caller
from edgebus.shm.board cimport Board
from edgebus.shm.pipes cimport Pipes


cdef class Attached


cdef class NearLane:
    cdef object __weakref__
    cdef public Attached attached
    cdef public tuple route
    cdef public object offered, peer_board, half_taken, checked_limits
    cdef public Pipes pipes
    cdef public Board board
    cdef public Reader reader
    cdef public Writer writer


cdef class Traffic:
    cdef public long long bytes_sent, bytes_received, messages_sent, messages_received, malformed
    cdef public long long content_bytes_sent, content_bytes_received, copied_bytes_sent

    cpdef took(self, long long frame_bytes, long long content_bytes)


cdef class LinkFront:
    cdef public Caller caller
    cdef public Answerer answerer
    cdef public BulkSender sender
    cdef public BulkReceiver receiver
    cdef public Pace pace
    cdef public object state, peer_limits
    cdef public long version
    cdef public double heard_at
    cdef public bint is_local, _bulk_up
    cdef public list _lane_messages
    cdef public long long _small_answers
    cdef object __weakref__
    cdef dict __dict__

    cpdef bint takes_whole(self, long long total_bytes, double now) except -1
    cpdef went_whole(self, message, long long total_bytes, double now)
    cpdef bint whole_answered(self, request_id, double now) except -1
    @cython.locals(chunk_bytes=cython.longlong, window_bytes=cython.longlong, step_bytes=cython.longlong)
    cpdef tuple _allowed(self, double now)
    cpdef _paced(self, double now)


cdef class HubFront:
    cdef public dict by_route
    cdef public list taps, outbox, news
    cdef public object judge
    cdef public double first_timer_at
    cdef public long long unroutable
    cdef object __weakref__
    cdef dict __dict__


cdef class Attached:
    cdef object __weakref__
    cdef public LinkFront link
    cdef public tuple route
    cdef public object key, peer_id, hello_id, bulk_route, sharing, shared_with
    cdef public NearLane near
    cdef public Traffic traffic
    cdef public double scheduled_at
