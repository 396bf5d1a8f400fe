"""Our GGUF reader against the `gguf` package: every type's floats to the bit, and codes that give the same floats."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from edgekernels import gguf as reader
from edgekernels.gguf import GgufError, GgufFile
from hypothesis import given, settings
from hypothesis import strategies as st

gguf = pytest.importorskip("gguf")

FLOATS = ["F32", "F16", "BF16"]
# name: (values of a block, bytes of a block, byte offsets of its float16 scales, bits, group, symmetric)
QUANTISED = {
    "Q4_0": (32, 18, [0], 4, 32, True),
    "Q4_1": (32, 20, [0, 2], 4, 32, False),
    "Q5_0": (32, 22, [0], 5, 32, True),
    "Q5_1": (32, 24, [0, 2], 5, 32, False),
    "Q8_0": (32, 34, [0], 8, 32, True),
    "Q2_K": (256, 84, [80, 82], 2, 16, False),
    "Q3_K": (256, 110, [108], 3, 16, True),
    "Q4_K": (256, 144, [0, 2], 4, 32, False),
    "Q5_K": (256, 176, [0, 2], 5, 32, False),
    "Q6_K": (256, 210, [208], 6, 16, True),
}
TYPES = [*FLOATS, *QUANTISED]


def kind_of(name):
    return gguf.GGMLQuantizationType[name]


def random_blocks(rng, name, num_blocks, finite=True):
    """Bytes of blocks with any codes, and scales that are numbers if `finite`."""
    _, size, scales, *_ = QUANTISED[name]
    raw = rng.integers(0, 256, (num_blocks, size), np.uint8)
    for at in scales if finite else ():
        raw[:, at : at + 2] = rng.normal(size=(num_blocks, 1)).astype("<f2").view(np.uint8)
    return raw


def write(path, tensors, **texts):
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in texts.items():
        writer.add_string(key, value)
    for name, (kind, packed) in tensors.items():
        writer.add_tensor(name, packed, raw_dtype=kind_of(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A file written by the `gguf` package with every type, and what it dequantises to by the same package."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    rng = np.random.default_rng(0)
    tensors = {}
    for name in TYPES:
        if name in QUANTISED:
            per_block, *_ = QUANTISED[name]
            tensors[name] = (name, random_blocks(rng, name, 6 * 512 // per_block).reshape(6, -1))
        else:
            tensors[name] = (name, gguf.quants.quantize(rng.normal(size=(6, 512)).astype(np.float32), kind_of(name)))
    write(path, tensors)
    expected = {name: gguf.quants.dequantize(packed, kind_of(name)) for name, (_, packed) in tensors.items()}
    return path, {name: values.reshape(6, 512) for name, values in expected.items()}


def same_bits(one, other):
    np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32))


def from_codes(codes):
    """value = code * scale + offset, in float32."""
    spread = codes.codes.reshape(*codes.scale.shape, codes.group).astype(np.float32)
    return (spread * codes.scale[:, :, None] + codes.offset[:, :, None]).reshape(codes.codes.shape)


@pytest.mark.parametrize("name", TYPES)
def test_floats_are_those_of_the_gguf_package_to_the_bit(written, name):
    path, expected = written
    with GgufFile(path) as file:
        assert file.tensors[name].type_name == name
        same_bits(file.read(name), expected[name])


@pytest.mark.parametrize("name", QUANTISED)
def test_codes_and_scales_give_the_same_floats(written, name):
    path, expected = written
    _, _, _, bits, group, symmetric = QUANTISED[name]
    with GgufFile(path) as file:
        codes = file.read_codes(name)
    assert (codes.bits, codes.group, codes.symmetric) == (bits, group, symmetric)
    assert codes.codes.shape == (6, 512)
    assert codes.scale.shape == codes.offset.shape == (6, 512 // group)
    assert codes.codes.max() == 2**bits - 1
    np.testing.assert_array_equal(from_codes(codes), expected[name])
    if symmetric:
        np.testing.assert_array_equal(codes.offset, codes.scale * np.float32(-(2 ** (bits - 1))))


@pytest.mark.parametrize("name", QUANTISED)
def test_stored_factors_are_the_same_numbers(written, name):
    """In float16 where the file has one scale for each group, and without an offset that says nothing."""
    with GgufFile(written[0]) as file:
        codes, stored = file.read_codes(name), file.read_codes(name, stored=True)
    assert stored.scale.dtype == (np.float32 if name.endswith("K") else np.float16)
    np.testing.assert_array_equal(stored.scale.astype(np.float32), codes.scale)
    np.testing.assert_array_equal(stored.codes, codes.codes)
    if codes.symmetric:
        assert stored.offset is None
    else:
        assert stored.offset.dtype == stored.scale.dtype
        np.testing.assert_array_equal(stored.offset.astype(np.float32), codes.offset)


@pytest.mark.parametrize("name", QUANTISED)
def test_tensors_of_many_chunks_are_read_whole(written, name, monkeypatch):
    monkeypatch.setattr(reader, "_CHUNK_VALUES", 512)
    path, expected = written
    with GgufFile(path) as file:
        same_bits(file.read(name), expected[name])
        np.testing.assert_array_equal(from_codes(file.read_codes(name)), expected[name])


def test_read_all_gives_tensors_in_file_order(written):
    with GgufFile(written[0]) as file:
        assert [name for name, _ in file.read_all()] == TYPES


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(QUANTISED)), seed=st.integers(0, 2**32 - 1))
def test_any_bytes_are_read_as_the_gguf_package_does(name, seed):
    """Scales may be subnormal, infinite or no number here."""
    per_block, *_ = QUANTISED[name]
    raw = random_blocks(np.random.default_rng(seed), name, 3, finite=False)
    kind = reader.BY_NAME[name]
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw.reshape(-1), kind_of(name))
        found = reader._values(kind, raw.reshape(-1)).reshape(-1)
    np.testing.assert_array_equal(found, expected)
    assert found.size == 3 * per_block


def test_codes_of_a_tensor_of_three_dimensions_have_rows_of_its_last(tmp_path):
    raw = random_blocks(np.random.default_rng(1), "Q8_0", 12)
    write(tmp_path / "m.gguf", {"experts": ("Q8_0", raw.reshape(2, 3, 68))})
    with GgufFile(tmp_path / "m.gguf") as file:
        assert file.read("experts").shape == (2, 3, 64)
        codes = file.read_codes("experts")
        np.testing.assert_array_equal(from_codes(codes), file.read("experts").reshape(6, 64))


@pytest.mark.parametrize("name", FLOATS)
def test_floats_have_no_codes_and_say_so(written, name):
    with GgufFile(written[0]) as file, pytest.raises(GgufError, match=rf"{name}, which has no codes; use read"):
        file.read_codes(name)


def test_arrays_outlive_the_file_and_a_closed_file_says_so(written):
    path, expected = written
    file = GgufFile(path)
    values, codes = file.read("F32"), file.read_codes("Q8_0")
    file.close()
    same_bits(values, expected["F32"])
    np.testing.assert_array_equal(from_codes(codes), expected["Q8_0"])
    with pytest.raises(ValueError, match="closed"):
        file.read("F32")


def test_metadata_is_read(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    expected = {
        "a.number": 7,
        "a.negative": -(2**62),
        "a.float": 0.5,
        "a.double": 1e300,
        "a.flag": True,
        "a.text": "grüße",
        "a.words": ["x", "yy", ""],
        "a.numbers": [1, 2, 3],
        "a.flags": [True, False],
    }
    writer.add_uint32("a.number", 7)
    writer.add_int64("a.negative", -(2**62))
    writer.add_float32("a.float", 0.5)
    writer.add_float64("a.double", 1e300)
    writer.add_bool("a.flag", True)
    writer.add_string("a.text", "grüße")
    writer.add_array("a.words", ["x", "yy", ""])
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_array("a.flags", [True, False])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with GgufFile(tmp_path / "m.gguf") as file:
        assert {key: value for key, value in file.metadata.items() if key.startswith("a.")} == expected
        assert file.tensors == {}


def one_block(path, kind, values, block):
    """A file of one tensor of one block, written by hand."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0)
    head += struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, values, kind, 0)
    path.write_bytes(head + bytes(-len(head) % 32) + block)


