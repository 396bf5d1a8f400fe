"""Networks on numpy alone, for devices that have no torch.

Results agree with torch to a few float32 roundings. Scratch is bounded: convolutions unfold a few samples at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpart import ops
from qpart.executors import numpy_layers, numpy_pointwise, numpy_shaping, numpy_windows, walk
from qpart.matrices import FEW_TOKENS
from qpart.network import Node, Parameters

Array = NDArray[np.float32]
Product = Callable[[int, Array], Array | None]


class NumpyExecutor:
    """Runs stretches of a network.

    Args:
        nodes: of the network, or of its first part.
        parameters: called with a node's index each time that node runs, so that weights may stay packed elsewhere.
        product: called before that with the index of a linear layer and its input (tokens, in), or of a convolution of
            few windows and these: their product with the bias, or None if it takes the parameters.
    """

    def __init__(
        self,
        nodes: tuple[Node, ...],
        parameters: Callable[[int], Parameters],
        product: Product | None = None,
    ) -> None:
        self.nodes, self._parameters, self._product = nodes, parameters, product

    def run(self, values: Mapping[int, Array], first: int, last: int, wanted: Collection[int]) -> dict[int, Array]:
        """See `Executor.run_arrays`.

        Raises:
            ValueError: a value that is needed is not there.
        """
        return walk(self.nodes, self._compute, values, first, last, wanted)

    run_arrays = run

    def _compute(self, index: int, inputs: list[Array]) -> Array:
        op = self.nodes[index].op
        if op.weight_shape is None:
            return _PLAIN[type(op)](op, *inputs)
        y = None if self._product is None else self._multiplied(self._product, op, index, inputs[0])
        return _WEIGHTED[type(op)](op, inputs[0], self._parameters(index)) if y is None else y

    def _multiplied(self, product: Product, op: ops.Op, index: int, x: Array) -> Array | None:
        """A layer's product with the weight as it is held, if it can be had."""
        if isinstance(op, ops.Linear):
            y = product(index, x.reshape(-1, op.in_features))
            return None if y is None else y.reshape(*x.shape[:-1], op.out_features)
        if not isinstance(op, ops.Conv2d) or op.groups != 1:
            return None
        _, height, width = op.output_shape(x.shape[1:])
        if len(x) * height * width > FEW_TOKENS:
            return None
        y = product(index, numpy_windows.unfolded(op, x))
        if y is None:
            return None
        return np.ascontiguousarray(y.reshape(len(x), height, width, op.out_channels).transpose(0, 3, 1, 2))


_WEIGHTED: dict[type[ops.Op], Callable[[Any, Array, Any], Array]] = {
    ops.Linear: numpy_layers.linear,
    ops.Conv2d: numpy_windows.conv2d,
    ops.Norm: numpy_layers.norm,
    ops.Affine: numpy_layers.affine,
    ops.AddConstant: numpy_layers.add_constant,
    ops.MulConstant: numpy_layers.mul_constant,
    ops.Embedding: numpy_layers.embedding,
}
_PLAIN: dict[type[ops.Op], Callable[..., Array]] = {
    ops.MaxPool2d: numpy_windows.max_pool2d,
    ops.AvgPool2d: numpy_windows.avg_pool2d,
    ops.AdaptivePool2d: numpy_windows.adaptive_pool2d,
    ops.GlobalMean: numpy_pointwise.global_mean,
    ops.Reduce: numpy_pointwise.reduce,
    ops.Norm: numpy_layers.norm,
    ops.Relu: numpy_pointwise.relu,
    ops.LeakyRelu: numpy_pointwise.leaky_relu,
    ops.Elu: numpy_pointwise.elu,
    ops.Clamp: numpy_pointwise.clamp,
    ops.Activation: numpy_pointwise.activation,
    ops.Rescale: numpy_pointwise.rescale,
    ops.Softmax: numpy_pointwise.softmax,
    ops.Add: lambda op, x, y: x + y,
    ops.Mul: lambda op, x, y: x * y,
    ops.MatMul: numpy_layers.matmul,
    ops.Attention: numpy_layers.attention,
    ops.Reshape: lambda op, x: x.reshape(len(x), *op.shape),
    ops.Permute: numpy_shaping.permute,
    ops.Slice: numpy_shaping.slice_,
    ops.Concat: numpy_shaping.concat,
    ops.Pad: numpy_shaping.pad,
    ops.Expand: numpy_shaping.expand,
}
