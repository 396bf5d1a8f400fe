"""The whole of a plan on one machine: quantised head, quantised activations, full-precision tail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from qpart.executors.with_torch import TorchExecutor
from qpart.network import INPUT, Network, Parameters
from qpart.noise import num_changed, num_right, squared_error
from qpart.quantiser import (
    Floats,
    Range,
    dequantise_activation,
    dequantise_weight,
    quantise_activation,
    quantise_weight,
)
from qpart.ranges import fit_widths
from qpart.sizes import peak_items
from qpart.tables import WIDTHS

CHUNK, CHUNK_BYTES = 256, 1 << 28
TENSOR_BYTES = 1 << 24
"""Of the largest tensor of a forward: beyond, caches miss and the system hands out fresh pages for every result."""


class Joint(NamedTuple):
    """What a whole pattern did.

    Attributes:
        psi: its noise with all tensors quantised together.
        changed: share of changed predictions.
        drop: of the accuracy, where labels are known: below 0 if the pattern is right more often.
    """

    psi: float
    changed: float
    drop: float | None = None


class Simulator:
    """Runs patterns of a network, with the quantiser that ships.

    Args:
        network, parameters: in full precision.
        ranges: for every value that may travel, its codes' range at each of `WIDTHS`.
        device: torch's name of where to compute.
    """

    def __init__(
        self,
        network: Network,
        parameters: Mapping[int, Parameters],
        ranges: Mapping[int, Sequence[Range]],
        device: str = "cpu",
    ) -> None:
        self.network = network
        self.executor = TorchExecutor(network.nodes, parameters, device)
        self._parameters, self._ranges = parameters, ranges
        self._weights: dict[tuple[int, int], torch.Tensor] = {}
        peak_bytes = 4 * peak_items(network.nodes, network.shapes, ())
        largest_bytes = 4 * max(map(network.items, range(network.num_nodes + 1)))
        self.chunk = max(1, min(CHUNK, CHUNK_BYTES // peak_bytes, TENSOR_BYTES // largest_bytes))

    def all_values(self, inputs: Floats) -> dict[int, torch.Tensor]:
        """Every value of these inputs (n, *input_shape) in full precision."""
        last = self.network.num_nodes
        with torch.inference_mode():
            given = {INPUT: torch.from_numpy(inputs).to(self.executor.device)}
            return self.executor.run(given, 0, last, range(last + 1))

    def weight(self, node: int, bits: int) -> torch.Tensor:
        """A layer's weight after quantisation; kept for the next time."""
        key = node, bits
        if key not in self._weights:
            full = self._parameters[node].weight
            rounded = dequantise_weight(quantise_weight(full, bits), full.shape)
            self._weights[key] = torch.from_numpy(rounded).to(self.executor.device)
        return self._weights[key]

    def round_trip(self, value: int, bits: int, tensor: torch.Tensor) -> torch.Tensor:
        """A value as it arrives, tensor (batch, *shape)."""
        found = self._ranges[value][WIDTHS.index(bits)]
        packed = quantise_activation(tensor.cpu().numpy(), bits, found)
        return torch.from_numpy(dequantise_activation(packed, bits, found, self.network.shapes[value])).to(
            tensor.device
        )

    def logits(self, cut: int, weight_bits: Sequence[int], live_bits: Sequence[int], inputs: Floats) -> Floats:
        """Answers (n, classes) of a pattern; inputs (n, *input_shape)."""
        nodes = [i for i in self.network.parametric if i < cut]
        replaced = {i: self.weight(i, bits) for i, bits in zip(nodes, weight_bits, strict=True)}
        last = self.network.num_nodes
        answers = []
        with torch.inference_mode():
            for start in range(0, len(inputs), self.chunk):
                values = {INPUT: torch.from_numpy(inputs[start : start + self.chunk]).to(self.executor.device)}
                if cut == last:
                    values = self.executor.run(values, 0, last, [last], replaced)
                else:
                    values = self.executor.run(values, 0, cut, self.network.live[cut], replaced)
                    for value, bits in zip(self.network.live[cut], live_bits, strict=True):
                        values[value] = self.round_trip(value, bits, values[value])
                    values = self.executor.run(values, cut, last, [last])
                answers.append(values[last].cpu().numpy())
        return np.concatenate(answers)

    def joint(
        self,
        cut: int,
        weight_bits: Sequence[int],
        live_bits: Sequence[int],
        inputs: Floats,
        reference: Floats,
        margin: float,
        labels: npt.NDArray[np.int64] | None = None,
    ) -> Joint:
        """Hold a pattern against the answers of full precision, `reference` (n, classes), and perhaps labels (n,)."""
        found = self.logits(cut, weight_bits, live_bits, inputs)
        psi = squared_error(found, reference) / len(inputs) / margin
        drop = None if labels is None else (num_right(reference, labels) - num_right(found, labels)) / len(inputs)
        return Joint(psi, num_changed(found, reference) / len(inputs), drop)


def fit_ranges(values: Mapping[int, Floats]) -> dict[int, tuple[Range, ...]]:
    """Ranges at every width, from samples of the values that may travel."""
    return {value: fit_widths(sample) for value, sample in values.items()}
