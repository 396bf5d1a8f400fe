"""Nested codes: the grid's arithmetic, and that one chain is as good as codes of their own at 3 to 8 bits."""

import numpy as np
import pytest

from qpart.nesting import BENDS, NESTED, grid, nest


def errors(rows):
    """Squared error of a chain at each width."""
    chain = nest(rows)
    found = []
    for bits, gain in zip(NESTED, chain.gain, strict=True):
        factor = chain.scale.astype(np.float32) * np.float32(gain)
        found.append(np.square(grid(chain.bend, bits)[chain.codes >> (8 - bits)] * factor[:, None] - rows).sum())
    return np.array(found)


def errors_apart(rows):
    """The least squared error of uniform codes of each width alone, their range searched channel by channel."""
    found = []
    most = np.abs(rows).max(axis=1, keepdims=True)
    for bits in NESTED:
        tops = (2 ** (bits - 1) - 1, 2 ** (bits - 1) - 0.5)  # with a zero, and without
        of_grids = []
        for top in tops:
            least = np.full(len(rows), np.inf)
            for share in np.geomspace(0.2, 1.0, 28):
                step = share * most / top
                low = -step * (top + 1 if top == int(top) else top)
                codes = np.clip(np.rint((rows - low) / step), 0, 2**bits - 1)
                least = np.minimum(least, np.square(codes * step + low - rows).sum(axis=1))
            of_grids.append(least.sum())
        found.append(min(of_grids))
    return np.array(found)


@pytest.mark.parametrize("bend", [*BENDS, 1, 7])
def test_grids_ascend_lie_evenly_around_zero_and_refine_each_other(bend):
    for bits in NESTED:
        values = grid(bend, bits)
        assert (np.diff(values) > 0).all()
        assert np.array_equal(values, -values[::-1])
        u = (2 * np.arange(2**bits) + 1) / 2**bits - 1
        assert np.array_equal(values, ((16 - bend) / 16 * u + bend / 16 * u**3).astype(np.float32))
        if bits < 8:
            finer = grid(bend, bits + 1)
            assert (finer[::2] < values).all()
            assert (values < finer[1::2]).all()


@pytest.mark.parametrize(
    ("draw", "columns", "most"),
    [("normal", 800, 1.12), ("laplace", 800, 1.02), ("normal", 144, 1.08), ("laplace", 144, 0.85)],
)
def test_a_chain_is_as_good_as_codes_of_their_own_from_three_bits_on(draw, columns, most):
    rows = getattr(np.random.default_rng(0), draw)(0, 0.1, (32, columns)).astype(np.float32)
    ratio = errors(rows) / errors_apart(rows)
    assert ratio[0] < 1.3
    assert (ratio[1:] < most).all()
    assert ratio[2:6].max() < 1.0  # 4 to 7 bits: better


def test_rare_large_weights_do_not_spoil_few_bits_and_are_not_lost_at_many():
    rows = np.random.default_rng(0).normal(0, 0.1, (8, 600)).astype(np.float32)
    rows[:, 17] = 1.0
    found = errors(rows)
    assert found[1] < 0.1 * np.square(rows).sum()
    assert found[-1] < 1e-3 * found[1]


def test_a_weight_of_zeros_or_of_nothing_has_a_chain():
    for rows in (np.zeros((2, 3), np.float32), np.zeros((2, 0), np.float32)):
        chain = nest(rows)
        assert not chain.scale.any()
        assert np.isfinite(chain.gain).all()


def test_the_same_weight_has_the_same_chain():
    rows = np.random.default_rng(0).normal(0, 0.1, (8, 600)).astype(np.float32)
    one, other = nest(rows), nest(rows.copy())
    assert one.bend == other.bend
    for left, right in zip(one[1:], other[1:], strict=True):
        assert np.array_equal(left, right)
