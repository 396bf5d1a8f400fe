"""Which cut and which widths serve a request best, and why; or why none does, and what would help.

Pure: no clock, no sockets, no randomness; the same question has the same answer.
"""

from __future__ import annotations

from math import inf
from typing import Annotated, Literal, get_args

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from qpart.costs import CutCosts, Fixed, costs
from qpart.cuts import Choices
from qpart.fronts import Floats
from qpart.limits import BELOW_ALL, NO_SHRINK, Shrink, allowances, at_each_cut, refusal
from qpart.network import MAX_NODES
from qpart.profile import Request, ServerProfile, Weights
from qpart.solve import AnySolver, Pattern, evaluate
from qpart.tables import MAX_LEVELS, BitList, Tables

Why = Literal["", "accuracy", "memory", "raw_input_stays"]
_WHY: tuple[Why, ...] = get_args(Why)


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What one inference costs: seconds, the device's joules, money, and their weighted sum."""

    time_s: float
    energy_j: float
    price: float
    objective: float


class CutRow(msgspec.Struct, frozen=True, kw_only=True, gc=False, array_like=True):
    """One cut of a plan: its best pattern and what one inference costs; it travels as an array, there are many.

    Attributes:
        cut: the device runs nodes[:cut].
        after: name of the last of them, or "input".
        allowed: whether the request can be served here; where not, all numbers are 0.
        why: the constraint that forbids it, or empty.
        memory_bytes: what the device holds at most, for one sample: its part of the network, activations, scratch, a
            dequantised layer. The interpreter and its objects come on top.
        channel_time_s: request, answer, round trip, and the download divided by the inferences.
    """

    cut: Annotated[int, msgspec.Meta(ge=0, le=MAX_NODES)]
    after: Annotated[str, msgspec.Meta(max_length=64)]
    allowed: bool
    why: Why = ""
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
    memory_bytes: int = 0

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
        if any(row.cut != cut for cut, row in enumerate(self.rows)):
            raise ValueError(f"a plan's rows are for cuts 0, 1, 2 and so on, got {[row.cut for row in self.rows]}")
        if not 0 <= self.pattern.cut < len(self.rows) or not self.rows[self.pattern.cut].allowed:
            raise ValueError(f"the plan is for cut {self.pattern.cut}, which none of its rows allows")


def plan(solver: AnySolver, request: Request, server: ServerProfile, *, shrink: Shrink = NO_SHRINK) -> Plan:
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
    tables, fixed = solver.tables, solver.fixed
    allowed = at_each_cut(allowances(tables, request.accuracy), tables.network.num_nodes + 1, shrink)
    down, up = byte_weights(request)
    memory_bytes, cached = request.device.memory_bytes, request.cached
    found = solver.best_of_each(
        allowed.budget, down_weight=down, up_weight=up, memory_bytes=memory_bytes, cached=cached
    )
    why = _why_not(solver, request, found)
    cost = _costs_of_each(fixed, found, request, server)
    if why.all():
        raise refusal(solver, request, shrink)
    rows = _rows(fixed, found, cost, why)
    objective = np.where(why == 0, cost.objective, inf)
    least = np.flatnonzero((objective == objective.min()) & (why == 0))
    row = rows[int(least[np.argmin((found.download_bytes + found.up_bytes)[least])])]
    cut = row.cut
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
        rows=rows,
    )


def cost_row(
    tables: Tables, pattern: Pattern, request: Request, server: ServerProfile, *, fixed: Fixed | None = None
) -> CutRow:
    """What one inference with a pattern costs, whoever chose it; see design section 2.

    Args:
        fixed: of these tables, where it is at hand.
    """
    cut, fixed = pattern.cut, fixed or Fixed(tables)
    compute = fixed.compute(request, server)
    cost = costs(
        request,
        server,
        device_macs=float(compute.device_macs[cut]),
        device_s=float(compute.device_s[cut]),
        server_s=float(compute.server_s[cut]),
        download_bytes=float(pattern.download_bytes),
        up_bytes=float(pattern.up_bytes),
        answer_bytes=float(fixed.answer_bytes[cut]),
        round_trips=float(fixed.round_trips[cut]),
    )
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


def _why_not(solver: AnySolver, request: Request, found: Choices) -> NDArray[np.int8]:
    """(cuts,) 0 where a cut is allowed, else the position in `_WHY` of what forbids it."""
    fits = solver.fitting(request.device.memory_bytes)
    why = np.where(found.exists, 0, np.where(fits, _WHY.index("accuracy"), _WHY.index("memory"))).astype(np.int8)
    if request.raw_input_stays:
        why[solver.fixed.shows_input] = _WHY.index("raw_input_stays")
    return why


def _costs_of_each(fixed: Fixed, found: Choices, request: Request, server: ServerProfile) -> CutCosts[Floats]:
    compute = fixed.compute(request, server)
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


def _rows(fixed: Fixed, found: Choices, cost: CutCosts[Floats], why: NDArray[np.int8]) -> tuple[CutRow, ...]:
    columns = zip(
        fixed.after,
        why.tolist(),
        found.weight_bits,
        found.live_bits,
        *(column.tolist() for column in (found.download_bytes, found.up_bytes, found.device_bytes, *cost)),
        strict=True,
    )
    rows = []
    for cut, (after, bad, weight_bits, live_bits, down, up, held, device, channel, server, *rest) in enumerate(columns):
        if bad:
            rows.append(CutRow(cut=cut, after=after, allowed=False, why=_WHY[bad]))
            continue
        rows.append(
            CutRow(
                cut=cut, after=after, allowed=True, weight_bits=weight_bits, live_bits=live_bits, download_bytes=down,
                up_bytes=up, device_time_s=device, channel_time_s=channel, server_time_s=server, energy_j=rest[0],
                price=rest[1], objective=rest[2], memory_bytes=held,
            )
        )  # fmt: skip
    return tuple(rows)
