"""Operations number by number, and softmax."""

from __future__ import annotations

from math import prod
from typing import Literal

from qpart.errors import ShapeMismatch
from qpart.ops.base import Axis, Op, Shape, averaged, broadcast, buffered, check_axis, check_bounds, check_float

Function = Literal[
    "abs", "exp", "gelu", "gelu_tanh", "hardsigmoid", "hardswish", "log", "mish", "reciprocal", "rsqrt", "sigmoid",
    "silu", "softplus", "sqrt", "square", "tanh",
]  # fmt: skip

_BLOCKS = {"gelu": 2, "mish": 1, "softplus": 1}
"""Intermediate results of a block, by function."""


class Relu(Op, frozen=True, array_like=True, tag="relu"):
    """max(x, 0)."""


class Clamp(Op, frozen=True, array_like=True, tag="clamp"):
    """min(max(x, low), high): ReLU6 is 0 to 6."""

    low: float
    high: float

    def output_shape(self, *inputs: Shape) -> Shape:
        check_bounds(self.low, self.high, "clamp")
        return inputs[0]


class LeakyRelu(Op, frozen=True, array_like=True, tag="leaky_relu"):
    """x above 0, slope x below."""

    slope: float

    def output_shape(self, *inputs: Shape) -> Shape:
        check_float(self.slope, "leaky_relu")
        return inputs[0]

    def scratch_items(self, *inputs: Shape) -> int:
        return buffered(prod(inputs[0]))


class Elu(Op, frozen=True, array_like=True, tag="elu"):
    """scale x above 0, scale alpha (exp(rate x) - 1) below: ELU, CELU and SELU."""

    alpha: float = 1.0
    scale: float = 1.0
    rate: float = 1.0

    def output_shape(self, *inputs: Shape) -> Shape:
        for number in (self.alpha, self.scale, self.rate):
            check_float(number, "elu")
        return inputs[0]

    def scratch_items(self, *inputs: Shape) -> int:
        return buffered(prod(inputs[0]))


class Activation(Op, frozen=True, array_like=True, tag="activation"):
    """A function without parameters, by name; as torch computes it (`gelu` by erf, `gelu_tanh` by tanh)."""

    function: Function

    def scratch_items(self, *inputs: Shape) -> int:
        return _BLOCKS.get(self.function, 0) * buffered(prod(inputs[0]))


class Rescale(Op, frozen=True, array_like=True, tag="rescale"):
    """y = x scale + shift, two numbers for the whole tensor."""

    scale: float
    shift: float = 0.0

    def output_shape(self, *inputs: Shape) -> Shape:
        check_float(self.scale, "rescale")
        check_float(self.shift, "rescale")
        return inputs[0]


class _OfTwo(Op, frozen=True, array_like=True):
    @property
    def arity(self) -> int:
        return 2

    def output_shape(self, *inputs: Shape) -> Shape:
        return broadcast(inputs[0], inputs[1], str(self.__struct_config__.tag))

    def scratch_items(self, *inputs: Shape) -> int:
        made = self.output_shape(*inputs)
        return sum(buffered(prod(made)) for shape in inputs if shape != made)


class Add(_OfTwo, frozen=True, array_like=True, tag="add"):
    """Sum of two tensors; extents of 1 are repeated."""


class Mul(_OfTwo, frozen=True, array_like=True, tag="mul"):
    """Product of two tensors, number by number; extents of 1 are repeated."""


class Softmax(Op, frozen=True, array_like=True, tag="softmax"):
    """exp(x) over its sum along one axis, or the logarithm of that."""

    axis: Axis
    log: bool = False

    def output_shape(self, *inputs: Shape) -> Shape:
        check_axis(self.axis, inputs[0], "softmax")
        return inputs[0]

    def scratch_items(self, *inputs: Shape) -> int:
        size = prod(inputs[0])
        return 2 * (size // inputs[0][self.axis]) + (size if self.log else 0) + buffered(size)


class Reduce(Op, frozen=True, array_like=True, tag="reduce"):
    """Mean, sum or largest value over some axes, ascending, which are dropped unless they are kept as 1."""

    kind: Literal["mean", "sum", "max"]
    axes: tuple[Axis, ...]
    keep: bool = False

    def output_shape(self, *inputs: Shape) -> Shape:
        shape = inputs[0]
        if not self.axes or tuple(sorted(set(self.axes))) != self.axes:
            raise ShapeMismatch(f"reduce needs ascending axes, got {self.axes}")
        for axis in self.axes:
            check_axis(axis, shape, "reduce")
        if self.keep:
            return tuple(1 if i in self.axes else extent for i, extent in enumerate(shape))
        return tuple(extent for i, extent in enumerate(shape) if i not in self.axes)

    def scratch_items(self, *inputs: Shape) -> int:
        return averaged(prod(self.output_shape(*inputs))) if self.kind == "mean" else 0


class GlobalMean(Op, frozen=True, array_like=True, tag="global_mean"):
    """Mean over height and width: (channels, height, width) to (channels,), or (channels, 1, 1) if they are kept."""

    keep: bool = False

    def output_shape(self, *inputs: Shape) -> Shape:
        if len(inputs[0]) != 3:
            raise ShapeMismatch(f"global_mean needs (channels, height, width), its input has shape {inputs[0]}")
        return (inputs[0][0], 1, 1) if self.keep else inputs[0][:1]

    def scratch_items(self, *inputs: Shape) -> int:
        return averaged(inputs[0][0])
