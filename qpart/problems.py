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
        download: (points,) bytes to load; where the fronts are of these, their own.
        held: (tensors, widths) bytes to hold; None where the fronts are of these.
        loads: bytes to load of the layers with cached pieces.
    """

    def __init__(
        self, chain: Chain, download: Ints, held: Sequence[Sequence[int]] | None, loads: Loads = NO_LOADS
    ) -> None:
        self.chain, self.download, self._held, self.loads = chain, download, held, loads

    @cached_property
    def segment(self) -> Ints:
        """(points,) bytes to hold; only where memory binds does anybody ask."""
        return self.download if self._held is None else self.chain.summed(self._held)


class Reach(NamedTuple):
    """How far fronts with a cache are made.

    Attributes:
        most_psi: up to this noise, the largest budget.
        rooms: (tensors,) for so many tensors, and only with what any cut that holds the first so many has room for;
            None for all tensors and any room.
    """

    most_psi: float
    rooms: tuple[int, ...] | None = None

    def most_bytes(self, scale: int, num_bytes: Sequence[Sequence[int]]) -> list[int] | None:
        """(tensors,) most of a mixture of bytes to load and bytes to hold; a pattern with more fits nowhere.

        What is loaded is held, so with weights whose sum is `scale` a mixture is at most so many times what is held.

        Args:
            scale: see above.
            num_bytes: (tensors, widths) of the mixture.
        """
        if self.rooms is None:
            return None
        most, left = [], -1
        for room, row in zip(reversed(self.rooms), reversed(num_bytes[: len(self.rooms)]), strict=True):
            left = max(scale * room, left)
            most.append(left)
            left -= min(row)  # the tensors before have to leave so much
        return most[::-1]


def search(
    problem: Problem, num_weights: int, extra: Floats, budget: float, room: int | None
) -> tuple[Ints, NDArray[np.bool_]]:
    """For each noise on top: the point that loads least among those within the budget that fit, if there is one.

    Returns:
        (m,) positions on the weights' front, (m,) whether they stand for anything.
    """
    here = slice(*problem.chain.starts[num_weights : num_weights + 2])
    download, segment = problem.download[here], problem.segment[here]
    size = len(download)
    first = problem.chain.front(num_weights).first_within(extra, budget)
    position, exists = np.minimum(first, size - 1), first < size
    if room is None:
        return position, exists
    if problem.segment is problem.download:  # bytes ascend: if the first point does not fit, none after it does
        return position, exists & (segment[position] <= room)
    load = np.where(segment <= room, download, NEVER)
    least = np.minimum.accumulate(load[::-1])[::-1]  # from here on
    attained = np.where(load == least, np.arange(size), size)
    where = np.minimum.accumulate(attained[::-1])[::-1]
    return where[position], exists & (least[position] < NEVER)
