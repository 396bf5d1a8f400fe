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

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
BLOCK, LEAST_SIEVED = 32, 2048


class Front(NamedTuple):
    """The patterns of some tensors that no other pattern beats in both bytes and noise; (n,) each.

    Attributes:
        num_bytes: ascending strictly.
        psi: summed noise, descending strictly.
        parent: position on the front of one tensor less.
        width: which width the last tensor has, an index.
    """

    num_bytes: Ints
    psi: Floats
    parent: NDArray[np.int32]
    width: NDArray[np.int8]

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
    return Front(np.zeros(1, np.int64), np.zeros(1), np.zeros(1, np.int32), np.zeros(1, np.int8))


def extend(front: Front, num_bytes: Sequence[int], psi: Sequence[float], most_psi: float = inf) -> Front:
    """The front with one tensor more.

    Args:
        front: of the tensors before; n points.
        num_bytes: of the new tensor at each width.
        psi: its noise at each width.
        most_psi: noisier points are left out, but for the quietest: noise only ever grows.

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
    order = order[last_of_equals]
    return Front(
        sorted_bytes[last_of_equals],
        sorted_psi[last_of_equals],
        parent[order].astype(np.int32),
        np.array(widths, np.int8)[row[order]],
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
    """The fronts of every prefix of a list of tensors.

    Args:
        num_bytes: (tensors, widths) costs.
        psi: (tensors, widths) noise.
        known: fronts of the first prefixes, if they are known already.
        most_psi: points with more noise are left out, but for the quietest of each front.
    """

    def __init__(
        self,
        num_bytes: Sequence[Sequence[int]],
        psi: Sequence[Sequence[float]],
        known: Sequence[Front] = (),
        most_psi: float = inf,
    ) -> None:
        self.fronts = list(known) or [start()]
        for k in range(len(self.fronts) - 1, len(psi)):
            self.fronts.append(extend(self.fronts[-1], num_bytes[k], psi[k], most_psi))

    def widths(self, num_tensors: int, position: int) -> list[int]:
        """Width index of each of the first tensors at a point of their front."""
        widths = []
        for front in reversed(self.fronts[1 : num_tensors + 1]):
            widths.append(int(front.width[position]))
            position = int(front.parent[position])
        return widths[::-1]

    def summed(self, values: Sequence[Sequence[int]]) -> list[Ints]:
        """For every front and every point on it: the sum of another (tensors, widths) table over its pattern."""
        sums = [np.zeros(1, np.int64)]
        for front, row in zip(self.fronts[1:], values, strict=False):  # the fronts may stop before the tensors do
            sums.append(sums[-1][front.parent] + np.array(row, np.int64)[front.width])
        return sums
