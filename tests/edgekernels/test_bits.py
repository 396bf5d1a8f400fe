"""Packing and quantising by hand: bytes, roundings, special values, arguments, outputs."""

import numpy as np
import pytest
from edgekernels import dequantise, pack, packed_bytes, quantise, unpack

INF, NAN = np.inf, np.nan
TINY = 2.0**-149  # the smallest denormal float32
WIDTHS = range(1, 9)


def u8(*numbers):
    return np.array(numbers, np.uint8)


def f32(*rows):
    return np.array(rows, np.float32)


def one_row(values, bits, scale=1.0, offset=0.0):
    """Codes of one row, unpacked."""
    packed = quantise(f32(values), bits, scale=scale, offset=offset)
    return unpack(packed, len(values), bits).tolist()


@pytest.mark.parametrize(
    ("bits", "codes", "packed"),
    [
        (1, [1, 0, 1, 1, 0, 0, 0, 1, 1], [0b10001101, 0b1]),
        (2, [0, 1, 2, 3, 3], [0b11100100, 0b11]),
        (3, [1, 2, 7], [0b11010001, 0b1]),
        (3, [1, 2, 3, 4, 5, 6, 7, 0, 1], [0b11010001, 0b01011000, 0b00011111, 0b001]),
        (4, [0x1, 0x2, 0xF], [0x21, 0x0F]),
        (5, [0b11111, 0b00000, 0b10001], [0b00011111, 0b01000100]),
        (6, [0b111111, 0b000001, 0b100000], [0b01111111, 0b00000000, 0b10]),
        (7, [0b1111111, 0b0000001], [0b11111111, 0b00000000]),
        (8, [0, 255, 7], [0, 255, 7]),
        (5, [], []),
    ],
)
def test_bytes_by_hand(bits_engine, bits, codes, packed):
    assert pack(u8(*codes), bits).tolist() == packed
    assert unpack(u8(*packed), len(codes), bits).tolist() == codes


def test_packed_bytes_rounds_up():
    assert [packed_bytes(9, bits) for bits in WIDTHS] == [2, 3, 4, 5, 6, 7, 8, 9]
    assert packed_bytes(0, 3) == 0


def test_padding_bits_are_ignored_when_reading(bits_engine):
    assert unpack(u8(0b11010001, 0b11111111), 3, 3).tolist() == [1, 2, 7]


def test_halves_go_to_even_and_ends_are_clipped(bits_engine):
    assert one_row([-9, -0.5, 0.5, 1.5, 2.5, 3.5, 6.5, 7.5, 9], 3) == [0, 0, 0, 2, 2, 4, 6, 7, 7]


def test_special_values(bits_engine):
    assert one_row([NAN, INF, -INF, -0.0, TINY, -TINY, 3.4e38, -3.4e38], 4) == [0, 15, 0, 0, 0, 0, 15, 0]
    assert one_row([3.4e38, -3.4e38, 0], 4, scale=1e38, offset=-3.4e38) == [
        15,
        0,
        3,
    ]  # the difference 6.8e38 is infinite
    assert one_row([0, TINY, 2 * TINY, 3 * TINY], 2, scale=TINY) == [0, 1, 2, 3]
    assert one_row([0, TINY, INF], 8, scale=3.4e38) == [0, 0, 255]


def test_scale_zero_gives_code_zero(bits_engine):
    values = f32([1, NAN, INF], [1, 2, 3])
    packed = quantise(values, 8, scale=f32(*[0, 1]), offset=f32(*[0, 0]))
    assert packed.tolist() == [0, 0, 0, 1, 2, 3]
    assert dequantise(packed, 8, scale=0.0, offset=2.0, columns=3).tolist() == [[2, 2, 2], [2, 2, 2]]


@pytest.mark.parametrize(
    ("value", "scale", "code"),
    [  # with a product by the reciprocal: one more, or one less
        ("0x1.268ba4p+3", "0x1.c0d4c8p-1", 10),
        ("0x1.0436f6p+6", "0x1.d6c6f2p-2", 142),
        ("0x1.457bbep+6", "0x1.ac6652p-2", 194),
        ("0x1.0436bcp+2", "0x1.3466ccp-2", 14),
    ],
)
def test_quotient_is_a_division(bits_engine, value, scale, code):
    values = [float.fromhex(value)] * 70
    assert one_row(values, 8, scale=float.fromhex(scale)) == [code] * 70


@pytest.mark.parametrize(
    ("code", "scale", "offset", "value"),
    [  # a fused product and sum differ in the last bit
        (131, 6.3, -10.6, "0x1.97599cp+9"),
        (194, 4.6, -83.4, "0x1.947ffep+9"),
        (72, 0.8, -41.4, "0x1.033334p+4"),
    ],
)
def test_product_and_sum_are_rounded_one_by_one(bits_engine, code, scale, offset, value):
    values = dequantise(np.full(70, code, np.uint8), 8, scale=scale, offset=offset, columns=35)
    assert (values == float.fromhex(value)).all()


