"""Patterns are run as a whole before they are trusted: noise adds up only approximately."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from qpart.solve import Pattern, Solver
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


class Verifier:
    """Knows which patterns keep their promise; each is run once.

    Args:
        tables: of the model.
        measure: runs a pattern on the calibration inputs.
    """

    def __init__(self, tables: Tables, measure: Measure) -> None:
        self._tables, self._measure = tables, measure
        self._known: dict[tuple[int, tuple[int, ...], tuple[int, ...]], Measured] = {}

    def holds(self, pattern: Pattern, accuracy: float) -> bool:
        """Whether the pattern as a whole stays within the noise of an accuracy drop, and within the drop itself."""
        key = pattern.cut, pattern.weight_bits, pattern.live_bits
        if key not in self._known:
            if len(self._known) >= MAX_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[key] = self._measure(pattern)
        found = self._known[key]
        return found.psi <= self._tables.budget.budget(accuracy) and found.changed <= accuracy


def verify_levels(
    tables: Tables, measure: Measure, progress: Callable[[float], None] = lambda share: None
) -> dict[tuple[int, int], float]:
    """Share of the noise budget that may be spent, by (cut, index of level), so that the cheapest pattern holds.

    On failure the budget shrinks by 0.8 and the front is read again; 0 if nothing holds.
    """
    solver, verifier = Solver(tables), Verifier(tables, measure)
    shares: dict[tuple[int, int], float] = {}
    cuts = tables.network.num_nodes + 1
    for cut in range(cuts):
        for level in range(len(tables.levels)):
            shares[cut, level] = _share(solver, verifier, cut, tables.levels[level])
        progress((cut + 1) / cuts)
    return {key: share for key, share in shares.items() if share < 1.0}


def _share(solver: Solver, verifier: Verifier, cut: int, accuracy: float) -> float:
    share, budget = 1.0, solver.tables.budget.budget(accuracy)
    for _ in range(MAX_SHRINKS):
        pattern = solver.best(cut, budget * share)
        if pattern is None:
            return share  # there is nothing to hold: a tighter budget would find nothing either
        if verifier.holds(pattern, accuracy):
            return share
        share *= SHRINK
    return 0.0
