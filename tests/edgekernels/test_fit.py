"""Fitting scales and offsets: by hand, against the reference, and against searching everywhere."""

import numpy as np
import pytest
from edgekernels import _bits_reference, dequantise, fit, quantise
from edgekernels._bits_backend import GRIDS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

relaxed = settings(
    deadline=None,
    max_examples=40,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def f32(*rows):
    return np.array(rows, np.float32)


def error_of(values, bits, scales, group=None):
    packed = quantise(values, bits, group=group, **scales._asdict())
    back = dequantise(packed, bits, columns=values.shape[1], group=group, **scales._asdict())
    return np.square(back - values, dtype=np.float64).sum()


@pytest.mark.parametrize(
    ("bits", "grid", "scale", "offset"),
    [
        (2, "asymmetric", 5 / 3, -1),
        (8, "asymmetric", 5 / 255, -1),
        (1, "asymmetric", 5, -1),
        (3, "symmetric", 4 / 3, -16 / 3),
        (1, "symmetric", 4, -4),
        (2, "even", 4 / 1.5, -4),
        (1, "even", 8, -4),
    ],
)
def test_ranges_by_hand(bits_engine, bits, grid, scale, offset):
    found = fit(f32([-1, 4, 0, 2]), bits, grid=grid, clip="range")
    assert found.scale.tolist() == [np.float32(scale)]
    assert found.offset.tolist() == pytest.approx([offset], rel=1e-6)


def test_equal_values_have_no_scale(bits_engine):
    for clip in ("mse", "range"):
        assert [part.tolist() for part in fit(f32([3, 3, 3]), 4, clip=clip)] == [[0], [3]]
        for grid in GRIDS:
            assert [part.tolist() for part in fit(f32([0, 0]), 4, clip=clip, grid=grid)] == [[0], [0]]


def test_shapes_follow_rows_and_groups(bits_engine):
    values = f32([1, 2, 3, 5], [1, 1, 9, 10])
    assert fit(values, 1, clip="range").scale.tolist() == [4, 9]
    groups = fit(values, 1, group=2, clip="range")
    assert groups.scale.tolist() == [[1, 2], [0, 1]]
    assert groups.offset.tolist() == [[1, 3], [1, 9]]
    empty = fit(np.empty((0, 6), np.float32), 4, group=3)
    assert empty.scale.shape == empty.offset.shape == (0, 2)


def test_an_outlier_is_clipped(bits_engine):
    """1,000 values of size 1 and a single one of 12: at 2 bits no grid that reaches it is worth having."""
    values = np.random.default_rng(0).standard_normal((1, 1001), np.float32)
    values[0, 500] = 12
    whole, best = fit(values, 2, clip="range"), fit(values, 2)
    assert whole.scale[0] == pytest.approx((12 - values.min()) / 3)
    assert best.scale[0] < whole.scale[0] / 2
    assert error_of(values, 2, best) < 0.5 * error_of(values, 2, whole)


def test_values_above_0_keep_their_lower_end(bits_engine):
    values = np.maximum(np.random.default_rng(1).standard_normal((4, 512), np.float32), 0)
    found = fit(values, 3)
    assert (np.abs(found.offset) < 0.3 * found.scale).all()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_no_other_range_is_much_better(bits, grid):
    """All ranges on a grid of 64 x 64 ends, with the quantiser that ships."""
    rng = np.random.default_rng(bits)
    for values in (rng.standard_normal((1, 256), np.float32), rng.gamma(1, 1, (1, 256)).astype(np.float32)):
        low, high = values.min(), values.max()
        reach = max(-low, high)
        errors = []
        for i in range(64):
            for j in range(64) if grid == "asymmetric" else [0]:
                if grid == "asymmetric":
                    ends = low + (high - low) * i / 128, high - (high - low) * j / 128
                    scale, offset = (ends[1] - ends[0]) / (2**bits - 1), ends[0]
                else:
                    codes = 2 ** (bits - 1) - 1 if grid == "symmetric" else (2**bits - 1) / 2
                    scale = reach * (1 - i / 64) / codes
                    offset = -scale * (2 ** (bits - 1) if grid == "symmetric" else codes)
                codes = np.clip(np.rint((values - offset) / scale), 0, 2**bits - 1)
                errors.append(np.square(codes * scale + offset - values).sum())
        assert error_of(values, bits, fit(values, bits, grid=grid)) < 1.05 * min(errors)


@relaxed
@given(
    data=st.data(),
    bits=st.integers(1, 8),
    grid=st.integers(0, 2),
    searched=st.booleans(),
    columns=st.integers(1, 90) | st.sampled_from([128, 256, 4096, 4097, 9000]),
)
def test_fit_equals_the_reference(bits_level, data, bits, grid, searched, columns):
    from edgekernels import _bits

    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    size = data.draw(st.sampled_from([1e-45, 1e-38, 1e-30, 1e-4, 1.0, 1e30]))
    values = (rng.standard_normal((4, columns)) * size).astype(np.float32)
    values[1] = np.abs(values[1])
    values[2] = np.round(values[2] / np.float32(size)) * np.float32(size)
    found, wanted = np.zeros((2, 2, 4), np.float32)
    for fitter, (scale, offset) in ((_bits.fit, found), (_bits_reference.fit, wanted)):
        assert fitter(values, bits, grid=grid, search=searched, scale=scale, offset=offset) == -1
    assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf, 1e38, -1e38])
def test_bad_numbers_are_named(bits_engine, bad):
    values = np.ones((3, 8), np.float32)
    values[1, 6] = bad
    for group in (None, 4):
        with pytest.raises(ValueError, match=r"values\[1, 6\] is .*; pass finite numbers up to 2\*\*126"):
            fit(values, 4, group=group)


def test_largest_numbers_are_fitted(bits_engine):
    values = f32([-(2.0**126), 2.0**126, 0, 2.0**125])
    for grid in GRIDS:
        for bits in (1, 4, 8):
            found = fit(values, bits, grid=grid)
            assert np.isfinite(found.scale).all()
            assert np.isfinite(found.offset).all()


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "values is float64", lambda: fit(np.ones((1, 4)), 4)),
        (ValueError, r"values has shape \(4,\); pass 2 dim", lambda: fit(np.ones(4, np.float32), 4)),
        (ValueError, r"values has shape \(2, 0\); pass at least one", lambda: fit(np.ones((2, 0), np.float32), 4)),
        (ValueError, "values has strides", lambda: fit(np.ones((2, 4), np.float32)[:, ::2], 4)),
        (ValueError, r"bits is 0; pass 1 \.\. 8", lambda: fit(f32([1, 2]), 0)),
        (ValueError, "group is 3; pass a divisor of the 2 columns", lambda: fit(f32([1, 2]), 4, group=3)),
        (ValueError, "grid is 'odd'; pass one of 'asymmetric', 'symmetric', 'even'",
         lambda: fit(f32([1, 2]), 4, grid="odd")),
        (ValueError, "clip is 'none'; pass one of 'range', 'mse'", lambda: fit(f32([1, 2]), 4, clip="none")),
        (TypeError, "clip is None; pass one of", lambda: fit(f32([1, 2]), 4, clip=None)),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(error, message, call):
    with pytest.raises(error, match=message):
        call()
