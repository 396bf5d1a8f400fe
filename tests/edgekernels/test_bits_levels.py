"""Every level of the kernels of low-bit codes equals the numpy reference, and both a second implementation."""

import struct

import numpy as np
import pytest
from edgekernels import _bits_reference, dequantise, pack, packed_bytes, quantise, unpack
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

WIDTHS = range(1, 9)
SHAPES = [(1, 1), (70, 1), (5, 9), (3, 15), (3, 16), (4, 17), (9, 27), (2, 63), (3, 64), (3, 65), (4, 512), (3, 785)]
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 1e-39, 3.4e38, -3.4e38], np.float32)
relaxed = settings(
    deadline=None,
    max_examples=60,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
scales = st.sampled_from([0.0, 1e-45, 1e-39, 1e-6, 0.37, 1.0, 2.5, 1e10, 3.4e38]) | st.floats(0, 2**100, width=32)
offsets = st.floats(-(2.0**100), 2.0**100, width=32) | st.sampled_from([0.0, -0.0, 3.4e38, -3.4e38, 1e-45])


def decoded(packed, num_codes, bits):
    """Codes of a bitstream, read as one large integer."""
    stream = int.from_bytes(packed.tobytes(), "little")
    return [stream >> i * bits & (1 << bits) - 1 for i in range(num_codes)], stream >> num_codes * bits


def rounded(number):
    """The nearest float32; sums, products and quotients of float32 made in float64 are exact enough for that."""
    return struct.unpack("f", struct.pack("f", number))[0]


def matrix(rng, rows, columns, bits):
    """Values around the range of the codes, many of them halfway between two, some special; scales and offsets."""
    scale = rng.choice(np.array([0, 0.25, 1, 3, 1e-3], np.float32), rows)
    offset = rng.choice(np.array([0, -0.5, 100, -1e-4], np.float32), rows)
    steps = rng.uniform(-2, (1 << bits) + 1, (rows, columns))
    steps = np.where(rng.random(steps.shape) < 0.5, np.round(steps) + 0.5, steps)
    values = (steps * scale[:, None] + offset[:, None]).astype(np.float32)
    spoilt = rng.random(values.shape) < 0.1
    values[spoilt] = rng.choice(SPECIAL, spoilt.sum())
    return values, scale, offset


def expected_bytes(values, bits, scale, offset, aligned):
    rows, columns = values.shape
    shape = (rows, packed_bytes(columns, bits)) if aligned else (packed_bytes(rows * columns, bits),)
    packed = np.empty(shape, np.uint8)
    _bits_reference.quantise(values, bits, scale=scale, offset=offset, align_rows=aligned, packed=packed.reshape(-1))
    return packed


def expected_values(packed, bits, scale, offset, columns, aligned):
    values = np.empty((len(scale), columns), np.float32)
    _bits_reference.dequantise(packed.reshape(-1), bits, scale=scale, offset=offset, align_rows=aligned, values=values)
    return values


@relaxed
@given(data=st.data(), bits=st.integers(1, 8), num_codes=st.integers(0, 300) | st.integers(4000, 9000))
def test_bitstream_is_one_large_integer(bits_engine, data, bits, num_codes):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    codes = rng.integers(0, 1 << bits, num_codes).astype(np.uint8)
    packed = pack(codes, bits)
    assert decoded(packed, num_codes, bits) == (codes.tolist(), 0)
    assert unpack(packed, num_codes, bits).tolist() == codes.tolist()


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_length_equals_the_reference(bits_level, bits):
    rng = np.random.default_rng(bits)
    for num_codes in [*range(200), 511, 512, 4095, 4096, 4097, 8192, 10_001]:
        codes = rng.integers(0, 1 << bits, num_codes).astype(np.uint8)
        packed = np.empty(packed_bytes(num_codes, bits), np.uint8)
        _bits_reference.pack(codes, bits, packed)
        assert np.array_equal(pack(codes, bits), packed)
        packed[-1:] |= np.uint8(0xFF << (num_codes * bits - 1) % 8 + 1 & 0xFF)  # padding which must not matter
        assert np.array_equal(unpack(packed, num_codes, bits), codes)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bits", WIDTHS)
def test_every_shape_equals_the_reference(bits_level, bits, shape, aligned):
    rng = np.random.default_rng(bits)
    for _ in range(5):
        values, scale, offset = matrix(rng, *shape, bits)
        packed = quantise(values, bits, scale=scale, offset=offset, align_rows=aligned)
        assert np.array_equal(packed, expected_bytes(values, bits, scale, offset, aligned))
        back = dequantise(packed, bits, scale=scale, offset=offset, columns=shape[1], align_rows=aligned)
        wanted = expected_values(packed, bits, scale, offset, shape[1], aligned)
        assert back.tobytes() == wanted.tobytes()


@relaxed
@given(
    values=arrays.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 90)), elements=st.floats(width=32)),
    bits=st.integers(1, 8),
    scale=scales,
    offset=offsets,
    aligned=st.booleans(),
)
def test_any_values_equal_the_reference(bits_level, values, bits, scale, offset, aligned):
    rows, columns = values.shape
    scale, offset = np.full(rows, scale, np.float32), np.full(rows, offset, np.float32)
    packed = quantise(values, bits, scale=scale, offset=offset, align_rows=aligned)
    assert packed.tobytes() == expected_bytes(values, bits, scale, offset, aligned).tobytes()
    back = dequantise(packed, bits, scale=scale, offset=offset, columns=columns, align_rows=aligned)
    assert back.tobytes() == expected_values(packed, bits, scale, offset, columns, aligned).tobytes()


