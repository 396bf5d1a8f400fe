"""The cheapest pattern of every cut in one pass over arrays: what `Solver.best` finds, for all cuts at once.

Pure: numpy only. The fronts of all prefixes lie end to end, and beside them every useful combination of live widths of
every cut, a *pair*. For each pair one binary search finds the cheapest weights that still keep to the budget. Nothing
is approximate: what is compared is the rounded sum of the two noises, as `qpart.patterns.evaluate` sums them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qpart import fronts
from qpart.fronts import NO_LIMIT, WIDTH_BITS, WIDTH_MASK, Chain, Floats, Ints
from qpart.tables import WIDTHS, Tables

if TYPE_CHECKING:
    from qpart.patterns import Pattern

MAX_KEPT_POSITIONS = 16
assert len(WIDTHS) == 1 << WIDTH_BITS
Bools = NDArray[np.bool_]
_BITS = np.array(WIDTHS, np.uint8)


class Pairs:
    """Every useful combination of live widths of every cut, cut by cut.

    Attributes:
        cut: (pairs,) which cut it is of.
        prefix: (pairs,) how many tensors with weights the device holds there.
        psi: (pairs,) noise of the live values.
        manifest: (pairs,) bytes of the segment's description.
        held: (pairs,) bytes that the device holds besides the pieces.
        up: (pairs,) bytes of one inference request.
        first: (cuts,) the first pair of each cut.
        live_bits: (pairs,) widths of the live values, a byte each.
    """

    def __init__(self, tables: Tables, live: Sequence[Chain]) -> None:
        last = [chain.last for chain in live]
        sizes = [len(front.psi) for front in last]
        self.cut = np.repeat(np.arange(len(live)), sizes)
        self.prefix = np.repeat([tables.num_weights(cut) for cut in range(len(live))], sizes)
        self.psi: Floats = np.concatenate([front.psi for front in last])
        self.manifest: Ints = np.repeat(tables.manifest_bytes, sizes)
        self.held: Ints = np.repeat(np.array(tables.manifest_bytes) + 4 * np.array(tables.device_items), sizes)
        self.up: Ints = np.concatenate([front.num_bytes + n for front, n in zip(last, tables.infer_bytes, strict=True)])
        self.first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self.live_bits = [
            bytes(WIDTHS[width] for width in chain.widths(len(chain.starts) - 2, k))
            for chain, size in zip(live, sizes, strict=True)
            for k in range(size)
        ]


def strides(chain: Chain) -> list[int]:
    """What a binary search goes by that begins before a front's first point, whichever front it is."""
    return [1 << k for k in reversed(range(int(np.diff(chain.starts).max()).bit_length()))]


class Found(NamedTuple):
    """The best of every cut; where `exists` is false, the other entries of a cut mean nothing.

    Attributes:
        exists: (cuts,) whether anything meets budget and memory.
        pair: (cuts,) the combination of live widths.
        point: (cuts,) the point on the joined fronts.
    """

    exists: Bools
    pair: Ints
    point: Ints


class Choices(NamedTuple):
    """What is best at every cut; where `exists` is false, there is nothing and its other entries mean nothing.

    Attributes:
        exists, download_bytes, device_bytes, up_bytes: (cuts,) each; see `qpart.patterns.Pattern`.
        weight_bits, live_bits: one for each cut, a byte for each width.
    """

    exists: Bools
    download_bytes: Ints
    device_bytes: Ints
    up_bytes: Ints
    weight_bits: list[bytes]
    live_bits: list[bytes]

    @classmethod
    def none(cls, cuts: int) -> Choices:
        """Nothing at any cut."""
        down, held, up = (np.zeros(cuts, np.int64) for _ in range(3))
        return cls(np.zeros(cuts, np.bool_), down, held, up, [b""] * cuts, [b""] * cuts)

    @classmethod
    def of(cls, patterns: Sequence[Pattern | None]) -> Choices:
        """One pattern for each cut, or None."""
        found = cls.none(len(patterns))
        for cut, pattern in enumerate(patterns):
            found.put(cut, pattern)
        return found

    def put(self, cut: int, pattern: Pattern | None) -> None:
        """Another pattern for a cut, or that there is none."""
        self.exists[cut] = pattern is not None
        if pattern is not None:
            self.download_bytes[cut], self.device_bytes[cut] = pattern.download_bytes, pattern.device_bytes
            self.up_bytes[cut] = pattern.up_bytes
            self.weight_bits[cut], self.live_bits[cut] = bytes(pattern.weight_bits), bytes(pattern.live_bits)


