"""The head of a network on a device: a segment and its pieces, checked before anything runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import MutableMapping

import numpy as np
import numpy.typing as npt

from qpart.errors import SegmentRejected, ShapeMismatch
from qpart.executors import Executor
from qpart.executors.devices import ExecutorKind, make_executor
from qpart.messages import Segment
from qpart.network import INPUT, Parameters
from qpart.pieces import Data, Layer, address_of
from qpart.quantiser import Floats, Range, quantise_activation
from qpart.segment import split_addresses


class Head:
    """What a device runs: nodes up to the cut, with their weights kept packed.

    Args:
        segment: as received, after `qpart.segment.inspect`.
        pieces: bytes of every piece it names, by address; each is taken out once its last layer is put together,
            so that packed weights are not held twice.
        executor: what to compute with.

    Raises:
        SegmentRejected: a piece does not match its hash, or the layer it is for.
    """

    def __init__(self, segment: Segment, pieces: MutableMapping[bytes, Data], executor: ExecutorKind = "numpy") -> None:
        self.segment = segment
        self._layers = _put_together(segment, pieces)
        self._executor: Executor = make_executor(executor, segment.nodes, self._parameters, self._product)

    @property
    def is_whole(self) -> bool:
        """Whether the device runs the whole network, so that nothing travels."""
        return not self.segment.live

    @property
    def weight_bits(self) -> tuple[int, ...]:
        """Width of every layer with weights, in order."""
        return tuple(layer.bits for layer in self._layers.values())

    @property
    def held_bytes(self) -> int:
        """Bytes of the packed weights and biases in memory."""
        return sum(layer.held_bytes for layer in self._layers.values())

    def run(self, inputs: Floats) -> list[npt.NDArray[np.uint8] | npt.NDArray[np.float16]]:
        """What travels for a batch of inputs (batch, *input_shape): one array for each live value, packed.

        Raises:
            ShapeMismatch: the inputs have another shape.
        """
        live = self.segment.live
        values = self._compute(inputs, [item.value for item in live])
        return [quantise_activation(values[item.value], item.bits, Range(item.scale, item.offset)) for item in live]

    def answer(self, inputs: Floats) -> Floats:
        """Logits (batch, classes) of a head that is the whole network."""
        last = len(self.segment.nodes)
        return self._compute(inputs, [last])[last]

    def _compute(self, inputs: Floats, wanted: list[int]) -> dict[int, Floats]:
        if inputs.shape[1:] != self.segment.input_shape or not len(inputs):
            raise ShapeMismatch(f"inputs have shape {inputs.shape}, the model takes (n, *{self.segment.input_shape})")
        return self._executor.run_arrays({INPUT: inputs}, 0, len(self.segment.nodes), wanted)

    def _parameters(self, node: int) -> Parameters:
        return self._layers[node].parameters()

    def _product(self, node: int, x: Floats) -> Floats | None:
        return self._layers[node].product(x)


def _put_together(segment: Segment, pieces: MutableMapping[bytes, Data]) -> dict[int, Layer]:
    parametric = [i for i, node in enumerate(segment.nodes) if node.op.weight_shape is not None]
    rows = [split_addresses(row) for row in segment.pieces]
    uses = Counter(address for row in rows for address in row)
    layers = {}
    for node, row, bits in zip(parametric, rows, segment.weight_bits, strict=True):
        own = [bytes(pieces[address]) for address in row]  # a cached file is mapped, and may change once it is checked
        for address, content in zip(row, own, strict=True):
            if address_of(content) != address:
                raise SegmentRejected(f"a piece of node {node} does not match its hash; fetch it again")
        layers[node] = Layer(own, segment.nodes[node].op, bits)
        uses.subtract(row)
        for address in row:
            if not uses[address]:
                del pieces[address]
    return layers
