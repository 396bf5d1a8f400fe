"""The quantiser that ships: error, ranges, round trips, sizes."""

import numpy as np
import pytest
from edgekernels import pack, unpack
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qpart.errors import UnsupportedModel
from qpart.nesting import grid
from qpart.quantiser import (
    HALF,
    QuantisedWeight,
    Range,
    activation_bytes,
    dequantise_activation,
    dequantise_weight,
    quantise_activation,
    quantise_weight,
)
from qpart.ranges import fit_range

BITS = (2, 3, 4, 5, 6, 7, 8)


def test_codes_are_the_first_bits_of_the_whole_code():
    weight = np.random.default_rng(0).normal(0, 1, (3, 50)).astype(np.float32)
    whole = unpack(quantise_weight(weight, 8).codes, 150, 8)
    for bits in BITS:
        packed = quantise_weight(weight, bits)
        assert np.array_equal(unpack(packed.codes, 150, bits), whole >> (8 - bits))


def test_numbers_are_scale_times_gain_times_grid():
    """By hand: bend 8 is (u + u^3) / 2, and code 3 of 2 bits stands at u = 3/4, code 0 at -3/4."""
    scale = np.array([2.0, 0.5], np.float16)
    packed = QuantisedWeight(2, 8, np.float16(1.5), scale, np.array([0b00_11_00_11], np.uint8))
    at = (3 / 4 + 27 / 64) / 2
    assert dequantise_weight(packed, (2, 2)).tolist() == [[3 * at, -3 * at], [0.75 * at, -0.75 * at]]


@pytest.mark.parametrize("bend", [0, 2, 7, 12])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(5, 3), (3, 2, 3, 3), (2, 40_000), (40_000, 1)])
def test_numbers_are_those_of_the_grid_to_the_bit(shape, bits, bend):
    random = np.random.default_rng(0)
    codes = random.integers(2**bits, size=shape).astype(np.uint8)
    scale, gain = random.uniform(0.001, 9, shape[0]).astype(np.float16), np.float16(0.951)
    found = dequantise_weight(QuantisedWeight(bits, bend, gain, scale, pack(codes.reshape(-1), bits)), shape)
    factor = (scale.astype(np.float32) * np.float32(gain)).reshape(-1, *(1,) * (len(shape) - 1))
    assert np.array_equal(found, grid(bend, bits)[codes] * factor)