def test_q4_1_block_hand_worked(tmp_path):
    """scale 0.5, minimum -1: code 0 is -1, code 15 is 6.5; low nibbles come first."""
    one_block(tmp_path / "one.gguf", 3, 32, struct.pack("<ee", 0.5, -1.0) + bytes([0xF0] * 16))
    with GgufFile(tmp_path / "one.gguf") as file:
        assert file.read("t").tolist() == [-1.0] * 16 + [6.5] * 16
        codes = file.read_codes("t")
    assert codes.codes.tolist() == [[0] * 16 + [15] * 16]
    assert (codes.scale.tolist(), codes.offset.tolist()) == ([[0.5]], [[-1.0]])


def test_q4_k_block_hand_worked(tmp_path):
    """Groups 0-3 have scale 1, minimum 2; groups 4-7 scale 17 (16 of it in the upper bits of bytes 0-3), minimum 3."""
    scales = bytes([0x41] * 4 + [2] * 4 + [0x31] * 4)
    one_block(tmp_path / "one.gguf", 12, 256, struct.pack("<ee", 1.0, 0.5) + scales + bytes([0x21] * 128))
    with GgufFile(tmp_path / "one.gguf") as file:
        codes = file.read_codes("t")
        values = file.read("t").reshape(8, 32)
    assert codes.scale.tolist() == [[1.0] * 4 + [17.0] * 4]
    assert codes.offset.tolist() == [[-1.0] * 4 + [-1.5] * 4]
    assert codes.codes.reshape(8, 32)[:, 0].tolist() == [1, 2] * 4
    assert values[:, 31].tolist() == [0.0, 1.0, 0.0, 1.0, 15.5, 32.5, 15.5, 32.5]


def test_q6_k_block_hand_worked(tmp_path):
    """Nibbles 1 and 2, upper bits 0 1 2 3 for each quarter of a half: codes 1, 17, 34, 50, less 32, times -2."""
    block = bytes([0x21] * 128) + bytes([0b11100100] * 64) + struct.pack("b", -2) * 16 + struct.pack("<e", 1.0)
    one_block(tmp_path / "one.gguf", 14, 256, block)
    with GgufFile(tmp_path / "one.gguf") as file:
        assert file.read("t").reshape(8, 32)[:, 0].tolist() == [62.0, 30.0, -4.0, -36.0] * 2
