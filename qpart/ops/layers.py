"""Operations with parameters besides convolutions: linear layers, norms, and constants of the model."""

from __future__ import annotations

from math import prod

from qpart.errors import ShapeMismatch
from qpart.ops.base import Axis, Dims, Op, Shape, Size, broadcasts_to, buffered, check_axis


class Linear(Op, frozen=True, array_like=True, tag="linear"):
    """y = x W^T + b over the last dimension."""

    in_features: Size
    out_features: Size
    bias: bool = True

    @property
    def weight_shape(self) -> Shape:
        return (self.out_features, self.in_features)

    @property
    def has_bias(self) -> bool:
        return self.bias

    @property
    def hides_input(self) -> bool:
        return self.in_features > 1

    def output_shape(self, *inputs: Shape) -> Shape:
        if not inputs[0] or inputs[0][-1] != self.in_features:
            raise ShapeMismatch(f"linear takes {self.in_features} features, its input has shape {inputs[0]}")
        return (*inputs[0][:-1], self.out_features)

    def macs(self, output: Shape, *inputs: Shape) -> int:
        return self.in_features * prod(output)


class Norm(Op, frozen=True, array_like=True, tag="norm"):
    """Every run of `features` numbers over the last `axes` axes, normalised and then scaled and shifted.

    y = (x - mean) / sqrt(mean((x - mean)^2) + eps), without the means subtracted if not `centred` (RMS norm); times a
    weight if it is `affine`, plus a bias if it has one. Mean and variance of each sample are its own.
    """

    features: Size
    axes: Axis
    eps: float
    centred: bool = True
    affine: bool = True
    bias: bool = True

    @property
    def weight_shape(self) -> Shape | None:
        return (self.features,) if self.affine else None

    @property
    def has_bias(self) -> bool:
        return self.bias

    def output_shape(self, *inputs: Shape) -> Shape:
        shape = inputs[0]
        if not 1 <= self.axes <= len(shape) or prod(shape[len(shape) - self.axes :]) != self.features:
            raise ShapeMismatch(
                f"norm takes {self.features} numbers over {self.axes} axes, its input has shape {shape}"
            )
        if not 0 <= self.eps <= 1e6 or (self.bias and not self.affine):
            raise ShapeMismatch(f"norm has an eps of {self.eps}, or a bias without a weight")
        return shape

    def scratch_items(self, *inputs: Shape) -> int:
        return 2 * (prod(inputs[0]) // self.features) + buffered(prod(inputs[0]))


class Affine(Op, frozen=True, array_like=True, tag="affine"):
    """y = x w[c] + b[c], c along one axis: a batch norm that follows no layer, a gain."""

    channels: Size
    axis: Axis
    bias: bool = True

    @property
    def weight_shape(self) -> Shape:
        return (self.channels,)

    @property
    def has_bias(self) -> bool:
        return self.bias

    def output_shape(self, *inputs: Shape) -> Shape:
        check_axis(self.axis, inputs[0], "affine")
        if inputs[0][self.axis] != self.channels:
            raise ShapeMismatch(f"affine takes {self.channels} channels, axis {self.axis} of its input is {inputs[0]}")
        return inputs[0]

    def scratch_items(self, *inputs: Shape) -> int:
        return buffered(prod(inputs[0]))


class AddConstant(Op, frozen=True, array_like=True, tag="add_constant"):
    """Sum with a parameter, which is repeated where it has extents of 1: positional embeddings, class tokens."""

    shape: Dims

    @property
    def weight_shape(self) -> Shape:
        return self.shape

    def output_shape(self, *inputs: Shape) -> Shape:
        broadcasts_to(self.shape, inputs[0], "add_constant")
        return inputs[0]

    def scratch_items(self, *inputs: Shape) -> int:
        return buffered(prod(inputs[0]))


class MulConstant(Op, frozen=True, array_like=True, tag="mul_constant"):
    """Product with a parameter, which is repeated where it has extents of 1: rotary embeddings, masks of 0 and 1."""

    shape: Dims

    @property
    def weight_shape(self) -> Shape:
        return self.shape

    def output_shape(self, *inputs: Shape) -> Shape:
        broadcasts_to(self.shape, inputs[0], "mul_constant")
        return inputs[0]

    def scratch_items(self, *inputs: Shape) -> int:
        return buffered(prod(inputs[0]))


class Embedding(Op, frozen=True, array_like=True, tag="embedding"):
    """Row of a table for each number, rounded to the next row there is: (..., tokens) to (..., tokens, features)."""

    num_rows: Size
    features: Size

    @property
    def weight_shape(self) -> Shape:
        return (self.num_rows, self.features)

    def output_shape(self, *inputs: Shape) -> Shape:
        return (*inputs[0], self.features)

    def scratch_items(self, *inputs: Shape) -> int:
        return 4 * prod(inputs[0])  # indices are wider than float32
