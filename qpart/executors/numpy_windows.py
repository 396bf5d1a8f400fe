"""Convolutions and pools on numpy. Scratch is bounded: convolutions unfold a few samples at a time."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
from numpy.lib.stride_tricks import as_strided, sliding_window_view
from numpy.typing import NDArray

from qpart.network import Parameters
from qpart.ops import AdaptivePool2d, AvgPool2d, Conv2d, MaxPool2d

Array = NDArray[np.float32]
# Unfolded inputs of a convolution at once; small enough for a cache, since numpy reads them right after writing.
SCRATCH_BYTES = 1 << 20
_MANY_CHANNELS = 96


def conv2d(op: Conv2d, x: Array, parameters: Parameters) -> Array:
    """x (batch, channels, height, width)."""
    if op.is_depthwise and op.in_channels >= _MANY_CHANNELS:
        y = _depthwise_by_pixel(op, x, parameters.weight)
    else:
        x = _padded(x, op.padding, 0.0)
        compute = _depthwise if op.is_depthwise else _unfolded
        y = compute(op, x, parameters.weight)
    if parameters.bias is not None:
        y += parameters.bias[:, None, None]
    return y


def unfolded(op: Conv2d, x: Array) -> Array:
    """The windows of x (batch, channels, height, width) as rows (batch * windows, channels * taps), all at once."""
    windows = _windows(op, _padded(x, op.padding, 0.0)).transpose(0, 2, 3, 1, 4, 5)
    return windows.reshape(-1, op.in_channels * prod(op.kernel))


def _windows(op: Conv2d, x: Array) -> Array:
    """A view (batch, channels, rows, columns, kh, kw) of a padded x."""
    (kh, kw), (dh, dw), (sh, sw) = op.kernel, op.dilation, op.stride
    windows = sliding_window_view(x, (dh * (kh - 1) + 1, dw * (kw - 1) + 1), axis=(2, 3))
    return windows[:, :, ::sh, ::sw, ::dh, ::dw]


def _depthwise(op: Conv2d, x: Array, weight: Array) -> Array:
    """One window per channel: a sum over the window's taps, each over a whole plane."""
    taps = _taps(x, op.kernel, op.stride, op.dilation)
    factors = weight.reshape(op.out_channels, -1).T[:, :, None, None]
    y: Array = next(taps) * factors[0]
    product = np.empty_like(y)
    for tap, factor in zip(taps, factors[1:], strict=True):
        y += np.multiply(tap, factor, out=product)
    return y


def _depthwise_by_pixel(op: Conv2d, x: Array, weight: Array) -> Array:
    """The same with channels last, where numpy's innermost loop is long: several times faster, one sample at a time."""
    (kh, kw), (dh, dw), (sh, sw), (ph, pw) = op.kernel, op.dilation, op.stride, op.padding
    channels, height, width = x.shape[1:]
    _, rows, columns = op.output_shape(x.shape[1:])
    image = np.zeros((height + 2 * ph, width + 2 * pw, channels), np.float32)
    down, right, _ = image.strides
    windows = as_strided(
        image,
        (rows, columns, kh, kw, channels),
        (down * sh, right * sw, down * dh, right * dw, image.itemsize),
        writeable=False,
    )
    factors = np.ascontiguousarray(weight.reshape(channels, kh, kw).transpose(1, 2, 0))
    y, pixels = np.empty((len(x), channels, rows, columns), np.float32), np.empty((rows, columns, channels), np.float32)
    for i in range(len(x)):
        image[ph : ph + height, pw : pw + width] = x[i].transpose(1, 2, 0)
        np.einsum("rcijk,ijk->rck", windows, factors, out=pixels)
        y[i] = pixels.transpose(2, 0, 1)
    return y


def _unfolded(op: Conv2d, x: Array, weight: Array) -> Array:
    """Windows unfolded to columns, a few samples at a time, and one matrix product per sample and group."""
    windows = _windows(op, x).transpose(0, 1, 4, 5, 2, 3)
    batch, height, width = len(x), *windows.shape[-2:]
    depth = op.in_channels // op.groups * prod(op.kernel)
    rows = weight.reshape(op.groups, op.out_channels // op.groups, depth)
    y = np.empty((batch, op.groups, op.out_channels // op.groups, height * width), np.float32)
    step = max(1, SCRATCH_BYTES // (4 * op.groups * depth * height * width))
    for start in range(0, batch, step):
        part = slice(start, start + step)
        columns = windows[part].reshape(-1, op.groups, depth, height * width)
        np.matmul(rows, columns, out=y[part])
    return y.reshape(batch, op.out_channels, height, width)


def _padded(x: Array, padding: tuple[int, int], value: float) -> Array:
    if not any(padding):
        return x
    (ph, pw), (height, width) = padding, x.shape[2:]
    padded = np.full((*x.shape[:2], height + 2 * ph, width + 2 * pw), value, np.float32)
    padded[:, :, ph : ph + height, pw : pw + width] = x
    return padded


def _taps(
    x: Array, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int] = (1, 1)
) -> Iterator[Array]:
    """For each position in the window, row by row, what all windows have there: views (batch, channels, h, w)."""
    height, width = ((x.shape[i + 2] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1))
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            top, left = i * dilation[0], j * dilation[1]
            bottom, right = top + stride[0] * (height - 1) + 1, left + stride[1] * (width - 1) + 1
            yield x[:, :, top : bottom : stride[0], left : right : stride[1]]


def max_pool2d(op: MaxPool2d, x: Array) -> Array:
    taps = _taps(_padded(x, op.padding, -np.inf), op.kernel, op.stride)
    y = next(taps).copy()
    for tap in taps:
        np.maximum(y, tap, out=y)
    return y


def avg_pool2d(op: AvgPool2d, x: Array) -> Array:
    taps = _taps(_padded(x, op.padding, 0.0), op.kernel, op.stride)
    y = next(taps).copy()
    for tap in taps:
        y += tap
    if op.count_padding or not any(op.padding):
        y /= np.float32(op.kernel[0] * op.kernel[1])
    else:
        inside = _padded(np.ones((1, 1, *x.shape[2:]), np.float32), op.padding, 0.0)
        y /= sum(_taps(inside, op.kernel, op.stride))
    return y


def adaptive_pool2d(op: AdaptivePool2d, x: Array) -> Array:
    reduce = np.max if op.largest else np.mean
    y = np.empty((*x.shape[:2], *op.size), np.float32)
    rows, columns = (
        [(i * extent // count, -(-(i + 1) * extent // count)) for i in range(count)]
        for count, extent in zip(op.size, x.shape[2:], strict=True)
    )
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(columns):
            y[:, :, i, j] = reduce(x[:, :, top:bottom, left:right], axis=(2, 3))
    return y
