"""The wire format: golden bytes read by two implementations, and hostile bytes that only ever raise WireError."""

from __future__ import annotations

import copy
import itertools
import json
import tracemalloc

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgebus
from edgebus import messages as m
from edgebus.arrays import pack_arrays, view_arrays
from edgebus.errors import MessageTooLarge, WireError
from edgebus.wire import ITEM_BYTES, check_outgoing, decode, encode, spec_fault
from tests.vectors.golden import GOLDEN, OLD_BODY, OLD_GOLDEN, OLD_VECTORS, VECTORS, frames_of, plain_of

LIMITS = edgebus.Limits()


def by_name(vectors):
    return pytest.mark.parametrize("vector", vectors, ids=lambda vector: vector["name"])


def test_every_header_and_every_optional_part_has_a_vector():
    assert [vector["name"] for vector in VECTORS] == list(GOLDEN)
    assert [vector["name"] for vector in OLD_VECTORS] == list(OLD_GOLDEN)
    assert {type(header) for header in GOLDEN.values()} == set(m.Header.__args__)
    for kind in m.Header.__args__:
        examples = [header for header in GOLDEN.values() if type(header) is kind]
        for field, default in zip(kind.__struct_fields__[::-1], kind.__struct_defaults__[::-1], strict=False):
            assert any(getattr(header, field) != default for header in examples), f"{kind.__name__}.{field}"


@by_name(VECTORS)
def test_golden_bytes_mean_the_same_to_msgpack_and_to_us(vector):
    raw, header = bytes.fromhex(vector["hex"]), copy.copy(GOLDEN[vector["name"]])
    plain = plain_of(vector["plain"])
    assert msgpack.unpackb(raw) == plain
    assert msgpack.packb(plain) == raw
    frames, content = [raw, *frames_of(vector["frames"])], tuple(frames_of(vector["content"]))
    assert decode(frames, LIMITS) == m.Message(header, content)
    if isinstance(header, m.Content):
        header.inline = None  # where the payload goes is the encoder's to say
    assert encode(m.Message(header, content)) == frames


@by_name(OLD_VECTORS)
def test_bytes_of_version_1_mean_what_they_meant(vector):
    raw, header = bytes.fromhex(vector["hex"]), OLD_GOLDEN[vector["name"]]
    plain = msgpack.unpackb(raw)
    assert json.loads(json.dumps(plain, default=bytes.hex)) == vector["plain"]
    body = OLD_BODY.get(vector["name"], ())
    assert decode([raw, *body], LIMITS) == m.Message(header, body)
    # What a node of version 1 gets of the same: the elements it knows, and more behind them.
    sent = encode(m.Message(copy.copy(header), body), version=1)
    assert sent[1:] == list(body)
    read = msgpack.unpackb(sent[0])
    limits = 6 if vector["name"] == "hello" else 5
    if vector["name"] in ("hello", "welcome"):
        read[limits] = read[limits][:3]
    assert read[: len(plain)] == plain


def test_peer_of_version_1_gets_whole_messages_also_of_what_went_to_another_before():
    header = m.Request(1, "s", 1000, 0, inline=b"small")
    whole = encode(m.Message(header, (b"small",)), version=1)
    assert (len(whole), msgpack.unpackb(whole[0])[6]) == (2, None)
    assert len(encode(m.Message(header, (b"small",)), version=2)) == 1


@pytest.mark.parametrize("name", GOLDEN)
def test_fields_of_a_later_version_are_ignored(name):
    vector = next(vector for vector in VECTORS if vector["name"] == name)
    later = msgpack.packb([*plain_of(vector["plain"]), "new", {"deep": [1, 2]}])
    assert decode([later, *frames_of(vector["frames"])], LIMITS).header == GOLDEN[name]


