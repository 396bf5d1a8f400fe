"""What others would do with the same request: the same cost model, the same bytes, other decisions.

Pure: numpy only. Energy and time of computing do not depend on widths in this model; what differs is what travels, what
is held, and where the network is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

from qpart.costs import Fixed
from qpart.errors import Infeasible
from qpart.heuristics import Kind, make_solver
from qpart.limits import NO_SHRINK, Shrink, allowances, at_each_cut
from qpart.patterns import Pattern, evaluate, uniform
from qpart.plan import byte_weights, cost_row, plan
from qpart.profile import Request, ServerProfile
from qpart.rows import CutRow
from qpart.solve import AnySolver, Solver
from qpart.tables import WIDTHS, Tables

INT8 = 8


@dataclass(frozen=True)
class Case:
    """One request, and everything that an answer depends on.

    Attributes:
        solver: the exact one, of the network.
        request: what is asked; `cached` holds for quantised layers.
        server: its profile.
        shrink: of the budgets.
        float_weights_present: the device has the float32 weights, so that they need no loading.
    """

    solver: Solver
    request: Request
    server: ServerProfile
    shrink: Shrink = field(default_factory=lambda: NO_SHRINK)
    float_weights_present: bool = False

    @property
    def tables(self) -> Tables:
        return self.solver.tables

    @property
    def fixed(self) -> Fixed:
        return self.solver.fixed

    @cached_property
    def budgets(self) -> list[float]:
        """Most summed noise at every cut."""
        granted = allowances(self.tables, self.request.accuracy)
        found: list[float] = at_each_cut(granted, len(self.fixed.after), self.shrink).budget.tolist()
        return found

    def forbids(self, pattern: Pattern) -> bool:
        """Whether memory or privacy forbid it."""
        hidden = self.request.raw_input_stays and bool(self.fixed.shows_input[pattern.cut])
        return hidden or pattern.device_bytes > self.request.device.memory_bytes


@dataclass(frozen=True)
class Answer:
    """What a way of deciding answers.

    Attributes:
        row: cut, widths, bytes and costs of one inference.
        psi: summed noise, by the measured table.
        holds: whether that keeps to the budget.
    """

    row: CutRow
    psi: float
    holds: bool


def exact(case: Case) -> Answer | None:
    """The plan of this package: best cut, exact widths."""
    return _planned(case, case.solver)


def heuristic(kind: Kind) -> Callable[[Case], Answer | None]:
    """The best cut with the widths of another solver; see `qpart.heuristics`."""

    def decide(case: Case) -> Answer | None:
        return _planned(case, make_solver(case.tables, kind))

    return decide


def all_server_pixels(case: Case, *, input_bytes: float | None = None) -> Answer | None:
    """The input travels as it is, a byte for each number, and the server does everything.

    Args:
        case: the request.
        input_bytes: of one input, where it is compressed (PNG, JPEG); a mean over inputs will do.

    Source: what a cloud service does.
    """
    tables = case.tables
    if case.request.raw_input_stays:
        return None
    sent = tables.network.items(0) if input_bytes is None else input_bytes
    pattern = Pattern(
        cut=0, weight_bits=(), live_bits=(INT8,), psi=0.0, download_bytes=tables.manifest_bytes[0],
        segment_bytes=0, up_bytes=round(tables.infer_bytes[0] + sent), device_bytes=4 * tables.device_items[0],
    )  # fmt: skip
    return _answer(case, pattern)


def all_device_float32(case: Case) -> Answer | None:
    """The whole network in full precision on the device.

    Source: what a framework for devices does by default.
    """
    return _best(case, [_float_pattern(case, case.tables.network.num_nodes)])


def all_device_int8(case: Case) -> Answer | None:
    """The whole network at 8 bits on the device, whether that keeps to the accuracy or not.

    Source: Jacob et al., CVPR 2018, as in every framework for devices.
    """
    last = case.tables.network.num_nodes
    return _best(case, [uniform(case.tables, last, INT8, cached=case.request.cached)])


def neurosurgeon(case: Case) -> Answer | None:
    """The best cut in full precision: weights and what travels are float32.

    Source: Kang et al., Neurosurgeon, ASPLOS 2017.
    """
    return _best(case, (_float_pattern(case, cut) for cut in range(case.tables.network.num_nodes + 1)))


def jalad(case: Case, *, weight_bits: int = INT8) -> Answer | None:
    """Weights at one width that is given, and the best cut with the smallest width of what travels.

    Args:
        case: the request.
        weight_bits: of every layer on the device.

    Source: Li et al., JALAD, ICPADS 2018; there the cut's values alone are quantised. One width for all that travels.
    """
    tables, found = case.tables, []
    for cut in range(tables.network.num_nodes + 1):
        weights, live = (weight_bits,) * tables.num_weights(cut), len(tables.network.live[cut])
        patterns = [evaluate(tables, cut, weights, (bits,) * live, cached=case.request.cached) for bits in WIDTHS]
        found += [p for p in patterns if p.psi <= case.budgets[cut]]
    return _best(case, found)


def uniform_at_best_cut(case: Case) -> Answer | None:
    """One width for weights and what travels, and the cut that is best with it.

    Source: what a quantisation tool and a splitting tool come to when used one after the other.
    """
    cuts = range(case.tables.network.num_nodes + 1)
    patterns = (uniform(case.tables, cut, bits, cached=case.request.cached) for cut in cuts for bits in WIDTHS)
    return _best(case, (p for p in patterns if p.psi <= case.budgets[p.cut]))


BASELINES: Mapping[str, Callable[[Case], Answer | None]] = {
    "all_server_pixels": all_server_pixels,
    "all_device_float32": all_device_float32,
    "all_device_int8": all_device_int8,
    "uniform": uniform_at_best_cut,
    "neurosurgeon": neurosurgeon,
    "jalad": jalad,
    "closed_form": heuristic("closed_form"),
    "floor_repair": heuristic("floor_repair"),
}
"""By name; each says None where it has no answer that fits the memory, keeps the input private and, where it chooses
widths, keeps to the noise budget."""


def _planned(case: Case, solver: AnySolver) -> Answer | None:
    try:
        found = plan(solver, case.request, case.server, shrink=case.shrink)
    except Infeasible:
        return None
    return Answer(found.row(), found.pattern.psi, found.pattern.psi <= found.budget)


def _float_pattern(case: Case, cut: int) -> Pattern:
    """A head in float32; its noise is 0, and the widths that are said are those of the nearest that there are."""
    tables, network = case.tables, case.tables.network
    weights, live = network.parametric[: tables.num_weights(cut)], network.live[cut]
    held = tables.manifest_bytes[cut] + sum(float_bytes(tables, node) for node in weights)
    return Pattern(
        cut=cut, weight_bits=(WIDTHS[-1],) * len(weights), live_bits=(WIDTHS[-1],) * len(live), psi=0.0,
        download_bytes=tables.manifest_bytes[cut] if case.float_weights_present else held, segment_bytes=held,
        up_bytes=tables.infer_bytes[cut] + sum(4 * network.items(value) for value in live),
        device_bytes=held + 4 * tables.device_items[cut],
    )  # fmt: skip


def float_bytes(tables: Tables, node: int) -> int:
    """Bytes of a layer's weight and bias in float32."""
    op = tables.network.nodes[node].op
    assert op.weight_shape is not None
    return 4 * (prod(op.weight_shape) + (op.weight_shape[0] if op.has_bias else 0))


def _best(case: Case, patterns: Iterable[Pattern]) -> Answer | None:
    """The pattern with the least objective among those that are allowed."""
    down, up = byte_weights(case.request)
    best: dict[int, Pattern] = {}
    for pattern in patterns:  # of one cut, bytes decide: everything else is equal
        known = best.get(pattern.cut)
        cost = down * pattern.download_bytes + up * pattern.up_bytes
        if not case.forbids(pattern) and (known is None or cost < down * known.download_bytes + up * known.up_bytes):
            best[pattern.cut] = pattern
    answers = [_answer(case, pattern) for pattern in best.values()]
    return min(answers, key=lambda answer: (answer.row.objective, answer.row.cut), default=None)


def _answer(case: Case, pattern: Pattern) -> Answer:
    row = cost_row(case.tables, pattern, case.request, case.server, fixed=case.fixed)
    return Answer(row, pattern.psi, pattern.psi <= case.budgets[pattern.cut])