def test_rows_follow_one_another_without_padding(bits_engine):
    values = f32([1, 2, 3], [4, 5, 6])
    scale, offset = f32(*[1, 1]), f32(*[0, 0])
    packed = quantise(values, 3, scale=scale, offset=offset)
    assert packed.tolist() == pack(u8(1, 2, 3, 4, 5, 6), 3).tolist()
    assert dequantise(packed, 3, scale=scale, offset=offset, columns=3).tolist() == values.tolist()


def test_aligned_rows_begin_with_a_byte(bits_engine):
    values = f32([1, 2, 3], [4, 5, 6])
    packed = quantise(values, 3, scale=1.0, offset=0.0, align_rows=True)
    assert packed.tolist() == [pack(u8(1, 2, 3), 3).tolist(), pack(u8(4, 5, 6), 3).tolist()]
    back = dequantise(packed, 3, scale=1.0, offset=0.0, columns=3, align_rows=True)
    assert back.tolist() == values.tolist()


def test_every_row_has_its_scale_and_offset(bits_engine):
    scale, offset = f32(*[0.5, 2, 10]), f32(*[-1, 0, 5])
    values = f32([-1, 0.5], [6, 2], [5, 35])
    packed = quantise(values, 2, scale=scale, offset=offset)
    assert unpack(packed, 6, 2).tolist() == [0, 3, 3, 1, 0, 3]
    assert dequantise(packed, 2, scale=scale, offset=offset, columns=2).tolist() == values.tolist()


@pytest.mark.parametrize("aligned", [False, True])
def test_no_rows(bits_engine, aligned):
    none = np.empty(0, np.float32)
    packed = quantise(np.empty((0, 5), np.float32), 3, scale=none, offset=none, align_rows=aligned)
    assert packed.shape == ((0, 2) if aligned else (0,))
    assert dequantise(packed, 3, scale=none, offset=none, columns=5, align_rows=aligned).shape == (0, 5)


def test_rows_are_counted_from_what_is_there(bits_engine):
    packed = u8(0xFF, 0x0F)
    assert dequantise(packed, 4, scale=1.0, offset=0.0, columns=2).shape == (2, 2)
    assert dequantise(packed, 4, scale=1.0, offset=0.0, columns=3).shape == (1, 3)
    assert dequantise(packed, 4, scale=1.0, offset=np.zeros(3, np.float32), columns=1).shape == (3, 1)
    out = np.empty((4, 1), np.float32)
    assert dequantise(packed, 4, scale=1.0, offset=0.0, columns=1, out=out) is out
    with pytest.raises(ValueError, match=r"rows of 4 bits cannot be counted in bytes; pass scale as float32 \(rows,\)"):
        dequantise(packed, 4, scale=1.0, offset=0.0, columns=1)


def test_outputs_are_written_and_returned(bits_engine):
    values, frame = f32([1, 2, 3]), np.full(12, 77, np.uint8)
    for function, arguments, size in (
        (pack, (u8(1, 2, 3), 6), 3),
        (unpack, (u8(1, 2), 2, 8), 2),
    ):
        out = frame[5 : 5 + size]
        assert function(*arguments, out=out) is out
        assert out.tolist() == function(*arguments).tolist()
    out = frame[5:7]
    assert quantise(values, 5, scale=1.0, offset=0.0, out=out) is out
    assert frame[:5].tolist() == [77] * 5
    assert frame[8:].tolist() == [77] * 4
    back = np.empty((1, 3), np.float32)
    assert dequantise(out, 5, scale=1.0, offset=0.0, columns=3, out=back) is back
    assert back.tolist() == values.tolist()


def test_inputs_may_be_read_only(bits_engine):
    codes, values, scale = u8(1, 2, 3), f32([1, 2, 3]), f32(*[1])
    packed = pack(codes, 2)
    for array in (codes, values, scale, packed):
        array.flags.writeable = False
    assert quantise(values, 2, scale=scale, offset=0.0).tolist() == pack(codes, 2).tolist()
    assert unpack(packed, 3, 2).tolist() == codes.tolist()
    assert dequantise(packed, 2, scale=scale, offset=0.0, columns=3).tolist() == values.tolist()


@pytest.mark.parametrize("place", [0, 5, 63, 64, 4999])
@pytest.mark.parametrize("bits", range(1, 8))
def test_code_with_more_bits_is_named(bits_engine, bits, place):
    codes = np.zeros(5000, np.uint8)
    codes[place] = 1 << bits
    remedy = rf"codes\[{place}\] is {1 << bits}; pass codes 0 \.\. {(1 << bits) - 1} for {bits} bits"
    with pytest.raises(ValueError, match=remedy):
        pack(codes, bits)