@relaxed
@given(
    values=st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=40),
    bits=st.integers(1, 8),
    scale=st.floats(2**-10, 1000, width=32),
    offset=st.floats(-1000, 1000, width=32),
)
def test_arithmetic_equals_plain_python(bits_engine, values, bits, scale, offset):
    top = (1 << bits) - 1
    codes = [min(max(round(rounded(rounded(value - offset) / scale)), 0), top) for value in values]
    packed = quantise(np.array([values], np.float32), bits, scale=scale, offset=offset)
    assert decoded(packed, len(values), bits) == (codes, 0)
    back = dequantise(packed, bits, scale=scale, offset=np.array([offset], np.float32), columns=len(values))
    assert back.tolist() == [[rounded(rounded(code * scale) + offset) for code in codes]]


@relaxed
@given(
    bits=st.integers(1, 8), rows=st.integers(1, 5), columns=st.integers(1, 100), aligned=st.booleans(),
    scale=st.floats(2**-20, 2**20, width=32),
)  # fmt: skip
def test_codes_survive_the_round_trip(bits_engine, bits, rows, columns, aligned, scale):
    codes = np.random.default_rng(columns).integers(0, 1 << bits, (rows, columns)).astype(np.uint8)
    values = codes * np.float32(scale)
    packed = quantise(values, bits, scale=scale, offset=0.0, align_rows=aligned)
    parts = list(zip(packed, codes, strict=True)) if aligned else [(packed, codes.reshape(-1))]
    for part, wanted in parts:
        assert unpack(part, len(wanted), bits).tolist() == wanted.tolist()
    zero = np.zeros(rows, np.float32)
    back = dequantise(packed, bits, scale=scale, offset=zero, columns=columns, align_rows=aligned)
    assert np.array_equal(back, values)


def test_a_million_codes_equal_the_reference(bits_level):
    rng = np.random.default_rng(3)
    values = rng.standard_normal((1300, 785), np.float32)
    scale, offset = np.ptp(values, axis=1) / np.float32(7), values.min(axis=1)
    packed = quantise(values, 3, scale=scale, offset=offset)
    assert np.array_equal(packed, expected_bytes(values, 3, scale, offset, False))
    back = dequantise(packed, 3, scale=scale, offset=offset, columns=785)
    assert back.tobytes() == expected_values(packed, 3, scale, offset, 785, False).tobytes()
    assert np.abs(back - values).max() <= scale.max() * np.float32(0.5001)
