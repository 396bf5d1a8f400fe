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


def extend(front: Front, num_bytes: Sequence[int], psi: Sequence[float]) -> Front:
    """The front with one tensor more.

    Args:
        front: of the tensors before; n points.
        num_bytes: of the new tensor at each width.
        psi: its noise at each width.

    Returns:
        At most n times widths points. Of two equal ones the smaller width stays, then the earlier parent.
    """
    size = len(front.psi)
    widths = _useful_widths(num_bytes, psi)
    all_bytes = (np.array([num_bytes[w] for w in widths], np.int64)[:, None] + front.num_bytes).ravel()
    all_psi = (front.psi + np.array([psi[w] for w in widths])[:, None]).ravel()
    order = np.argsort(all_bytes, kind="stable")  # every row ascends, so this merges runs
    sorted_psi = all_psi[order]
    least = np.minimum.accumulate(sorted_psi)
    order = order[np.concatenate([[True], sorted_psi[1:] < least[:-1]])]
    kept_bytes = all_bytes[order]
    order = order[np.concatenate([kept_bytes[1:] > kept_bytes[:-1], [True]])]
    row, parent = np.divmod(order, size)
    chosen = np.array(widths, np.int8)[row]
    return Front(all_bytes[order], all_psi[order], parent.astype(np.int32), chosen)


def within(front: Front, most_psi: float) -> Front:
    """The front without the points that are noisier than this, but for its quietest: noise only ever grows."""
    num_left = int(np.searchsorted(front.psi[::-1], most_psi, side="right"))
    first = len(front.psi) - max(num_left, 1)
    return Front(front.num_bytes[first:], front.psi[first:], front.parent[first:], front.width[first:])


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
            self.fronts.append(within(extend(self.fronts[-1], num_bytes[k], psi[k]), most_psi))

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
