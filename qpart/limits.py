"""How much noise a request allows at each cut, and what to say where no cut meets what it demands.

Pure. A refusal names a constraint whose removal helps, alone if one alone does, and what to ask for instead.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, Context, Decimal
from math import inf
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qpart.errors import Infeasible
from qpart.profile import Request
from qpart.solve import AnySolver, Solver
from qpart.tables import Tables

Constraint = Literal["accuracy", "memory", "raw_input_stays"]
Shrink = Mapping[tuple[int, int], float]
NO_SHRINK: Shrink = MappingProxyType({})
BELOW_ALL = -1
"""Index in place of a level's where an accuracy drop lies below all levels."""

_FOUR_DIGITS_UP = Context(prec=4, rounding=ROUND_CEILING)
_GIVEN_UP: tuple[tuple[tuple[Constraint, ...], ...], ...] = (  # few before many; of as many, what is preferred first
    (("accuracy",), ("memory",), ("raw_input_stays",)),
    (("accuracy", "memory"), ("accuracy", "raw_input_stays"), ("memory", "raw_input_stays")),
    (("accuracy", "memory", "raw_input_stays"),),
)


class Allowance(NamedTuple):
    """Most summed noise, the level that grants it, and the level's index, `BELOW_ALL` if it is none."""

    budget: float
    level: float
    level_index: int


def allowances(tables: Tables, accuracy: float, budgets: Sequence[float] | None = None) -> list[Allowance]:
    """What the verified levels within an accuracy drop allow; below all of them, what the drop itself does.

    Args:
        tables: with the levels.
        accuracy: the drop.
        budgets: of the levels, where they are known.
    """
    within = bisect_right(tables.levels, accuracy)
    if not within:
        return [Allowance(tables.budget.budget(accuracy), accuracy, BELOW_ALL)]
    if budgets is None:
        budgets = [tables.budget.budget(level) for level in tables.levels[:within]]
    return [Allowance(budgets[i], tables.levels[i], i) for i in range(within)]


def factor(shrink: Shrink, cut: int, level_index: int) -> float:
    """What is left of a level's budget at a cut; below all levels, as much as of the first unless it says otherwise.

    >>> factor({(2, 0): 0.5}, 2, BELOW_ALL), factor({(2, 0): 0.5, (2, -1): 0.4}, 2, BELOW_ALL)
    (0.5, 0.4)
    """
    if level_index == BELOW_ALL:
        return shrink.get((cut, BELOW_ALL), shrink.get((cut, 0), 1.0))
    return shrink.get((cut, level_index), 1.0)


class EachCut(NamedTuple):
    """`Allowance` of every cut: (cuts,) each."""

    budget: NDArray[np.float64]
    level: NDArray[np.float64]
    level_index: NDArray[np.int64]


def at_each_cut(granted: list[Allowance], num_cuts: int, shrink: Shrink) -> EachCut:
    """What `at_cut` says of every cut, at once."""
    if not shrink:
        most = max(granted)  # of equal ones the loosest level
        return EachCut(*(np.full(num_cuts, value) for value in most))
    rows = {one.level_index: row for row, one in enumerate(granted)}
    left = np.ones((len(granted), num_cuts))
    if BELOW_ALL in rows:
        left[0] = [factor(shrink, cut, BELOW_ALL) for cut in range(num_cuts)]
    else:
        for (cut, level_index), share in shrink.items():
            if level_index in rows:
                left[rows[level_index], cut] = share
    budgets = np.array([one.budget for one in granted])[:, None] * left
    best = len(granted) - 1 - np.argmax(budgets[::-1], axis=0)  # of equal ones the loosest level
    return EachCut(
        budgets[best, np.arange(num_cuts)],
        np.array([one.level for one in granted])[best],
        np.array([one.level_index for one in granted])[best],
    )


def at_cut(granted: list[Allowance], cut: int, shrink: Shrink) -> Allowance:
    """The largest at a cut once shrunk: a tighter level serves too, and may have been shrunk less."""
    return max(one._replace(budget=one.budget * factor(shrink, cut, one.level_index)) for one in granted)


class _Cuts(NamedTuple):
    """(cuts,) each: least noise within the memory and without limit, and which show an input that must stay."""

    tight: NDArray[np.float64]
    free: NDArray[np.float64]
    shows_input: NDArray[np.bool_]


class _Remedy(NamedTuple):
    """What to ask for instead; None where what was asked for may stay."""

    accuracy: float | None
    memory_bytes: int | None
    raw_input: bool

    def __str__(self) -> str:
        wishes = [f"ask for a drop of {self.accuracy!r}"] if self.accuracy is not None else []
        if self.memory_bytes is not None:
            wishes.append(f"give {self.memory_bytes} bytes of memory")
        return " and ".join([*wishes, "let the raw input travel"] if self.raw_input else wishes)


