"""The cheapest bit-width pattern of a cut within a noise budget, exactly.

Pure: numpy only. One dynamic programme over the tensors gives the fronts of every prefix, so of every cut, and a
front serves every budget, rate and memory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from math import inf
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qpart.costs import Fixed
from qpart.cuts import Choices, Joined, Pairs, strides
from qpart.fronts import Chain, Floats
from qpart.leading import Leader, Leading
from qpart.patterns import Pattern, evaluate_loading, least_bytes, of_leader
from qpart.problems import Problem, Reach, search
from qpart.tables import WIDTHS, Tables

MAX_KEPT_PROBLEMS = 16
TO_LOAD = (1, 0)
MIXES = ((8, 1), (2, 1), (1, 2), (0, 1))  # bytes to load, bytes to hold; the last finds what fits if anything does
Pieces = frozenset[tuple[int, int]]
_NONE: Pieces = frozenset()
_SLACK = 1 + 1e-11  # more than sums of a few numbers are off


class AnySolver(Protocol):
    """What a plan asks of whoever chooses widths; `Solver` says what each means."""

    @property
    def kind(self) -> str: ...
    @property
    def tables(self) -> Tables: ...
    @property
    def fixed(self) -> Fixed: ...
    def best_of_each(
        self,
        budgets: Floats,
        *,
        down_weight: float,
        up_weight: float,
        memory_bytes: int | None,
        cached: Collection[tuple[int, int]],
    ) -> Choices: ...
    def fitting(self, memory_bytes: int) -> NDArray[np.bool_]: ...


class Solver:
    """Reads the cheapest patterns off the fronts of one network.

    Args:
        tables: the measurements. Building takes milliseconds, a query microseconds; a set of cached pieces not seen
            lately costs one dynamic programme more, from the first cached tensor on, and four where memory binds.
    """

    kind = "exact"

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.fixed = Fixed(tables)
        nodes = tables.network.parametric
        self._all_pieces = frozenset((node, bits) for node in nodes for bits in WIDTHS)
        self._bytes = [tables.weight_bytes[node] for node in nodes]
        self._psi = [tables.weight_psi[node] for node in nodes]
        chain = Chain(self._bytes, self._psi)
        self._plain = Problem(chain, chain.num_bytes, None)
        self._live = [
            Chain([num_bytes[value] for value in live], [psi[value] for value in live])
            for live, num_bytes, psi in zip(tables.network.live, tables.live_bytes, tables.live_psi, strict=True)
        ]
        self._kept: OrderedDict[tuple[Pieces, tuple[int, int], Reach], Problem] = OrderedDict()
        self._prefix = np.array([tables.num_weights(cut) for cut in range(tables.network.num_nodes + 1)])
        self._besides = np.array(tables.manifest_bytes) + 4 * np.array(tables.device_items)
        self._least_live = np.array([live.psi[-1] for live in self._live])
        self._pairs = Pairs(tables, self._live)
        self._least_bytes = least_bytes(tables)
        self._plain_joined = Joined(chain, self._pairs)
        self._joined: OrderedDict[tuple[Pieces, float], Joined] = OrderedDict()
        self._leading = Leading(tables, chain, self._pairs)

    def front_sizes(self) -> list[int]:
        """Points on the weights' front of every prefix of the nodes with weights."""
        sizes: list[int] = np.diff(self._plain.chain.starts).tolist()
        return sizes

    def best(
        self,
        cut: int,
        budget: float,
        *,
        down_weight: float = 1.0,
        up_weight: float = 1.0,
        memory_bytes: int | None = None,
        cached: Collection[tuple[int, int]] = frozenset(),
    ) -> Pattern | None:
        """The pattern with the least down_weight * download_bytes + up_weight * up_bytes.

        Exact without `cached`, and with it unless memory binds. A front of the bytes to load knows nothing of the
        bytes to hold, so where the optimum without memory does not fit, it is the best that fits among the points
        of the fronts of a few mixtures of the two: a pattern is found whenever there is one, but perhaps not the
        cheapest (on small random networks 4 of 5 times the cheapest, 3 % dearer in the mean).

        Args:
            cut: 0 .. L.
            budget: most summed noise, compared without tolerance as `evaluate` sums it.
            down_weight: cost of a byte to load, 0 or more.
            up_weight: cost of a byte of one inference request, 0 or more.
            memory_bytes: most device_bytes; None for no limit.
            cached: (node, bits) of pieces that need no loading; they do need memory.

        Returns:
            None if nothing meets budget and memory. Of equal costs: fewest bytes, then least noise.
        """
        pieces = self._relevant(cut, cached)
        reach = Reach(inf)
        return self._best(cut, budget, (down_weight, up_weight), memory_bytes, pieces, reach)

    def _best(
        self,
        cut: int,
        budget: float,
        byte_weights: tuple[float, float],
        memory_bytes: int | None,
        pieces: Pieces,
        reach: Reach,
    ) -> Pattern | None:
        """`best` with relevant pieces; fronts with a cache are made as far as it says."""
        if not pieces:
            return self._cheapest((self._plain,), cut, budget, *byte_weights, self._room(cut, memory_bytes))
        found = self._cheapest((self._with_cache(pieces, TO_LOAD, reach),), cut, budget, *byte_weights, None)
        if found is None or memory_bytes is None or found.device_bytes <= memory_bytes:
            return found
        return self._fitting(cut, budget, byte_weights, memory_bytes, pieces, reach)

    def _fitting(
        self,
        cut: int,
        budget: float,
        byte_weights: tuple[float, float],
        memory_bytes: int,
        pieces: Pieces,
        reach: Reach,
    ) -> Pattern | None:
        """What `best` looks for where the optimum without memory does not fit."""
        problems: tuple[Problem, ...] = (self._plain,)
        if pieces:
            mixed = (self._with_cache(pieces, mix, reach) for mix in MIXES)
            problems = (self._with_cache(pieces, TO_LOAD, Reach(reach.most_psi)), *mixed)
        return self._cheapest(problems, cut, budget, *byte_weights, self._room(cut, memory_bytes))

    def best_of_each(
        self,
        budgets: Floats,
        *,
        down_weight: float = 1.0,
        up_weight: float = 1.0,
        memory_bytes: int | None = None,
        cached: Collection[tuple[int, int]] = frozenset(),
    ) -> Choices:
        """What `best` finds at every cut, in one pass; arguments as there.

        Args:
            budgets: (cuts,) most summed noise.
        """
        pieces, most_psi = self._relevant(self.tables.network.num_nodes, cached), float(budgets.max())
        is_new = pieces and (pieces, most_psi) not in self._joined
        if is_new and not (self.least_psi_of_each(memory_bytes) <= budgets).any():
            return Choices.none(len(budgets))  # known without any front with the cache
        joined = self._joined_fronts(pieces, most_psi)
        limit = None if pieces else memory_bytes
        found = joined.choices(joined.cheapest(joined.positions(budgets), down_weight, up_weight, limit))
        if not pieces or memory_bytes is None:
            return found
        tight = np.flatnonzero(found.exists & (found.device_bytes > memory_bytes)).tolist()
        if not tight:
            return found
        feasible = set(np.flatnonzero(self.least_psi_of_each(memory_bytes) <= budgets).tolist()).intersection(tight)
        reach = Reach(most_psi, self._rooms(feasible, memory_bytes))
        first = min(node for node, _ in pieces)
        for cut in tight:
            one = None
            if cut in feasible:
                weights = down_weight, up_weight
                mine = pieces if first < cut else _NONE
                one = self._fitting(cut, float(budgets[cut]), weights, memory_bytes, mine, reach)
            found.put(cut, one)
        return found

    def leading(
        self,
        budgets: Floats,
        base: Floats,
        *,
        down_weight: float,
        up_weight: float,
        memory_bytes: int,
        cached: Collection[tuple[int, int]],
    ) -> list[Pattern] | None:
        """What `best_of_each` finds at the cuts that may have the least sum of `base` and cost, and of no other.

        No front with the cache is made, nor kept, but where memory binds at one of these cuts.

        Args:
            budgets: (cuts,) most summed noise.
            base: (cuts,) what is to be paid besides the bytes; infinite for a cut that does not count.
            down_weight, up_weight, memory_bytes, cached: as there.

        Returns:
            One of each such cut. None if all cuts have to be looked at: bytes cost next to nothing, noise has no limit
            in reason, another thread asks, or there is no compiled code.
        """
        weights = down_weight, up_weight
        leaders = self._leading.found(budgets, base, *weights, memory_bytes, cached)
        if leaders is None:
            return None
        found = [of_leader(one) for one in leaders if one.fits]
        if len(found) == len(leaders):
            return found

        def cost(one: Leader | Pattern) -> float:
            return float(base[one.cut]) + down_weight * one.download_bytes + up_weight * one.up_bytes

        least = min(map(cost, found), default=inf)
        tight = sorted((one for one in leaders if not one.fits and cost(one) <= least * _SLACK), key=cost)
        pieces = self._relevant(len(budgets) - 1, cached)
        reach = Reach(float(budgets.max()), self._rooms({one.cut for one in tight}, memory_bytes))
        for one in tight:
            if cost(one) > least * _SLACK:  # and what fits costs no less than what need not
                break
            mine = pieces if pieces and min(pieces)[0] < one.cut else _NONE
            fitting = self._fitting(one.cut, float(budgets[one.cut]), weights, memory_bytes, mine, reach)
            if fitting is not None:
                found.append(fitting)
                least = min(least, cost(fitting))
        return found

    def _rooms(self, cuts: Collection[int], memory_bytes: int) -> tuple[int, ...]:
        """(tensors,) most bytes of the packed pieces of so many tensors at any of these cuts; -1 where none is."""
        rooms = [-1] * max((int(self._prefix[cut]) for cut in cuts), default=0)
        for cut in cuts:
            if self._prefix[cut]:
                at = int(self._prefix[cut]) - 1
                rooms[at] = max(rooms[at], memory_bytes - int(self._besides[cut]))
        return tuple(rooms)

    def fitting(self, memory_bytes: int) -> NDArray[np.bool_]:
        """(cuts,) whether any pattern of a cut fits into the memory, however noisy."""
        return self._least_bytes <= memory_bytes

    def _joined_fronts(self, pieces: Pieces, most_psi: float) -> Joined:
        if not pieces:
            return self._plain_joined
        key = pieces, most_psi
        if key not in self._joined:
            chain = self._with_cache(pieces, TO_LOAD, Reach(most_psi)).chain
            self._joined[key] = Joined(chain, self._pairs, self._bytes)
            if len(self._joined) > MAX_KEPT_PROBLEMS:
                self._joined.popitem(last=False)
        self._joined.move_to_end(key)
        return self._joined[key]

    def least_psi(self, cut: int, memory_bytes: int | None = None) -> float:
        """The smallest noise that can be had at a cut within the memory; infinite if nothing fits."""
        return float(self.least_psi_of_each(memory_bytes)[cut])

    def least_psi_of_each(self, memory_bytes: int | None = None) -> Floats:
        """(cuts,) what `least_psi` says of each."""
        chain, prefix = self._plain.chain, self._prefix
        first, last = chain.starts[prefix], chain.starts[prefix + 1] - 1
        least = chain.psi[last]
        if memory_bytes is not None:
            room, fitting = memory_bytes - self._besides, first - 1
            for stride in strides(chain):  # fitting: the last point known to fit, at first the one before the front
                probe = np.minimum(fitting + stride, last)
                fitting = np.where(chain.num_bytes[probe] <= room, probe, fitting)
            least = np.where(fitting >= first, chain.psi[fitting], inf)
        found: Floats = least + self._least_live
        return found

    def _room(self, cut: int, memory_bytes: int | None) -> int | None:
        """Bytes left for the packed pieces."""
        if memory_bytes is None:
            return None
        return memory_bytes - int(self._besides[cut])

    def _relevant(self, cut: int, cached: Collection[tuple[int, int]]) -> Pieces:
        """Cached pieces that are pieces of this network; none where the cut ships none of them."""
        if not cached:
            return frozenset()
        pieces = self._all_pieces.intersection(cached)
        return pieces if pieces and min(pieces)[0] < cut else frozenset()

    def _with_cache(self, pieces: Pieces, mix: tuple[int, int], reach: Reach | None = None) -> Problem:
        """The problem whose fronts are of so many times the bytes to load plus so many times the bytes to hold."""
        reach = reach or Reach(inf)
        key, (load_weight, hold_weight) = (pieces, mix, reach), mix
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        nodes, chain = self.tables.network.parametric, self._plain.chain
        loads = self.tables.load_bytes(pieces)
        load = [loads.get(node, row) for node, row in zip(nodes, self._bytes, strict=True)]
        if load_weight:
            first = min(nodes.index(node) for node, _ in pieces)  # before it, loading is holding
            mixed = [
                [load_weight * n + hold_weight * m for n, m in zip(some, own, strict=True)]
                for some, own in zip(load, self._bytes, strict=True)
            ]
            scale, deepest = load_weight + hold_weight, len(nodes) if reach.rooms is None else len(reach.rooms)
            chain = Chain(
                mixed[:deepest], self._psi[:deepest], known=chain, num_known=min(first, deepest), scale=scale,
                most_psi=reach.most_psi, most_bytes=reach.most_bytes(scale, mixed),
            )  # fmt: skip
        download = chain.summed(load) if hold_weight else chain.num_bytes
        self._kept[key] = Problem(chain, download, self._bytes, loads)
        if len(self._kept) > MAX_KEPT_PROBLEMS:
            self._kept.popitem(last=False)
        return self._kept[key]

    def _cheapest(
        self,
        problems: Sequence[Problem],
        cut: int,
        budget: float,
        down_weight: float,
        up_weight: float,
        room: int | None,
    ) -> Pattern | None:
        """The best over some problems of: for each useful combination of live widths, the cheapest weights."""
        num_weights, live = self.tables.num_weights(cut), self._live[cut]
        ups = live.last.num_bytes + self.tables.infer_bytes[cut]
        best: tuple[tuple[float, ...], Problem, int, int] | None = None
        for problem in problems:
            position, exists = search(problem, num_weights, live.last.psi, budget, room)
            if not exists.any():
                continue
            position = position + problem.chain.starts[num_weights]
            downs = problem.download[position] + self.tables.manifest_bytes[cut]
            cost = np.where(exists, down_weight * downs + up_weight * ups, inf)
            psi = problem.chain.psi[position] + live.last.psi
            k = int(np.lexsort((psi, downs + ups, cost))[0])
            rank = (float(cost[k]), float(downs[k] + ups[k]), float(psi[k]))
            if best is None or rank < best[0]:
                best = rank, problem, int(position[k]), k
        if best is None:
            return None
        weights = best[1].chain.widths(num_weights, best[2] - int(best[1].chain.starts[num_weights]))
        lives = live.widths(len(live.starts) - 2, best[3])
        bits = [[WIDTHS[width] for width in widths] for widths in (weights, lives)]
        return evaluate_loading(self.tables, cut, bits[0], bits[1], best[1].loads)
