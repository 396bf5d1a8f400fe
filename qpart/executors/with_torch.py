"""Networks on torch: the server's tail, calibration, and devices that have it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from qpart.executors import walk
from qpart.executors.torch_functions import PLAIN, WEIGHTED
from qpart.network import Node, Parameters
from qpart.ops import Linear, Slice

Array = NDArray[np.float32]


class TorchExecutor:
    """Runs stretches of a network.

    Args:
        nodes: of the network.
        parameters: by node index, at least those of the nodes that will run; copied.
        device: torch's name of where to compute.

    Attributes:
        threads: CPU threads of `run_arrays`; 0 leaves it at what torch has.
    """

    def __init__(self, nodes: tuple[Node, ...], parameters: Mapping[int, Parameters], device: str = "cpu") -> None:
        self.nodes, self.device, self.threads = nodes, torch.device(device), 0
        self._weights = {i: torch.tensor(p.weight, device=self.device) for i, p in parameters.items()}
        self._biases = {
            i: torch.tensor(p.bias, device=self.device) for i, p in parameters.items() if p.bias is not None
        }

    def run(
        self,
        values: Mapping[int, torch.Tensor],
        first: int,
        last: int,
        wanted: Collection[int],
        replaced: Mapping[int, torch.Tensor] | None = None,
    ) -> dict[int, torch.Tensor]:
        """See `Executor.run_arrays`, on tensors on this executor's device.

        Args:
            replaced: other weights for some nodes, by node index; their biases stay.

        Raises:
            ValueError: a value that is needed is not there.
        """
        other = replaced or {}

        def compute(i: int, inputs: list[torch.Tensor]) -> torch.Tensor:
            op = self.nodes[i].op
            if op.weight_shape is None:
                return PLAIN[type(op)](op, *inputs)
            weight = other[i] if i in other else self._weights[i]
            return WEIGHTED[type(op)](op, inputs[0], weight, self._biases.get(i))

        return walk(self.nodes, compute, values, first, last, wanted)

    def run_arrays(
        self, values: Mapping[int, Array], first: int, last: int, wanted: Collection[int]
    ) -> dict[int, Array]:
        """See `Executor.run_arrays`."""
        if self.threads and self.threads != torch.get_num_threads():
            torch.set_num_threads(self.threads)
        with torch.inference_mode():
            given = {value: _tensor(array).to(self.device) for value, array in values.items()}
            found = self.run(given, first, last, wanted)
            return {value: tensor.contiguous().cpu().numpy() for value, tensor in found.items()}


class PackedTorchExecutor:
    """A device's head on torch: a layer is dequantised each time it runs, or multiplied as it is held.

    Args:
        nodes, parameters, product: as `NumpyExecutor` takes them; only linear layers are asked for a product.
    """

    def __init__(
        self,
        nodes: tuple[Node, ...],
        parameters: Callable[[int], Parameters],
        product: Callable[[int, Array], Array | None],
    ) -> None:
        self.nodes, self._parameters, self._product = nodes, parameters, product

    def run_arrays(
        self, values: Mapping[int, Array], first: int, last: int, wanted: Collection[int]
    ) -> dict[int, Array]:
        """See `Executor.run_arrays`."""
        with torch.inference_mode():
            given = {value: _tensor(array) for value, array in values.items()}
            found = walk(self.nodes, self._compute, given, first, last, wanted)
            return {value: tensor.contiguous().numpy() for value, tensor in found.items()}

    def _compute(self, index: int, inputs: list[torch.Tensor]) -> torch.Tensor:
        op = self.nodes[index].op
        if op.weight_shape is None:
            made = PLAIN[type(op)](op, *inputs)
            return made.clone() if isinstance(op, Slice) else made  # a view would keep all that it was cut from
        x = inputs[0]
        if isinstance(op, Linear):
            y = self._product(index, x.reshape(-1, op.in_features).numpy())
            if y is not None:
                return torch.from_numpy(y).reshape(*x.shape[:-1], op.out_features)
        weight, bias = self._parameters(index)
        return WEIGHTED[type(op)](op, x, _tensor(weight), None if bias is None else _tensor(bias))


def _tensor(array: Array) -> torch.Tensor:
    """torch warns of arrays that nobody may write to, which is what comes off the wire."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())
