"""The noise of every tensor at every width, measured one tensor at a time and no longer than its row needs.

A chunk of inputs runs once in full precision with all its values kept; from there each tensor's quantised version
runs through the rest of the network, all its widths in one batch. A width whose noise is known well enough, or is too
small to matter, drops out, so late chunks run a few rows only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from qpart.effort import work_of
from qpart.executors.simulator import TENSOR_BYTES, Simulator
from qpart.journal import Journal
from qpart.network import INPUT, Network
from qpart.quantiser import Floats
from qpart.tables import WIDTHS

PsiPerWidth = tuple[float, ...]
Doubles = npt.NDArray[np.float64]

CHUNK, CHUNK_BYTES = 64, 1 << 28
LEAST_INPUTS = 128
"""Before this many, no row ends: its spread is not known either."""
RELATIVE_ERROR = 0.04
"""Standard error of a noise, as a share of it, at which it is known well enough."""
NEGLIGIBLE = 3e-6
"""Noise that no budget can feel, psi; a row that lies below it with three standard errors ends."""


class Row(NamedTuple):
    """One tensor alone: the weight of node `first`, or a value that node `first` is the first to read.

    Attributes:
        value: what is replaced; None for the weight.
        first: where the replaced thing is first used.
    """

    value: int | None
    first: int

    @property
    def name(self) -> str:
        return f"weight {self.first}" if self.value is None else f"value {self.value} {self.first}"


class Spent(msgspec.Struct, frozen=True):
    """What rows cost: inputs of the longest row, and of all rows and widths together."""

    inputs: int
    rows: int
    forwards: int


class Found(NamedTuple):
    """Noise of every weight, by node; of every live value, by cut and value; what it took."""

    weight_psi: dict[int, PsiPerWidth]
    live_psi: tuple[dict[int, PsiPerWidth], ...]
    spent: Spent


class _Sums:
    """What is known of a row: by width, inputs, summed squared errors, and the sum of their squares."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = (np.zeros(len(WIDTHS)) for _ in range(3))

    def add(self, widths: Sequence[int], errors: Sequence[Sequence[float]], count: int) -> None:
        """`errors` has a total and a sum of squares for each of the widths (indices into `WIDTHS`)."""
        for width, (total, squares) in zip(widths, errors, strict=True):
            self.count[width] += count
            self.total[width] += total
            self.squares[width] += squares

    def mean(self) -> Doubles:
        return self.total / np.maximum(self.count, 1)

    def open_widths(self, margin: float) -> list[int]:
        """Indices of the widths that need more inputs."""
        mean = self.mean()
        variance = np.maximum(self.squares / np.maximum(self.count, 1) - mean**2, 0)
        error = np.sqrt(variance / np.maximum(self.count - 1, 1))
        known = (error <= RELATIVE_ERROR * mean) | (mean + 3 * error <= NEGLIGIBLE * margin)
        return [int(i) for i in np.flatnonzero((self.count < LEAST_INPUTS) | ~known)]


def readers(network: Network) -> dict[tuple[int, int], int]:
    """For every (cut, value that crosses it): the first node that reads it from there on; noise depends on no more."""
    return {
        (cut, value): next(i for i in range(cut, network.num_nodes) if value in network.nodes[i].inputs)
        for cut, live in enumerate(network.live)
        for value in live
    }


def rows_of(network: Network) -> list[Row]:
    """Every row there is, in the order of the network."""
    values = {Row(value, first) for (_, value), first in readers(network).items()}
    rows = [Row(None, node) for node in network.parametric]
    return sorted({*values, *rows}, key=lambda row: (row.first, -1 if row.value is None else row.value))


def row_work(network: Network) -> list[int]:
    """For every row, the work of one input at one width (see `qpart.effort`)."""
    behind = np.cumsum((0, *work_of(network)[::-1]))[::-1]
    return [int(behind[row.first]) for row in rows_of(network)]


