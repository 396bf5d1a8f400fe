"""Safetensors files that lie: each ends in SafetensorsError that names the numbers, without large allocations."""

from __future__ import annotations

import json
import os
import struct

import pytest
from edgekernels.safetensors import SafetensorsError, SafetensorsFile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.edgekernels.memory_bound import at_most


def file_of(header, data=b"", size=None):
    """A file of a header (JSON text, or what becomes JSON), whose size is right unless given."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if size is None else size) + raw + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def one(*args, data=bytes(8), **more):
    return file_of({"t": entry(*args, **more)}, data)


RAW_ENTRY = b'{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
HOSTILE = {
    "empty": (b"", "0 bytes"),
    "seven bytes": (bytes(7), "7 bytes"),
    "header of 2^64 - 1": (file_of({}, size=2**64 - 1), "18446744073709551615 bytes"),
    "header of 2^60": (file_of({}, bytes(100), size=2**60), "1152921504606846976 bytes"),
    "header longer than the file": (file_of({"t": entry()}, bytes(8), size=500), "a header of 500 bytes"),
    "header cut": (file_of({"t": entry()}, bytes(8), size=20), "no JSON"),
    "header empty": (bytes(8), "does not begin with {"),
    "header with a blank first": (file_of(b" {}"), "does not begin with {"),
    "list": (file_of(b"[]"), "does not begin with {"),
    "no UTF-8": (file_of(b'{"\xff":' + RAW_ENTRY + b"}", bytes(8)), "no JSON"),
    "no JSON": (file_of(b"{t:1}"), "no JSON"),
    "two objects": (file_of(b"{}{}"), "no JSON"),
    "nested lists": (file_of(b'{"t":' + b"[" * 200_000 + b"]" * 200_000 + b"}"), "nested too deep"),
    "nested objects": (file_of(b'{"t":' * 100_000 + b"1" + b"}" * 100_000), "nested too deep"),
    "tensor twice": (file_of(b'{"t":' + RAW_ENTRY + b',"t":' + RAW_ENTRY + b"}", bytes(8)), "'t' is there 2 times"),
    "dtype twice": (
        file_of(b'{"t":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
        "'dtype' is there 2 times",
    ),
    "metadata twice": (file_of(b'{"__metadata__":{},"__metadata__":{}}'), "'__metadata__' is there 2 times"),
    "NaN in metadata": (file_of(b'{"__metadata__":{"x":NaN}}'), "NaN is no JSON"),
    "Infinity as a shape": (
        file_of(b'{"t":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,8]}}'),
        "Infinity is no",
    ),
    "number in metadata": (file_of({"__metadata__": {"x": 1}}), "strings to strings"),
    "metadata a list": (file_of({"__metadata__": []}), "strings to strings"),
    "metadata null": (file_of({"__metadata__": None}), "strings to strings"),
    "a number of 5,000 digits": (file_of(b'{"t":' + b"9" * 5000 + b"}"), "no JSON"),
    "entry a number": (file_of({"t": 1}), "needs dtype, shape and data_offsets"),
    "entry without offsets": (file_of({"t": {"dtype": "F32", "shape": [2]}}, bytes(8)), "needs dtype, shape"),
    "entry with more": (one(extra=1), "nothing else"),
    "unknown dtype": (one("F7"), "dtype 'F7'"),
    "dtype a number": (one(4), "dtype 4"),
    "dtype a list": (one(["F32"]), "dtype \\['F32'\\]"),
    "shape a number": (file_of({"t": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}, bytes(8)), "the shape of"),
    "shape of floats": (one(shape=[2.0]), r"\[2.0\]; a list of integers"),
    "shape of bools": (one(shape=[True, 2]), r"\[True, 2\]; a list of integers"),
    "shape of text": (one(shape=["2"]), "a list of integers"),
    "shape below 0": (one(shape=[-2, -1]), r"\[-2, -1\]; a list of integers"),
    "shape of 2^60": (one(shape=[2**60]), "1152921504606846976"),
    "shape of 2^64": (one(shape=[2**64]), "18446744073709551616"),
    "shape of 2^60 times 0": (one(shape=[2**60, 2**60, 0], offsets=(0, 0), data=b""), "is too large"),
    "bytes of 2^61 times 0": (one("U8", shape=[2**61, 0], offsets=(0, 0), data=b""), "is too large"),
    "40 dimensions": (one(shape=[1] * 40, offsets=(0, 4), data=bytes(4)), "40 dimensions"),
    "product 0 in 64 bits": (one(shape=[2**32, 2**32], offsets=(0, 0), data=b""), "is too large"),
    "offsets back to front": (one(offsets=(8, 0)), r"has -8 bytes \(8, 0\)"),
    "offsets below 0": (one(offsets=(-8, 0)), "a list of integers"),
    "one offset": (one(offsets=(8,)), "1 data_offsets"),
    "three offsets": (one(offsets=(0, 4, 8)), "3 data_offsets"),
    "offsets of 2^60": (one(offsets=(2**60, 2**60 + 8)), "begins at byte 1152921504606847"),
    "too few bytes": (one(offsets=(0, 4), data=bytes(4)), r"has 4 bytes \(0, 4\), but F32 of shape \(2,\) has 8"),
    "outside the file": (one(data=bytes(7)), "the file at"),
    "bytes left over": (one(data=bytes(9)), "the file at"),
    "a gap first": (one(offsets=(4, 12), data=bytes(12)), "it leaves a gap"),
    "a gap between": (file_of({"t": entry(), "u": entry(offsets=(12, 20))}, bytes(20)), "'u'.*it leaves a gap"),
    "two at one place": (file_of({"t": entry(), "u": entry()}, bytes(8)), "overlaps the one before"),
    "two overlapping": (file_of({"t": entry(), "u": entry(offsets=(4, 12))}, bytes(12)), "overlaps the one before"),
    "a name of 50,000": (file_of({"n" * 50_000: 1}), "50002 characters"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_lies_are_refused_with_their_numbers_and_little_memory(tmp_path, case):
    raw, match = HOSTILE[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(raw)
    with at_most(300_000 + 80 * len(raw)), pytest.raises(SafetensorsError, match=match) as refused:
        SafetensorsFile(path)
    assert "bad.safetensors" in str(refused.value)
    assert len(str(refused.value)) < 1000


def test_the_sound_file_of_these_tests_is_taken(tmp_path):
    """Otherwise the cases above might be refused for another reason."""
    header = {"u": entry(offsets=(8, 16)), "t": entry(), "empty": entry(shape=(0, 3), offsets=(8, 8))}
    (tmp_path / "m.safetensors").write_bytes(file_of(header, struct.pack("<4f", 1, 2, 3, 4)))
    with SafetensorsFile(tmp_path / "m.safetensors") as file:
        assert (file.read("t").tolist(), file.read("u").tolist()) == ([1.0, 2.0], [3.0, 4.0])
        assert file.read("empty").shape == (0, 3)


def test_a_header_over_the_limit_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 25))
    os.truncate(path, 1 << 26)  # sparse
    with at_most(300_000), pytest.raises(SafetensorsError, match="33554432 bytes in a file of 67108864"):
        SafetensorsFile(path)


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b"", "0 bytes"),
        (b"\xff", "no JSON"),
        (b"[]", "list"),
        (b"{}", "no weight_map"),
        (b'{"weight_map":{}}', "no weight_map"),
        (b'{"weight_map":[1]}', "no weight_map"),
        (b'{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}', "'a' is there 2 times"),
        (b'{"weight_map":' + b"[" * 100_000, "nested too deep"),
    ],
)
def test_indexes_that_are_none_are_refused(tmp_path, raw, match):
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(raw)
    with pytest.raises(SafetensorsError, match=match):
        SafetensorsFile(path)


def test_an_index_over_many_shards_is_refused_before_they_are_opened(tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {f"t{n}": f"s{n}.safetensors" for n in range(5000)}}))
    with pytest.raises(SafetensorsError, match="5000 shards"):
        SafetensorsFile(path)


def test_a_pipe_as_a_shard_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "x.safetensors")
    (tmp_path / "i.json").write_text(json.dumps({"weight_map": {"a": "x.safetensors"}}))
    with pytest.raises(SafetensorsError, match="no regular file"):
        SafetensorsFile(tmp_path / "i.json")


SMALL = file_of(
    {
        "__metadata__": {"format": "pt"},
        "model.embed": entry("F16", (2, 3), (0, 12)),
        "model.norm": entry("BF16", (4,), (12, 20)),
        "flags": entry("BOOL", (3,), (20, 23)),
    },
    bytes(range(23)),
)


def read_whole(path):
    with SafetensorsFile(path) as file:
        for name, info in file.tensors.items():
            assert file.read(name).shape == info.shape


def test_every_cut_of_a_sound_file_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(SMALL)
    read_whole(path)
    for size in range(len(SMALL)):
        path.write_bytes(SMALL[:size])
        with pytest.raises(SafetensorsError):
            SafetensorsFile(path)


WORDS = [
    b"0",
    b"-1",
    b"1e9",
    b"18446744073709551616",
    b"NaN",
    b"null",
    b"true",
    b'"',
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b":",
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutants_of_a_sound_file_raise_safetensors_error_and_nothing_else(tmp_path, data):
    header, rest = bytearray(SMALL[8:-23]), SMALL[-23:]
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(header) - 1))
        match data.draw(st.sampled_from(["flip", "word", "cut", "copy"])):
            case "flip":
                header[at] = data.draw(st.integers(0, 255))
            case "word":
                header[at : at + data.draw(st.integers(0, 3))] = data.draw(st.sampled_from(WORDS))
            case "cut" if len(header) > 40:
                del header[at : at + data.draw(st.integers(1, 16))]
            case _:
                header[at : at + 16] = header[data.draw(st.integers(0, at)) :][:16]
    size = data.draw(st.sampled_from([None, None, None, 0, 100, 2**63, len(header) + len(rest)]))
    path = tmp_path / "m.safetensors"
    path.write_bytes(file_of(bytes(header), rest, size))
    reason = ""
    with at_most(1 << 20):
        try:
            read_whole(path)
        except SafetensorsError as refused:
            reason = str(refused)
    assert len(reason) < 2000
