# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: freethreading_compatible=False
"""Headers of requests whose arrays lie in shared memory, written and read as msgspec does; see handed.py.

What comes is hostile: every byte is looked at behind the end of the frame, every number is held against the bounds of
messages.py, and whatever is not exactly what `Writer` writes is left to msgspec.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcmp, memcpy

from edgebus.handed cimport Handed
from edgebus.shm.mapper cimport Place

from edgebus.messages import Specs, encode_header

import msgspec

cdef object encode = encode_header
cdef object decode_specs = msgspec.msgpack.Decoder(Specs).decode
cdef object decode_name = msgspec.msgpack.Decoder(str).decode

cdef enum:
    ROOM = 4096  # of a packet: shm.pipes.PACKET_BYTES
    MOST_ARRAYS = 8  # handed.MOST_ARRAYS
    MOST_BLOCK_BYTES = 128  # of one block: a head, six numbers and a nonce
    NONCE_BYTES = 16
    INLINE_BYTES = 4096  # messages.INLINE_BYTES
    NAME_BYTES = 64
    MOST_TTL_MS = 86400000
    NIL = 0xC0

cdef long long MOST_ID = 0x7FFFFFFFFFFFFFFF
cdef long long MOST_SIZE = 1LL << 48
cdef long long MOST_FD = 0x7FFFFFFF


cdef inline long long number(Cursor* cursor, long long most) noexcept:
    """The next number, -1 if there is none or it is over `most`."""
    cdef const unsigned char* at = cursor.at
    cdef unsigned long long value = 0
    cdef int size, index
    if at >= cursor.end:
        return -1
    if at[0] < 0x80:
        value, size = at[0], 0
    elif 0xCC <= at[0] <= 0xCF:
        size = 1 << (at[0] - 0xCC)
        if cursor.end - at <= size:
            return -1
        for index in range(size):
            value = value << 8 | at[1 + index]
    else:
        return -1
    if value > <unsigned long long> most:
        return -1
    cursor.at = at + 1 + size
    return <long long> value


cdef inline Py_ssize_t binary(Cursor* cursor) noexcept:
    """Bytes of the next binary, at which the cursor is then; -1 if there is none."""
    cdef const unsigned char* at = cursor.at
    cdef Py_ssize_t size
    if cursor.end - at < 3:
        return -1
    if at[0] == 0xC4:
        size, at = at[1], at + 2
    elif at[0] == 0xC5:
        size, at = at[1] << 8 | at[2], at + 3
    else:
        return -1
    if cursor.end - at < size:
        return -1
    cursor.at = at
    return size


cdef inline bint is_byte(Cursor* cursor, int byte) noexcept:
    if cursor.at >= cursor.end or cursor.at[0] != byte:
        return False
    cursor.at += 1
    return True


cdef bint skip_specs(Cursor* cursor) noexcept:
    """Past the specs of arrays, the fewest that are one; what they say is msgspec's."""
    cdef int count, index, dims, dim
    if cursor.at >= cursor.end or cursor.at[0] & 0xF0 != 0x90:
        return False
    count = cursor.at[0] & 0x0F
    cursor.at += 1
    for index in range(count):
        if cursor.end - cursor.at < 5 or cursor.at[0] != 0x92 or cursor.at[1] != 0xA2 or cursor.at[4] & 0xF0 != 0x90:
            return False
        dims = cursor.at[4] & 0x0F
        cursor.at += 5
        for dim in range(dims):
            if number(cursor, MOST_ID) < 0:
                return False
    return 0 < count <= MOST_ARRAYS


cdef class Reader:
    """Reads the headers of one near lane, which mostly name the same service, shapes and segment as the one before."""

    def __cinit__(self):
        self.service_bytes = self.specs_bytes = self.nonce = b""

    cpdef Handed read(self, bytes frame):
        """See handed.PlainReader."""
        cdef Cursor cursor
        cdef const unsigned char* begin
        cdef Handed handed
        cdef Place where
        cdef long long request_id, ttl_ms, settled_below
        cdef Py_ssize_t size
        cdef list places
        cdef int count, index
        cursor.at = <const unsigned char*> PyBytes_AS_STRING(frame)
        cursor.end = cursor.at + PyBytes_GET_SIZE(frame)
        if not is_byte(&cursor, 0x9A) or not is_byte(&cursor, 4):
            return None
        request_id = number(&cursor, MOST_ID)
        if request_id < 0:
            return None
        begin = cursor.at
        size = take_name(&cursor)
        if size < 0:
            return None
        if not is_same(self.service_bytes, begin, cursor.at - begin):
            self.service_bytes = b""
            self.service = decode_or_none(decode_name, begin, cursor.at - begin)
            if self.service is None:
                return None
            self.service_bytes = PyBytes_FromStringAndSize(<const char*> begin, cursor.at - begin)
        ttl_ms = number(&cursor, MOST_TTL_MS)
        settled_below = number(&cursor, MOST_ID)
        if ttl_ms < 0 or settled_below < 0:
            return None
        begin = cursor.at
        if not skip_specs(&cursor):
            return None
        if not is_same(self.specs_bytes, begin, cursor.at - begin):
            self.specs_bytes = b""
            self.specs = decode_or_none(decode_specs, begin, cursor.at - begin)
            if self.specs is None:
                return None
            self.specs_bytes = PyBytes_FromStringAndSize(<const char*> begin, cursor.at - begin)
        handed = Handed.__new__(Handed)
        size = binary(&cursor)
        if size < 0 or size > INLINE_BYTES:
            return None
        handed.payload = PyBytes_FromStringAndSize(<const char*> cursor.at, size)
        cursor.at += size
        if not is_byte(&cursor, NIL) or not is_byte(&cursor, NIL) or cursor.at >= cursor.end:
            return None
        handed.specs = <tuple?> self.specs
        count = <int> len(handed.specs)
        if not is_byte(&cursor, 0x90 | count):
            return None
        places = []
        for index in range(count):
            where = self.place(&cursor)
            if where is None:
                return None
            places.append(where)
        if cursor.at != cursor.end:
            return None
        handed.id, handed.ttl_ms, handed.settled_below = request_id, ttl_ms, settled_below
        handed.service, handed.places = <str?> self.service, places
        return handed

    cdef Place place(self, Cursor* cursor):
        cdef Place where = Place.__new__(Place)
        if not is_byte(cursor, 0x97):
            return None
        where.lease = number(cursor, MOST_ID)
        where.pid = number(cursor, MOST_ID)
        where.fd = number(cursor, MOST_FD)
        where.segment_bytes = number(cursor, MOST_SIZE)
        if where.lease < 0 or where.pid < 0 or where.fd < 0 or where.segment_bytes < 0:
            return None
        if binary(cursor) != NONCE_BYTES:
            return None
        if not is_same(self.nonce, cursor.at, NONCE_BYTES):
            self.nonce = PyBytes_FromStringAndSize(<const char*> cursor.at, NONCE_BYTES)
        cursor.at += NONCE_BYTES
        where.nonce = self.nonce
        where.offset = number(cursor, MOST_SIZE)
        where.size = number(cursor, MOST_SIZE)
        return None if where.offset < 0 or where.size < 0 else where


