"""Which cut and which widths serve a request best, and why; or why none does, and what would help.

Pure: no clock, no sockets, no randomness; the same question has the same answer.
"""

from __future__ import annotations

from math import inf
from typing import Annotated

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from qpart.costs import Compute, CutCosts, Fixed, costs
from qpart.cuts import Choices
from qpart.fronts import Floats
from qpart.limits import BELOW_ALL, NO_SHRINK, Shrink, allowances, at_cut, at_each_cut, refusal
from qpart.patterns import Pattern, evaluate
from qpart.profile import Request, ServerProfile, Weights
from qpart.rows import WHY, CutRow, CutTable
from qpart.solve import AnySolver, Solver
from qpart.tables import MAX_LEVELS, Tables

_FORBIDDEN = {name: WHY.index(name) for name in WHY}


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What one inference costs: seconds, the device's joules, money, and their weighted sum."""

    time_s: float
    energy_j: float
    price: float
    objective: float


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The decision, with the table of all cuts or that of its own alone.

    Attributes:
        pattern: the cut and the widths.
        accuracy: the drop that was asked for.
        level: the verified level whose budget was used; `accuracy` itself if it lies below all of them.
        level_index: of that level; -1 (`BELOW_ALL`) below all of them: shrink (pattern.cut, level_index) if it fails.
        budget: most summed noise at this cut.
        cost: of one inference.
        inferences: over how many the download counts.
        weights: of the objective.
        table: every cut, 0 .. L; of a plan without explanation, the chosen one.

    Raises:
        ValueError: the pattern is not for a cut that the table allows.
    """

    pattern: Pattern
    accuracy: float
    level: float
    level_index: Annotated[int, msgspec.Meta(ge=BELOW_ALL, le=MAX_LEVELS - 1)]
    budget: float
    cost: Cost
    inferences: int
    weights: Weights
    table: CutTable

    def __post_init__(self) -> None:
        table, cut = self.table, self.pattern.cut
        known = table.only[0] == cut if table.only else 0 <= cut < len(table.why)
        if not known or table.why[0 if table.only else cut]:
            raise ValueError(f"the plan is for cut {cut}, which its table does not allow")

    @property
    def rows(self) -> tuple[CutRow, ...]:
        """One for each cut of the table; made anew at each call, `row` makes one."""
        return self.table.rows()

    @property
    def last_cut(self) -> int:
        """L: everything on the device."""
        return self.table.last_cut

    def row(self, cut: int | None = None) -> CutRow:
        """What a cut comes to; the chosen one where none is named."""
        return self.table.row(self.pattern.cut if cut is None else cut)


def plan(
    solver: AnySolver, request: Request, server: ServerProfile, *, shrink: Shrink = NO_SHRINK, explain: bool = True
) -> Plan:
    """The cut and the widths with the least objective for a request.

    Args:
        solver: of the network.
        request: what is asked.
        server: what the rest of the network runs on.
        shrink: by (cut, index of a level): factor in [0, 1] on the budget, where verification found it too large;
            index -1 is for accuracies below all levels, where level 0's applies otherwise (see `limits.factor`).
        explain: with the table of all cuts. Without it the decision is the same, and sooner where a cache is shown.

    Returns:
        Of equal objectives: the cut that moves fewer bytes, then the smaller one.

    Raises:
        Infeasible: no cut satisfies the request.
    """
    tables, fixed = solver.tables, solver.fixed
    if request.cached and not explain and isinstance(solver, Solver):
        short = _without_table(solver, request, server, shrink)
        if short is not None:
            return short
    allowed = at_each_cut(allowances(tables, request.accuracy), tables.network.num_nodes + 1, shrink)
    down, up = byte_weights(request)
    memory_bytes, cached = request.device.memory_bytes, request.cached
    compute = fixed.compute(request, server)
    found = solver.best_of_each(
        allowed.budget, down_weight=down, up_weight=up, memory_bytes=memory_bytes, cached=cached
    )
    why = _why_not(solver, request, found)
    cost = _costs_of_each(fixed, compute, request, server, found)
    if why.all():
        raise refusal(solver, request, shrink)
    objective = np.where(why == 0, cost.objective, inf)
    least = np.flatnonzero((objective == objective.min()) & (why == 0))
    cut = int(least[np.argmin((found.download_bytes + found.up_bytes)[least])])
    table = _table(fixed, found, cost, why) if explain else _table_of(cut, fixed, found, cost)
    row = table.row(cut)
    pattern = evaluate(tables, cut, row.weight_bits, row.live_bits)
    return Plan(
        pattern=replace(pattern, download_bytes=row.download_bytes) if cached else pattern,
        accuracy=request.accuracy,
        level=float(allowed.level[cut]),
        level_index=int(allowed.level_index[cut]),
        budget=float(allowed.budget[cut]),
        cost=Cost(time_s=row.time_s, energy_j=row.energy_j, price=row.price, objective=row.objective),
        inferences=request.inferences,
        weights=request.weights,
        table=table,
    )


def _without_table(solver: Solver, request: Request, server: ServerProfile, shrink: Shrink) -> Plan | None:
    """The plan, where the cuts that may be the cheapest can be found without the fronts of all; None where not."""
    fixed, granted = solver.fixed, allowances(solver.tables, request.accuracy, solver.fixed.level_budgets)
    if shrink:
        budgets = at_each_cut(granted, len(fixed.after), shrink).budget
    else:
        granted = [max(granted)]
        budgets = np.full(len(fixed.after), granted[0].budget)
    compute, (down, up) = fixed.compute(request, server), byte_weights(request)
    base = fixed.without_bytes(request, server, compute)
    if request.raw_input_stays:
        base[fixed.shows_input] = inf
    found = solver.leading(
        budgets, base, down_weight=down, up_weight=up, memory_bytes=request.device.memory_bytes, cached=request.cached,
    )  # fmt: skip
    if found is None:
        return None
    if not found:
        raise refusal(solver, request, shrink)
    rows = [_costs_at(fixed, compute, request, server, one) for one in found]
    objective, _, cut, k = min(
        (cost.objective, one.download_bytes + one.up_bytes, one.cut, k)
        for k, (one, cost) in enumerate(zip(found, rows, strict=True))
    )
    pattern, cost, allowed = found[k], rows[k], at_cut(granted, cut, shrink)
    table = CutTable(
        fixed.after[cut : cut + 1], b"\0", (bytes(pattern.weight_bits),), (bytes(pattern.live_bits),),
        (pattern.download_bytes,), (pattern.up_bytes,), (cost.device_s,), (cost.channel_s,), (cost.server_s,),
        (cost.energy_j,), (cost.price,), (objective,), (pattern.device_bytes,), (cut, len(fixed.after) - 1),
    )  # fmt: skip
    time_s = cost.device_s + cost.channel_s + cost.server_s
    return Plan(
        pattern=pattern,
        accuracy=request.accuracy,
        level=allowed.level,
        level_index=allowed.level_index,
        budget=allowed.budget,
        cost=Cost(time_s=time_s, energy_j=cost.energy_j, price=cost.price, objective=objective),
        inferences=request.inferences,
        weights=request.weights,
        table=table,
    )


def _costs_at(
    fixed: Fixed, compute: Compute, request: Request, server: ServerProfile, pattern: Pattern
) -> CutCosts[float]:
    """What a pattern costs at its cut."""
    cut = pattern.cut
    return costs(
        request,
        server,
        device_macs=compute.device_macs.item(cut),
        device_s=compute.device_s.item(cut),
        server_s=compute.server_s.item(cut),
        download_bytes=float(pattern.download_bytes),
        up_bytes=float(pattern.up_bytes),
        answer_bytes=fixed.answer_bytes.item(cut),
        round_trips=fixed.round_trips.item(cut),
    )


def cost_row(
    tables: Tables, pattern: Pattern, request: Request, server: ServerProfile, *, fixed: Fixed | None = None
) -> CutRow:
    """What one inference with a pattern costs, whoever chose it; see design section 2.

    Args:
        fixed: of these tables, where it is at hand.
    """
    cut, fixed = pattern.cut, fixed or Fixed(tables)
    cost = _costs_at(fixed, fixed.compute(request, server), request, server, pattern)
    return CutRow(
        cut=cut,
        after=fixed.after[cut],
        allowed=True,
        weight_bits=pattern.weight_bits,
        live_bits=pattern.live_bits,
        download_bytes=pattern.download_bytes,
        up_bytes=pattern.up_bytes,
        device_time_s=cost.device_s,
        channel_time_s=cost.channel_s,
        server_time_s=cost.server_s,
        energy_j=cost.energy_j,
        price=cost.price,
        objective=cost.objective,
        memory_bytes=pattern.device_bytes,
    )


def byte_weights(request: Request) -> tuple[float, float]:
    """What a byte to load and a byte of one request add to the objective: it is linear in both."""
    channel, weights = request.channel, request.weights
    down = 8 * (weights.time + weights.energy * channel.rx_watts) / (request.inferences * channel.down_bits_per_s)
    return down, 8 * (weights.time + weights.energy * channel.tx_watts) / channel.up_bits_per_s


def _why_not(solver: AnySolver, request: Request, found: Choices) -> NDArray[np.uint8]:
    """(cuts,) 0 where a cut is allowed, else the position in `WHY` of what forbids it."""
    fits = solver.fitting(request.device.memory_bytes)
    why = np.where(found.exists, 0, np.where(fits, _FORBIDDEN["accuracy"], _FORBIDDEN["memory"])).astype(np.uint8)
    if request.raw_input_stays:
        why[solver.fixed.shows_input] = _FORBIDDEN["raw_input_stays"]
    return why


def _costs_of_each(
    fixed: Fixed, compute: Compute, request: Request, server: ServerProfile, found: Choices
) -> CutCosts[Floats]:
    """Costs of every cut."""
    return costs(
        request,
        server,
        device_macs=compute.device_macs,
        device_s=compute.device_s,
        server_s=compute.server_s,
        download_bytes=found.download_bytes.astype(np.float64),
        up_bytes=found.up_bytes.astype(np.float64),
        answer_bytes=fixed.answer_bytes,
        round_trips=fixed.round_trips,
    )


def _table_of(cut: int, fixed: Fixed, found: Choices, cost: CutCosts[Floats]) -> CutTable:
    """The table of one cut alone."""
    device_s, channel_s, server_s, energy_j, price, objective = ((column[cut].item(),) for column in cost)
    return CutTable(
        fixed.after[cut : cut + 1], b"\0", (found.weight_bits[cut],), (found.live_bits[cut],),
        (int(found.download_bytes[cut]),), (int(found.up_bytes[cut]),), device_s, channel_s, server_s, energy_j, price,
        objective, (int(found.device_bytes[cut]),), (cut, len(fixed.after) - 1),
    )  # fmt: skip


def _table(fixed: Fixed, found: Choices, cost: CutCosts[Floats], why: NDArray[np.uint8]) -> CutTable:
    numbers = [found.download_bytes, found.up_bytes, *cost, found.device_bytes]
    weight_bits, live_bits, forbidden = list(found.weight_bits), list(found.live_bits), np.flatnonzero(why)
    if len(forbidden):
        numbers = [np.where(why, 0, column) for column in numbers]
        for cut in forbidden.tolist():
            weight_bits[cut] = live_bits[cut] = b""
    columns = (tuple(column.tolist()) for column in numbers)
    return CutTable(fixed.after, why.tobytes(), tuple(weight_bits), tuple(live_bits), *columns)
