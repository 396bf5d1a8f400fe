"""A front with what its points load and what they hold, and the search on it.

Pure: numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qpart.fronts import Chain, Floats, Ints

NEVER = np.iinfo(np.int64).max
Loads = Mapping[int, tuple[int, ...]]
NO_LOADS: Loads = MappingProxyType({})


class Problem:
    """A chain over the weights with, for every point of every prefix, the bytes to load and the bytes to hold.

    Args:
        chain: with the fronts.
        download: bytes to load of every point of every front; where the fronts are of these, their own.
        held: (tensors, widths) bytes to hold; None where the fronts are of these.
        loads: bytes to load of the layers with cached pieces.
    """

    def __init__(
        self, chain: Chain, download: Sequence[Ints], held: Sequence[Sequence[int]] | None, loads: Loads = NO_LOADS
    ) -> None:
        self.chain, self.download, self._held, self.loads = chain, download, held, loads

    @cached_property
    def segment(self) -> Sequence[Ints]:
        """Bytes to hold; only where memory binds does anybody ask."""
        return self.download if self._held is None else self.chain.summed(self._held)


class Reach(NamedTuple):
    """How far fronts with a cache are made: up to this noise, the largest budget, and so many tensors."""

    most_psi: float
    deepest: int


def search(
    problem: Problem, num_weights: int, extra: Floats, budget: float, room: int | None
) -> tuple[Ints, NDArray[np.bool_]]:
    """For each noise on top: the point that loads least among those within the budget that fit, if there is one.

    Returns:
        (m,) positions on the weights' front, (m,) whether they stand for anything.
    """
    download, segment = problem.download[num_weights], problem.segment[num_weights]
    size = len(download)
    first = problem.chain.fronts[num_weights].first_within(extra, budget)
    position, exists = np.minimum(first, size - 1), first < size
    if room is None:
        return position, exists
    if segment is download:  # bytes ascend: if the first point does not fit, none after it does
        return position, exists & (segment[position] <= room)
    load = np.where(segment <= room, download, NEVER)
    least = np.minimum.accumulate(load[::-1])[::-1]  # from here on
    attained = np.where(load == least, np.arange(size), size)
    where = np.minimum.accumulate(attained[::-1])[::-1]
    return where[position], exists & (least[position] < NEVER)