cdef Py_ssize_t take_name(Cursor* cursor) noexcept:
    """Past a name of at most 64 bytes; its bytes, -1 if there is none."""
    cdef Py_ssize_t size, head = 1
    if cursor.at >= cursor.end:
        return -1
    if cursor.at[0] & 0xE0 == 0xA0:
        size = cursor.at[0] & 0x1F
    elif cursor.at[0] == 0xD9 and cursor.end - cursor.at > 1:
        size, head = cursor.at[1], 2
    else:
        return -1
    if size > NAME_BYTES or cursor.end - cursor.at < head + size:
        return -1
    cursor.at += head + size
    return size


cdef inline bint is_same(bytes known, const unsigned char* begin, Py_ssize_t size) noexcept:
    return PyBytes_GET_SIZE(known) == size and memcmp(PyBytes_AS_STRING(known), begin, size) == 0


cdef object decode_or_none(decode, const unsigned char* begin, Py_ssize_t size):
    try:
        return decode(PyBytes_FromStringAndSize(<const char*> begin, size))
    except (msgspec.MsgspecError, ValueError, OverflowError):
        return None


cdef unsigned char* put_number(unsigned char* at, unsigned long long value) noexcept:
    cdef int size = 0, index
    if value < 0x80:
        at[0] = <unsigned char> value
        return at + 1
    size = 1 if value < 0x100 else 2 if value < 0x10000 else 4 if value < 0x100000000 else 8
    at[0] = 0xCC if size == 1 else 0xCD if size == 2 else 0xCE if size == 4 else 0xCF
    for index in range(size):
        at[size - index] = <unsigned char> (value >> (8 * index))
    return at + 1 + size


cdef unsigned char* put_bytes(unsigned char* at, bytes content) noexcept:
    memcpy(at, PyBytes_AS_STRING(content), PyBytes_GET_SIZE(content))
    return at + PyBytes_GET_SIZE(content)


cdef class Writer:
    """Writes the headers of one near lane; what is the same as in the one before is not encoded again."""

    cpdef bytes write(
        self, long long request_id, service, long long ttl_ms, long long settled_below, tuple specs, bytes payload,
        tuple blocks, long long number
    ):
        """See handed.PlainWriter."""
        cdef unsigned char packet[ROOM]
        cdef unsigned char* at = packet
        cdef Py_ssize_t size = PyBytes_GET_SIZE(payload), count = len(blocks)
        if service is not self.service:
            self.service = None
            self.service_bytes = encode(service)
            self.service = service
        if specs is not self.specs:
            self.specs = None
            self.specs_bytes = encode(specs)
            self.specs = specs
        if (
            not 0 < count <= MOST_ARRAYS
            or PyBytes_GET_SIZE(self.service_bytes) + PyBytes_GET_SIZE(self.specs_bytes) + size
            > ROOM - 64 - count * MOST_BLOCK_BYTES
        ):
            return None
        at[0], at[1] = 0x9A, 4
        at = put_number(at + 2, request_id)
        at = put_bytes(at, self.service_bytes)
        at = put_number(at, ttl_ms)
        at = put_number(at, settled_below)
        at = put_bytes(at, self.specs_bytes)
        if size < 0x100:
            at[0], at[1] = 0xC4, <unsigned char> size
            at += 2
        else:
            at[0], at[1], at[2] = 0xC5, <unsigned char> (size >> 8), <unsigned char> size
            at += 3
        at = put_bytes(at, payload)
        at[0], at[1], at[2] = NIL, NIL, <unsigned char> (0x90 | count)
        at += 3
        for block in blocks:
            at[0] = 0x97
            at = put_number(at + 1, number)
            number += 1
            at = put_bytes(at, self.segment(block))
            at = put_number(at, <long long> block.offset)
            at = put_number(at, <long long> block.size)
        return PyBytes_FromStringAndSize(<const char*> packet, at - packet)

    cdef bytes segment(self, block):
        """The four fields of a block that are those of its segment."""
        nonce = block.nonce
        if nonce is not self.nonce:
            self.nonce = None
            self.segment_bytes = (
                encode(block.pid) + encode(block.fd) + encode(block.segment_bytes) + encode(nonce)
            )
            self.nonce = nonce
        return self.segment_bytes
