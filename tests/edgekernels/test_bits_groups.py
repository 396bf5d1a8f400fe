"""Scales by group and narrower formats: by hand, against the reference, and past the caches."""

import numpy as np
import pytest
from edgekernels import _bits_checks, _bits_reference, dequantise, pack, packed_bytes, quantise, unpack
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FORMATS = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
relaxed = settings(
    deadline=None,
    max_examples=80,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
numbers = st.sampled_from([0.0, -0.0, 1e-45, 1e-39, 6e-8, 0.37, 1.0, 2.5, 600.0, 65504.0, 1e10, 3.4e38])


def f32(*rows):
    return np.array(rows, np.float32)


def expected(packed, bits, scale, offset, columns, name, aligned):
    values = np.empty((len(scale), columns), FORMATS[name])
    scale, offset = scale.reshape(-1), offset.reshape(-1)
    _bits_reference.dequantise(packed.reshape(-1), bits, scale=scale, offset=offset, align_rows=aligned, values=values)
    return values


def test_groups_by_hand(bits_engine):
    scale, offset = f32([1, 10], [0.5, 2]), f32([0, 100], [-1, 3])
    values = f32([1, 3, 110, 130], [-0.5, 0.5, 5, 9])
    packed = quantise(values, 2, scale=scale, offset=offset, group=2)
    assert unpack(packed, 8, 2).tolist() == [1, 3, 1, 3, 1, 3, 1, 3]
    assert dequantise(packed, 2, scale=scale, offset=offset, columns=4, group=2).tolist() == values.tolist()
    aligned = quantise(values, 2, scale=scale, offset=offset, group=2, align_rows=True)
    assert aligned.shape == (2, 1)
    assert dequantise(aligned, 2, scale=scale, offset=offset, columns=4, group=2, align_rows=True).tolist() == (
        values.tolist()
    )


def test_one_number_serves_all_groups(bits_engine):
    values = f32([0, 1, 2, 3])
    packed = quantise(values, 2, scale=1.0, offset=f32([0, 0]), group=2)
    assert dequantise(packed, 2, scale=f32([1, 1]), offset=0.0, columns=4, group=2).tolist() == values.tolist()


@pytest.mark.parametrize("group", [1, 2, 3, 16, 32, 48, 64, 128, 192])
@pytest.mark.parametrize("bits", range(1, 9))
def test_groups_equal_rows_of_their_own(bits_engine, bits, group):
    """A matrix in groups is the same bitstream as one whose rows are the groups."""
    rng = np.random.default_rng(bits)
    rows, count = 3, 4
    values = rng.normal(0, 2, (rows, count * group)).astype(np.float32)
    scale = rng.uniform(0.01, 2, (rows, count)).astype(np.float32)
    offset = rng.normal(-1, 1, (rows, count)).astype(np.float32)
    packed = quantise(values, bits, scale=scale, offset=offset, group=group)
    one_by_one = {"scale": scale.reshape(-1), "offset": offset.reshape(-1)}
    assert packed.tobytes() == quantise(values.reshape(-1, group), bits, **one_by_one).tobytes()
    back = dequantise(packed, bits, scale=scale, offset=offset, columns=count * group, group=group)
    assert back.tobytes() == dequantise(packed, bits, columns=group, **one_by_one).tobytes()


@relaxed
@given(data=st.data(), bits=st.integers(1, 8), name=st.sampled_from(sorted(FORMATS)), aligned=st.booleans())
def test_values_equal_the_reference(bits_level, data, bits, name, aligned):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    group = data.draw(st.sampled_from([1, 3, 8, 16, 32, 64, 65, 128, 320]))
    rows, count = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 40))
    columns = group * count
    codes = rng.integers(0, 1 << bits, rows * columns).astype(np.uint8)
    packed = np.stack([pack(row, bits) for row in codes.reshape(rows, -1)]) if aligned else pack(codes, bits)
    scale = np.full((rows, count), data.draw(numbers | st.floats(-(2.0**100), 2.0**100, width=32)), np.float32)
    offset = np.full((rows, count), data.draw(numbers | st.floats(-(2.0**100), 2.0**100, width=32)), np.float32)
    spoilt = rng.random(scale.shape) < 0.5
    scale[spoilt], offset[spoilt] = rng.normal(0, 1, spoilt.sum()), rng.normal(0, 1, spoilt.sum())
    arguments = {"scale": scale, "offset": offset, "columns": columns, "group": group, "align_rows": aligned}
    values = dequantise(packed, bits, dtype=name, **arguments)
    assert values.dtype == FORMATS[name]
    assert values.tobytes() == expected(packed, bits, scale, offset, columns, name, aligned).tobytes()


def test_halves_round_to_even_and_overflow(bits_engine):
    """Halfway between two neighbours, denormal halves, and what no half holds."""
    packed = np.array([1], np.uint8)
    for offset, half in (
        (1 + 2.0**-11, 0x3C00), (1 + 3 * 2.0**-11, 0x3C02), (1 + 2.0**-11 + 2.0**-20, 0x3C01), (65519, 0x7BFF),
        (65520, 0x7C00), (1e30, 0x7C00), (-65520, 0xFC00), (2.0**-24, 1), (2.0**-25, 0), (3 * 2.0**-25, 2),
        (2.0**-14 - 2.0**-26, 0x0400), (-(2.0**-25), 0x8000),
    ):  # fmt: skip
        value = dequantise(packed, 8, scale=0.0, offset=offset, columns=1, dtype="float16")
        assert value.view(np.uint16).tolist() == [[half]], offset
    for offset, upper in (
        (1 + 2.0**-8, 0x3F80),
        (1 + 3 * 2.0**-8, 0x3F82),
        (3.4e38, 0x7F80),
        (1e-40, 1),
        (-2.0, 0xC000),
    ):
        assert dequantise(packed, 8, scale=0.0, offset=offset, columns=1, dtype="bfloat16").tolist() == [[upper]]


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_formats_may_be_named_by_their_type(name):
    given_type = {"float32": np.float32, "float16": np.dtype("float16"), "bfloat16": "bfloat16"}[name]
    assert (
        dequantise(np.zeros(2, np.uint8), 8, scale=1.0, offset=0.0, columns=2, dtype=given_type).dtype == FORMATS[name]
    )


