# Types for the compiled form of attached.py.
from edgebus.answerer cimport Answerer
from edgebus.bulk cimport BulkSender
from edgebus.bulk_receiver cimport BulkReceiver
from edgebus.pace cimport Pace
from edgebus.requests cimport Caller


cdef class Traffic:
    cdef public long long bytes_sent, bytes_received, messages_sent, messages_received, malformed
    cdef public long long content_bytes_sent, content_bytes_received, copied_bytes_sent


cdef class LinkFront:
    cdef public Caller caller
    cdef public Answerer answerer
    cdef public BulkSender sender
    cdef public BulkReceiver receiver
    cdef public Pace pace
    cdef public object state, peer_limits
    cdef public long version
    cdef public double heard_at
    cdef object __weakref__
    cdef dict __dict__


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
    cdef public object key, peer_id, hello_id, bulk_route, near, sharing, shared_with
    cdef public Traffic traffic
    cdef public double scheduled_at
