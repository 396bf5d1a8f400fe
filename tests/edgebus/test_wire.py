"""The wire format: golden bytes read by two implementations, and hostile bytes that only ever raise WireError."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import edgebus
from edgebus import messages as m
from edgebus.arrays import pack_arrays, view_arrays
from edgebus.errors import MessageTooLarge, WireError
from edgebus.wire import ITEM_BYTES, check_outgoing, decode, encode, spec_fault

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "bus_wire.json").read_text())
LIMITS = edgebus.Limits()
WIRE_LIMITS = m.WireLimits(65536, 67108864, 64)
GOLDEN = {
    "hello": m.Hello(1, 1, "device", bytes(range(16)), 1, WIRE_LIMITS),
    "welcome": m.Welcome(1, "server", bytes(range(16, 32)), 1, WIRE_LIMITS),
    "reset": m.Reset(),
    "request": m.Request(3, "sled.verify", 250, 3, (m.ArraySpec("i4", (8,)),)),
    "request_without_arrays": m.Request(300, "sled.open", 10_000, 299),
    "reply": m.Reply(3, (m.ArraySpec("f2", (2, 1, 3)), m.ArraySpec("u1", ()))),
    "refusal": m.Refusal(3, "busy", "ask again later"),
    "ping": m.Ping(),
    "pong": m.Pong(),
    "goodbye": m.Goodbye("closing", ""),
    "cancel": m.Cancel(2**63 - 1),
}
BODY = {
    "request": (b"payload", bytes(32)),
    "request_without_arrays": (b"",),
    "reply": (b"", bytes(12), b"\x01"),
    "refusal": (b"info",),
}


def test_every_header_has_a_vector():
    assert {vector["name"] for vector in VECTORS} == set(GOLDEN)
    assert {type(header) for header in GOLDEN.values()} == set(m.Header.__args__)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["name"])
def test_golden_bytes_mean_the_same_to_msgpack_and_to_us(vector):
    raw, header = bytes.fromhex(vector["hex"]), GOLDEN[vector["name"]]
    plain = msgpack.unpackb(raw)
    assert json.loads(json.dumps(plain, default=bytes.hex)) == vector["plain"]
    body = BODY.get(vector["name"], ())
    assert encode(m.Message(header, body)) == [raw, *body]
    assert decode([raw, *body], LIMITS) == m.Message(header, body)


@pytest.mark.parametrize("name", GOLDEN)
def test_fields_of_a_later_version_are_ignored(name):
    raw, body = m.encode_header(GOLDEN[name]), BODY.get(name, ())
    elements = msgpack.unpackb(raw)
    if name == "request_without_arrays":
        assert elements[-1] == []
    later = msgpack.packb([*elements, "new", {"deep": [1, 2]}])
    assert decode([later, *body], LIMITS).header == GOLDEN[name]


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([], "0 frames"),
        ([b"\x91\x07"] * 65, "65 frames"),
        ([b"\x91\x07" + bytes(65_536)], "header of 65538 B"),
        ([b"\x91\x63"], "does not decode"),  # tag 99
        ([b"\x91\xa1x"], "does not decode"),  # a text for a tag
        ([b"\x81\x01\x02"], "does not decode"),  # a map
        ([msgpack.packb([10, -1])], "does not decode"),
        ([msgpack.packb([10, 2**63])], "does not decode"),
        ([msgpack.packb([10, 1.5])], "does not decode"),
        ([msgpack.packb([10])], "does not decode"),
        ([msgpack.packb([4, 1, "s" * 65, 1, 0]), b""], "does not decode"),
        ([msgpack.packb([4, 1, "s", 86_400_001, 0]), b""], "does not decode"),
        ([msgpack.packb([5, 1, [["f4", [1] * 9]]]), b"", b"1234"], "does not decode"),
        ([msgpack.packb([5, 1, [["f4", []]] * 1025]), b""], "does not decode"),
        ([b"\x91\x07\x00"], "does not decode"),  # bytes after the end
        ([b"\x91\x07", b""], "Ping in 2 frames"),
        ([msgpack.packb([6, 1, "c", "d"])], "Refusal in 1 frames"),
        ([msgpack.packb([4, 1, "s", 1, 0])], "Request in 1 frames"),
        ([msgpack.packb([5, 1, [["f4", [1]]]]), b""], "Reply in 2 frames"),
        ([msgpack.packb([5, 1, [["O8", [1]]]]), b"", bytes(8)], "dtype 'O8'"),
        ([msgpack.packb([5, 1, [["f4", [2]]]]), b"", bytes(4)], "needs 8 B, its frame has 4 B"),
        ([msgpack.packb([5, 1, [["f4", [2**40, 0, 2**40]]]]), b"", b""], "over 2"),
        ([msgpack.packb([5, 1, [["f4", [2**40] * 8]]]), b"", b"1234"], "over 2"),
    ],
)
def test_malformed_message_is_a_wire_error(frames, reason):
    with pytest.raises(WireError, match=reason):
        decode(frames, LIMITS)


def test_wire_error_knows_the_request_where_the_header_was_readable():
    with pytest.raises(WireError) as caught:
        decode([msgpack.packb([4, 77, "s", 1, 0]), b"", b"extra"], LIMITS)
    assert (caught.value.request_id, caught.value.is_answer) == (77, False)
    with pytest.raises(WireError) as caught:
        decode([msgpack.packb([5, 78])], LIMITS)
    assert (caught.value.request_id, caught.value.is_answer) == (78, True)


def test_frame_over_the_own_limit_is_a_wire_error():
    frames = [msgpack.packb([4, 1, "s", 1, 0]), bytes(101)]
    with pytest.raises(WireError, match="frame of 101 B"):
        decode(frames, edgebus.Limits(max_frame_bytes=100))


BOMBS = {
    "list_of_4_million": b"\xdd\x00\x40\x00\x00" + b"\xc0" * 60_000,
    "nested_60000_deep": b"\x91" * 60_000,
    "nested_behind_a_good_header": b"\x92\x07" + b"\x91" * 60_000 + b"\x01",
    "map_of_4_billion": b"\xdf\xff\xff\xff\xff",
    "text_of_4_gigabytes": b"\x92\x0a\xdb\xff\xff\xff\xff",
    "sixty_thousand_maps": b"\xdc\xea\x60" + b"\x80" * 60_000,
    "arrays_of_60000": b"\x95\x05\x01\xdc\xea\x60" + b"\x92\xa2f4\x90" * 12_000,
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_bomb_is_refused_without_much_memory(bomb):
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            decode([bomb], LIMITS)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def only_wire_errors(frames):
    message, reason = None, ""
    try:
        message = decode(frames, LIMITS)
    except WireError as error:
        reason = str(error)
    assert "\n" not in reason
    if message is not None:
        # What is accepted can be looked at and sent on.
        assert encode(message)[1:] == list(frames[1:])
        if isinstance(message.header, m.Request | m.Reply):
            view_arrays(message.header.arrays, message.frames[1:])


@given(st.lists(st.binary(max_size=300), max_size=5))
@settings(max_examples=300, deadline=None)
@example([b"\x95\x04\x00\xa1\xff\x01\x00", b""])
def test_random_frames_raise_only_wire_errors(frames):
    only_wire_errors(frames)


@given(st.sampled_from(sorted(GOLDEN)), st.data())
@settings(max_examples=500, deadline=None)
def test_mutated_good_messages_raise_only_wire_errors(name, data):
    frames = [m.encode_header(GOLDEN[name]), *BODY.get(name, ())]
    header = bytearray(frames[0])
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(header) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert"])):
            case "flip":
                header[position] = data.draw(st.integers(0, 255))
            case "cut":
                del header[max(1, position) :]
            case _:
                header[position:position] = data.draw(st.binary(max_size=5))
    only_wire_errors([bytes(header), *frames[1:]])


JSONISH = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=20,
)


@given(st.integers(0, 12), st.lists(JSONISH, max_size=7), st.lists(st.binary(max_size=64), max_size=3))
@settings(max_examples=300, deadline=None)
def test_well_formed_nonsense_raises_only_wire_errors(tag, elements, body):
    only_wire_errors([msgpack.packb([tag, *elements]), *body])


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(ITEM_BYTES)), st.lists(st.integers(0, 4), max_size=8)),
        max_size=4,
    )
)
@settings(max_examples=100, deadline=None)
def test_arrays_round_trip(kinds):
    arrays = [np.arange(int(np.prod(shape)) or 0).astype(code).reshape(shape) for code, shape in kinds]
    specs, frames = pack_arrays(arrays)
    sent = encode(m.Message(m.Reply(1, specs), (b"", *frames)))
    got = decode(sent, LIMITS)
    for mine, back in zip(arrays, view_arrays(got.header.arrays, got.frames[1:]), strict=True):
        np.testing.assert_array_equal(back, mine, strict=True)


def test_array_round_trip_worked_by_hand():
    specs, frames = pack_arrays([np.array([[1, 2], [3, 256]], ">u2")])
    assert specs == (m.ArraySpec("u2", (2, 2)),)
    assert frames == (b"\x01\x00\x02\x00\x03\x00\x00\x01",)
    assert spec_fault(specs[0], 8) is None


def test_outgoing_is_checked_against_the_peer():
    peer = m.WireLimits(8192, 100, 3)
    check_outgoing((bytes(100), bytes(100)), (), peer)
    with pytest.raises(MessageTooLarge, match="4 frames, the peer accepts 3"):
        check_outgoing((b"",) * 3, (), peer)
    with pytest.raises(MessageTooLarge, match="101 B, the peer accepts 100 B"):
        check_outgoing((bytes(101),), (), peer)
    specs = (m.ArraySpec("f4", (2**39,) * 8),) * 97
    with pytest.raises(MessageTooLarge, match="header of up to"):
        check_outgoing((b"",), specs, peer)
    # The estimate has to hold for the largest header there is.
    longest = m.Request(2**63 - 1, "\U0001f680" * 64, 86_400_000, 2**63 - 1, specs)
    assert len(m.encode_header(longest)) <= 512 + sum(8 + 9 * len(spec.shape) for spec in specs)
