"""Operations that slide a window over images (channels, height, width)."""

from __future__ import annotations

from math import prod

from qpart.errors import ShapeMismatch
from qpart.ops.base import MAX_TAPS, Op, Padding, Shape, Size, averaged, buffered


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

    def _pooled(self, image: Shape) -> Shape:
        if any(2 * p > k for p, k in zip(self.padding, self.kernel, strict=True)):
            raise ShapeMismatch(f"padding {self.padding} is over half of the window {self.kernel}")
        return (image[:1] + self._extents(image))[:3]

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
            made = self.out_channels * height * width
            return max(padded, prod(inputs[0])) + made + 2 * buffered(made)
        unfolded = self.in_channels * prod(self.kernel) * height * width
        return padded + max(unfolded, buffered(self.out_channels * height * width) if self.bias else 0)

    @property
    def is_depthwise(self) -> bool:
        """One window for each channel."""
        return self.groups == self.in_channels == self.out_channels

    @property
    def hides_input(self) -> bool:
        return prod(self.weight_shape[1:]) > 1

    def macs(self, output: Shape, *inputs: Shape) -> int:
        return prod(output) * (self.in_channels // self.groups) * prod(self.kernel)


class MaxPool2d(_Windowed, frozen=True, array_like=True, tag="max_pool2d"):
    """Largest value of each window; padding never wins."""

    def scratch_items(self, *inputs: Shape) -> int:
        return super().scratch_items(*inputs) + buffered(prod(self.output_shape(*inputs)))

    def output_shape(self, *inputs: Shape) -> Shape:
        return self._pooled(inputs[0])


class AvgPool2d(_Windowed, frozen=True, array_like=True, tag="avg_pool2d"):
    """Mean of each window, zero padding counted in unless `count_padding` is off."""

    count_padding: bool = True

    def scratch_items(self, *inputs: Shape) -> int:
        made = self.output_shape(*inputs)
        shares = prod(made[1:]) + prod(inputs[0][1:]) * 4
        held = super().scratch_items(*inputs) + buffered(prod(made))
        return held + (0 if self.count_padding else shares)

    def output_shape(self, *inputs: Shape) -> Shape:
        return self._pooled(inputs[0])


class AdaptivePool2d(Op, frozen=True, array_like=True, tag="adaptive_pool2d"):
    """Mean, or the largest value, of size[0] x size[1] windows that cover the image evenly.

    Window i of n over an extent e goes from floor(i e / n) to ceil((i + 1) e / n).
    """

    size: tuple[Size, Size]
    largest: bool = False

    def output_shape(self, *inputs: Shape) -> Shape:
        if len(inputs[0]) != 3 or any(n > e for n, e in zip(self.size, inputs[0][1:], strict=True)):
            raise ShapeMismatch(f"adaptive_pool2d to {self.size} cannot take an input of shape {inputs[0]}")
        if prod(self.size) > MAX_TAPS:
            raise ShapeMismatch(f"{self.size} windows are too many; at most {MAX_TAPS} are allowed")
        return (inputs[0][0], *self.size)

    def scratch_items(self, *inputs: Shape) -> int:
        return inputs[0][0] + max(buffered(prod(inputs[0])), averaged(inputs[0][0]))