@pytest.mark.parametrize("name", GOLDEN)
def test_every_missing_field_is_a_default_or_a_wire_error(name):
    """An element less at a time: what a writer of an earlier version left out, or somebody cut off."""
    vector, header = next(vector for vector in VECTORS if vector["name"] == name), GOLDEN[name]
    plain, fields = plain_of(vector["plain"]), type(header).__struct_fields__
    needed = len(fields) - len(type(header).__struct_defaults__)
    for num_fields in range(len(fields)):
        raw = msgpack.packb(plain[: 1 + num_fields])
        try:
            read = m.decode_header(raw)
        except msgspec.ValidationError:
            assert num_fields < needed
        else:
            assert num_fields >= needed
            assert [getattr(read, field) for field in fields[:num_fields]] == [
                getattr(header, field) for field in fields[:num_fields]
            ]


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([], "0 frames"),
        ([b"\x91\x07"] * 65, "65 frames, accepted are"),
        ([msgpack.packb([5, 1, [["u1", [1]]] * 63]), b"", *[b"1"] * 63], "65 frames, accepted are"),
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
        ([msgpack.packb([4, 1, "s", 1, 0, [], bytes(4097)])], "does not decode"),
        ([msgpack.packb([4, 1, "s", 1, 0, [], b"x"]), b""], "Request in 2 frames"),
        ([msgpack.packb([4, 1, "s", 1, 0, [["u1", [2]]], b"x"]), b"1"], "needs 2 B, its frame has 1 B"),
        ([msgpack.packb([4, 1, "s", 1, 0, [], b"", [256]])], "does not decode"),
        ([msgpack.packb([4, 1, "s", 1, 0, [], b"", [0, bytes(65)]])], "does not decode"),
        ([msgpack.packb([4, 1, "s", 1, 0, [], b"", [0, b"", -2]])], "does not decode"),
        ([msgpack.packb([5, 1, [], None, 0, [0, [5]]]), b"1234"], "1 frames beside a transfer"),
        ([msgpack.packb([5, 1, [["u1", [1]]], b"xy", 0, [0, [2, 1]]])], "1 frames beside a transfer"),
        ([msgpack.packb([5, 1, [["u1", [2]]], b"x", 0, [0, [1, 1]]]), b"1"], "needs 2 B, its frame has 1 B"),
        ([msgpack.packb([5, 1, [["u1", [1]]], b"x", 0, [0, [1, 1]], []]), b"1"], "beside blocks"),
        ([msgpack.packb([5, 1, [], b"", 0, [0, [5]]])], "1 frames beside a transfer"),
        ([msgpack.packb([5, 1, [], None, 0, [0, []]])], "a transfer of 0 frames for 0 arrays"),
        ([msgpack.packb([5, 1, [], None, 0, [0, [1, 1]]])], "a transfer of 2 frames for 0 arrays"),
        ([msgpack.packb([5, 1, [["u1", [1]]] * 63, None, 0, [0, [1] * 64]])], "a transfer of 64 frames"),
        ([msgpack.packb([5, 1, [], None, 0, [0, [2**24 + 1]]])], "frame of 16777217 B"),
        ([msgpack.packb([11, 1, 0, [["f4", [2]]], None, [0, [0, 7]]])], "needs 8 B, its frame has 7 B"),
        ([msgpack.packb([11, 1, 0, [["O8", [1]]], None, [0, [0, 8]]])], "dtype 'O8'"),
        ([msgpack.packb([11, 1, 0, [], None, [0, [2**48 + 1]]])], "does not decode"),
        ([msgpack.packb([11, 1, 0, [], None, [0, [1] * 1025]])], "does not decode"),
        ([msgpack.packb([11, 1, 0, [["u1", [1]]], b"", None, []])], "1 frames and 0 blocks for 1 arrays"),
        ([msgpack.packb([11, 1, 0, [], None, None, []])], "0 frames and 0 blocks for 0 arrays"),
        ([msgpack.packb([11, 1, 0, [["u1", [1]]], b"", None, [[0, 0, 0, 1, bytes(15), 0, 1]]])], "does not decode"),
        ([msgpack.packb([11, 1, 0, [["u1", [1]]], b"", None, [[0, 0, -1, 1, bytes(16), 0, 1]]])], "does not decode"),
        ([msgpack.packb([13, 1, 0])], "Chunk in 1 frames, expected 2"),
        ([msgpack.packb([13, 1, 0]), b"", b""], "Chunk in 3 frames"),
        ([msgpack.packb([13, 1, -1]), b""], "does not decode"),
        ([msgpack.packb([14, 1, 2, 1])], "does not decode"),  # a number for a truth
        ([msgpack.packb([16, 1, [0] * 8193])], "does not decode"),
        ([msgpack.packb([18, [0, 0, 0, 1, bytes(16), 0]])], "does not decode"),
        ([msgpack.packb([18, [0, 0, 0, 1, bytes(16), 0, 1]]), b""], "Probe in 2 frames"),
        ([msgpack.packb([19, None])], "does not decode"),
        ([msgpack.packb([8, -1])], "does not decode"),
        ([msgpack.packb([8, 0, 86_400_001])], "does not decode"),
        ([msgpack.packb([1, 1, 2, "n", bytes(16), 0, [8192, 1, 2], 2])], "does not decode"),  # a third lane
        ([msgpack.packb([1, 1, 2, "n", bytes(16), 0, [8192, 1, 2], 0, [bytes(15), 1, 1]])], "does not decode"),
        ([msgpack.packb([1, 1, 2, "n", bytes(16), 0, [8191, 1, 2]])], "does not decode"),
        ([msgpack.packb([1, 1, 2, "n", bytes(16), 0, [8192, 0, 2]])], "does not decode"),
    ],
)
def test_malformed_message_is_a_wire_error(frames, reason):
    with pytest.raises(WireError, match=reason):
        decode(frames, LIMITS)