@pytest.mark.parametrize("bits", BITS)
def test_error_shrinks_about_fourfold_per_bit_and_beats_plain_rounding(bits):
    weight = np.random.default_rng(0).normal(0, 0.1, (16, 300)).astype(np.float32)
    error = np.square(dequantise_weight(quantise_weight(weight, bits), weight.shape) - weight).mean()
    step = np.abs(weight).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
    plain = np.square(np.clip(np.rint(weight / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * step - weight).mean()
    assert error < plain
    assert error < 0.01 * 0.15 * 3.7 ** (2 - bits)


@pytest.mark.parametrize("bits", [*BITS, HALF])
def test_constant_and_zero_channels_come_back(bits):
    weight = np.zeros((3, 8), np.float32)
    weight[1] = 0.25
    found = dequantise_weight(quantise_weight(weight, bits), weight.shape)
    assert np.array_equal(found[0], weight[0])
    assert np.allclose(found, weight, atol=0.25 * 2.0**-bits)


@settings(max_examples=40, deadline=None)
@given(arrays(np.float32, (3, 5), elements=st.floats(-1e4, 1e4, width=32)), st.sampled_from((*BITS, HALF)))
def test_no_weight_moves_further_than_its_channel_reaches(weight, bits):
    found = dequantise_weight(quantise_weight(weight, bits), weight.shape)
    reach = np.abs(weight).max(axis=1, keepdims=True)
    assert np.isfinite(found).all()
    assert (np.abs(found - weight) <= 1.1 * reach + 1e-3).all()


def test_channels_have_scales_of_their_own():
    weight = np.random.default_rng(0).normal(0, 1, (2, 64)).astype(np.float32) * [[1e-3], [1e3]]
    found = dequantise_weight(quantise_weight(weight.astype(np.float32), 8), weight.shape)
    assert np.abs(found[0] - weight[0]).max() < 2e-5


@pytest.mark.parametrize("bits", [3, HALF])
def test_numbers_too_large_for_half_precision_are_refused(bits):
    with pytest.raises(UnsupportedModel, match="rescale the layer"):
        quantise_weight(np.full((1, 2), 1e30, np.float32), bits)


def test_pixels_come_back_at_eight_bits():
    pixels = np.arange(256, dtype=np.float32).reshape(1, -1) / 255
    found = fit_range(pixels, 8)
    back = dequantise_activation(quantise_activation(pixels, 8, found), 8, found, (256,))
    assert np.array_equal(np.rint(back * 255), np.arange(256)[None])
    assert np.abs(back - pixels).max() < 1e-6


def test_what_is_never_negative_keeps_zero():
    sample = np.maximum(np.random.default_rng(0).normal(0, 1, 10_000), 0).astype(np.float32)
    for bits in BITS:
        found = fit_range(sample, bits)
        assert found.offset == 0
        back = dequantise_activation(quantise_activation(np.zeros((1, 3), np.float32), bits, found), bits, found, (3,))
        assert not back.any()


def test_outliers_are_clipped_when_bits_are_few():
    sample = np.r_[np.random.default_rng(0).normal(0, 1, 10_000), 12.0].astype(np.float32)
    assert fit_range(sample, 3).scale * 7 < 8


@pytest.mark.parametrize("bits", [*BITS, HALF])
@pytest.mark.parametrize("items", [1, 7, 10, 64])
def test_samples_start_at_whole_bytes_and_sizes_are_as_announced(bits, items):
    values = np.random.default_rng(1).uniform(0, 1, (5, items)).astype(np.float32)
    found = Range(1 / (2**bits - 1), 0.0) if bits != HALF else Range(0, 0)
    packed = quantise_activation(values, bits, found)
    assert packed.shape[0] == 5
    assert packed[0].nbytes == activation_bytes(items, bits)
    alone = np.concatenate([quantise_activation(row[None], bits, found) for row in values])
    assert np.array_equal(packed, alone)
    error = np.abs(dequantise_activation(packed, bits, found, (items,)) - values).max()
    assert error <= (1e-3 if bits == HALF else 0.51 / (2**bits - 1))


def test_half_precision_activations_saturate():
    packed = quantise_activation(np.array([[1e9, -1e9]], np.float32), HALF, Range(0, 0))
    assert packed.tolist() == [[65504.0, -65504.0]]


def test_a_constant_activation_is_its_offset():
    found = fit_range(np.full(10, 3.5, np.float32), 4)
    back = dequantise_activation(quantise_activation(np.full((1, 2), 3.5, np.float32), 4, found), 4, found, (2,))
    assert back.tolist() == [[3.5, 3.5]]


def test_tokens_travel_exactly_at_sixteen_bits():
    tokens = np.array([[0, 65535, 2049, 30521], [1, 7, 4097, 3]], np.float32)
    found = fit_range(tokens, 16)
    assert found == Range(1.0, 0.0)
    packed = quantise_activation(tokens, 16, found)
    assert (packed.dtype, packed.nbytes) == (np.float16, 2 * activation_bytes(4, 16))
    assert np.array_equal(dequantise_activation(packed, 16, found, (4,)), tokens)
    for others in (tokens + 0.5, tokens - 1, tokens / 65535, tokens * 2, np.minimum(tokens, 2048)):
        assert fit_range(others, 16) == Range(0.0, 0.0)


def test_bytes_travel_exactly_at_eight_bits():
    """A vocabulary of 256: the range may be narrower than 255 steps, rounding to the next row finds it again."""
    tokens = np.arange(7, 250, dtype=np.float32)[None]
    found = fit_range(tokens, 8)
    back = dequantise_activation(quantise_activation(tokens, 8, found), 8, found, (243,))
    assert np.array_equal(np.rint(back), tokens)
