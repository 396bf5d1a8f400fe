"""Pareto fronts over (bytes, noise) of a list of tensors, extended one tensor at a time.

Pure: numpy only. Noise is summed from the first tensor to the last. Rounded addition never reverses an order, so
what is dropped as dominated stays dominated however the sum goes on: the fronts are exact in floating point too.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

try:
    from qpart import _fronts
except ImportError:  # no compiler was there
    _fronts = None  # type: ignore[assignment]
compiled = _fronts

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
BLOCK, LEAST_SIEVED, WIDTH_BITS = 32, 2048, 3
WIDTH_MASK = (1 << WIDTH_BITS) - 1
NO_LIMIT = int(np.iinfo(np.int64).max)
_MOST_BYTES = 1 << 58  # of a pattern, where fronts are merged by machine words that hold a width too


class Front(NamedTuple):
    """The patterns of some tensors that no other pattern beats in both bytes and noise; (n,) each.

    Attributes:
        num_bytes: ascending strictly.
        psi: summed noise, descending strictly.
        steps: where each goes on from, and which width the last tensor has, an index in the lowest three bits. The
            position is that on the front of one tensor less, or in a `Chain` that among the points of all its fronts.
    """

    num_bytes: Ints
    psi: Floats
    steps: Ints

    def first_within(self, extra: Floats, budget: float) -> Ints:
        """Position of the cheapest point with psi + extra <= budget, len(front) if there is none.

        Args:
            extra: (m,) noise that comes on top.
            budget: compared with the rounded sum, so there is no tolerance.

        Returns:
            (m,) positions.
        """
        psi = self.psi
        size = len(psi)
        first = size - np.searchsorted(psi[::-1], budget - extra, side="right")
        fits = np.where(first < size, psi[np.minimum(first, size - 1)] + extra, -np.inf) <= budget
        one_less = np.where(first > 0, psi[np.maximum(first - 1, 0)] + extra, np.inf) <= budget
        for k in np.flatnonzero(~fits | one_less).tolist():  # budget - extra was rounded across a point
            first[k] = bisect_left((psi + extra[k] <= budget).tolist(), True)
        return first


def start() -> Front:
    """The front of no tensors: one pattern, no bytes, no noise."""
    return Front(np.zeros(1, np.int64), np.zeros(1), np.zeros(1, np.int64))


def extend(
    front: Front,
    num_bytes: Sequence[int],
    psi: Sequence[float],
    most_psi: float = inf,
    most_bytes: int = NO_LIMIT,
    base: int = 0,
) -> Front:
    """The front with one tensor more.

    Args:
        front: of the tensors before; n points.
        num_bytes: of the new tensor at each width.
        psi: its noise at each width.
        most_psi: noisier points are left out, but for the quietest: noise only ever grows.
        most_bytes: so are points with more bytes; the quietest stays where nothing else is left.
        base: position of the front's first point.

    Returns:
        At most n times widths points. Of two equal ones the smaller width stays, then the earlier parent.
    """
    widths = _useful_widths(num_bytes, psi)
    more_bytes, more_psi = np.array([num_bytes[w] for w in widths], np.int64), np.array([psi[w] for w in widths])
    row, parent = _candidates(front, more_bytes, more_psi, most_psi)
    all_psi = front.psi[parent] + more_psi[row]
    order, num_bytes_kept = _by_bytes(front.num_bytes[parent] + more_bytes[row])
    sorted_psi = all_psi[order]
    kept = np.empty(len(order), np.bool_)
    kept[0] = True
    np.less(sorted_psi[1:], np.minimum.accumulate(sorted_psi)[:-1], out=kept[1:])
    order, sorted_bytes, sorted_psi = order[kept], num_bytes_kept[kept], sorted_psi[kept]
    first = len(order) - max(int(sorted_psi[::-1].searchsorted(most_psi, side="right")), 1)
    last_of_equals = np.empty(len(order), np.bool_)
    last_of_equals[-1] = True
    np.less(sorted_bytes[:-1], sorted_bytes[1:], out=last_of_equals[:-1])
    last_of_equals[:first] = False
    within = last_of_equals & (sorted_bytes <= most_bytes)
    if within.any():
        last_of_equals = within
    else:
        last_of_equals[:-1] = False
    order = order[last_of_equals]
    return Front(
        sorted_bytes[last_of_equals],
        sorted_psi[last_of_equals],
        ((base + parent[order]) << WIDTH_BITS) | np.array(widths, np.int64)[row[order]],
    )


def _candidates(front: Front, more_bytes: Ints, more_psi: Floats, most_psi: float) -> tuple[Ints, Ints]:
    """Pairs of a width and a point that may be on the next front, ordered by both: all that are, and few others.

    Looked at by blocks of points. A block is left out where the last point of any block loads less than its first one
    and makes no more noise than its last one: then each of its points is beaten. So it is where all are too noisy.

    Args:
        front: n points.
        more_bytes, more_psi: (widths,) of the new tensor.
        most_psi: noisier ones are left out, unless all are.

    Returns:
        (candidates,) positions of widths, (candidates,) positions on the front.
    """
    size, num_widths = len(front.psi), len(more_psi)
    if size * num_widths < LEAST_SIEVED:
        return np.arange(num_widths).repeat(size), np.tile(np.arange(size), num_widths)
    last = np.arange(BLOCK - 1, size + BLOCK - 1, BLOCK)
    last[-1] = size - 1
    begins = front.num_bytes[::BLOCK] + more_bytes[:, None]
    ends, quietest = front.num_bytes[last] + more_bytes[:, None], front.psi[last] + more_psi[:, None]
    order, sorted_ends = _by_bytes(ends.ravel())
    least = np.minimum.accumulate(quietest.ravel()[order])
    num_less = sorted_ends.searchsorted(begins)
    kept = (least[num_less - 1] > quietest) | (num_less == 0)
    quiet_enough = quietest <= most_psi
    if quiet_enough.any():
        kept &= quiet_enough
    row, block = np.nonzero(kept)
    parent = (block[:, None] * BLOCK + np.arange(BLOCK)).ravel()
    row = row.repeat(BLOCK)
    if size % BLOCK:
        there = parent < size
        row, parent = row[there], parent[there]
    return row, parent


def _by_bytes(num_bytes: Ints) -> tuple[Ints, Ints]:
    """The order of ascending bytes, equal ones as they stand, and the bytes in it.

    Sorted are numbers that end in their positions, if there is room: four times as fast as an indirect sort.
    """
    bits = len(num_bytes).bit_length()
    if int(num_bytes.max()) >> (63 - bits):
        order = np.argsort(num_bytes, kind="stable")
        return order, num_bytes[order]
    keys = (num_bytes << bits) | np.arange(len(num_bytes))
    keys.sort()
    return keys & ((1 << bits) - 1), keys >> bits


def _useful_widths(num_bytes: Sequence[int], psi: Sequence[float]) -> list[int]:
    """Widths that no other width of the tensor beats, in ascending bytes."""
    useful: list[int] = []
    for width in sorted(range(len(psi)), key=lambda w: (num_bytes[w], psi[w], w)):
        if not useful or psi[width] < psi[useful[-1]]:
            useful.append(width)
    return useful


class Chain:
    """The fronts of every prefix of a list of tensors, end to end.

    Args:
        num_bytes: (tensors, widths) costs.
        psi: (tensors, widths) noise.
        known: a chain of the first tensors and perhaps others, where their costs are those here over `scale`.
        num_known: how many tensors are known.
        scale: see `known`.
        most_psi: points with more noise are left out, but for the quietest of each front; known ones stay.
        most_bytes: (tensors,) most bytes of the first so many, if there is such a limit; likewise.

    Attributes:
        num_bytes, psi, steps: (points,) of all fronts; see `Front`.
        starts: (fronts + 1,) position of the first point of each front, and how many points there are.
    """

    def __init__(
        self,
        num_bytes: Sequence[Sequence[int]],
        psi: Sequence[Sequence[float]],
        *,
        known: Chain | None = None,
        num_known: int = 0,
        scale: int = 1,
        most_psi: float = inf,
        most_bytes: Sequence[int] | None = None,
    ) -> None:
        points, sizes = start(), [1]
        if known is not None:
            sizes = np.diff(known.starts[: num_known + 2]).tolist()
            end = int(known.starts[num_known + 1])
            points = Front(scale * known.num_bytes[:end], known.psi[:end], known.steps[:end])
        more_bytes, more_psi = num_bytes[num_known:], psi[num_known:]
        few_enough = int(points.num_bytes.max()) + sum(max(row) for row in more_bytes) < _MOST_BYTES
        most = [NO_LIMIT] * len(more_bytes) if most_bytes is None else most_bytes[num_known:]
        go_on = _merged if compiled is not None and few_enough else _extended
        points, sizes = go_on(points, sizes, more_bytes, more_psi, most_psi, most)
        self.num_bytes: Ints = points.num_bytes
        self.psi: Floats = points.psi
        self.steps: Ints = points.steps
        self.starts: Ints = np.concatenate([[0], np.cumsum(sizes)], dtype=np.int64)

    def front(self, num_tensors: int) -> Front:
        """That of the first tensors."""
        first, end = self.starts[num_tensors], self.starts[num_tensors + 1]
        return Front(self.num_bytes[first:end], self.psi[first:end], self.steps[first:end])

    @property
    def last(self) -> Front:
        """The front of all tensors."""
        return self.front(len(self.starts) - 2)

    def widths(self, num_tensors: int, position: int) -> list[int]:
        """Width index of each of the first tensors at a point of their front."""
        widths, at = [], int(self.starts[num_tensors]) + position
        for _ in range(num_tensors):
            step = int(self.steps[at])
            widths.append(step & WIDTH_MASK)
            at = step >> WIDTH_BITS
        return widths[::-1]

    def summed(self, values: Sequence[Sequence[int]]) -> Ints:
        """(points,) the sum of another (tensors, widths) table over every point's pattern."""
        if compiled is not None and len(self.starts) > 2:
            return compiled.summed(self.steps, self.starts, np.array(values, np.int64))
        sums = np.zeros(len(self.psi), np.int64)
        for k in range(1, len(self.starts) - 1):  # the fronts may stop before the tensors do
            here = slice(self.starts[k], self.starts[k + 1])
            steps = self.steps[here]
            sums[here] = sums[steps >> WIDTH_BITS] + np.array(values[k - 1], np.int64)[steps & WIDTH_MASK]
        return sums


