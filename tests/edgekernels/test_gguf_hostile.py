"""GGUF files that lie: each ends in GgufError that names the numbers, without large allocations."""

from __future__ import annotations

import os
import struct

import numpy as np
import pytest
from edgekernels.gguf import GgufError, GgufFile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.edgekernels.memory_bound import at_most

U32, STRING, ARRAY, BOOL = 4, 8, 9, 7
F32, Q8_0 = 0, 8


def text(raw, size=None):
    return struct.pack("<Q", len(raw) if size is None else size) + raw


def pair(key, kind, raw):
    return text(key) + struct.pack("<I", kind) + raw


def tensor(name=b"t", shape=(32,), kind=F32, offset=0):
    dims = struct.pack(f"<{len(shape)}Q", *shape)
    return text(name) + struct.pack("<I", len(shape)) + dims + struct.pack("<IQ", kind, offset)


def sound(pairs=(), tensors=(), data=b"", *, num_pairs=None, num_tensors=None, version=3):
    """A file whose counts are right unless given."""
    counts = (len(tensors) if num_tensors is None else num_tensors, len(pairs) if num_pairs is None else num_pairs)
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


def array(item, count, raw=b""):
    return struct.pack("<IQ", item, count) + raw


ALIGN = b"general.alignment"
HOSTILE = {
    "empty": (b"", "0 bytes"),
    "cut magic": (b"GG", "ends at byte 2"),
    "another format": (b"PKZIP" + bytes(40), "no GGUF magic"),
    "version 9": (sound(version=9), "version 9"),
    "big-endian": (sound(version=3 << 24), "version 50331648"),
    "2^60 tensors": (sound(num_tensors=2**60), "1152921504606846976 tensors"),
    "2^60 keys": (sound(num_pairs=2**60), "1152921504606846976 keys"),
    "65,536 keys in 100 bytes": (sound(num_pairs=65536, data=bytes(100)), "there twice|ends at byte"),
    "string of 2^64 - 1": (sound([text(b"", 2**64 - 1)]), "18446744073709551615 bytes"),
    "string past the end": (sound([text(b"abc", 1 << 20)]), "1048576 bytes"),
    "key no UTF-8": (sound([pair(b"\xff\xfe", U32, bytes(4))]), "not UTF-8"),
    "value no UTF-8": (sound([pair(b"k", STRING, text(b"\xc3"))]), "not UTF-8"),
    "name no UTF-8": (sound(tensors=[tensor(b"\x80")], data=bytes(128)), "not UTF-8"),
    "key twice": (sound([pair(b"k", U32, bytes(4))] * 2), "'k' is there twice"),
    "unknown kind": (sound([pair(b"k", 13, bytes(8))]), "type 13"),
    "array of 2^60 numbers": (sound([pair(b"k", ARRAY, array(U32, 2**60))]), "1152921504606846976 items"),
    "array of 2^60 strings": (sound([pair(b"k", ARRAY, array(STRING, 2**60))]), "1152921504606846976 items"),
    "array of 2^60 bools": (sound([pair(b"k", ARRAY, array(BOOL, 2**60))]), "1152921504606846976 items"),
    "array past the end": (sound([pair(b"k", ARRAY, array(U32, 1 << 20))]), "4194304 more"),
    "array of arrays": (sound([pair(b"k", ARRAY, array(ARRAY, 1) * 5000)]), "type 9 are not supported"),
    "array of unknown": (sound([pair(b"k", ARRAY, array(77, 1))]), "type 77"),
    "bool of 2": (sound([pair(b"k", BOOL, b"\2")]), "neither 0 nor 1"),
    "bools of 0, 1, 255": (sound([pair(b"k", ARRAY, array(BOOL, 3, b"\0\1\xff"))]), "neither 0 nor 1"),
    "alignment 0": (sound([pair(ALIGN, U32, bytes(4))]), "alignment is 0"),
    "alignment 33": (sound([pair(ALIGN, U32, struct.pack("<I", 33))]), "alignment is 33"),
    "alignment 2^63": (sound([pair(ALIGN, 10, struct.pack("<Q", 1 << 63))], [tensor()], bytes(128)), "truncated"),
    "alignment NaN": (sound([pair(ALIGN, 6, struct.pack("<f", float("nan")))]), "alignment is nan"),
    "alignment true": (sound([pair(ALIGN, BOOL, b"\1")]), "alignment is True"),
    "alignment text": (sound([pair(ALIGN, STRING, text(b"32" * 4000))]), r"8002 characters"),
    "no dimensions": (sound(tensors=[tensor(shape=())]), "0 dimensions"),
    "5 dimensions": (sound(tensors=[tensor(shape=(1,) * 5)]), "5 dimensions"),
    "2^32 - 1 dimensions": (sound(tensors=[text(b"t") + struct.pack("<I", 2**32 - 1)]), "4294967295 dimensions"),
    "zero dimension": (sound(tensors=[tensor(shape=(32, 0))], data=bytes(128)), r"\(0, 32\) is empty"),
    "2^60 values": (sound(tensors=[tensor(shape=(2**60,))], data=bytes(128)), "1152921504606846976"),
    "2^256 values": (sound(tensors=[tensor(shape=(2**63,) * 4)], data=bytes(128)), "ends at byte"),
    "sizes whose product is 0 in 64 bits": (sound(tensors=[tensor(shape=(2**32, 2**32))], data=bytes(9)), "ends at"),
    "offset 2^64 - 32": (sound(tensors=[tensor(offset=2**64 - 32)], data=bytes(128)), "18446744073709551"),
    "offset outside": (sound(tensors=[tensor(offset=128)], data=bytes(128)), "truncated"),
    "offset not aligned": (sound(tensors=[tensor(offset=8)], data=bytes(256)), "not aligned to 32"),
    "one byte short": (sound(tensors=[tensor()], data=bytes(127)), "ends at byte 191, the file|the file at 191"),
    "two at one place": (sound(tensors=[tensor(), tensor(b"u")], data=bytes(128)), "they overlap"),
    "two overlapping": (sound(tensors=[tensor(b"u", offset=96), tensor()], data=bytes(256)), "they overlap"),
    "name twice": (sound(tensors=[tensor(), tensor(offset=128)], data=bytes(256)), "'t' is there twice"),
    "unknown type": (sound(tensors=[tensor(kind=99)], data=bytes(128)), "ggml type 99"),
    "part of a block": (sound(tensors=[tensor(shape=(33,), kind=Q8_0)], data=bytes(128)), "33 values"),
    "a name of 60,000": (sound(tensors=[tensor(b"n" * 60000, shape=())]), "60002 characters"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_lies_are_refused_with_their_numbers_and_little_memory(tmp_path, case):
    raw, match = HOSTILE[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw)
    with at_most(300_000 + 4 * len(raw)), pytest.raises(GgufError, match=match) as refused:
        GgufFile(path)
    assert "bad.gguf" in str(refused.value)
    assert len(str(refused.value)) < 1000


def test_the_sound_file_of_these_tests_is_taken(tmp_path):
    """Otherwise the cases above might be refused for another reason."""
    pairs = [pair(b"k", U32, struct.pack("<I", 5)), pair(b"nan", 6, struct.pack("<f", float("nan")))]
    flags = pair(b"flags", ARRAY, array(BOOL, 2, b"\1\0"))
    (tmp_path / "m.gguf").write_bytes(sound([*pairs, flags], [tensor(), tensor(b"u", offset=128)], bytes(256)))
    with GgufFile(tmp_path / "m.gguf") as file:
        assert (file.metadata["k"], file.metadata["flags"]) == (5, [True, False])
        assert np.isnan(file.metadata["nan"])
        assert file.read("u").tolist() == [0.0] * 32


def test_small_items_cannot_become_many_objects(tmp_path):
    """A file of megabytes of bools would be as many pointers; the number of all items together is bounded."""
    (tmp_path / "m.gguf").write_bytes(
        sound([pair(b"%d" % n, ARRAY, array(BOOL, 1 << 20, bytes(1 << 20))) for n in range(5)])
    )
    with at_most(60 << 20), pytest.raises(GgufError, match="at most 4194304"):
        GgufFile(tmp_path / "m.gguf")


def test_a_pipe_and_a_directory_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tmp_path / "pipe.gguf", tmp_path):
        with pytest.raises(GgufError, match="no regular file"):
            GgufFile(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small real file: the header's metadata and tensors of three types."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("tokenizer.ggml.tokens", ["a", "bb", "grüße"])
    writer.add_array("tokenizer.ggml.token_type", [1, 2, 3])
    writer.add_bool("flag", True)
    for name in ("F32", "Q4_0", "Q8_0"):
        kind = gguf.GGMLQuantizationType[name]
        writer.add_tensor(name, gguf.quants.quantize(np.ones((2, 32), np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def read_whole(path):
    with GgufFile(path) as file:
        for name, info in file.tensors.items():
            assert file.read(name).shape == info.shape
            if info.type_name.startswith("Q"):
                codes = file.read_codes(name)
                assert codes.codes.max() < 2**codes.bits


def test_every_cut_of_a_real_file_is_refused(small, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(small)
    read_whole(path)
    padding = -(2 * 34 * 1) % 32  # the writer pads the last tensor too, the reader does not need it
    for size in range(len(small) - padding):
        path.write_bytes(small[:size])
        with pytest.raises(GgufError):
            GgufFile(path)


INTERESTING = [0, 1, 31, 32, 255, 2**31 - 1, 2**32 - 1, 2**60, 2**63 - 1, 2**63, 2**64 - 1]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutants_of_a_real_file_raise_gguf_error_and_nothing_else(small, tmp_path, data):
    mutant = bytearray(small)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(mutant) - 8))
        match data.draw(st.sampled_from(["flip", "word", "cut", "insert", "copy"])):
            case "flip":
                mutant[at] = data.draw(st.integers(0, 255))
            case "word":
                mutant[at : at + 8] = struct.pack("<Q", data.draw(st.sampled_from(INTERESTING)))
            case "cut":
                del mutant[at : at + data.draw(st.integers(1, 64))]
            case "insert":
                mutant[at:at] = data.draw(st.binary(max_size=16))
            case "copy":
                mutant[at : at + 16] = mutant[data.draw(st.integers(0, at)) :][:16]
        mutant += bytes(max(0, 64 - len(mutant)))
    path = tmp_path / "m.gguf"
    path.write_bytes(mutant)
    reason = ""
    with at_most(1 << 20):
        try:
            read_whole(path)
        except GgufError as refused:
            reason = str(refused)
    assert len(reason) < 2000
