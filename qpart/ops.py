"""The operations a network may consist of: a closed list, each with its parameters, its shapes and its work.

Shapes are per sample: the batch dimension stands in front of every tensor and is never named. What an operation
computes is what torch.nn.functional's function of that name computes in float32.
"""

from __future__ import annotations

from math import inf, prod
from typing import Annotated

import msgspec

from qpart.errors import ShapeMismatch

Shape = tuple[int, ...]
Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
Padding = Annotated[int, msgspec.Meta(ge=0, le=1 << 12)]
MAX_DIMS = 6
_MOST = 3.4028234663852886e38  # in float32
MAX_TENSOR_ITEMS = 1 << 28
MAX_TAPS = 1 << 14


class Op(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of all operations; `arity` inputs, one output."""

    @property
    def arity(self) -> int:
        return 1

    @property
    def weight_shape(self) -> Shape | None:
        """Shape of the weight, output channels first; None if the operation has no parameters."""
        return None

    @property
    def has_bias(self) -> bool:
        return False

    def output_shape(self, *inputs: Shape) -> Shape:
        """Shape of the output.

        Raises:
            ShapeMismatch: the inputs do not fit.
        """
        return inputs[0]

    def scratch_items(self, *inputs: Shape) -> int:
        """Numbers an executor holds per sample besides inputs, weight and output: padded and unfolded copies."""
        return 0

    def macs(self, output: Shape) -> int:
        """Multiply-accumulates per sample; element-wise operations count as none."""
        return 0


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

    def output_shape(self, *inputs: Shape) -> Shape:
        if not inputs[0] or inputs[0][-1] != self.in_features:
            raise ShapeMismatch(f"linear takes {self.in_features} features, its input has shape {inputs[0]}")
        return (*inputs[0][:-1], self.out_features)

    def macs(self, output: Shape) -> int:
        return self.in_features * prod(output)


def _extent(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


class _Windowed(Op, frozen=True, array_like=True):
    """Shared by everything that slides a window over (channels, height, width)."""

    kernel: tuple[Size, Size]
    stride: tuple[Size, Size]
    padding: tuple[Padding, Padding]

    def scratch_items(self, *inputs: Shape) -> int:
        if not any(self.padding):
            return 0
        channels, height, width = inputs[0]
        return channels * (height + 2 * self.padding[0]) * (width + 2 * self.padding[1])

    def _extents(self, image: Shape, dilation: tuple[int, int] = (1, 1)) -> tuple[int, int]:
        if len(image) != 3:
            raise ShapeMismatch(f"a window needs (channels, height, width), its input has shape {image}")
        height, width = (
            _extent(image[i + 1], self.kernel[i], self.stride[i], self.padding[i], dilation[i]) for i in (0, 1)
        )
        if prod(self.kernel) > MAX_TAPS:
            raise ShapeMismatch(f"a window of {self.kernel} is too large; at most {MAX_TAPS} numbers are allowed")
        if height < 1 or width < 1:
            raise ShapeMismatch(f"a window of {self.kernel} does not fit an input of shape {image}")
        return height, width


class Conv2d(_Windowed, frozen=True, array_like=True, tag="conv2d"):
    """2-d cross-correlation with zero padding; weight (out_channels, in_channels / groups, kernel height, width)."""

    in_channels: Size
    out_channels: Size
    dilation: tuple[Size, Size] = (1, 1)
    groups: Size = 1
    bias: bool = True

    @property
    def weight_shape(self) -> Shape:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def has_bias(self) -> bool:
        return self.bias

    def output_shape(self, *inputs: Shape) -> Shape:
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ShapeMismatch(
                f"conv2d of {self.in_channels} to {self.out_channels} channels has {self.groups} groups"
            )
        height, width = self._extents(inputs[0], self.dilation)
        if any(p > d * (k - 1) for p, d, k in zip(self.padding, self.dilation, self.kernel, strict=True)):
            raise ShapeMismatch(f"padding {self.padding} is wider than the window {self.kernel}")
        if inputs[0][0] != self.in_channels:
            raise ShapeMismatch(f"conv2d takes {self.in_channels} channels, its input has shape {inputs[0]}")
        return (self.out_channels, height, width)

    def scratch_items(self, *inputs: Shape) -> int:
        padded, (_, height, width) = super().scratch_items(*inputs), self.output_shape(*inputs)
        if self.is_depthwise:
            return padded + self.out_channels * height * width
        return padded + self.in_channels * prod(self.kernel) * height * width

    @property
    def is_depthwise(self) -> bool:
        """One window for each channel."""
        return self.groups == self.in_channels == self.out_channels

    def macs(self, output: Shape) -> int:
        return prod(output) * (self.in_channels // self.groups) * prod(self.kernel)


class MaxPool2d(_Windowed, frozen=True, array_like=True, tag="max_pool2d"):
    """Largest value of each window; padding never wins."""

    def output_shape(self, *inputs: Shape) -> Shape:
        if any(2 * p > k for p, k in zip(self.padding, self.kernel, strict=True)):
            raise ShapeMismatch(f"padding {self.padding} is over half of the window {self.kernel}")
        return (inputs[0][:1] + self._extents(inputs[0]))[:3]


class AvgPool2d(_Windowed, frozen=True, array_like=True, tag="avg_pool2d"):
    """Mean of each window, zero padding counted in."""

    def output_shape(self, *inputs: Shape) -> Shape:
        if any(2 * p > k for p, k in zip(self.padding, self.kernel, strict=True)):
            raise ShapeMismatch(f"padding {self.padding} is over half of the window {self.kernel}")
        return (inputs[0][:1] + self._extents(inputs[0]))[:3]


class GlobalMean(Op, frozen=True, array_like=True, tag="global_mean"):
    """Mean over height and width: (channels, height, width) to (channels,), or (channels, 1, 1) if they are kept."""

    keep: bool = False

    def output_shape(self, *inputs: Shape) -> Shape:
        if len(inputs[0]) != 3:
            raise ShapeMismatch(f"global_mean needs (channels, height, width), its input has shape {inputs[0]}")
        return (inputs[0][0], 1, 1) if self.keep else inputs[0][:1]


class Relu(Op, frozen=True, array_like=True, tag="relu"):
    """max(x, 0)."""


class Clamp(Op, frozen=True, array_like=True, tag="clamp"):
    """min(max(x, low), high): ReLU6 is 0 to 6."""

    low: float
    high: float

    def output_shape(self, *inputs: Shape) -> Shape:
        if not self.low <= self.high or _MOST < abs(self.low) < inf or _MOST < abs(self.high) < inf:
            raise ShapeMismatch(f"clamp from {self.low} to {self.high} is no range of float32")
        return inputs[0]


class Add(Op, frozen=True, array_like=True, tag="add"):
    """Sum of two tensors of one shape."""

    @property
    def arity(self) -> int:
        return 2

    def output_shape(self, *inputs: Shape) -> Shape:
        if inputs[0] != inputs[1]:
            raise ShapeMismatch(f"add takes two tensors of one shape, got {inputs[0]} and {inputs[1]}")
        return inputs[0]


class Reshape(Op, frozen=True, array_like=True, tag="reshape"):
    """The same values in another shape, batch apart."""

    shape: Annotated[tuple[Size, ...], msgspec.Meta(min_length=1, max_length=MAX_DIMS)]

    def output_shape(self, *inputs: Shape) -> Shape:
        if prod(inputs[0]) != prod(self.shape):
            raise ShapeMismatch(f"cannot reshape {inputs[0]} to {self.shape}")
        return self.shape


AnyOp = Linear | Conv2d | MaxPool2d | AvgPool2d | GlobalMean | Relu | Clamp | Add | Reshape
