"""The head of a network on a device: a segment and its pieces, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from qpart.errors import SegmentRejected, ShapeMismatch
from qpart.executors import Executor
from qpart.executors.with_numpy import NumpyExecutor
from qpart.messages import Segment
from qpart.network import INPUT, Parameters
from qpart.pieces import Piece, content_id
from qpart.quantiser import Floats, Range, quantise_activation


class Head:
    """What a device runs: nodes up to the cut, with their weights kept packed.

    Args:
        segment: as received, after `qpart.segment.inspect`.
        pieces: bytes of every piece it names, by address.

    Raises:
        SegmentRejected: a piece does not match its hash, or the layer it is for.
    """

    def __init__(self, segment: Segment, pieces: Mapping[bytes, bytes]) -> None:
        self.segment = segment
        self._pieces = _open_pieces(segment, pieces)
        self._executor: Executor = NumpyExecutor(segment.nodes, self._parameters)

    @property
    def is_whole(self) -> bool:
        """Whether the device runs the whole network, so that nothing travels."""
        return not self.segment.live

    @property
    def weight_bits(self) -> tuple[int, ...]:
        """Width of every layer with weights, in order."""
        return tuple(piece.bits for piece in self._pieces.values())

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
        return self._pieces[node].parameters()


def _open_pieces(segment: Segment, pieces: Mapping[bytes, bytes]) -> dict[int, Piece]:
    parametric = [i for i, node in enumerate(segment.nodes) if node.op.weight_shape is not None]
    opened = {}
    for node, address in zip(parametric, segment.pieces, strict=True):
        content = pieces[address]
        if content_id(content) != address:
            raise SegmentRejected(f"the piece of node {node} does not match its hash; fetch it again")
        opened[node] = Piece(content, segment.nodes[node].op)
    return opened