def settings(**changed):
    return {"scale": 1.0, "offset": 0.0} | changed


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, r"bits is 9; pass 1 \.\. 8", lambda: pack(u8(1), 9)),
        (ValueError, r"bits is 0; pass 1 \.\. 8", lambda: packed_bytes(1, 0)),
        (TypeError, r"bits is 4\.0; pass an integer", lambda: pack(u8(1), 4.0)),
        (ValueError, r"num_codes is -1; pass 0 \.\.", lambda: unpack(u8(1), -1, 4)),
        (TypeError, r"codes is int64; pass numpy\.asarray\(codes, numpy\.uint8\)", lambda: pack(np.arange(3), 4)),
        (TypeError, "codes is list", lambda: pack([1, 2], 4)),
        (ValueError, r"codes has shape \(1, 2\); pass 1 dim", lambda: pack(u8(1, 2)[None], 4)),
        (ValueError, "codes has strides", lambda: pack(u8(1, 2, 3)[::2], 4)),
        (ValueError, "packed has 2 bytes; pass 1 for 2 codes of 4 bits", lambda: unpack(u8(1, 2), 2, 4)),
        (ValueError, "packed has 1 bytes; pass 2 for 3 codes of 4 bits", lambda: unpack(u8(1), 3, 4)),
        (ValueError, r"out has shape \(2,\); pass shape \(1,\)", lambda: pack(u8(1), 4, out=u8(0, 0))),
        (TypeError, "out is float32", lambda: unpack(u8(1), 1, 8, out=f32(1))),
        (ValueError, r"values has shape \(2, 0\); pass at least one", lambda: quantise(f32([], []), 4, **settings())),
        (TypeError, "values is float64", lambda: quantise(np.ones((1, 1)), 4, **settings())),
        (ValueError, r"scale is -1\.0; pass finite float32 numbers, 0 or more",
         lambda: quantise(f32([1]), 4, **settings(scale=-1.0))),
        (ValueError, r"scale is nan", lambda: quantise(f32([1]), 4, **settings(scale=NAN))),
        (ValueError, r"scale is 1e\+39", lambda: quantise(f32([1]), 4, **settings(scale=1e39))),
        (ValueError, r"scale is inf", lambda: quantise(f32([1]), 4, **settings(scale=np.float16(INF)))),
        (ValueError, r"offset is inf", lambda: quantise(f32([1]), 4, **settings(offset=INF))),
        (ValueError, r"scale\[1\] is nan", lambda: quantise(f32([1], [1]), 4, **settings(scale=f32(1, NAN)))),
        (ValueError, r"scale\[0\] is -1\.0", lambda: quantise(f32([1], [1]), 4, **settings(scale=f32(-1, 1)))),
        (ValueError, r"offset\[1\] is -inf; pass finite float32 numbers$",
         lambda: quantise(f32([1], [1]), 4, **settings(offset=f32(0, -INF)))),
        (ValueError, r"scale has shape \(2,\); pass a number or shape \(1,\)",
         lambda: quantise(f32([1]), 4, **settings(scale=f32(1, 1)))),
        (TypeError, "scale is float64", lambda: quantise(f32([1]), 4, **settings(scale=np.ones(1)))),
        (TypeError, "offset is NoneType", lambda: quantise(f32([1]), 4, **settings(offset=None))),
        (TypeError, "scale is bool", lambda: quantise(f32([1]), 4, **settings(scale=True))),
        (ValueError, r"out has shape \(1,\); pass 2 dim",
         lambda: quantise(f32([1]), 4, **settings(out=u8(0), align_rows=True))),
        (ValueError, r"packed has shape \(1,\); pass 2 dim",
         lambda: dequantise(u8(0), 4, columns=1, align_rows=True, **settings())),
        (ValueError, r"packed has shape \(1, 2\); pass \(1, 1\) for 1 x 2 codes of 4 bits",
         lambda: dequantise(u8(0, 0)[None], 4, columns=2, align_rows=True, **settings())),
        (ValueError, r"packed has shape \(3,\); pass \(2,\) for 1 x 3 codes of 4 bits",
         lambda: dequantise(u8(0, 0, 0), 4, columns=3, **settings(scale=f32(1)))),
        (ValueError, r"columns is 0; pass 1 \.\.", lambda: dequantise(u8(0), 4, columns=0, **settings())),
        (ValueError, "scale is nan; pass finite", lambda: dequantise(u8(0), 4, columns=2, **settings(scale=NAN))),
        (ValueError, r"scale\[0\] is inf", lambda: dequantise(u8(0), 4, columns=2, **settings(scale=f32(INF)))),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_negative_scales_can_be_read(bits_engine):
    assert dequantise(u8(3), 8, scale=-2.0, offset=1.0, columns=1).tolist() == [[-5]]


def test_read_only_output_is_refused():
    out = u8(0)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only; pass an array that can be written"):
        pack(u8(1), 4, out=out)


def test_output_in_the_input_is_refused():
    memory = np.zeros(8, np.uint8)
    with pytest.raises(ValueError, match="out shares memory"):
        unpack(memory[:4], 8, 4, out=memory)
    with pytest.raises(ValueError, match="out shares memory"):
        quantise(memory.view(np.float32)[None], 8, scale=1.0, offset=0.0, out=memory[:2])
