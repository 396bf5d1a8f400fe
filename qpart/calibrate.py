"""Measure a network: the noise of every tensor at every width, and how much noise an accuracy drop allows.

Labels are not needed: an accuracy drop is bounded by the share of predictions that differ from full precision.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

import qpart
from qpart import confidence, noise, sizes
from qpart import effort as efforts
from qpart.artefact import Artefact, Extent, Trial
from qpart.effort import Effort
from qpart.errors import RequestError, UnsupportedModel
from qpart.executors import patterns, sensitivity
from qpart.executors.patterns import Data, Labels
from qpart.executors.simulator import Simulator, fit_ranges
from qpart.executors.with_torch import TorchExecutor
from qpart.inputs import as_float
from qpart.journal import Journal
from qpart.network import INPUT, Network, Parameters
from qpart.pieces import addresses_of, encode_pieces
from qpart.quantiser import Floats
from qpart.stages import PATTERNS, PREPARING, ROWS, VERIFYING, Progress, Stages
from qpart.tables import Tables
from qpart.verify import Measure

log = logging.getLogger(__name__)

LEVELS = (0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
"""Accuracy drops for which patterns are verified."""
_CHUNK, _CHUNK_BYTES = 250, 1 << 28
_RANGE_INPUTS, _RANGE_ITEMS = 128, 1 << 18
_OTHER_CODE = {"cli", "demo", "profiles", "run"}  # measures nothing


def calibrate(
    network: Network,
    parameters: Mapping[int, Parameters],
    inputs: npt.NDArray[Any],
    *,
    name: str,
    labels: Labels | None = None,
    levels: Sequence[float] = LEVELS,
    num_patterns: int | None = None,
    noise_inputs: int | None = None,
    effort: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
    partial: Path | None = None,
    progress: Progress = lambda stage, share: None,
) -> Artefact:
    """Measure everything that planning needs.

    Args:
        network, parameters: from `qpart.graph`.
        inputs: (n, *input_shape), float32 or uint8 pixels, like those that will come and none of the training set;
            1,000 or more are advised, and fewer said to make the promise weaker (a warning of the log, once).
        name: how a server will offer the model.
        labels: (n,) classes of the inputs; only to report how much accuracy patterns lose, nothing is decided by them.
        levels: accuracy drops to verify patterns for, ascending in (0, 1).
        num_patterns: random patterns for the budget map; None for 200, or fewer of a large network.
        noise_inputs: how many inputs measure single tensors at most; None for 1,000, or fewer of a large network.
        effort: times the work that a large network gets (see `qpart.effort`).
        seed: of the random patterns.
        device: torch's name of where to compute.
        partial: file for results on the way: the same call goes on where a killed one was. It stays:
            remove it once the artefact is saved.
        progress: called with the stage's name and the share of all work that is done.

    Raises:
        UnsupportedModel: the model has no margins, or numbers that the quantiser cannot take.
        ShapeMismatch: inputs of another shape.
        RequestError: too few inputs or patterns, other labels than inputs, or another process at work on `partial`.
    """
    _check(inputs, labels, num_patterns)
    if weaker := confidence.doubt(len(inputs)):
        log.warning("calibrating %s: %s", name, weaker)
    numbers, row_work = (
        as_float(inputs, network.input_shape, tokens=network.takes_tokens),
        sensitivity.row_work(network),
    )
    chosen = efforts.choose(
        network, row_work, len(numbers), len(levels),
        effort=effort, num_patterns=num_patterns, noise_inputs=noise_inputs,
    )  # fmt: skip
    stages = Stages(network, parameters, len(numbers), sum(row_work), chosen, progress)
    key = _key(network, parameters, inputs, labels, (name, tuple(levels), chosen, seed, device))
    with Journal(partial, key) as journal:
        ranges, piece_ids, data = _prepared(network, parameters, numbers, labels, device, journal, stages)
        simulator = Simulator(network, parameters, ranges, device)
        found = sensitivity.measure(simulator, numbers[: chosen.noise_inputs], data.margin, journal, stages.of(ROWS))
        trials = patterns.run_random(simulator, found, data, chosen, seed, journal, stages.of(PATTERNS))
        tables = _tables(network, found, trials, levels)
        shrink, verified = patterns.run_verified(simulator, tables, data, chosen, journal, stages.of(VERIFYING))
    return Artefact(
        name=name, tables=tables, parameters=parameters, ranges=ranges, piece_ids=piece_ids, inputs=inputs,
        logits=data.logits, margin=data.margin, shrink=shrink, trials=trials, seed=seed, verified=verified,
        weight_laws={node: noise.law_of(psi) for node, psi in found.weight_psi.items()},
        value_laws={
            value: noise.law_of(found.live_psi[cut][value])
            for value, cut in sensitivity.first_values(network).items()
        },
        extent=_extent(found, chosen, data),
    )  # fmt: skip


def _tables(network: Network, found: sensitivity.Found, trials: Sequence[Trial], levels: Sequence[float]) -> Tables:
    """What planning reads."""
    return Tables(
        network=network,
        weight_psi=found.weight_psi,
        live_psi=found.live_psi,
        **sizes.all_sizes(network)._asdict(),
        budget=noise.fit_budget([t.psi for t in trials], [t.changed for t in trials], trials[0].inputs),
        levels=tuple(levels),
    )


def _extent(found: sensitivity.Found, chosen: Effort, data: Data) -> Extent:
    """How much was run."""
    accuracy = None if data.labels is None else noise.num_right(data.logits, data.labels) / len(data.labels)
    return Extent(
        effort=chosen,
        row_inputs=found.spent.inputs,
        rows=found.spent.rows,
        row_forwards=found.spent.forwards,
        accuracy=accuracy,
    )


def measure(simulator: Simulator, inputs: Floats, logits: Floats, margin: float) -> Measure:
    """How a pattern is run as a whole on calibration inputs, whose answers in full precision are `logits`."""
    return lambda p: simulator.joint(p.cut, p.weight_bits, p.live_bits, inputs, logits, margin)


def _check(inputs: npt.NDArray[Any], labels: Labels | None, num_patterns: int | None) -> None:
    if len(inputs) < 100 or (num_patterns is not None and num_patterns < 20):
        patterns = "" if num_patterns is None else f" and {num_patterns} patterns"
        raise RequestError(f"{len(inputs)} inputs{patterns} are given; give 100 inputs and 20 patterns or more")
    if labels is not None and labels.shape != (len(inputs),):
        raise RequestError(f"labels have shape {labels.shape}; give one for each of the {len(inputs)} inputs")


def _key(
    network: Network,
    parameters: Mapping[int, Parameters],
    inputs: npt.NDArray[Any],
    labels: Labels | None,
    options: tuple[object, ...],
) -> bytes:
    """Hash of everything that results depend on: model, inputs, options and our code."""
    digest = blake2b(digest_size=16)
    digest.update(msgspec.msgpack.encode((network, options, inputs.shape, str(inputs.dtype))))
    arrays = [inputs, *([] if labels is None else [labels])]
    arrays += [array for p in parameters.values() for array in p if array is not None]
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    code = (file for folder in qpart.__path__ for file in Path(folder).rglob("*.py"))
    for file in sorted(file for file in code if file.parent.name not in _OTHER_CODE):
        digest.update(file.read_bytes())
    return digest.digest()


def _prepared(
    network: Network,
    parameters: Mapping[int, Parameters],
    numbers: Floats,
    labels: Labels | None,
    device: str,
    journal: Journal,
    stages: Stages,
) -> tuple[dict[int, Any], dict[int, tuple[bytes, ...]], Data]:
    """Ranges of what travels, addresses of the pieces, and the answers of full precision."""
    progress = stages.of(PREPARING)
    full = TorchExecutor(network.nodes, parameters, device)
    ranges = fit_ranges(_samples(network, full, numbers[: _fitting(network, _RANGE_INPUTS)]))
    logits = _answers(network, full, numbers)
    data = Data(numbers, logits, noise.squared_margin(logits), labels)
    progress(0.2)
    return ranges, _piece_ids(network, parameters, journal, lambda share: progress(0.2 + 0.8 * share)), data


def _piece_ids(
    network: Network, parameters: Mapping[int, Parameters], journal: Journal, progress: Callable[[float], None]
) -> dict[int, tuple[bytes, ...]]:
    """Addresses of every layer's pieces, two layers at a time: quantising is numpy, which lets others run meanwhile."""

    def addresses(node: int) -> tuple[bytes, ...]:
        name = f"pieces {node}"
        known = journal.recall(name, tuple[bytes, ...])
        if known is None:
            known = addresses_of(encode_pieces(parameters[node]))
        return known

    found = {}
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        for node, ids in zip(network.parametric, pool.map(addresses, network.parametric), strict=True):
            found[node] = ids
            journal.keep(f"pieces {node}", ids)
            progress(len(found) / len(network.parametric))
    return found


def _fitting(network: Network, count: int) -> int:
    """How many inputs, at most `count`, may have all their values in memory at once."""
    sample_bytes = 4 * sum(network.items(value) for value in range(network.num_nodes + 1))
    return max(1, min(count, _CHUNK_BYTES // sample_bytes))


def _samples(network: Network, full: TorchExecutor, inputs: Floats) -> dict[int, Floats]:
    """A sample of every value that may travel."""
    wanted = sorted({value for live in network.live for value in live})
    values = full.run_arrays({INPUT: inputs}, 0, network.num_nodes, wanted)
    return {value: array.reshape(-1)[:: max(1, array.size // _RANGE_ITEMS)] for value, array in values.items()}


def _answers(network: Network, full: TorchExecutor, inputs: Floats) -> Floats:
    last = network.num_nodes
    chunk = _fitting(network, _CHUNK)
    parts = (inputs[start : start + chunk] for start in range(0, len(inputs), chunk))
    logits = np.concatenate([full.run_arrays({INPUT: part}, 0, last, [last])[last] for part in parts])
    if not np.isfinite(logits).all():
        raise UnsupportedModel("the model answers with numbers that are not finite; check inputs and weights")
    return logits
