"""Bit planes: by hand, against the reference, and as codes of fewer bits."""

import numpy as np
import pytest
from edgekernels import (
    _bits_reference,
    coarser,
    dequantise,
    finer,
    fit,
    merge_planes,
    pack,
    packed_bytes,
    quantise,
    split_planes,
    unpack,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

relaxed = settings(
    deadline=None,
    max_examples=60,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def u8(*numbers):
    return np.array(numbers, np.uint8)


def test_planes_by_hand(bits_engine):
    """Codes 5, 2, 7, 0, 0, 0, 0, 0, 4 of 3 bits: 101, 010, 111, ..., 100."""
    packed = pack(u8(5, 2, 7, 0, 0, 0, 0, 0, 4), 3)
    planes = split_planes(packed, 9, 3)
    assert planes.tolist() == [[0b101, 1], [0b110, 0], [0b101, 0]]
    assert merge_planes(planes, 9).tolist() == packed.tolist()
    assert unpack(merge_planes(planes[:2], 9), 9, 2).tolist() == [2, 1, 3, 0, 0, 0, 0, 0, 2]


def test_padding_is_ignored_when_reading_and_0_when_written(bits_engine):
    planes = split_planes(u8(0b111_11_10_1), 2, 2)
    assert planes.tolist() == [[0b10], [0b11]]
    assert merge_planes(u8(0xFE, 0xFF)[:, None], 2).tolist() == [0b1101]


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_length_equals_the_reference(bits_level, bits):
    rng = np.random.default_rng(bits)
    for num_codes in [*range(140), 511, 512, 513, 4095, 4096, 4097, 4160, 10_001]:
        packed = rng.integers(0, 256, packed_bytes(num_codes, bits), np.uint8)
        planes = np.empty((bits, packed_bytes(num_codes, 1)), np.uint8)
        _bits_reference.split(packed, num_codes, bits, planes.reshape(-1))
        assert np.array_equal(split_planes(packed, num_codes, bits), planes)
        planes = rng.integers(0, 256, planes.shape, np.uint8)
        merged = np.empty_like(packed)
        _bits_reference.merge(planes.reshape(-1), num_codes, bits, merged)
        assert np.array_equal(merge_planes(planes, num_codes), merged)


@relaxed
@given(data=st.data(), bits=st.integers(1, 8), num_codes=st.integers(0, 300) | st.integers(4000, 9000))
def test_first_planes_are_the_upper_bits(bits_engine, data, bits, num_codes):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    codes = rng.integers(0, 1 << bits, num_codes).astype(np.uint8)
    kept = data.draw(st.integers(1, bits))
    planes = split_planes(pack(codes, bits), num_codes, bits)
    packed = merge_planes(planes[:kept], num_codes)
    assert unpack(packed, num_codes, kept).tolist() == (codes >> (bits - kept)).tolist()
    for k in range(bits):
        single = np.unpackbits(planes[k], count=num_codes, bitorder="little")
        assert single.tolist() == (codes >> (bits - 1 - k) & 1).tolist()


def test_outputs_are_written_and_returned(bits_engine):
    packed = pack(u8(1, 2, 3, 0), 2)
    frame = np.full((3, 1), 77, np.uint8)
    assert split_planes(packed, 4, 2, out=frame[1:]) is not None
    assert frame.tolist() == [[77], [0b0110], [0b0101]]
    out = np.full(3, 77, np.uint8)
    merge_planes(frame[1:], 4, out=out[1:2])
    assert out.tolist() == [77, packed[0], 77]


def test_coarser_codes_stand_for_the_middle():
    """Steps of 0.5 from -1 on, two planes left out: codes 0 .. 3, 4 .. 7 stand for -0.25 and 1.75."""
    packed = pack(np.arange(8, dtype=np.uint8), 3)
    two = merge_planes(split_planes(packed, 8, 3)[:1], 8)
    scales = coarser(np.array([0.5], np.float32), np.array([-1], np.float32), 2)
    assert dequantise(two, 1, columns=8, **scales._asdict()).tolist() == [[-0.25] * 4 + [1.75] * 4]


@given(scale=st.floats(2.0**-20, 2.0**20, width=32), planes=st.integers(0, 7))
def test_finer_inverts_coarser(scale, planes):
    wide = coarser(np.float32([scale]), np.float32([0]), planes)
    back = finer(*wide, planes)
    assert back.scale.tolist() == [np.float32(scale)]
    assert np.abs(back.offset).max() <= scale * 1e-5


@pytest.mark.parametrize("first", [2, 3, 4])
def test_first_planes_are_as_good_as_codes_of_that_width(first):
    """Fitted to the first width and divided further, the first planes err as little as codes made for that width."""
    values = np.random.default_rng(0).standard_normal((16, 512), np.float32)
    scales = fit(values, first, group=64)
    alone = quantise(values, first, group=64, **scales._asdict())
    whole = finer(*scales, 7 - first)
    packed = quantise(values, 7, group=64, **whole._asdict())
    planes = split_planes(packed, values.size, 7)
    few = unpack(merge_planes(planes[:first], values.size), values.size, first)
    assert np.mean(few != unpack(alone, values.size, first)) < 1e-4  # halves may go the other way
    seven = dequantise(packed, 7, columns=512, group=64, **whole._asdict())
    three = dequantise(alone, first, columns=512, group=64, **scales._asdict())
    assert np.square(seven - values).mean() < np.square(three - values).mean()


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "packed has 2 bytes; pass 1 for 2 codes of 4 bits", lambda: split_planes(u8(1, 2), 2, 4)),
        (ValueError, r"bits is 9; pass 1 \.\. 8", lambda: split_planes(u8(1), 1, 9)),
        (ValueError, r"num_codes is -1", lambda: split_planes(u8(1), -1, 4)),
        (ValueError, r"num_codes is 1152921504606846976", lambda: split_planes(u8(1), 1 << 60, 1)),
        (TypeError, "packed is int64", lambda: split_planes(np.arange(3), 1, 4)),
        (ValueError, "packed has strides", lambda: split_planes(u8(1, 2, 3, 4)[::2], 4, 4)),
        (ValueError, r"planes has shape \(0, 1\); pass \(1 \.\. 8, 1\) for 3 codes",
         lambda: merge_planes(np.zeros((0, 1), np.uint8), 3)),
        (ValueError, r"planes has shape \(9, 1\)", lambda: merge_planes(np.zeros((9, 1), np.uint8), 3)),
        (ValueError, r"planes has shape \(2, 1\); pass \(1 \.\. 8, 2\) for 9 codes",
         lambda: merge_planes(np.zeros((2, 1), np.uint8), 9)),
        (ValueError, r"planes has shape \(2,\); pass 2 dim", lambda: merge_planes(u8(1, 2), 3)),
        (ValueError, r"out has shape \(1, 1\); pass shape \(4, 1\)",
         lambda: split_planes(u8(1), 2, 4, out=np.zeros((1, 1), np.uint8))),
        (ValueError, r"num_planes is 8; pass 0 \.\. 7", lambda: coarser(1.0, 0.0, 8)),
        (TypeError, r"num_planes is 1\.5; pass an integer", lambda: finer(1.0, 0.0, 1.5)),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(error, message, call):
    with pytest.raises(error, match=message):
        call()
