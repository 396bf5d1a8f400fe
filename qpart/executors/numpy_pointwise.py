"""Functions number by number, softmax and means on numpy.

Functions of several steps go over a tensor in blocks that stay in a cache, and need no other scratch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpart.ops import Activation, Clamp, Elu, GlobalMean, LeakyRelu, Reduce, Relu, Rescale, Softmax

Array = NDArray[np.float32]
_BLOCK = 1 << 13
_ROOT_HALF, _TANH_1, _TANH_3 = (np.float32(c) for c in (0.5**0.5, (2 / np.pi) ** 0.5, 0.044715))
_HALF, _ONE = np.float32(0.5), np.float32(1)
# erf(x) = x P(x^2) / Q(x^2) within +-4, float32: the minimax fit that Eigen and XLA use.
_P = (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
      -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02)  # fmt: skip
_Q = (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
      -1.42647390514189e-02)  # fmt: skip


def relu(op: Relu, x: Array) -> Array:
    return np.maximum(x, np.float32(0))


def clamp(op: Clamp, x: Array) -> Array:
    return np.clip(x, np.float32(op.low), np.float32(op.high))


def rescale(op: Rescale, x: Array) -> Array:
    y = x * np.float32(op.scale)
    if op.shift:
        y += np.float32(op.shift)
    return y


def leaky_relu(op: LeakyRelu, x: Array) -> Array:
    def block(x: Array, y: Array) -> None:
        np.minimum(x, 0, out=y)
        y *= np.float32(op.slope)
        y += np.maximum(x, np.float32(0))

    return _in_blocks(block, x)


def elu(op: Elu, x: Array) -> Array:
    def block(x: Array, y: Array) -> None:
        np.minimum(x, 0, out=y)
        y *= np.float32(op.rate)
        np.expm1(y, out=y)
        y *= np.float32(op.alpha)
        y += np.maximum(x, np.float32(0))
        y *= np.float32(op.scale)

    return _in_blocks(block, x)


def activation(op: Activation, x: Array) -> Array:
    with np.errstate(all="ignore"):  # infinities and NaN as in torch: whoever reads them checks
        return _in_blocks(_FUNCTIONS[op.function], x)


def softmax(op: Softmax, x: Array) -> Array:
    axis = op.axis + 1
    y: Array = x - x.max(axis=axis, keepdims=True)
    if op.log:
        y -= np.log(np.exp(y).sum(axis=axis, keepdims=True))
        return y
    np.exp(y, out=y)
    y /= y.sum(axis=axis, keepdims=True)
    return y


def global_mean(op: GlobalMean, x: Array) -> Array:
    y: Array = x.mean(axis=(2, 3), keepdims=op.keep, dtype=np.float32)
    return y


def reduce(op: Reduce, x: Array) -> Array:
    function: Any = {"mean": np.mean, "sum": np.sum, "max": np.max}[op.kind]
    y = function(x, axis=tuple(axis + 1 for axis in op.axes), keepdims=op.keep)
    return np.ascontiguousarray(y, np.float32)


def _in_blocks(function: Callable[[Array, Array], object], x: Array) -> Array:
    """Apply function(part of x, same part of the result)."""
    x = np.ascontiguousarray(x)
    y = np.empty_like(x)
    flat_x, flat_y = x.reshape(-1), y.reshape(-1)
    for start in range(0, x.size, _BLOCK):
        function(flat_x[start : start + _BLOCK], flat_y[start : start + _BLOCK])
    return y


def _sigmoid(x: Array, y: Array) -> Array:
    np.multiply(x, _HALF, out=y)  # by tanh, which does not overflow
    np.tanh(y, out=y)
    y *= _HALF
    y += _HALF
    return y


def _gelu(x: Array, y: Array) -> None:
    """0.5 x (1 + erf(x / sqrt 2))."""
    t = np.clip(x * _ROOT_HALF, -4, 4)
    square = t * t
    _polynomial(square, _P, y)
    y *= t
    y /= _polynomial(square, _Q, t)
    y += _ONE
    y *= x
    y *= _HALF


def _polynomial(x: Array, coefficients: tuple[float, ...], y: Array) -> Array:
    y.fill(coefficients[0])
    for coefficient in coefficients[1:]:
        y *= x
        y += np.float32(coefficient)
    return y


def _gelu_tanh(x: Array, y: Array) -> None:
    np.multiply(x, x, out=y)
    y *= _TANH_3
    y += _ONE
    y *= x
    y *= _TANH_1
    np.tanh(y, out=y)
    y += _ONE
    y *= x
    y *= _HALF


def _silu(x: Array, y: Array) -> None:
    _sigmoid(x, y)
    y *= x


def _hardsigmoid(x: Array, y: Array) -> Array:
    np.add(x, np.float32(3), out=y)
    np.clip(y, 0, 6, out=y)
    y /= np.float32(6)
    return y


def _hardswish(x: Array, y: Array) -> None:
    _hardsigmoid(x, y)
    y *= x


def _softplus(x: Array, y: Array) -> Array:
    """log(1 + exp x) = max(x, 0) + log1p(exp(-|x|)), which does not overflow."""
    np.abs(x, out=y)
    np.negative(y, out=y)
    np.exp(y, out=y)
    np.log1p(y, out=y)
    y += np.maximum(x, np.float32(0))
    return y


def _mish(x: Array, y: Array) -> None:
    np.tanh(_softplus(x, y), out=y)
    y *= x


def _rsqrt(x: Array, y: Array) -> None:
    np.sqrt(x, out=y)
    np.reciprocal(y, out=y)


_FUNCTIONS: dict[str, Callable[[Array, Array], object]] = {
    "abs": lambda x, y: np.abs(x, out=y),
    "exp": lambda x, y: np.exp(x, out=y),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "hardsigmoid": _hardsigmoid,
    "hardswish": _hardswish,
    "log": lambda x, y: np.log(x, out=y),
    "mish": _mish,
    "reciprocal": lambda x, y: np.reciprocal(x, out=y),
    "rsqrt": _rsqrt,
    "sigmoid": _sigmoid,
    "silu": _silu,
    "softplus": _softplus,
    "sqrt": lambda x, y: np.sqrt(x, out=y),
    "square": lambda x, y: np.square(x, out=y),
    "tanh": lambda x, y: np.tanh(x, out=y),
}
