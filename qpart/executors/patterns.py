"""Whole patterns on calibration inputs: random ones for the budget map, and those of the levels, verified."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qpart import effort as efforts
from qpart.artefact import Trial, Verified
from qpart.effort import Effort
from qpart.executors.sensitivity import Found, PsiPerWidth
from qpart.executors.simulator import Joint, Simulator
from qpart.journal import Journal
from qpart.network import Network
from qpart.patterns import Pattern
from qpart.quantiser import Floats
from qpart.tables import WIDTHS, Tables
from qpart.verify import PatternKey, key_of, verify_levels

Labels = npt.NDArray[np.int64]


class Data(NamedTuple):
    """Calibration inputs (n, *input_shape), what full precision says of them, and labels if they are known."""

    inputs: Floats
    logits: Floats
    margin: float
    labels: Labels | None

    def rows(self, rows: npt.NDArray[np.int64] | slice) -> Data:
        """Some of them; the margin stays that of all."""
        labels = None if self.labels is None else self.labels[rows]
        return Data(self.inputs[rows], self.logits[rows], self.margin, labels)


def run_random(
    simulator: Simulator,
    found: Found,
    data: Data,
    chosen: Effort,
    seed: int,
    journal: Journal,
    progress: Callable[[float], None],
) -> tuple[Trial, ...]:
    """Random mixed patterns: summed noise of their tensors against what they do together.

    Where patterns do not run on all inputs, they take turns with them.
    """
    random, trials = np.random.default_rng(seed), []
    for k in range(chosen.num_patterns):
        cut, of_weights, of_live, psi = _drawn(simulator.network, random, found.weight_psi, found.live_psi)
        trial = journal.recall(f"trial {k}", Trial)
        if trial is None:
            rows = (k * chosen.pattern_inputs + np.arange(chosen.pattern_inputs)) % len(data.inputs)
            part = data if chosen.pattern_inputs == len(data.inputs) else data.rows(rows)
            joint = simulator.joint(cut, of_weights, of_live, part.inputs, part.logits, part.margin, part.labels)
            count = len(part.inputs)
            trial = Trial(psi, joint.psi, round(joint.changed * count), count, joint.drop)
            journal.keep(f"trial {k}", trial)
        trials.append(trial)
        progress((k + 1) / chosen.num_patterns)
    return tuple(trials)


def _drawn(
    network: Network,
    random: np.random.Generator,
    weight_psi: Mapping[int, PsiPerWidth],
    live_psi: Sequence[Mapping[int, PsiPerWidth]],
) -> tuple[int, list[int], list[int], float]:
    """A random cut, widths around a random one, and their summed noise."""
    cut = int(random.integers(network.num_nodes + 1))
    nodes, live = [i for i in network.parametric if i < cut], network.live[cut]
    centre = random.integers(len(WIDTHS))
    drawn = np.clip(centre + random.integers(-2, 3, len(nodes) + len(live)), 0, len(WIDTHS) - 1).tolist()
    of_weights, of_live = drawn[: len(nodes)], drawn[len(nodes) :]
    psi = sum(weight_psi[node][i] for node, i in zip(nodes, of_weights, strict=True))
    psi += sum(live_psi[cut][value][i] for value, i in zip(live, of_live, strict=True))
    return cut, [WIDTHS[i] for i in of_weights], [WIDTHS[i] for i in of_live], float(psi)


def run_verified(
    simulator: Simulator,
    tables: Tables,
    data: Data,
    chosen: Effort,
    journal: Journal,
    progress: Callable[[float], None],
) -> tuple[dict[tuple[int, int], float], tuple[Verified, ...]]:
    """Budgets shrunk where a level's cheapest pattern does not hold, and what every pattern did that was run."""
    seen: dict[PatternKey, Verified] = {}
    part = data.rows(slice(chosen.verify_inputs))

    def run(pattern: Pattern) -> Joint:
        name = "joint " + repr(key_of(pattern))
        joint = journal.recall(name, Joint)
        if joint is None:
            p = pattern
            joint = simulator.joint(
                p.cut, p.weight_bits, p.live_bits, part.inputs, part.logits, part.margin, part.labels
            )
            journal.keep(name, joint)
        seen[key_of(pattern)] = Verified(*key_of(pattern), *joint)
        return joint

    skipped = frozenset() if chosen.all_cuts else efforts.dominated(simulator.network)
    shrink = verify_levels(tables, run, progress, skipped=skipped)
    return shrink, tuple(seen.values())