def measure(
    simulator: Simulator,
    inputs: Floats,
    margin: float,
    journal: Journal,
    progress: Callable[[float], None] = lambda share: None,
) -> Found:
    """Measure all rows.

    Args:
        simulator: of the network.
        inputs: (n, *input_shape); a row sees as many of them as it needs.
        margin: half the mean squared margin.
        journal: every row of every chunk is kept here.
        progress: called with the share of the work that is done, taking it that no row ends early.
    """
    network = simulator.network
    rows, costs, chunk = rows_of(network), row_work(network), chunk_of(network)
    sums = {row: _Sums() for row in rows}
    whole = float(sum(costs)) * len(inputs)
    done, forwards = 0.0, 0
    for start in range(0, len(inputs), chunk):
        part = inputs[start : start + chunk]
        todo = {row: widths for row in rows if (widths := sums[row].open_widths(margin))}
        values: dict[int, torch.Tensor] | None = None
        for row, cost in zip(rows, costs, strict=True):
            done += cost * len(part)
            if row not in todo:
                continue
            name, widths = f"{row.name} at {start}", todo[row]
            errors = journal.recall(name, list[tuple[float, float]])
            if errors is None:
                values = simulator.all_values(part) if values is None else values
                errors = _errors(simulator, row, widths, values)
                journal.keep(name, errors)
            sums[row].add(widths, errors, len(part))
            forwards += len(widths) * len(part)
            progress(done / whole)
        if not todo:
            break
    progress(1.0)
    most = int(max(found.count.max() for found in sums.values()))
    psi = {row: tuple((found.mean() / margin).tolist()) for row, found in sums.items()}
    firsts = readers(network)
    return Found(
        {node: psi[Row(None, node)] for node in network.parametric},
        tuple({value: psi[Row(value, firsts[cut, value])] for value in live} for cut, live in enumerate(network.live)),
        Spent(most, len(rows), forwards),
    )


def chunk_of(network: Network) -> int:
    """How many inputs at once, so that all their values fit `CHUNK_BYTES`."""
    sample_bytes = 4 * sum(network.items(value) for value in range(network.num_nodes + 1))
    return max(1, min(CHUNK, CHUNK_BYTES // sample_bytes))


def batch_of(network: Network, first: int, num_widths: int) -> int:
    """How many inputs run through nodes[first:] at so many widths at once: their largest tensor is not too large."""
    values = {*network.live[first], *range(first + 1, network.num_nodes + 1)}
    return max(1, TENSOR_BYTES // (4 * num_widths * max(map(network.items, values))))


def _errors(
    simulator: Simulator, row: Row, widths: Sequence[int], values: Mapping[int, torch.Tensor]
) -> list[tuple[float, float]]:
    """For each width: summed squared error of the answers, and the sum of its squares over the inputs."""
    network, count = simulator.network, len(values[INPUT])
    at_once = batch_of(network, row.first, len(widths))
    with torch.inference_mode():
        parts = (
            {value: tensor[start : start + at_once] for value, tensor in values.items()}
            for start in range(0, count, at_once)
        )
        errors = torch.cat([_squared(simulator, row, widths, part) for part in parts], 1)
        return [(float(of_width.sum()), float(of_width.square().sum())) for of_width in errors]


def _squared(simulator: Simulator, row: Row, widths: Sequence[int], values: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """Squared error of the answers (widths, inputs), float64, all widths in one batch."""
    network, last = simulator.network, simulator.network.num_nodes
    if row.value is None:
        first, replaced = row.first + 1, row.first + 1
        given = {value: values[value] for value in network.nodes[row.first].inputs}
        weights = [{row.first: simulator.weight(row.first, WIDTHS[i])} for i in widths]
        outputs = [simulator.executor.run(given, row.first, first, [first], weight) for weight in weights]
        changed = torch.cat([output[first] for output in outputs])
    else:
        first, replaced = row.first, row.value
        changed = torch.cat([simulator.round_trip(row.value, WIDTHS[i], values[row.value]) for i in widths])
    needed = network.live[first] if first < last else (last,)
    batch = {  # a repeated tensor would lose its layout, one put together keeps it
        value: changed if value == replaced else torch.cat([values[value]] * len(widths)) for value in needed
    }
    found = simulator.executor.run(batch, first, last, [last])[last].double()
    reference = values[last].double().repeat(len(widths), 1)
    return (found - reference).square().sum(1).reshape(len(widths), -1)


def first_values(network: Network) -> dict[int, int]:
    """For every value that may travel, the first cut at which it does."""
    cuts: dict[int, int] = {}
    for cut, live in enumerate(network.live):
        for value in live:
            cuts.setdefault(value, cut)
    return cuts