def _extended(
    points: Front,
    sizes: list[int],
    num_bytes: Sequence[Sequence[int]],
    psi: Sequence[Sequence[float]],
    most_psi: float,
    most_bytes: Sequence[int],
) -> tuple[Front, list[int]]:
    """Fronts of more tensors behind those that are there, one after the other."""
    base = len(points.psi) - sizes[-1]
    fronts = [Front(points.num_bytes[base:], points.psi[base:], points.steps[base:])]
    for row, noise, most in zip(num_bytes, psi, most_bytes, strict=True):
        fronts.append(extend(fronts[-1], row, noise, most_psi, most, base))
        base += len(fronts[-2].psi)
    parts = [points, *fronts[1:]]
    joined = Front(
        np.concatenate([part.num_bytes for part in parts]), np.concatenate([part.psi for part in parts]),
        np.concatenate([part.steps for part in parts]),
    )  # fmt: skip
    return joined, [*sizes, *(len(front.psi) for front in fronts[1:])]


def _merged(
    points: Front,
    sizes: list[int],
    num_bytes: Sequence[Sequence[int]],
    psi: Sequence[Sequence[float]],
    most_psi: float,
    most_bytes: Sequence[int],
) -> tuple[Front, list[int]]:
    """The same by the compiled merge, in a tenth of the time."""
    useful = [_useful_widths(row, noise) for row, noise in zip(num_bytes, psi, strict=True)]
    if not useful:
        return points, sizes
    filled = np.array([widths + [0] * (WIDTH_MASK + 1 - len(widths)) for widths in useful], np.int64)
    rows = np.arange(len(useful))[:, None]
    joined_bytes, joined_psi, steps, counts = compiled.extended(
        *points, sizes, np.array(num_bytes, np.int64)[rows, filled], np.array(psi, float)[rows, filled], filled,
        np.array([len(widths) for widths in useful], np.int64), most_psi, np.array(most_bytes, np.int64),
    )  # fmt: skip
    return Front(joined_bytes, joined_psi, steps), counts
