"""Networks on numpy alone, for devices that have no torch.

Results agree with torch to a few float32 roundings. Scratch is bounded: convolutions unfold a few samples at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from qpart.executors import walk
from qpart.network import Node, Parameters
from qpart.ops import Add, AvgPool2d, Clamp, Conv2d, GlobalMean, Linear, MaxPool2d, Op, Relu, Reshape

Array = NDArray[np.float32]
# Unfolded inputs of a convolution at once; small enough for a cache, since numpy reads them right after writing.
SCRATCH_BYTES = 1 << 20


class NumpyExecutor:
    """Runs stretches of a network.

    Args:
        nodes: of the network, or of its first part.
        parameters: called with a node's index each time that node runs, so that weights may stay packed elsewhere.
    """

    def __init__(self, nodes: tuple[Node, ...], parameters: Callable[[int], Parameters]) -> None:
        self.nodes, self._parameters = nodes, parameters

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
        return _WEIGHTED[type(op)](op, inputs[0], self._parameters(index))


def _linear(op: Linear, x: Array, parameters: Parameters) -> Array:
    y: Array = x @ parameters.weight.T
    if parameters.bias is not None:
        y += parameters.bias
    return y


def _conv2d(op: Conv2d, x: Array, parameters: Parameters) -> Array:
    """x (batch, channels, height, width)."""
    x = _padded(x, op.padding, 0.0)
    compute = _depthwise if op.is_depthwise else _unfolded
    y = compute(op, x, parameters.weight)
    if parameters.bias is not None:
        y += parameters.bias[:, None, None]
    return y


def _depthwise(op: Conv2d, x: Array, weight: Array) -> Array:
    """One window per channel: a sum over the window's taps, each over a whole plane."""
    taps = _taps(x, op.kernel, op.stride, op.dilation)
    factors = weight.reshape(op.out_channels, -1).T[:, :, None, None]
    y: Array = next(taps) * factors[0]
    for tap, factor in zip(taps, factors[1:], strict=True):
        y += tap * factor
    return y


def _unfolded(op: Conv2d, x: Array, weight: Array) -> Array:
    """Windows unfolded to columns, a few samples at a time, and one matrix product per sample and group."""
    (kh, kw), (dh, dw), (sh, sw) = op.kernel, op.dilation, op.stride
    windows = sliding_window_view(x, (dh * (kh - 1) + 1, dw * (kw - 1) + 1), axis=(2, 3))
    windows = windows[:, :, ::sh, ::sw, ::dh, ::dw].transpose(0, 1, 4, 5, 2, 3)
    batch, height, width = len(x), *windows.shape[-2:]
    depth = op.in_channels // op.groups * kh * kw
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


def _max_pool2d(op: MaxPool2d, x: Array) -> Array:
    taps = _taps(_padded(x, op.padding, -np.inf), op.kernel, op.stride)
    y = next(taps).copy()
    for tap in taps:
        np.maximum(y, tap, out=y)
    return y


def _avg_pool2d(op: AvgPool2d, x: Array) -> Array:
    taps = _taps(_padded(x, op.padding, 0.0), op.kernel, op.stride)
    y = next(taps).copy()
    for tap in taps:
        y += tap
    y /= np.float32(op.kernel[0] * op.kernel[1])
    return y


def _global_mean(op: GlobalMean, x: Array) -> Array:
    y: Array = x.mean(axis=(2, 3), keepdims=op.keep, dtype=np.float32)
    return y


def _relu(op: Relu, x: Array) -> Array:
    return np.maximum(x, np.float32(0))


def _clamp(op: Clamp, x: Array) -> Array:
    return np.minimum(np.maximum(x, np.float32(op.low)), np.float32(op.high))


def _add(op: Add, x: Array, y: Array) -> Array:
    return x + y


def _reshape(op: Reshape, x: Array) -> Array:
    return x.reshape(len(x), *op.shape)


_WEIGHTED: dict[type[Op], Callable[[Any, Array, Parameters], Array]] = {Linear: _linear, Conv2d: _conv2d}
_PLAIN: dict[type[Op], Callable[..., Array]] = {
    MaxPool2d: _max_pool2d,
    AvgPool2d: _avg_pool2d,
    GlobalMean: _global_mean,
    Relu: _relu,
    Clamp: _clamp,
    Add: _add,
    Reshape: _reshape,
}