@pytest.mark.parametrize(("name", "bits"), [("float32", 3), ("float16", 7)])
@pytest.mark.parametrize("start", [0, 5])
def test_large_outputs_equal_small_ones(bits_level, name, bits, start):
    """What is larger than the caches is written by other ways: one if it begins with a cache line, one if not."""
    from edgekernels import _bits

    dtype = np.dtype(FORMATS[name])
    columns, group = 4160, 64
    rows = min(_bits.cache_bytes(), 64 << 20) // (columns * dtype.itemsize) + 8  # all levels but those of x86: one way
    rng = np.random.default_rng(start)
    packed = rng.integers(0, 256, packed_bytes(rows * columns, bits), np.uint8)
    scale = rng.normal(0, 1, (rows, columns // group)).astype(np.float32)
    frame = _bits_checks.aligned((rows * columns + 16,), dtype)
    frame[:] = 0
    out = frame[start : start + rows * columns].reshape(rows, columns)
    settings = {"columns": columns, "group": group, "dtype": name}
    dequantise(packed, bits, scale=scale, offset=scale, out=out, **settings)
    step = rows // 7
    step_bytes = step * columns * bits // 8
    for i in range(7):
        part = packed[i * step_bytes : (i + 1) * step_bytes]
        some = scale[i * step : (i + 1) * step]
        whole = dequantise(part, bits, scale=some, offset=some, **settings)
        assert np.array_equal(whole.view(np.uint8), out[i * step : (i + 1) * step].view(np.uint8))
    assert not frame[:start].any()
    assert not frame[start + rows * columns :].any()


def settings_of(**changed):
    return {"scale": 1.0, "offset": 0.0} | changed


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "group is 3; pass a divisor of the 4 columns",
         lambda: quantise(f32([1, 2, 3, 4]), 4, group=3, **settings_of())),
        (ValueError, "group is 8; pass a divisor of the 4 columns",
         lambda: dequantise(np.zeros(2, np.uint8), 4, columns=4, group=8, **settings_of())),
        (ValueError, r"group is 0; pass 1 \.\.", lambda: quantise(f32([1, 2]), 4, group=0, **settings_of())),
        (ValueError, r"group is -2; pass 1 \.\.", lambda: quantise(f32([1, 2]), 4, group=-2, **settings_of())),
        (TypeError, r"group is 2\.0; pass an integer", lambda: quantise(f32([1, 2]), 4, group=2.0, **settings_of())),
        (ValueError, r"scale has shape \(1,\); pass 2 dim",
         lambda: quantise(f32([1, 2]), 4, group=1, **settings_of(scale=f32(1)))),
        (ValueError, r"scale has shape \(1, 1\); pass a number or shape \(1, 2\)",
         lambda: quantise(f32([1, 2]), 4, group=1, **settings_of(scale=f32([1])))),
        (ValueError, r"offset has strides", lambda: quantise(f32([1, 2]), 4, group=1, **settings_of(
            offset=np.zeros((1, 4), np.float32)[:, ::2]))),
        (ValueError, r"scale\[0, 1\] is nan; pass finite float32 numbers, 0 or more",
         lambda: quantise(f32([1, 2]), 4, group=1, **settings_of(scale=f32([1, np.nan])))),
        (ValueError, r"offset\[0, 0\] is inf", lambda: dequantise(
            np.zeros(1, np.uint8), 4, columns=2, group=1, **settings_of(offset=f32([np.inf, 0])))),
        (ValueError, "dtype is 'float64'; pass one of 'float32', 'float16', 'bfloat16'",
         lambda: dequantise(np.zeros(1, np.uint8), 4, columns=2, dtype="float64", **settings_of())),
        (ValueError, "dtype is 'int8'", lambda: dequantise(
            np.zeros(1, np.uint8), 4, columns=2, dtype=np.int8, **settings_of())),
        (TypeError, "dtype is 7; pass one of", lambda: dequantise(
            np.zeros(1, np.uint8), 4, columns=2, dtype=7, **settings_of())),
        (TypeError, r"out is float32; pass numpy\.asarray\(out, numpy\.float16\)", lambda: dequantise(
            np.zeros(1, np.uint8), 4, columns=2, dtype="float16", out=np.zeros((1, 2), np.float32), **settings_of())),
        (ValueError, r"num_codes is 1152921504606846976; pass 0 \.\.", lambda: dequantise(
            np.zeros(1, np.uint8), 4, columns=1 << 58, scale=np.ones(4, np.float32), offset=0.0)),
        (ValueError, r"columns is 1208925819614629174706176; pass 1 \.\.", lambda: dequantise(
            np.zeros(1, np.uint8), 4, columns=1 << 80, **settings_of())),
        (ValueError, r"packed has shape \(1,\); pass \(288230376151711744,\)", lambda: dequantise(
            np.zeros(1, np.uint8), 4, columns=1 << 59, scale=np.ones(1, np.float32), offset=0.0)),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(error, message, call):
    with pytest.raises(error, match=message):
        call()
