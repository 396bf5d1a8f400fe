"""Calls with parameters: linear layers, convolutions, norms, embeddings; and products of two tensors."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from qpart.aten.call import Batch, Call, PerChannel, Value, Vector
from qpart.aten.pointwise import added_constant, combined
from qpart.ops import LARGEST, Clamp, Conv2d, Embedding, Linear, MatMul, Norm, Pad, Rescale, Shape


def _linear(call: Call, value: Value, weight: Vector, bias: Vector | None) -> Value:
    call.axis(value, -1)
    return call.emit(Linear(weight.shape[1], weight.shape[0], bias is not None), value, weight=weight, bias=bias)


def linear(call: Call) -> Value:
    return _linear(call, call.value(), call.constant("weight", 2), call.optional("bias"))


def addmm(call: Call) -> Value:
    call.require(alpha=1, beta=1)
    return _linear(call, call.value("mat1"), call.constant("mat2", 2).T, call.constant("self", 1))


def matmul(call: Call) -> Value:
    """Two tensors, or one and a parameter on either side."""
    first = call.arguments["self"]
    second = call.arguments["mat2" if "mat2" in call.arguments else "other"]
    if isinstance(first, Value) and isinstance(second, Value):
        return product(call, first, second)
    if isinstance(first, Value) and isinstance(second, np.ndarray):
        return _by_constant(call, first, second)
    if isinstance(first, np.ndarray) and isinstance(second, Value) and second.rank > 2:
        swapped = [*range(second.rank - 2), second.rank - 1, second.rank - 2]
        several = first.astype(np.float64).reshape(-1, *first.shape[-2:])
        weight = several[0]
        if (several == weight).all():
            return call.permuted(_linear(call, call.permuted(second, swapped), weight, None), swapped)
        if first.ndim == second.rank:
            return product(call, call.materialised(first, [second]), second)
    raise call.refused("is known for two tensors, or one and a matrix that all of it is multiplied by")


def _by_constant(call: Call, value: Value, constant: Vector) -> Value:
    weight = constant.astype(np.float64)
    if weight.ndim > 2:  # perhaps one matrix, repeated
        several = weight.reshape(-1, *weight.shape[-2:])
        weight = several[0] if (several == several[0]).all() else weight
    if weight.ndim == 1:
        return call.viewed(_linear(call, value, weight[None], None), call.shape)
    if weight.ndim != 2:
        return product(call, value, call.materialised(constant, [value]))
    return call.viewed(_linear(call, value, weight.T, None), call.shape)


def product(call: Call, first: Value, second: Value) -> Value:
    """Matrix product of two tensors, leading dimensions repeated where they are 1."""
    first, second = call.together(first, second)
    for value in (first, second):
        call.axis(value, -1)
        call.axis(value, -2)
    leading = tuple(max(a, b) for a, b in zip(_lead(first), _lead(second), strict=True))
    first, second = (call.expanded(v, (*leading, *v.traced[-2:])) for v in (first, second))
    return call.emit(MatMul(), first, second)


def _lead(value: Value) -> tuple[Any, ...]:
    return value.traced[:-2]


def baddbmm(call: Call) -> Value:
    """beta * self + alpha * batch1 @ batch2, as attention with an added mask is written."""
    given = [call.arguments["batch1"], call.arguments["batch2"]]
    found = product(call, *(call.materialised(one, given) for one in given))
    alpha, beta = call.number("alpha"), call.number("beta")
    if alpha != 1:
        found = call.emit(Rescale(alpha), found)
    added = call.arguments["self"]
    if isinstance(added, np.ndarray):
        return added_constant(call, found, added * beta) if beta else found
    return combined(call, found, added, beta)


def conv(call: Call) -> Value:
    """conv1d, conv2d and convolution; one dimension is an image of height 1."""
    call.require(transposed=False)
    value, bias = call.value(), call.optional("bias")
    dims = call.arguments["weight"].ndim - 2 if isinstance(call.arguments["weight"], np.ndarray) else 0
    if dims not in (1, 2) or value.at != 0 or value.merged or len(value.shape) != dims + 1:
        raise call.refused("is known for (batch, channels, length) and (batch, channels, height, width)")
    weight = call.constant("weight", dims + 2)
    stride, dilation = call.numbers("stride", dims), call.numbers("dilation", dims)
    groups = call.arguments["groups"]
    low, high = _conv_padding(call, weight.shape[2:], dilation)
    if dims == 1:
        value = call.viewed(value, (Batch(1), value.shape[0], 1, value.shape[1]))
        weight = weight[:, :, None]
        stride, dilation, low, high = (
            (fill, *numbers) for fill, numbers in ((1, stride), (1, dilation), (0, low), (0, high))
        )
    if low != high:
        value = call.emit(Pad((0, *low), (0, *high)), value)
        low = (0, 0)
    kernel, stride, padding, dilation = (_two(numbers) for numbers in (weight.shape[2:], stride, low, dilation))
    op = Conv2d(kernel, stride, padding, weight.shape[1] * groups, weight.shape[0], dilation, groups, bias is not None)
    found = call.emit(op, value, weight=weight, bias=bias)
    return call.viewed(found, (Batch(1), found.shape[0], found.shape[2])) if dims == 1 else found


def _two(numbers: Sequence[int]) -> tuple[int, int]:
    height, width = numbers
    return height, width


def _conv_padding(
    call: Call, kernel: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    padding = call.arguments["padding"]
    if padding == "valid":
        return (0,) * len(kernel), (0,) * len(kernel)
    if padding != "same":
        both = call.numbers("padding", len(kernel))
        return both, both
    totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    return tuple(total // 2 for total in totals), tuple(total - total // 2 for total in totals)


def batch_norm(call: Call) -> Value:
    call.require(training=False)
    value = call.value()
    mean, variance = (call.constant(name, 1) for name in ("running_mean", "running_var"))
    weight, bias = call.optional("weight"), call.optional("bias")
    scale = (1.0 if weight is None else weight) / np.sqrt(variance + call.arguments["eps"])
    shift = (0.0 if bias is None else bias) - mean * scale
    return call.emit(PerChannel(call.axis(value, 1), scale, shift), value)


def _norm(
    call: Call, value: Value, axes: int, eps: float, weight: Vector | None, bias: Vector | None, centred: bool = True
) -> Value:
    """Over the last axes."""
    features = prod(value.shape[len(value.shape) - axes :])
    if weight is None and bias is not None:
        weight = np.ones(features)
    weight, bias = (None if p is None else np.ascontiguousarray(p, np.float64).reshape(-1) for p in (weight, bias))
    op = Norm(features, axes, float(eps), centred, weight is not None, bias is not None)
    return call.emit(op, value, weight=weight, bias=bias)


def layer_norm(call: Call) -> Value:
    value, axes = call.value(), len(call.arguments["normalized_shape"])
    for dim in range(1, axes + 1):
        call.axis(value, -dim)
    centred = "rms" not in call.function
    eps = call.arguments.get("eps")
    weight, bias = call.arguments.get("weight"), call.arguments.get("bias")
    return _norm(call, value, axes, float(np.finfo(np.float32).eps) if eps is None else eps, weight, bias, centred)


def group_norm(call: Call) -> Value:
    value = call.value("input")
    return _by_groups(call, value, call.arguments["num_groups" if "num_groups" in call.arguments else "group"])


def instance_norm(call: Call) -> Value:
    value = call.value()
    if not call.arguments["use_input_stats"]:
        call.arguments["training"] = False
        return batch_norm(call)
    return _by_groups(call, value, value.shape[0])


def _by_groups(call: Call, value: Value, groups: int) -> Value:
    """Channels in groups, each normalised over all it has, then scaled and shifted by channel."""
    if value.at != 0 or value.merged:
        raise call.refused("needs (batch, channels, ...)")
    channels = value.shape[0]
    grouped = call.viewed(value, (Batch(1), groups, prod(value.shape) // groups))
    found = call.viewed(_norm(call, grouped, 1, call.arguments["eps"], None, None), (Batch(1), *value.shape))
    weight, bias = call.optional("weight"), call.optional("bias")
    if weight is None and bias is None:
        return found
    scale = np.ones(channels) if weight is None else weight
    return call.emit(PerChannel(0, scale, np.zeros(channels) if bias is None else bias), found)


def embedding(call: Call) -> Value:
    weight, value = call.constant("weight", 2), call.value("indices")
    return call.emit(Embedding(*weight.shape), value, weight=weight)


def prelu(call: Call) -> Value:
    """max(x, 0) + slope of the channel * min(x, 0)."""
    value, slope = call.value("self"), call.constant("weight", 1)
    axis = call.axis(value, 1)
    channels: Shape = value.shape
    below = call.emit(Clamp(-LARGEST, 0.0), value)
    scale = np.broadcast_to(slope, channels[axis : axis + 1]).astype(np.float64)
    below = call.emit(PerChannel(axis, scale, np.zeros(len(scale))), below)
    return combined(call, call.emit(Clamp(0.0, LARGEST), value), below, 1.0)
