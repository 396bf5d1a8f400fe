"""Plans for many questions at once: what pictures are drawn of.

Pure: numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from qpart.baselines import Answer, Case
from qpart.errors import Infeasible
from qpart.limits import NO_SHRINK, Shrink
from qpart.plan import plan
from qpart.profile import Request, ServerProfile
from qpart.solve import AnySolver

MAX_RATES = 1000


class Payload(NamedTuple):
    """What a plan for an accuracy drop moves for one inference: its share of the download, and what goes up."""

    accuracy: float
    cut: int
    bytes_per_inference: float


class AtRate(NamedTuple):
    """What one inference costs at a rate, and the cut that was chosen; None where nothing is allowed."""

    up_bits_per_s: float
    objective: float | None
    cut: int | None


class Widths(NamedTuple):
    """Widths of the layers on the device, and of what is sent, by name, for an accuracy drop."""

    accuracy: float
    cut: int
    layers: tuple[tuple[str, int], ...]
    sent: tuple[tuple[str, int], ...]


def payload_by_level(
    solver: AnySolver, request: Request, server: ServerProfile, *, cut: int | None = None, shrink: Shrink = NO_SHRINK
) -> list[Payload]:
    """Bytes of one inference at every calibrated accuracy drop that can be had.

    Args:
        solver: of any kind.
        request: whose accuracy is replaced.
        server: its profile.
        cut: this one; None for the one that a plan chooses.
        shrink: of the budgets.
    """
    found = []
    for level in solver.tables.levels:
        try:
            one = plan(solver, msgspec.structs.replace(request, accuracy=level), server, shrink=shrink)
        except Infeasible:
            continue
        row = one.row(cut)
        if row.allowed:
            found.append(Payload(level, row.cut, row.download_bytes / request.inferences + row.up_bytes))
    return found


def cost_by_rate(case: Case, rates: Sequence[float], decide: Callable[[Case], Answer | None]) -> list[AtRate]:
    """The objective of one inference at rates up; the rate down keeps its ratio to the one up.

    Raises:
        ValueError: more rates than anybody can look at.
    """
    if len(rates) > MAX_RATES:
        raise ValueError(f"{len(rates)} rates are given, {MAX_RATES} are the most")
    channel, found = case.request.channel, []
    for rate in rates:
        changed = msgspec.structs.replace(
            channel, up_bits_per_s=rate, down_bits_per_s=rate * channel.down_bits_per_s / channel.up_bits_per_s
        )
        request = msgspec.structs.replace(case.request, channel=changed)
        answer = decide(Case(case.solver, request, case.server, case.shrink, case.float_weights_present))
        kept = answer if answer is not None and answer.holds else None
        found.append(AtRate(rate, kept.row.objective if kept else None, kept.row.cut if kept else None))
    return found


def widths_by_level(
    solver: AnySolver, request: Request, server: ServerProfile, *, cut: int | None = None, shrink: Shrink = NO_SHRINK
) -> list[Widths]:
    """Widths of every layer and of what is sent at every calibrated accuracy drop; arguments as above."""
    network, found = solver.tables.network, []
    for level in solver.tables.levels:
        try:
            one = plan(solver, msgspec.structs.replace(request, accuracy=level), server, shrink=shrink)
        except Infeasible:
            continue
        row = one.row(cut)
        if not row.allowed:
            continue
        layers = [network.name_of(node + 1) for node in network.parametric]
        sent = [network.name_of(value) for value in network.live[row.cut]]
        found.append(
            Widths(
                level,
                row.cut,
                tuple(zip(layers, row.weight_bits, strict=False)),
                tuple(zip(sent, row.live_bits, strict=True)),
            )
        )
    return found


def changes(points: Sequence[AtRate]) -> list[AtRate]:
    """The first point of every stretch with the same cut."""
    found: list[AtRate] = []
    for point in points:
        if point.cut is not None and (not found or found[-1].cut != point.cut):
            found.append(point)
    return found


def reach(curves: Mapping[str, Sequence[AtRate]]) -> tuple[float, float] | None:
    """The least and the largest objective of some curves."""
    costs = [point.objective for points in curves.values() for point in points if point.objective is not None]
    return (min(costs), max(costs)) if costs else None