@pytest.mark.parametrize("payload", [b"", b"x" * 4096, b"y" * 4097])
def test_transfer_that_is_there_as_a_whole_has_all_its_frames(payload):
    frames = (payload, b"12345", b"")
    specs = (m.ArraySpec("u1", (5,)), m.ArraySpec("f4", (0,)))
    for header in (m.Request(3, "s", 60_000, 0, specs), m.Reply(3, specs), m.Part(3, 4, specs)):
        header.transfer = m.Transfer(7, tuple(map(len, frames)))
        whole = decode(encode(m.Message(header, frames)), LIMITS)
        assert (whole.frames, whole.header.transfer) == (frames, header.transfer)
        announced = decode(encode(m.Message(header)), LIMITS)
        assert (announced.frames, announced.header.inline) == ((), None), "the same header may be announced later"


def test_wire_error_knows_the_request_where_the_header_was_readable():
    with pytest.raises(WireError) as caught:
        decode([msgpack.packb([4, 77, "s", 1, 0]), b"", b"extra"], LIMITS)
    assert (caught.value.request_id, caught.value.is_answer) == (77, False)
    with pytest.raises(WireError) as caught:
        decode([msgpack.packb([5, 78])], LIMITS)
    assert (caught.value.request_id, caught.value.is_answer) == (78, True)


def test_frame_over_the_own_limit_is_a_wire_error():
    limits = edgebus.Limits(max_frame_bytes=100)
    for header in ([4, 1, "s", 1, 0], [5, 1], [6, 1, "c", "d"], [11, 1, 0], [13, 1, 0]):
        assert decode([msgpack.packb(header), bytes(100)], limits).frames == (bytes(100),)
        with pytest.raises(WireError, match="frame of 101 B"):
            decode([msgpack.packb(header), bytes(101)], limits)


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


LONGEST_TERMS = m.Terms(255, bytes(64), 2**63 - 1, 2**63 - 1, 2**63 - 1, 2**48)


@pytest.mark.parametrize("shape", [(), (2**31,), (2**33,), (2**5,) * 8, (0, 2**39, 1, 1, 1, 1, 1, 2)])
def test_header_that_passes_the_check_is_within_the_peers_limit(shape):
    """Whatever optional part it has: inline payload, terms, a transfer. The peer may cap headers at 8192 B."""
    num_bytes, ids, passed = int(np.prod(shape, dtype=object)), 2**63 - 1, 0
    for payload, num_arrays, cap in itertools.product(
        (b"", bytes(4096), bytes(4097)), (0, 15, 16, 63, 300), (8192, 16_384, 65_536)
    ):
        specs, frames = (m.ArraySpec("u1", shape),) * num_arrays, (payload, *[b""] * num_arrays)
        try:
            check_outgoing(frames, specs, m.WireLimits(cap, 2**48, 2**20))
        except MessageTooLarge:
            continue
        passed += 1
        for transfer in (None, m.Transfer(ids, (len(payload), *[num_bytes] * num_arrays))):
            for longest in (
                m.Request(ids, "\U0001f680" * 64, 86_400_000, ids, specs, None, LONGEST_TERMS, transfer),
                m.Reply(ids, specs, None, ids, transfer),
                m.Part(ids, ids, specs, None, transfer),
            ):
                assert len(encode(m.Message(longest, frames))[0]) <= cap
    assert passed >= 20


@pytest.mark.parametrize("as_it_comes", [bytes, memoryview])
def test_payload_beside_blocks_over_the_bound_is_refused_however_it_was_received(as_it_comes):
    block = m.Block(7, 1234, 5, 1 << 20, bytes(16), 4096, 96)
    header = m.Request(1, "echo", 1000, 0, (m.ArraySpec("f4", (2, 12)),), None, None, None, (block,))
    limits = edgebus.Limits(max_frame_bytes=64)
    for size in (64, 65):
        frames = [m.encode_header(header), as_it_comes(bytes(size))]
        if size <= limits.max_frame_bytes:
            assert decode(frames, limits).frames == (bytes(size),)
        else:
            with pytest.raises(WireError, match="frame of 65 B, accepted are 64 B"):
                decode(frames, limits)