def refusal(solver: AnySolver, request: Request, shrink: Shrink) -> Infeasible:
    """The error for a request that no cut satisfies."""
    memory_bytes = request.device.memory_bytes
    if not isinstance(solver, Solver):
        return Infeasible(
            f"the {solver.kind} solver finds no widths for an accuracy drop within {request.accuracy:g} and "
            f"{memory_bytes} bytes of memory; ask the exact one",
            constraint="accuracy",
            nearest_accuracy=None,
        )
    cuts = _Cuts(
        solver.least_psi_of_each(memory_bytes), solver.least_psi_of_each(),
        solver.fixed.shows_input & request.raw_input_stays,
    )  # fmt: skip
    asked = f"no cut keeps to an accuracy drop within {request.accuracy:g} with {memory_bytes} bytes of memory"
    asked += " while the raw input stays" if request.raw_input_stays else ""
    for several in _GIVEN_UP:
        tried = {given_up: _remedy(solver, request, shrink, cuts, given_up) for given_up in several}
        found = {given_up: remedy for given_up, remedy in tried.items() if remedy is not None}
        if found:
            alone = found.get(("accuracy",))
            return Infeasible(
                f"{asked}; {', or '.join(map(str, found.values()))}",
                constraint=next(iter(found))[0],
                nearest_accuracy=alone.accuracy if alone else None,
            )
    text = (
        f"{asked}, and no accuracy that was calibrated would help, whatever else is given up; calibrate for larger ones"
    )
    return Infeasible(text, constraint="accuracy", nearest_accuracy=None)


def _remedy(
    solver: Solver, request: Request, shrink: Shrink, cuts: _Cuts, given_up: tuple[Constraint, ...]
) -> _Remedy | None:
    """The least to ask for where some constraints are given up; None if that does not help."""
    tables, more_memory = solver.tables, "memory" in given_up
    raw_input = "raw_input_stays" in given_up
    psi = cuts.free if more_memory else cuts.tight
    if not raw_input:
        psi = np.where(cuts.shows_input, inf, psi)
    nearest = None
    if "accuracy" in given_up:
        nearest = _nearest(tables, psi, shrink)
        if nearest is None:
            return None
    granted = allowances(tables, request.accuracy if nearest is None else nearest)
    budgets = at_each_cut(granted, len(psi), shrink).budget
    served = psi <= budgets
    if not served.any():
        return None
    need = None
    if more_memory:  # bytes to hold are least where bytes to load are
        found = solver.best_of_each(budgets, down_weight=1.0, up_weight=0.0)
        need = int(found.device_bytes[served].min())
    return _Remedy(nearest, need, raw_input)


def _nearest(tables: Tables, psi: NDArray[np.float64], shrink: Shrink) -> float | None:
    """The smallest accuracy drop at which any cut may have its noise, rounded up to 4 digits where that serves.

    Args:
        tables: of the network.
        psi: (cuts,) noise; infinite for a cut that does not count.
        shrink: see `qpart.plan.plan`.
    """
    best, first = inf, min(tables.levels, default=1.0)
    left = [factor(shrink, cut, BELOW_ALL) for cut in range(len(psi))] if shrink else [1.0] * len(psi)
    needed = [
        (noise / share, cut, noise)
        for cut, (noise, share) in enumerate(zip(psi.tolist(), left, strict=True))
        if share > 0
    ]
    for need, cut, noise in sorted(needed):
        if need == inf:
            break
        candidates = _below(tables, need)
        if candidates[-2] >= min(best, first):  # neither this one nor those that need more noise
            break
        for accuracy in candidates:
            if 0 < accuracy < first and at_cut(allowances(tables, accuracy), cut, shrink).budget >= noise:
                best = min(best, accuracy)
                break
    if best < inf:
        return best
    for i, level in enumerate(tables.levels):  # between levels nothing is gained
        budget = tables.budget.budget(level)
        if any(budget * factor(shrink, cut, i) >= noise for cut, noise in enumerate(psi.tolist())):
            up = float(_rounded_up(level))
            return up if up < 1 else level
    return None


def _below(tables: Tables, psi: float) -> list[float]:
    """What might be the smallest accuracy drop, were there no levels: few digits first, then as many as it has."""
    exact = min(tables.budget.accuracy_of(psi), tables.budget.accuracy[-1])  # division may exceed the map
    up, closer = _rounded_up(exact), exact * (1 + 1e-9)  # next to both, for what division rounded
    return [float(up), float(_FOUR_DIGITS_UP.next_plus(up)), exact, closer]


def _rounded_up(number: float) -> Decimal:
    return _FOUR_DIGITS_UP.create_decimal(repr(number))  # repr: 0.05 has one digit, its binary value has many
