"""Other ways to choose widths, behind the same face as the exact solver: what it is measured against.

Pure: numpy only. Each answers where its widths keep to the measured budget and fit, and nowhere else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from math import floor
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from qpart.closed_form import HIGHEST, LOWEST, bit_slopes, closed_form, fit_law, real_widths
from qpart.costs import Fixed
from qpart.cuts import Choices
from qpart.fronts import Floats
from qpart.patterns import Pattern, evaluate, least_bytes, uniform
from qpart.solve import Solver
from qpart.tables import WIDTHS, Tables

Kind = Literal["exact", "closed_form", "uniform", "floor_repair"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Bits = tuple[tuple[int, ...], tuple[int, ...]]


def make_solver(tables: Tables, kind: Kind = "exact") -> Solver | HeuristicSolver:
    """The solver of a kind; `qpart.plan.plan` takes any of them.

    Raises:
        ValueError: there is no such kind.
    """
    match kind:
        case "exact":
            return Solver(tables)
        case "closed_form":
            return ClosedFormSolver(tables)
        case "uniform":
            return UniformSolver(tables)
        case "floor_repair":
            return FloorRepairSolver(tables)
    raise ValueError(f"there is no solver {kind!r}; known are {', '.join(KINDS)}")


class HeuristicSolver(ABC):
    """Reads patterns off a rule in place of fronts.

    Args:
        tables: of the network.
    """

    kind: str

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.fixed = Fixed(tables)
        self._least_bytes = least_bytes(tables)

    def fitting(self, memory_bytes: int) -> NDArray[np.bool_]:
        """See `Solver.fitting`."""
        return self._least_bytes <= memory_bytes

    @abstractmethod
    def widths(self, cut: int, budget: float, down_weight: float, up_weight: float) -> Bits:
        """Widths of weights and of live values at a cut, whether they keep to the budget or not."""

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
        """The rule's pattern if it meets budget and memory; arguments as of `Solver.best`."""
        found = evaluate(self.tables, cut, *self.widths(cut, budget, down_weight, up_weight), cached=cached)
        fits = memory_bytes is None or found.device_bytes <= memory_bytes
        return found if fits and found.psi <= budget else None

    def best_of_each(
        self,
        budgets: Floats,
        *,
        down_weight: float = 1.0,
        up_weight: float = 1.0,
        memory_bytes: int | None = None,
        cached: Collection[tuple[int, int]] = frozenset(),
    ) -> Choices:
        """One cut after the other; arguments as of `Solver.best_of_each`."""
        weights = {"down_weight": down_weight, "up_weight": up_weight}
        return Choices.of(
            [
                self.best(cut, budget, memory_bytes=memory_bytes, cached=cached, **weights)
                for cut, budget in enumerate(budgets.tolist())
            ]
        )


class ClosedFormSolver(HeuristicSolver):
    """The paper's: the law fitted, real widths by its closed form, rounded up.

    Source: arXiv 2506.23934.
    """

    kind = "closed_form"

    def widths(self, cut: int, budget: float, down_weight: float, up_weight: float) -> Bits:
        """See `qpart.closed_form.closed_form`."""
        pattern = closed_form(self.tables, cut, budget, down_weight=down_weight, up_weight=up_weight).pattern
        return pattern.weight_bits, pattern.live_bits


class UniformSolver(HeuristicSolver):
    """One width for everything: the cheapest that keeps to the budget.

    Source: what every quantisation tool does unless told otherwise.
    """

    kind = "uniform"

    def widths(self, cut: int, budget: float, down_weight: float, up_weight: float) -> Bits:
        """The cheapest width within the budget, else the largest there is."""
        patterns = [uniform(self.tables, cut, bits) for bits in WIDTHS]
        fitting = [p for p in patterns if p.psi <= budget] or patterns[-1:]
        best = min(fitting, key=lambda p: down_weight * p.download_bytes + up_weight * p.up_bytes)
        return best.weight_bits, best.live_bits


class FloorRepairSolver(HeuristicSolver):
    """The closed form rounded down, then repaired: the width that buys most quiet for its bytes goes up by one step.

    Source: greedy repair of a rounded relaxation, as for knapsacks with multiple choice (Kellerer et al., Knapsack
    Problems, 2004, ch. 11).
    """

    kind = "floor_repair"

    def widths(self, cut: int, budget: float, down_weight: float, up_weight: float) -> Bits:
        """Rounded down and repaired; what cannot be repaired ends with every step taken."""
        tables = self.tables
        nodes, live = tables.network.parametric[: tables.num_weights(cut)], tables.network.live[cut]
        psi = [tables.weight_psi[i] for i in nodes] + [tables.live_psi[cut][v] for v in live]
        cost = [[down_weight * n for n in tables.weight_bytes[i]] for i in nodes]
        cost += [[up_weight * n for n in tables.live_bytes[cut][v]] for v in live]
        alpha, scales = fit_law(psi)
        slopes = bit_slopes(tables, cut, down_weight, up_weight)
        real = real_widths(scales, slopes, alpha, budget).tolist()
        chosen = [WIDTHS.index(min(max(floor(bits + 1e-9), LOWEST), HIGHEST)) for bits in real]
        while self._noise(cut, chosen, len(nodes)) > budget:
            steps = [
                (cost[t][w] - cost[t][at], psi[t][at] - psi[t][w], t, w)
                for t, at in enumerate(chosen)
                for w in range(at + 1, len(WIDTHS))
                if psi[t][w] < psi[t][at]
            ]
            if not steps:
                break
            _, t, w = min((more / quiet, t, w) for more, quiet, t, w in steps)
            chosen[t] = w
        bits = tuple(WIDTHS[w] for w in chosen)
        return bits[: len(nodes)], bits[len(nodes) :]

    def _noise(self, cut: int, chosen: list[int], num_weights: int) -> float:
        bits = [WIDTHS[w] for w in chosen]
        return evaluate(self.tables, cut, bits[:num_weights], bits[num_weights:]).psi
