"""What must hold at the end: bytes as planned, accuracy as promised, answers as simulated, refusals that help."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from qpart.demo.held_out import HeldOut
from qpart.demo.roles import Role
from qpart.errors import Infeasible
from qpart.plan import Plan
from qpart.quantiser import Floats
from qpart.rows import CutRow, CutTable
from qpart.run.served import ServedModel

TOLERANCE = 1e-4
"""Of the largest logit, where answers are not equal bit for bit."""
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one device did.

    Attributes:
        printed: by `qpart infer --json --explain`.
        logits: it wrote (n, classes).
    """

    role: Role
    printed: dict[str, Any]
    logits: Floats

    @property
    def plan(self) -> Plan:
        """The plan that the device was given."""
        printed = self.printed["plan"]
        table = CutTable.of(msgspec.convert(printed["rows"], list[CutRow]))
        return msgspec.convert({**printed, "table": msgspec.to_builtins(table)}, Plan)

    @property
    def traffic(self) -> dict[str, int]:
        """Bytes by kind, planned and counted."""
        found: dict[str, int] = self.printed["traffic"]
        return found


@dataclass(frozen=True, slots=True)
class Finding:
    """One statement of the proof, and whether it holds."""

    text: str
    holds: bool


def kept(drop: float, promised: float) -> bool:
    """Whether a drop, a difference of two rounded shares, is within what was promised."""
    return drop <= promised + _ROUNDING


def bytes_as_planned(outcome: Outcome) -> Finding:
    """Planned bytes are those which the link counted."""
    kinds, t = ("download", "up", "answer"), outcome.traffic
    planned, counted = [t[f"planned_{kind}_bytes"] for kind in kinds], [t[f"{kind}_bytes"] for kind in kinds]
    text = " + ".join(f"{number:,}" for number in counted)
    holds = planned == counted
    other = "as planned, to the byte" if holds else f"BUT PLANNED WERE {planned}"
    return Finding(f"{outcome.role.name}: {text} bytes loaded, sent and answered, {other}", holds)


def accuracy_as_promised(outcome: Outcome, held: HeldOut) -> Finding:
    """The accuracy on held-out images drops by no more than what was asked for."""
    count, promised = len(outcome.logits), outcome.plan.accuracy
    full = held.full[:count]
    before, after = held.accuracy(full), held.accuracy(outcome.logits)
    changed = float((outcome.logits.argmax(axis=1) != full.argmax(axis=1)).mean())
    holds = kept(before - after, promised)
    return Finding(
        f"{outcome.role.name}: accuracy {before:.1%} in float32, {after:.1%} by the plan: a drop of "
        f"{before - after:.1%}, promised {promised:.0%}; {changed:.1%} of predictions changed"
        + ("" if holds else " - VIOLATED"),
        holds,
    )


def answers_as_simulated(outcome: Outcome, held: HeldOut) -> Finding:
    """Answers over the bus are those of head and tail in one process; torch alone is close."""
    count, pattern = len(outcome.logits), outcome.plan.pattern
    replayed, scale = held.replayed(pattern, count), float(np.abs(outcome.logits).max())
    difference = float(np.abs(replayed - outcome.logits).max()) / scale
    same = np.array_equal(replayed, outcome.logits)
    holds = same or (difference <= TOLERANCE and np.array_equal(replayed.argmax(axis=1), outcome.logits.argmax(axis=1)))
    torch = held.simulated(pattern)[:count]
    apart = float(np.abs(torch - outcome.logits).max()) / scale
    flips = int((torch.argmax(axis=1) != outcome.logits.argmax(axis=1)).sum())
    how = (
        "equal bit for bit" if same else f"{'within' if holds else 'NOT WITHIN'} {difference:.1e} of the largest logit"
    )
    return Finding(
        f"{outcome.role.name}: {count:,} answers {how} to head and tail in one process; "
        f"torch alone: {apart:.0e} apart, {flips} flips",
        holds,
    )


def refusal_helps(line: str, role: Role, served: ServedModel) -> Finding:
    """A refusal names its constraint, and the accuracy that it names can be had."""
    nearest = re.search(r"ask for a drop of ([0-9.e-]+)", line)
    holds = "infeasible (accuracy)" in line and nearest is not None
    if nearest is not None:
        holds = holds and _served(served, role, float(nearest[1]))
    return Finding(
        f"refused: {line.removeprefix('qpart: ')}; {'which is served' if holds else 'WHICH IS WRONG'}", holds
    )


def _served(served: ServedModel, role: Role, accuracy: float) -> bool:
    try:
        served.plan(msgspec.structs.replace(role.request, accuracy=accuracy))
    except Infeasible:
        return False
    return True


def fetched_once(first: Outcome, again: Outcome) -> Finding:
    """With its cache, a device loads the segment's description and no piece a second time."""
    plan = again.plan
    pieces = plan.pattern.segment_bytes - plan.pattern.download_bytes
    loaded = again.traffic["download_bytes"]
    same = _alike(first.logits, again.logits)  # batches of the server were others, and so was its rounding
    holds = loaded == plan.pattern.download_bytes and loaded + pieces == first.traffic["download_bytes"] and same
    return Finding(
        f"{first.role.name} again: {loaded:,} bytes loaded and not {first.traffic['download_bytes']:,}, "
        f"the other {pieces:,} are in its cache; answers are {'the same' if same else 'OTHER ONES'}",
        holds and pieces > 0,
    )


def _alike(some: Floats, others: Floats) -> bool:
    """Whether answers are the same but for rounding."""
    near = float(np.abs(some - others).max()) <= TOLERANCE * float(np.abs(some).max())
    return near and np.array_equal(some.argmax(axis=1), others.argmax(axis=1))


def planes_alone(first: Outcome, closer: Outcome) -> Finding:
    """For a closer accuracy a device loads what its layers lack, and nothing that it has."""
    plan, before = closer.plan, first.plan
    loaded, whole = closer.traffic["download_bytes"], plan.pattern.segment_bytes
    widths = " ".join(map(str, plan.pattern.weight_bits))
    old = " ".join(map(str, before.pattern.weight_bits[: len(plan.pattern.weight_bits)]))
    return Finding(
        f"{closer.role.name} at {plan.accuracy:.0%} and no more at {before.accuracy:.0%}: weights from {old} to "
        f"{widths} bits by {loaded:,} bytes loaded and not {whole:,}, the planes that it lacks",
        loaded == plan.pattern.download_bytes and loaded < whole,
    )
