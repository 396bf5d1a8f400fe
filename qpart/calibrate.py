"""Measure a network: the noise of every tensor at every width, and how much noise an accuracy drop allows.

Labels are not needed: an accuracy drop is bounded by the share of predictions that differ from full precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from qpart import noise, sizes
from qpart.artefact import Artefact, Trial
from qpart.errors import RequestError, UnsupportedModel
from qpart.executors.simulator import Simulator, fit_ranges
from qpart.executors.with_torch import TorchExecutor
from qpart.inputs import as_float
from qpart.network import INPUT, Network, Parameters
from qpart.pieces import content_id, encode_piece
from qpart.quantiser import Floats
from qpart.tables import WIDTHS, Tables
from qpart.verify import Measure, verify_levels

LEVELS = (0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
"""Accuracy drops for which patterns are verified."""
_CHUNK, _CHUNK_BYTES = 250, 1 << 28
_RANGE_INPUTS, _RANGE_ITEMS = 128, 1 << 18
_SHARES = (0.05, 0.45, 0.25, 0.25)  # of the time: ranges and addresses, noise, trials, verifying

Progress = Callable[[float], None]
PsiPerWidth = tuple[float, ...]


def calibrate(
    network: Network,
    parameters: Mapping[int, Parameters],
    inputs: npt.NDArray[Any],
    *,
    name: str,
    levels: Sequence[float] = LEVELS,
    num_patterns: int = 200,
    noise_inputs: int = 1000,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = lambda share: None,
) -> Artefact:
    """Measure everything that planning needs.

    Args:
        network, parameters: from `qpart.graph`.
        inputs: (n, *input_shape), float32 or uint8 pixels, like those that will come and none of the training set;
            1,000 or more are advised.
        name: how a server will offer the model.
        levels: accuracy drops to verify patterns for, ascending in (0, 1).
        num_patterns: random patterns for the budget map.
        noise_inputs: how many of the inputs measure single tensors; the others count for predictions only.
        seed: of the random patterns.
        device: torch's name of where to compute.
        progress: called with the share that is done, 0 .. 1.

    Raises:
        UnsupportedModel: the model has no margins, or numbers that the quantiser cannot take.
        ShapeMismatch: inputs of another shape.
        RequestError: too few inputs or patterns.
    """
    if len(inputs) < 100 or num_patterns < 20:
        raise RequestError(f"{len(inputs)} inputs and {num_patterns} patterns are given; give 100 and 20 or more")
    numbers = as_float(inputs, network.input_shape)
    stages = _stages(progress)
    full = TorchExecutor(network.nodes, parameters, device)
    ranges = fit_ranges(_samples(network, full, numbers[: _fitting(network, _RANGE_INPUTS)]))
    piece_ids = {
        node: tuple(content_id(encode_piece(parameters[node], bits)) for bits in WIDTHS) for node in network.parametric
    }
    simulator = Simulator(network, parameters, ranges, device)
    logits = _answers(network, full, numbers)
    margin = noise.squared_margin(logits)
    next(stages)(1.0)
    weight_psi, live_psi = _psi_tables(simulator, numbers[:noise_inputs], margin, next(stages))
    trials = _trials(simulator, weight_psi, live_psi, numbers, logits, margin, num_patterns, seed, next(stages))
    tables = Tables(
        network=network,
        weight_psi=weight_psi,
        live_psi=live_psi,
        **sizes.all_sizes(network)._asdict(),
        budget=noise.fit_budget([t.psi for t in trials], [t.changed for t in trials], len(numbers)),
        levels=tuple(levels),
    )
    shrink = verify_levels(tables, measure(simulator, numbers, logits, margin), next(stages))
    return Artefact(
        name=name,
        tables=tables,
        parameters=parameters,
        ranges=ranges,
        piece_ids=piece_ids,
        inputs=inputs,
        logits=logits,
        margin=margin,
        shrink=shrink,
        trials=trials,
        seed=seed,
    )


def measure(simulator: Simulator, inputs: Floats, logits: Floats, margin: float) -> Measure:
    """How a pattern is run as a whole on calibration inputs, whose answers in full precision are `logits`."""
    return lambda p: simulator.joint(p.cut, p.weight_bits, p.live_bits, inputs, logits, margin)


def _stages(progress: Progress) -> Iterator[Progress]:
    """For each stage, how it reports its own share."""
    done = 0.0
    for share in _SHARES:
        yield lambda part, start=done, width=share: progress(start + width * part)  # type: ignore[misc]
        done += share


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


def _psi_tables(
    simulator: Simulator, inputs: Floats, margin: float, progress: Progress
) -> tuple[dict[int, PsiPerWidth], tuple[dict[int, PsiPerWidth], ...]]:
    """Noise of every weight and of every value at every cut, one tensor quantised at a time."""
    network, last = simulator.network, simulator.network.num_nodes
    readers = _readers(network)
    weight_errors = {node: np.zeros(len(WIDTHS)) for node in network.parametric}
    live_errors = {reader: np.zeros(len(WIDTHS)) for reader in set(readers.values())}
    chunk = _fitting(network, _CHUNK)
    with torch.inference_mode():
        for start in range(0, len(inputs), chunk):
            part = {INPUT: torch.from_numpy(inputs[start : start + chunk]).to(simulator.executor.device)}
            values = simulator.executor.run(part, 0, last, range(last + 1))
            reference = values[last].cpu().numpy()
            for node, errors in weight_errors.items():
                given = {value: values[value] for value in network.live[node]}
                for i, bits in enumerate(WIDTHS):
                    replaced = {node: simulator.weight(node, bits)}
                    found = simulator.executor.run(given, node, last, [last], replaced)[last]
                    errors[i] += noise.squared_error(found.cpu().numpy(), reference)
            for (value, first), errors in live_errors.items():
                given = {other: values[other] for other in network.live[first]}
                for i, bits in enumerate(WIDTHS):
                    given[value] = simulator.round_trip(value, bits, values[value])
                    found = simulator.executor.run(given, first, last, [last])[last]
                    errors[i] += noise.squared_error(found.cpu().numpy(), reference)
            progress(min(1.0, (start + chunk) / len(inputs)))
    scale = len(inputs) * margin
    weight_psi = {node: tuple((errors / scale).tolist()) for node, errors in weight_errors.items()}
    psi = {reader: tuple((errors / scale).tolist()) for reader, errors in live_errors.items()}
    live_psi = tuple({value: psi[readers[cut, value]] for value in live} for cut, live in enumerate(network.live))
    return weight_psi, live_psi


def _readers(network: Network) -> dict[tuple[int, int], tuple[int, int]]:
    """For every (cut, value): (value, first node that reads it from there on), on which alone its noise depends."""
    return {
        (cut, value): (value, next(i for i in range(cut, network.num_nodes) if value in network.nodes[i].inputs))
        for cut, live in enumerate(network.live)
        for value in live
    }


def _trials(
    simulator: Simulator,
    weight_psi: Mapping[int, PsiPerWidth],
    live_psi: Sequence[Mapping[int, PsiPerWidth]],
    inputs: Floats,
    logits: Floats,
    margin: float,
    num_patterns: int,
    seed: int,
    progress: Progress,
) -> tuple[Trial, ...]:
    """Random mixed patterns: summed noise of their tensors against what they do together."""
    network, random = simulator.network, np.random.default_rng(seed)
    trials = []
    for k in range(num_patterns):
        cut = int(random.integers(network.num_nodes + 1))
        nodes, live = [i for i in network.parametric if i < cut], network.live[cut]
        centre = random.integers(len(WIDTHS))
        drawn = np.clip(centre + random.integers(-2, 3, len(nodes) + len(live)), 0, len(WIDTHS) - 1).tolist()
        of_weights, of_live = drawn[: len(nodes)], drawn[len(nodes) :]
        psi = sum(weight_psi[node][i] for node, i in zip(nodes, of_weights, strict=True))
        psi += sum(live_psi[cut][value][i] for value, i in zip(live, of_live, strict=True))
        joint = simulator.joint(
            cut, [WIDTHS[i] for i in of_weights], [WIDTHS[i] for i in of_live], inputs, logits, margin
        )
        trials.append(Trial(float(psi), joint.psi, round(joint.changed * len(inputs))))
        progress((k + 1) / num_patterns)
    return tuple(trials)
