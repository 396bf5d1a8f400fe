"""Fronts that are extended by what a sieve lets through, against all points of all widths."""

from math import inf

import numpy as np
import pytest

from qpart.fronts import LEAST_SIEVED, Front, extend, start


def by_definition(front, num_bytes, psi, most_psi):
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
    return [p for p in kept if p[1] <= most_psi] or kept[-1:]


def random_front(rng, size, whole):
    num_bytes = np.cumsum(rng.integers(1, 40, size))
    psi = np.sort(np.unique(rng.integers(1, 40 * size, 2 * size) if whole else rng.lognormal(0, 2, size)))[::-1]
    size = min(len(psi), size)
    return Front(num_bytes[:size], psi[:size].astype(float), np.zeros(size, np.int32), np.zeros(size, np.int8))


@pytest.mark.parametrize("size", [1, 31, 32, 33, 255, LEAST_SIEVED // 4, 1000, 1024])
@pytest.mark.parametrize("whole", [True, False])
def test_a_front_is_that_of_all_points(size, whole):
    rng = np.random.default_rng(size)
    for _ in range(6):
        front, spread = random_front(rng, size, whole), 30 * size // 8 + 8
        num_bytes = [int(n) for n in rng.integers(0, spread, 8)]
        psi = [float(n) for n in (rng.integers(0, 20 * size, 8) if whole else rng.lognormal(0, 2, 8))]
        for most_psi in (inf, float(np.median(front.psi)) + min(psi), 0.0):
            found = extend(front, num_bytes, psi, most_psi)
            points = zip(found.num_bytes, found.psi, found.parent, found.width, strict=True)
            expected = by_definition(front, num_bytes, psi, most_psi)
            assert [(int(b), float(p), int(q), int(w)) for b, p, q, w in points] == [(*e[:2], *e[3:]) for e in expected]


def test_bytes_that_leave_no_room_for_positions_are_sorted_all_the_same():
    front = start()
    for _ in range(4):
        front = extend(front, [1 << 60, 1 << 59, 3, 7], [0.0, 1.0, 9.0, 4.0])
    assert (np.diff(front.num_bytes) > 0).all()
    assert (np.diff(front.psi) < 0).all()
    assert front.psi[0] == 36.0
    assert front.psi[-1] == 0.0
