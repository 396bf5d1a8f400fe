"""Our GGUF reader against the `gguf` package, and against files that are not sound."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest
from edgekernels.gguf import GgufError, GgufFile
from hypothesis import given, settings
from hypothesis import strategies as st

TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A file written by the `gguf` package, and what it dequantises to by the same package."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("a.number", 7)
    writer.add_float32("a.float", 0.5)
    writer.add_bool("a.flag", True)
    writer.add_string("a.text", "grüße")
    writer.add_array("a.words", ["x", "yy", ""])
    writer.add_array("a.numbers", [1, 2, 3])
    expected = {}
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name]
        values = rng.normal(size=(6, 64)).astype(np.float32)
        packed = gguf.quants.quantize(values, kind)
        expected[name] = gguf.quants.dequantize(packed, kind).reshape(values.shape)
        writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, expected


def test_every_type_is_read_as_the_gguf_package_does(written):
    path, expected = written
    with GgufFile(path) as file:
        for name in TYPES:
            assert file.tensors[name].type_name == name
            np.testing.assert_array_equal(file.read(name), expected[name])
        assert [name for name, _ in file.read_all()] == TYPES


def test_metadata_is_read(written):
    with GgufFile(written[0]) as file:
        values = {key: value for key, value in file.metadata.items() if key.startswith("a.")}
    assert values == {
        "a.number": 7,
        "a.float": 0.5,
        "a.flag": True,
        "a.text": "grüße",
        "a.words": ["x", "yy", ""],
        "a.numbers": [1, 2, 3],
    }


def test_q4_1_block_hand_worked(tmp_path):
    """scale 0.5, minimum -1: code 0 is -1, code 15 is 6.5; low nibbles come first."""
    block = struct.pack("<ee", 0.5, -1.0) + bytes([0xF0] * 16)
    name = b"t"
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0)
    head += struct.pack("<Q", 1) + name + struct.pack("<IQIQ", 1, 32, 3, 0)
    path = tmp_path / "one.gguf"
    path.write_bytes(head + bytes(-len(head) % 32) + block)
    with GgufFile(path) as file:
        assert file.read("t").tolist() == [-1.0] * 16 + [6.5] * 16


@pytest.mark.parametrize("raw", [b"", b"GG", b"PKZIPxxxxxxxxxxxxxxxxxxxxxxx", b"GGUF" + struct.pack("<IQQ", 9, 0, 0)])
def test_other_files_are_refused(tmp_path, raw):
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw)
    with pytest.raises(GgufError, match=r"bad\.gguf"):
        GgufFile(path)


@pytest.mark.parametrize("claim", [(3, 2**60, 0), (3, 0, 2**60)])
def test_absurd_counts_are_refused_at_once(tmp_path, claim):
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", *claim) + bytes(100))
    with pytest.raises(GgufError):
        GgufFile(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_files_raise_gguf_error_and_nothing_else(written, data, tmp_path_factory):
    raw = bytearray(written[0].read_bytes())
    kind = data.draw(st.sampled_from(["cut", "flip"]))
    if kind == "cut":
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(st.integers(0, 900))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "f.gguf"
    path.write_bytes(raw)
    try:
        with GgufFile(path) as file:
            for name in file.tensors:
                file.read(name)
    except GgufError:
        pass
