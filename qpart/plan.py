"""Which cut and which widths serve a request best, and why; or why none does, and what would help.

Pure: no clock, no sockets, no randomness; the same question has the same answer.
"""

from __future__ import annotations

from math import inf
from typing import Annotated, Literal

import msgspec

from qpart.limits import BELOW_ALL, NO_SHRINK, Allowance, Constraint, Shrink, allowances, at_cut, refusal
from qpart.network import MAX_NODES
from qpart.profile import Request, ServerProfile, Weights
from qpart.solve import Pattern, Solver
from qpart.tables import MAX_LEVELS, BitList, Tables


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What one inference costs: seconds, the device's joules, money, and their weighted sum."""

    time_s: float
    energy_j: float
    price: float
    objective: float


class CutRow(msgspec.Struct, frozen=True, kw_only=True):
    """One cut of a plan: its best pattern and what one inference costs.

    Attributes:
        cut: the device runs nodes[:cut].
        after: name of the last of them, or "input".
        allowed: whether the request can be served here; where not, all numbers are 0.
        why: the constraint that forbids it, or empty.
        channel_time_s: request, answer, round trip, and the download divided by the inferences.
    """

    cut: Annotated[int, msgspec.Meta(ge=0, le=MAX_NODES)]
    after: Annotated[str, msgspec.Meta(max_length=64)]
    allowed: bool
    why: Literal["", "accuracy", "memory", "raw_input_stays"] = ""
    weight_bits: BitList = ()
    live_bits: BitList = ()
    download_bytes: int = 0
    up_bytes: int = 0
    device_time_s: float = 0.0
    channel_time_s: float = 0.0
    server_time_s: float = 0.0
    energy_j: float = 0.0
    price: float = 0.0
    objective: float = 0.0

    @property
    def time_s(self) -> float:
        """Seconds of one inference."""
        return self.device_time_s + self.channel_time_s + self.server_time_s


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The decision, with the table that it was made from.

    Attributes:
        pattern: the cut and the widths.
        accuracy: the drop that was asked for.
        level: the verified level whose budget was used; `accuracy` itself if it lies below all of them.
        level_index: of that level; -1 (`BELOW_ALL`) below all of them: shrink (pattern.cut, level_index) if it fails.
        budget: most summed noise at this cut.
        cost: of one inference.
        inferences: over how many the download counts.
        weights: of the objective.
        rows: one per cut, 0 .. L.

    Raises:
        ValueError: the pattern is not for one of the rows' cuts.
    """

    pattern: Pattern
    accuracy: float
    level: float
    level_index: Annotated[int, msgspec.Meta(ge=BELOW_ALL, le=MAX_LEVELS - 1)]
    budget: float
    cost: Cost
    inferences: int
    weights: Weights
    rows: Annotated[tuple[CutRow, ...], msgspec.Meta(min_length=1, max_length=MAX_NODES + 1)]

    def __post_init__(self) -> None:
        if [row.cut for row in self.rows] != list(range(len(self.rows))):
            raise ValueError(f"a plan's rows are for cuts 0, 1, 2 and so on, got {[row.cut for row in self.rows]}")
        if not 0 <= self.pattern.cut < len(self.rows) or not self.rows[self.pattern.cut].allowed:
            raise ValueError(f"the plan is for cut {self.pattern.cut}, which none of its rows allows")


def plan(solver: Solver, request: Request, server: ServerProfile, *, shrink: Shrink = NO_SHRINK) -> Plan:
    """The cut and the widths with the least objective for a request.

    Args:
        solver: of the network.
        request: what is asked.
        server: what the rest of the network runs on.
        shrink: by (cut, index of a level): factor in [0, 1] on the budget, where verification found it too large;
            index -1 is for accuracies below all levels, where level 0's applies otherwise (see `limits.factor`).

    Returns:
        Of equal objectives: the cut that moves fewer bytes, then the smaller one.

    Raises:
        Infeasible: no cut satisfies the request.
    """
    tables = solver.tables
    granted = allowances(tables, request.accuracy)
    rows: list[CutRow] = []
    best: tuple[tuple[float, int, int], Pattern, Allowance] | None = None
    for cut in range(tables.network.num_nodes + 1):
        allowance = at_cut(granted, cut, shrink)
        found = _pattern(solver, request, cut, allowance.budget)
        if not isinstance(found, Pattern):
            rows.append(CutRow(cut=cut, after=tables.network.name_of(cut), allowed=False, why=found))
            continue
        rows.append(cost_row(tables, found, request, server))
        rank = (rows[-1].objective, found.download_bytes + found.up_bytes, cut)
        if best is None or rank < best[0]:
            best = rank, found, allowance
    if best is None:
        raise refusal(solver, request, shrink)
    _, pattern, allowance = best
    row = rows[pattern.cut]
    return Plan(
        pattern=pattern,
        accuracy=request.accuracy,
        level=allowance.level,
        level_index=allowance.level_index,
        budget=allowance.budget,
        cost=Cost(time_s=row.time_s, energy_j=row.energy_j, price=row.price, objective=row.objective),
        inferences=request.inferences,
        weights=request.weights,
        rows=tuple(rows),
    )


def cost_row(tables: Tables, pattern: Pattern, request: Request, server: ServerProfile) -> CutRow:
    """What one inference with a pattern costs, whoever chose it; see design section 2."""
    cut, network, channel = pattern.cut, tables.network, request.channel
    device_macs = sum(network.macs[:cut])
    device_s = device_macs / request.device.macs_per_s
    server_s = sum(network.macs[cut:]) / server.macs_per_s
    up_s = 8 * pattern.up_bytes / channel.up_bits_per_s
    load_s = 8 * pattern.download_bytes / (request.inferences * channel.down_bits_per_s)
    down_s = load_s + 8 * tables.answer_bytes[cut] / channel.down_bits_per_s
    channel_s = up_s + down_s + (channel.round_trip_s if cut < network.num_nodes else 0.0)
    energy = request.device.joules_per_mac * device_macs + channel.tx_watts * up_s + channel.rx_watts * down_s
    price = server.price_per_s * server_s
    weights = request.weights
    return CutRow(
        cut=cut,
        after=network.name_of(cut),
        allowed=True,
        weight_bits=pattern.weight_bits,
        live_bits=pattern.live_bits,
        download_bytes=pattern.download_bytes,
        up_bytes=pattern.up_bytes,
        device_time_s=device_s,
        channel_time_s=channel_s,
        server_time_s=server_s,
        energy_j=energy,
        price=price,
        objective=weights.time * (device_s + channel_s + server_s) + weights.energy * energy + weights.price * price,
    )


def byte_weights(request: Request) -> tuple[float, float]:
    """What a byte to load and a byte of one request add to the objective: it is linear in both."""
    channel, weights = request.channel, request.weights
    down = 8 * (weights.time + weights.energy * channel.rx_watts) / (request.inferences * channel.down_bits_per_s)
    return down, 8 * (weights.time + weights.energy * channel.tx_watts) / channel.up_bits_per_s


def _pattern(solver: Solver, request: Request, cut: int, budget: float) -> Pattern | Constraint:
    """The best pattern of a cut, or the constraint that forbids it."""
    if request.raw_input_stays and solver.tables.network.shows_input(cut):
        return "raw_input_stays"
    memory_bytes = request.device.memory_bytes
    down, up = byte_weights(request)
    pattern = solver.best(cut, budget, down_weight=down, up_weight=up, memory_bytes=memory_bytes, cached=request.cached)
    if pattern is not None:
        return pattern
    return "memory" if solver.least_psi(cut, memory_bytes) == inf else "accuracy"
