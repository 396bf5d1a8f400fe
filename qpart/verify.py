"""Patterns are run as a whole before they are trusted: noise adds up only approximately."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from qpart.patterns import Pattern
from qpart.solve import Solver
from qpart.tables import Tables

SHRINK = 0.8
MAX_SHRINKS = 20
MAX_KNOWN = 10_000


class Measured(Protocol):
    """What a pattern did as a whole."""

    @property
    def psi(self) -> float: ...
    @property
    def changed(self) -> float: ...


Measure = Callable[[Pattern], Measured]
PatternKey = tuple[int, tuple[int, ...], tuple[int, ...]]
"""Cut, widths of the weights, widths of what travels."""


def key_of(pattern: Pattern) -> PatternKey:
    """What a measurement of a pattern depends on."""
    return pattern.cut, pattern.weight_bits, pattern.live_bits


class Verifier:
    """Knows which patterns keep their promise; each is run once.

    Args:
        tables: of the model.
        measure: runs a pattern on the calibration inputs.
        known: patterns that need not be run, and what they did.
    """

    def __init__(self, tables: Tables, measure: Measure, known: Mapping[PatternKey, Measured] | None = None) -> None:
        self._tables, self._measure = tables, measure
        self._known: dict[PatternKey, Measured] = dict(known or {})

    def holds(self, pattern: Pattern, accuracy: float) -> bool:
        """Whether the pattern as a whole stays within the noise of an accuracy drop, and within the drop itself."""
        key = key_of(pattern)
        if key not in self._known:
            if len(self._known) >= MAX_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[key] = self._measure(pattern)
        found = self._known[key]
        return found.psi <= self._tables.budget.budget(accuracy) and found.changed <= accuracy


def verify_levels(
    tables: Tables,
    measure: Measure,
    progress: Callable[[float], None] = lambda share: None,
    *,
    skipped: Collection[int] = (),
) -> dict[tuple[int, int], float]:
    """Share of the noise budget that may be spent, by (cut, index of level), so that the cheapest pattern holds.

    On failure the budget shrinks by 0.8 and the front is read again; 0 if nothing holds. Skipped cuts get the share
    of the next one that is not.
    """
    solver, verifier = Solver(tables), Verifier(tables, measure)
    cuts, levels = tables.network.num_nodes + 1, len(tables.levels)
    steps = [0] * levels
    shares: dict[tuple[int, int], float] = {}
    for cut in reversed(range(cuts)):
        for level in range(levels):
            if cut not in skipped:
                steps[level] = _steps(solver, verifier, cut, tables.levels[level], steps[level])
            shares[cut, level] = SHRINK ** steps[level] if steps[level] < MAX_SHRINKS else 0.0
            progress((cuts - 1 - cut + (level + 1) / levels) / cuts)
    return {key: share for key, share in shares.items() if share < 1.0}


def _steps(solver: Solver, verifier: Verifier, cut: int, accuracy: float, guess: int) -> int:
    """How often the budget shrinks until the pattern holds; `MAX_SHRINKS` if none does.

    The next cut needs about as many, so the search begins there: most patterns that do not hold are never run.
    """
    budget = solver.tables.budget.budget(accuracy)

    def holds(steps: int) -> bool:
        pattern = solver.best(cut, budget * SHRINK**steps)
        return pattern is None or verifier.holds(pattern, accuracy)  # where there is nothing, nothing fails

    steps = guess if guess < MAX_SHRINKS else 0
    if holds(steps):
        while steps and holds(steps - 1):
            steps -= 1
        return steps
    return next((more for more in range(steps + 1, MAX_SHRINKS) if holds(more)), MAX_SHRINKS)
