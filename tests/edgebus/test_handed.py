"""Headers of requests with arrays in shared memory: written and read in C exactly as msgspec does, or left to it."""

import hashlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgebus import messages as m
from edgebus.handed import MOST_ARRAYS, PlainReader, PlainWriter, as_handed

handed = pytest.importorskip("edgebus._handed")

NUMBERS = st.one_of(
    st.sampled_from([0, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**48, 2**63 - 1]),
    st.integers(0, 2**63 - 1),
)
SIZES = NUMBERS.map(lambda number: number % (2**48 + 1))
SPECS = st.builds(
    m.ArraySpec,
    st.sampled_from(["f4", "u1", "zz"]),
    st.lists(NUMBERS.map(lambda number: number % (2**40 + 1)), max_size=8).map(tuple),
)
SEGMENTS = st.tuples(NUMBERS, st.integers(0, 2**31 - 1), SIZES)


def block(lease, segment, offset, size):
    return m.Block(lease, *segment, hashlib.blake2b(repr(segment).encode(), digest_size=16).digest(), offset, size)


BLOCKS = st.builds(block, NUMBERS, SEGMENTS, SIZES, SIZES)
REQUESTS = st.builds(
    m.Request,
    NUMBERS,
    st.text(max_size=64),
    st.integers(0, 86_400_000),
    NUMBERS,
    st.lists(SPECS, min_size=1, max_size=MOST_ARRAYS).map(tuple),
    st.binary(max_size=300),
    blocks=st.lists(BLOCKS, min_size=1, max_size=MOST_ARRAYS).map(tuple),
)
ONE = m.Request(
    7, "work", 5000, 6, (m.ArraySpec("f4", (4, 256)),), b"hello", None, None,
    (m.Block(300, 4242, 9, 64 << 20, bytes(range(16)), 4096, 4096),),
)  # fmt: skip


def fields(read):
    places = [
        (each.lease, each.pid, each.fd, each.segment_bytes, each.nonce, each.offset, each.size) for each in read.places
    ]
    return read.id, read.service, read.ttl_ms, read.settled_below, read.specs, read.payload, places


def agreed(reader, frame):
    """What the reader says, which is nothing or what msgspec says."""
    try:
        expected = as_handed(m.decode_header(frame))
    except (msgspec.MsgspecError, ValueError):
        expected = None
    read = reader.read(frame)
    assert read is None or fields(read) == fields(expected)
    return read


@settings(max_examples=40)
@given(st.lists(REQUESTS, min_size=1, max_size=2), st.integers(0, 2**40))
def test_headers_are_written_as_msgspec_writes_them(requests, number):
    writer, plain = handed.Writer(), PlainWriter()
    for each in [*requests, requests[0]]:
        given_ = (each.id, each.service, each.ttl_ms, each.settled_below, each.arrays, each.inline, each.blocks, number)
        written = writer.write(*given_)
        assert written is None or written == plain.write(*given_)
        assert written is not None or len(plain.write(*given_)) > 2000


@settings(max_examples=40)
@given(st.lists(REQUESTS, min_size=1, max_size=2))
def test_headers_are_read_as_msgspec_reads_them(requests):
    reader = handed.Reader()
    for each in [*requests, requests[0]]:
        assert PlainReader().read(m.encode_header(each)) is None
        read = agreed(reader, m.encode_header(each))
        short = len(each.service.encode()) <= 64
        assert (read is not None) == (short and len(each.blocks) == len(each.arrays))


@settings(max_examples=40)
@given(st.data())
def test_whatever_bytes_come_the_reader_takes_nothing_that_msgspec_refuses(data):
    frame, reader = bytearray(m.encode_header(ONE)), handed.Reader()
    if data.draw(st.booleans()):
        assert agreed(reader, bytes(frame)) is not None  # it remembers parts of it
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(frame) - 1))
        frame[at] = data.draw(st.integers(0, 255))
    agreed(reader, bytes(frame[: data.draw(st.integers(0, len(frame)))]))
    agreed(reader, bytes(frame))


def test_a_header_that_is_cut_short_anywhere_is_none():
    frame, reader = m.encode_header(ONE), handed.Reader()
    assert [cut for cut in range(len(frame)) if reader.read(frame[:cut]) is not None] == []
    assert reader.read(frame + b"\0") is None
    assert fields(reader.read(frame)) == fields(as_handed(ONE))


@pytest.mark.parametrize(
    "changes",
    [
        {"terms": m.Terms(1)},
        {"transfer": m.Transfer(0, (5, 4096))},
        {"blocks": None},
        {"inline": None},
        {"blocks": ONE.blocks * 2},
        {"arrays": ONE.arrays * 9, "blocks": ONE.blocks * 9},
    ],
)
def test_what_is_not_plain_is_left_to_others(changes):
    other = msgspec.structs.replace(ONE, **changes)
    assert handed.Reader().read(m.encode_header(other)) is None
    assert as_handed(other) is None


def test_payloads_of_the_largest_size_and_none():
    for payload in (b"", bytes(255), bytes(256), bytes(m.INLINE_BYTES)):
        header = msgspec.structs.replace(ONE, inline=payload)
        assert fields(handed.Reader().read(m.encode_header(header))) == fields(as_handed(header))
