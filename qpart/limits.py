"""How much noise a request allows at each cut, and what to say where no cut meets what it demands.

Pure. A refusal names the constraint whose removal alone would help, and the nearest accuracy that can be had.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_CEILING, Context, Decimal
from math import inf
from types import MappingProxyType
from typing import Literal, NamedTuple

from qpart.errors import Infeasible
from qpart.profile import Request
from qpart.solve import Solver
from qpart.tables import Tables

Constraint = Literal["accuracy", "memory", "raw_input_stays"]
Shrink = Mapping[tuple[int, int], float]
NO_SHRINK: Shrink = MappingProxyType({})
_FOUR_DIGITS_UP = Context(prec=4, rounding=ROUND_CEILING)


class Allowance(NamedTuple):
    """Most summed noise, the level that grants it, and the level's index."""

    budget: float
    level: float
    level_index: int


def allowances(tables: Tables, accuracy: float) -> list[Allowance]:
    """What the verified levels within an accuracy drop allow; below all of them, what the drop itself does."""
    levels = [(level, i) for i, level in enumerate(tables.levels) if level <= accuracy] or [(accuracy, 0)]
    return [Allowance(tables.budget.budget(level), level, i) for level, i in levels]


def at_cut(granted: list[Allowance], cut: int, shrink: Shrink) -> Allowance:
    """The largest at a cut once shrunk: a tighter level serves too, and may have been shrunk less."""
    return max(one._replace(budget=one.budget * shrink.get((cut, one.level_index), 1.0)) for one in granted)


class _Cut(NamedTuple):
    """A cut, and what stands in its way: least noise within the memory and without limit, budget, raw input."""

    cut: int
    tight: float
    free: float
    budget: float
    shows_input: bool

    @property
    def violated(self) -> list[Constraint]:
        """What would have to go, in the order of preference."""
        names: list[Constraint] = []
        if (self.budget < self.tight < inf) or self.budget < self.free:
            names.append("accuracy")
        if self.tight == inf:
            names.append("memory")
        return [*names, "raw_input_stays"] if self.shows_input else names


def refusal(solver: Solver, request: Request, shrink: Shrink) -> Infeasible:
    """The error for a request that no cut satisfies."""
    tables, memory_bytes = solver.tables, request.device.memory_bytes
    granted = allowances(tables, request.accuracy)
    cuts = [
        _Cut(
            cut,
            solver.least_psi(cut, memory_bytes),
            solver.least_psi(cut),
            at_cut(granted, cut, shrink).budget,
            request.raw_input_stays and tables.network.shows_input(cut),
        )
        for cut in range(tables.network.num_nodes + 1)
    ]
    private = [one for one in cuts if not one.shows_input]  # the last cut is always one: nothing travels
    found = (_nearest(tables, one, shrink) for one in private)
    nearest = min((accuracy for accuracy in found if accuracy is not None), default=None)
    need = [_memory_needed(solver, one) for one in private if one.free <= one.budget]
    if nearest is not None:
        constraint: Constraint = "accuracy"
    elif need:
        constraint = "memory"
    elif any(one.tight <= one.budget for one in cuts):
        constraint = "raw_input_stays"
    else:
        constraint = min(cuts, key=lambda one: len(one.violated)).violated[0]
    return Infeasible(_message(constraint, request, nearest, need), constraint=constraint, nearest_accuracy=nearest)


def _nearest(tables: Tables, one: _Cut, shrink: Shrink) -> float | None:
    """The smallest accuracy drop at which a cut has a plan within the memory, rounded up to 4 digits."""
    factor = shrink.get((one.cut, 0), 1.0)
    if one.tight == inf or factor <= 0:
        return None
    candidate = tables.budget.accuracy_of(one.tight / factor)
    candidates = []
    if candidate < min(tables.levels, default=inf):  # between levels nothing is gained
        up = _rounded_up(candidate)
        candidates += [float(up), float(_FOUR_DIGITS_UP.next_plus(up))]  # once more for what division rounded
    for level in tables.levels:
        candidates += [float(_rounded_up(level)), level]
    for accuracy in candidates:
        if 0 < accuracy < 1 and at_cut(allowances(tables, accuracy), one.cut, shrink).budget >= one.tight:
            return accuracy
    return None


def _rounded_up(number: float) -> Decimal:
    return _FOUR_DIGITS_UP.create_decimal(repr(number))  # repr: 0.05 has one digit, its binary value has many


def _memory_needed(solver: Solver, one: _Cut) -> int:
    """The least memory with which a cut that meets the budget would do."""
    pattern = solver.best(one.cut, one.budget, down_weight=1.0, up_weight=0.0)
    assert pattern is not None
    return pattern.device_bytes


def _message(constraint: Constraint, request: Request, nearest: float | None, need: list[int]) -> str:
    drop, memory = f"an accuracy drop within {request.accuracy:g}", f"{request.device.memory_bytes} bytes of memory"
    more = f", or give {min(need)} bytes of memory" if need else ""
    if nearest is not None:
        return f"no cut keeps to {drop} with {memory}; ask for a drop of {nearest!r}{more}"
    if constraint == "memory":
        return f"no cut that keeps to {drop} fits into {memory}; give {min(need)}"
    if constraint == "raw_input_stays":
        return f"{drop} with {memory} is had only where the raw input travels; let it, or give more memory"
    return f"no cut keeps to {drop} with {memory}, and no accuracy that was calibrated would help; give more memory"
