"""Fronts that are extended by what a sieve lets through, against all points of all widths."""

from math import inf

import numpy as np
import pytest

from qpart import fronts
from qpart.fronts import LEAST_SIEVED, NO_LIMIT, Chain, Front, extend, start


def by_definition(front, num_bytes, psi, most_psi, most_bytes=NO_LIMIT):
    """Every width with every point, by bytes and noise; of equal ones the smaller width, then the earlier parent."""
    widths = sorted(range(len(psi)), key=lambda w: (num_bytes[w], psi[w], w))
    points = [
        (int(b) + num_bytes[w], float(p + psi[w]), rank, parent, w)
        for rank, w in enumerate(widths)
        for parent, (b, p) in enumerate(zip(front.num_bytes, front.psi, strict=True))
    ]
    kept = []
    for point in sorted(points):
        if not kept or point[1] < kept[-1][1]:
            kept.append(point)
    return [p for p in kept if p[1] <= most_psi and p[0] <= most_bytes] or kept[-1:]


def random_front(rng, size, whole):
    num_bytes = np.cumsum(rng.integers(1, 40, size))
    psi = np.sort(np.unique(rng.integers(1, 40 * size, 2 * size) if whole else rng.lognormal(0, 2, size)))[::-1]
    size = min(len(psi), size)
    return Front(num_bytes[:size], psi[:size].astype(float), np.zeros(size, np.int64))


@pytest.mark.parametrize("size", [1, 31, 32, 33, 255, LEAST_SIEVED // 4, 1000, 1024])
@pytest.mark.parametrize("whole", [True, False])
def test_a_front_is_that_of_all_points(size, whole):
    rng = np.random.default_rng(size)
    for _ in range(6):
        front, spread = random_front(rng, size, whole), 30 * size // 8 + 8
        num_bytes = [int(n) for n in rng.integers(0, spread, 8)]
        psi = [float(n) for n in (rng.integers(0, 20 * size, 8) if whole else rng.lognormal(0, 2, 8))]
        for most_psi in (inf, float(np.median(front.psi)) + min(psi), 0.0):
            for most_bytes in (NO_LIMIT, int(np.median(front.num_bytes)) + min(num_bytes), 0):
                found = extend(front, num_bytes, psi, most_psi, most_bytes, 100)
                expected = by_definition(front, num_bytes, psi, most_psi, most_bytes)
                assert [*zip(*(column.tolist() for column in found), strict=True)] == [
                    (b, p, (100 + parent) << 3 | width) for b, p, _, parent, width in expected
                ]


@pytest.mark.native
@pytest.mark.parametrize("seed", range(40))
def test_merged_fronts_are_the_extended_ones(seed, monkeypatch):
    """Numbers that are often equal, rows that fall and rows that rise, limits that bind or leave nothing."""
    rng, tensors = np.random.default_rng(seed), 7
    spread = int(rng.choice([6, 300, 10**6]))
    num_bytes = rng.integers(1, spread, (tensors, 8)).tolist()
    psi = (rng.integers(0, 30, (tensors, 8)) if seed % 2 else rng.lognormal(0, 2, (tensors, 8))).astype(float).tolist()
    whole = Chain(num_bytes, psi)
    for most_psi in (inf, *np.quantile(whole.last.psi, (0.0, 0.2, 0.9)).tolist(), -1.0):
        for most in (
            None,
            np.quantile(whole.last.num_bytes, np.linspace(0.01, rng.uniform(0, 1), tensors)).astype(int),
        ):
            asked = {"most_psi": most_psi, "most_bytes": None if most is None else most.tolist()}
            found, onward = Chain(num_bytes, psi, **asked), Chain(num_bytes, psi, known=whole, num_known=3, **asked)
            assert fronts.compiled is not None
            with monkeypatch.context() as patched:
                patched.setattr(fronts, "compiled", None)
                for one, more in ((found, {}), (onward, {"known": whole, "num_known": 3})):
                    other = Chain(num_bytes, psi, **asked, **more)
                    for column in ("num_bytes", "psi", "steps", "starts"):
                        np.testing.assert_array_equal(getattr(one, column), getattr(other, column))
                    sums = other.summed(num_bytes)
                    np.testing.assert_array_equal(sums, other.num_bytes)
            np.testing.assert_array_equal(onward.summed(num_bytes), onward.num_bytes)


@pytest.mark.native
@pytest.mark.parametrize("quietest", [1e308, 5e307, 0.0])
@pytest.mark.parametrize("most_psi", [inf, 1.5e308])
def test_noise_beyond_float64_is_merged_as_it_is_extended(quietest, most_psi, monkeypatch):
    """Each finite, together infinite: the cheapest pattern stays the first point, and steps lead to its parent."""
    num_bytes, psi = [list(range(1, 9))] * 3, [[1e308] * 7 + [quietest]] * 3
    found = Chain(num_bytes, psi, most_psi=most_psi)
    assert fronts.compiled is not None
    monkeypatch.setattr(fronts, "compiled", None)
    with np.errstate(over="ignore"):
        expected = Chain(num_bytes, psi, most_psi=most_psi)
    for column in ("num_bytes", "psi", "steps", "starts"):
        np.testing.assert_array_equal(getattr(found, column), getattr(expected, column))
    assert [len(found.widths(n, 0)) for n in range(4)] == [0, 1, 2, 3]


def test_bytes_that_leave_no_room_for_positions_are_sorted_all_the_same():
    front = start()
    for _ in range(4):
        front = extend(front, [1 << 60, 1 << 59, 3, 7], [0.0, 1.0, 9.0, 4.0])
    chain = Chain([[1 << 60, 1 << 59, 3, 7]] * 4, [[0.0, 1.0, 9.0, 4.0]] * 4)
    np.testing.assert_array_equal(chain.last.num_bytes, front.num_bytes)
    assert (np.diff(front.num_bytes) > 0).all()
    assert (np.diff(front.psi) < 0).all()
    assert front.psi[0] == 36.0
    assert front.psi[-1] == 0.0
