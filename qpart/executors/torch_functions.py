"""What each operation computes, said with torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from qpart import ops
from qpart.ops import Op

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "exp": torch.exp,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "hardsigmoid": functional.hardsigmoid,
    "hardswish": functional.hardswish,
    "log": torch.log,
    "mish": functional.mish,
    "reciprocal": torch.reciprocal,
    "rsqrt": torch.rsqrt,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "softplus": functional.softplus,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tanh": torch.tanh,
}


def _conv2d(op: ops.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """On a CPU a depthwise layer is about twice as quick with channels last, a dense one of small images much slower.

    What lies between them takes either; it is left as it comes.
    """
    if x.is_cpu and op.is_depthwise:
        x = x.contiguous(memory_format=torch.channels_last)
    elif op.kernel != (1, 1):
        x = x.contiguous()
    return functional.conv2d(x, weight, bias, op.stride, op.padding, op.dilation, op.groups)


def _max_pool2d(op: ops.MaxPool2d, x: Tensor) -> Tensor:
    """On a CPU with channels last, where many channels are compared at once: up to six times quicker."""
    if not x.is_cpu:
        return functional.max_pool2d(x, op.kernel, op.stride, op.padding)
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    y = functional.max_pool2d(x.contiguous(memory_format=torch.channels_last), op.kernel, op.stride, op.padding)
    return y.contiguous(memory_format=layout)


def _add(op: ops.Add, x: Tensor, y: Tensor) -> Tensor:
    """Of two images only one of which has channels last, the other gets them: the sum would lose them, slowly."""
    if x.is_cpu and x.ndim == 4 and x.shape == y.shape and {_layouts(x), _layouts(y)} == _UNLIKE:
        x, y = (z.contiguous(memory_format=torch.channels_last) for z in (x, y))
    return x + y


_UNLIKE = {(True, False), (False, True)}


def _layouts(x: Tensor) -> tuple[bool, bool]:
    """Whether an image lies channels first, and channels last; with one channel or one pixel it does both."""
    return x.is_contiguous(), x.is_contiguous(memory_format=torch.channels_last)


def _norm(op: ops.Norm, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    shape = x.shape[-op.axes :]
    weight, bias = (None if p is None else p.reshape(shape) for p in (weight, bias))
    if op.centred:
        return functional.layer_norm(x, shape, weight, bias, op.eps)
    y = functional.rms_norm(x, shape, weight, op.eps)
    return y if bias is None else y + bias


def _affine(op: ops.Affine, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    along = (op.channels, *(1 for _ in x.shape[op.axis + 2 :]))
    y = x * weight.reshape(along)
    return y if bias is None else y + bias.reshape(along)


def _embedding(op: ops.Embedding, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.embedding(x.nan_to_num().round().clamp(0, op.num_rows - 1).long(), weight)


def _adaptive_pool2d(op: ops.AdaptivePool2d, x: Tensor) -> Tensor:
    return functional.adaptive_max_pool2d(x, op.size) if op.largest else functional.adaptive_avg_pool2d(x, op.size)


def _reduce(op: ops.Reduce, x: Tensor) -> Tensor:
    axes = tuple(axis + 1 for axis in op.axes)
    function: Any = {"mean": torch.mean, "sum": torch.sum, "max": torch.amax}[op.kind]
    result: Tensor = function(x, axes, keepdim=op.keep)
    return result


def _attention(op: ops.Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    def heads(x: Tensor, size: int, offset: int) -> Tensor:
        return x[..., offset : offset + op.heads * size].unflatten(-1, (op.heads, size)).transpose(-2, -3)

    sizes = (op.head_size, op.head_size, op.value_size)
    q, k, v = (heads(x, size, o) for x, size, o in zip((queries, keys, values), sizes, op.offsets, strict=True))
    found = functional.scaled_dot_product_attention(q, k, v, is_causal=op.causal, scale=op.scale)
    return found.transpose(-2, -3).flatten(-2)


def _pad(op: ops.Pad, x: Tensor) -> Tensor:
    sides = [side for pair in reversed(list(zip(op.before, op.after, strict=True))) for side in pair]
    return functional.pad(x, sides, value=op.value)


def _elu(op: ops.Elu, x: Tensor) -> Tensor:
    return op.scale * (x.clamp(min=0) + op.alpha * torch.expm1(op.rate * x.clamp(max=0)))


def _slice(op: ops.Slice, x: Tensor) -> Tensor:
    along = (slice(None),) * (op.axis + 1)
    return x[(*along, slice(op.start, op.stop, op.step))]


WEIGHTED: dict[type[Op], Callable[..., Tensor]] = {
    ops.Linear: lambda op, x, weight, bias: functional.linear(x, weight, bias),
    ops.Conv2d: _conv2d,
    ops.Norm: _norm,
    ops.Affine: _affine,
    ops.AddConstant: lambda op, x, weight, bias: x + weight,
    ops.MulConstant: lambda op, x, weight, bias: x * weight,
    ops.Embedding: _embedding,
}
"""By kind of operation: of (op, input, weight, bias or None)."""
PLAIN: dict[type[Op], Callable[..., Tensor]] = {
    ops.MaxPool2d: _max_pool2d,
    ops.AvgPool2d: lambda op, x: functional.avg_pool2d(
        x, op.kernel, op.stride, op.padding, count_include_pad=op.count_padding
    ),
    ops.AdaptivePool2d: _adaptive_pool2d,
    ops.GlobalMean: lambda op, x: x.mean((2, 3), keepdim=op.keep),
    ops.Reduce: _reduce,
    ops.Norm: _norm,
    ops.Relu: lambda op, x: functional.relu(x),
    ops.LeakyRelu: lambda op, x: functional.leaky_relu(x, op.slope),
    ops.Elu: _elu,
    ops.Clamp: lambda op, x: x.clamp(op.low, op.high),
    ops.Activation: lambda op, x: _FUNCTIONS[op.function](x),
    ops.Rescale: lambda op, x: x * op.scale + op.shift,
    ops.Softmax: lambda op, x: (functional.log_softmax if op.log else functional.softmax)(x, op.axis + 1),
    ops.Add: _add,
    ops.Mul: lambda op, x, y: x * y,
    ops.MatMul: lambda op, x, y: x @ (y.transpose(-1, -2) if op.transposed else y),
    ops.Attention: _attention,
    ops.Reshape: lambda op, x: x.reshape(len(x), *op.shape),
    ops.Permute: lambda op, x: x.permute(0, *(axis + 1 for axis in op.order)),
    ops.Slice: _slice,
    ops.Concat: lambda op, *tensors: torch.cat(tensors, op.axis + 1),
    ops.Pad: _pad,
    ops.Expand: lambda op, x: x.expand(len(x), *op.shape),
}
"""By kind of operation: of (op, inputs...)."""
