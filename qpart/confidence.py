"""What the budget map stands on: how many patterns, how many broke it, and where it only extrapolates.

Pure: numbers that calibration stored, read once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from qpart.artefact import Artefact, Trial
from qpart.noise import upper_bound
from qpart.tables import BudgetMap

ADVISED_INPUTS = 1000
"""From so many inputs on, accuracy drops of 0.3 % can be measured."""


class LevelConfidence(NamedTuple):
    """One accuracy drop.

    Attributes:
        accuracy: the drop.
        budget: the noise that it allows.
        basis: "measured" between knots of the map; "extrapolated" below its first, where the square law stands in for
            patterns; "capped" beyond its last, where nothing was tried.
        patterns: how many random patterns had so much noise or less.
        over: of these, how many changed more predictions than the drop.
        worst_bound: upper 95 % bound of the share that the worst of them changes; 0 if there is none.
    """

    accuracy: float
    budget: float
    basis: Literal["measured", "extrapolated", "capped"]
    patterns: int
    over: int
    worst_bound: float


class MapConfidence(NamedTuple):
    """The map as a whole.

    Attributes:
        patterns, inputs: random patterns, and inputs that each was run on.
        covered: share of the patterns that changed no more predictions than the map's bound says.
        log_correlation: of summed and joint noise, over patterns that have both: how well noise adds up.
        rank_correlation: of summed noise and changed predictions (Spearman): how well noise orders patterns.
    """

    patterns: int
    inputs: int
    covered: float
    log_correlation: float
    rank_correlation: float


def of_levels(artefact: Artefact) -> list[LevelConfidence]:
    """How sure the budget of each level is."""
    budget_map = artefact.tables.budget
    return [_level(budget_map, artefact.trials, level) for level in artefact.tables.levels]


def of_map(artefact: Artefact) -> MapConfidence:
    """How well the map describes the patterns that it was made from."""
    trials, budget_map = artefact.trials, artefact.tables.budget
    psi, joint, changed = np.array([(trial.psi, trial.joint_psi, trial.share) for trial in trials], np.float64).T
    covered = [share <= budget_map.accuracy_of(noise) for noise, share in zip(psi, changed, strict=True)]
    both = (psi > 0) & (joint > 0)
    return MapConfidence(
        patterns=len(trials),
        inputs=min(trial.inputs for trial in trials),
        covered=float(np.mean(covered)),
        log_correlation=_correlation(np.log(psi[both]), np.log(joint[both])),
        rank_correlation=_correlation(_ranks(psi), _ranks(changed)),
    )


def doubt(num_inputs: int) -> str | None:
    """What so few calibration inputs mean for the promise, in one line; None where there are enough."""
    if num_inputs >= ADVISED_INPUTS:
        return None
    here, there = (100 * float(upper_bound(0, count)) for count in (num_inputs, ADVISED_INPUTS))
    return (
        f"{num_inputs} inputs are few: a pattern that changes none of their answers may still change {here:.2g} % "
        f"of all (upper 95 % bound; {there:.2g} % with {ADVISED_INPUTS:,}), so smaller accuracy drops are extrapolated "
        f"and plans take more bits than they need; give {ADVISED_INPUTS:,} or more"
    )


def _level(budget_map: BudgetMap, trials: Sequence[Trial], level: float) -> LevelConfidence:
    budget = budget_map.budget(level)
    within = [trial for trial in trials if trial.psi <= budget]
    worst = max(within, key=lambda trial: trial.share, default=None)
    basis: Literal["measured", "extrapolated", "capped"] = "measured"
    if level < budget_map.accuracy[0]:
        basis = "extrapolated"
    elif level > budget_map.accuracy[-1]:
        basis = "capped"
    return LevelConfidence(
        accuracy=level,
        budget=budget,
        basis=basis,
        patterns=len(within),
        over=sum(trial.share > level for trial in within),
        worst_bound=0.0 if worst is None else float(upper_bound(worst.changed, worst.inputs)),
    )


def _correlation(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    if len(x) < 2 or x.std() == 0 or y.std() == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def _ranks(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ranks from 0, the mean one for equals."""
    values, index, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    assert len(values)
    ends = np.cumsum(counts)
    ranks: npt.NDArray[np.float64] = (ends - (counts + 1) / 2)[index]
    return ranks