class Joined:
    """The fronts of all prefixes, end to end.

    Args:
        chain: with the fronts.
        pairs: of the same tables.
        held: (tensors, widths) bytes that the device holds; None where the fronts are of these, and not of what is
            loaded.
    """

    def __init__(self, chain: Chain, pairs: Pairs, held: Sequence[Sequence[int]] | None = None) -> None:
        self._pairs, self._chain = pairs, chain
        self._known: dict[bytes, tuple[Ints, Bools]] = {}
        self._held = None if held is None else np.array(held, np.int64).reshape(-1, len(WIDTHS))
        self._start, self._end = chain.starts[pairs.prefix], chain.starts[pairs.prefix + 1]
        self._strides = strides(chain)

    def positions(self, budgets: Floats) -> tuple[Ints, Bools]:
        """For every pair the first point with noise within its cut's budget: bytes ascend, so it loads least.

        Args:
            budgets: (cuts,) most summed noise.

        Returns:
            (pairs,) points, of the front's last where none is within; (pairs,) whether one is.
        """
        key = budgets.tobytes()
        found = self._known.pop(key, None)  # levels are few, and whoever asks for one gets its budgets
        if found is None:
            found = self._searched(budgets) if fronts.compiled is None else self._searched_one_by_one(budgets)
            if len(self._known) >= MAX_KEPT_POSITIONS:
                del self._known[next(iter(self._known))]  # the one that was not asked for longest
        self._known[key] = found
        return found

    def _searched_one_by_one(self, budgets: Floats) -> tuple[Ints, Bools]:
        """See `positions`."""
        pairs = self._pairs
        return fronts.compiled.first_within(self._chain.psi, self._start, self._end, pairs.psi, pairs.cut, budgets)

    def _searched(self, budgets: Floats) -> tuple[Ints, Bools]:
        """See `positions`: a binary search for all pairs at once whose own noise is within."""
        budget, extra = budgets[self._pairs.cut], self._pairs.psi
        position, exists = self._end - 1, np.zeros(len(extra), np.bool_)
        some = np.flatnonzero(extra <= budget)
        budget, extra, last, found = budget[some], extra[some], self._end[some] - 1, self._start[some] - 1
        probe, noise, outside = np.empty_like(found), np.empty(len(some)), np.empty(len(some), np.bool_)
        for stride in self._strides:  # found: the last point known to be outside, at first the one before the front
            np.minimum(np.add(found, stride, out=probe), last, out=probe)
            np.take(self._chain.psi, probe, out=noise, mode="clip")
            np.greater(np.add(noise, extra, out=noise), budget, out=outside)
            np.copyto(found, probe, where=outside)
        exists[some] = found < last
        position[some] = np.minimum(found + 1, last)
        return position, exists

    def cheapest(
        self, positions: tuple[Ints, Bools], down_weight: float, up_weight: float, memory_bytes: int | None
    ) -> Found:
        """The best pair of every cut at these weights; of equal ones fewest bytes, then least noise.

        Args:
            positions: of `positions`.
            down_weight: cost of a byte to load.
            up_weight: cost of a byte of one inference request.
            memory_bytes: most that the device may hold; None for no limit.
        """
        assert memory_bytes is None or self._held is None, "fronts of what is loaded say nothing of what is held"
        most_held = NO_LIMIT if memory_bytes is None else memory_bytes
        if fronts.compiled is None:
            return self._cheapest(positions, down_weight, up_weight, most_held)
        (point, exists), pairs, chain = positions, self._pairs, self._chain
        found = fronts.compiled.cheapest(
            chain.num_bytes, chain.psi, point, exists.view(np.uint8), pairs.first, pairs.manifest, pairs.held,
            pairs.up, pairs.psi, down_weight, up_weight, most_held,
        )  # fmt: skip
        return Found(*found)

    def _cheapest(self, positions: tuple[Ints, Bools], down_weight: float, up_weight: float, most_held: int) -> Found:
        """See `cheapest`."""
        (point, exists), pairs = positions, self._pairs
        loaded = self._chain.num_bytes[point]
        exists = exists & (loaded <= most_held - pairs.held)
        download = loaded + pairs.manifest
        cost = down_weight * download + up_weight * pairs.up
        cost[~exists] = inf
        least = np.minimum.reduceat(cost, pairs.first)
        hit = exists & (cost == least[pairs.cut])
        hit[pairs.first[least == inf]] = True  # a cut without any has an entry too
        chosen = np.flatnonzero(hit)
        if len(chosen) > len(pairs.first):
            psi = self._chain.psi[point[chosen]] + pairs.psi[chosen]
            chosen = chosen[np.lexsort((psi, download[chosen] + pairs.up[chosen], pairs.cut[chosen]))]
            chosen = chosen[np.flatnonzero(np.diff(pairs.cut[chosen], prepend=-1))]
        return Found(exists[chosen], chosen, point[chosen])

    def choices(self, found: Found) -> Choices:
        """Bytes and widths of what was found."""
        pairs, pair = self._pairs, found.pair
        prefix = pairs.prefix[pair]
        most = int(prefix.max())
        if fronts.compiled is not None:
            widths, held = fronts.compiled.widths_back(self._chain.steps, found.point, prefix, most, _BITS, self._held)
        else:
            widths, held = self._widths_back(found.point, prefix, most)
        loaded, bits = self._chain.num_bytes[found.point], widths.tobytes()
        ends = range(most, most * len(prefix) + 1, most) if most else [0] * len(prefix)
        return Choices(
            found.exists,
            loaded + pairs.manifest[pair],
            (loaded if self._held is None else held) + pairs.held[pair],
            pairs.up[pair],
            [bits[end - n : end] for n, end in zip(prefix.tolist(), ends, strict=True)],
            [pairs.live_bits[k] for k in pair.tolist()],
        )

    def _widths_back(self, points: Ints, prefix: Ints, most: int) -> tuple[NDArray[np.uint8], Ints]:
        """(cuts, most) widths of the tensors, the last one's last; (cuts,) what they hold. Steps are followed back."""
        at, index = points.copy(), np.empty((most, len(points)), np.int64)
        for row in index[::-1]:
            np.take(self._chain.steps, at, out=row, mode="clip")
            np.right_shift(row, WIDTH_BITS, out=at)
        index &= WIDTH_MASK
        tensor = np.arange(most)[:, None] + prefix - most
        bits = np.where(tensor >= 0, _BITS[index], 0).astype(np.uint8)
        if self._held is None:
            return bits.T, np.zeros(len(points), np.int64)
        return bits.T, np.where(tensor >= 0, self._held[tensor, index], 0).sum(axis=0)
