"""ATen operations, as torch.export writes them, turned into operations of `qpart.ops`. Does not import torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qpart.errors import UnknownOperation
from qpart.ops import Add, AnyOp, AvgPool2d, Clamp, Conv2d, GlobalMean, Linear, MaxPool2d, Relu, Reshape, Shape

Vector = NDArray[np.float64]
LARGEST = float(np.finfo(np.float32).max)


class Value(NamedTuple):
    """A tensor with a batch dimension: id of the step that makes it, and its shape per sample."""

    id: int
    shape: Shape


class PerChannel(NamedTuple):
    """y = x * scale + shift per channel; has to be folded into the step before it."""

    scale: Vector
    shift: Vector


@dataclass
class Step:
    """An operation on its way into a network.

    Attributes:
        inputs: ids as in `Node`, of steps instead of nodes.
        weight, bias: float64.
        name: of the layer or module, if that is known.
    """

    op: AnyOp | PerChannel
    inputs: tuple[int, ...]
    weight: Vector | None = None
    bias: Vector | None = None
    name: str = ""


class Call(NamedTuple):
    """One call in the exported graph.

    Attributes:
        label: where it is in the model.
        function: ATen's name of the operation.
        arguments: by ATen's names, defaults filled in; tensors with a batch are `Value`s, constants float64 arrays.
        shape: of the (first) result, per sample.
    """

    label: str
    function: str
    arguments: dict[str, Any]
    shape: Shape

    def refused(self, why: str) -> UnknownOperation:
        """The error that says what is wrong with this call."""
        return UnknownOperation(f"{self.function} at {self.label!r} {why}. Known: {KNOWN}")

    def value(self, name: str = "input") -> Value:
        """An argument that must be a tensor with a batch dimension."""
        found = self.arguments.get(name)
        if not isinstance(found, Value):
            raise self.refused(f"has no tensor with a batch dimension as {name!r}")
        return found

    def constant(self, name: str, dims: int) -> Vector:
        """An argument that must be a parameter."""
        found = self.arguments.get(name)
        if not isinstance(found, np.ndarray) or found.ndim != dims:
            raise self.refused(f"must have a parameter of {dims} dimensions as {name!r}")
        return found

    def optional(self, name: str) -> Vector | None:
        """An argument that must be a parameter of one dimension, or None."""
        return None if self.arguments.get(name) is None else self.constant(name, 1)

    def pair(self, name: str) -> tuple[int, int]:
        """An argument of one or two integers, for height and width."""
        found = self.arguments[name]
        both = [found] if isinstance(found, int) else list(found)
        if len(both) not in (1, 2) or not all(isinstance(item, int) for item in both):
            raise self.refused(f"must have one or two fixed numbers as {name!r}")
        return (both[0], both[-1])

    def require(self, **expected: object) -> None:
        """Arguments that must have one value; those that the function does not have are fine."""
        for name, wanted in expected.items():
            if self.arguments.get(name, wanted) != wanted:
                raise self.refused(f"is known with {name}={wanted} only, here it is {self.arguments[name]}")


def check_known(label: str, function: str) -> None:
    """Refuse a function that there is no operation for, whatever its arguments.

    Raises:
        UnknownOperation: it is one.
    """
    if function not in _CONVERTERS:
        raise Call(label, function, {}, ()).refused("is not known: replace it in the model, or leave it out")


def convert(call: Call) -> Value | Step:
    """What a call to a known operation computes: a new step, or a value that is there already.

    Raises:
        UnknownOperation: it cannot be said in the operations of `qpart.ops`.
    """
    return _CONVERTERS[call.function](call)


def _same(call: Call) -> Value:
    return call.value("self" if "self" in call.arguments else "input")


def _reshape(call: Call) -> Value | Step:
    value = call.value("self")
    if prod(value.shape) != prod(call.shape):
        raise call.refused("repeats values")
    return value if value.shape == call.shape else Step(Reshape(call.shape), (value.id,))


def _linear_step(value: Value, weight: Vector, bias: Vector | None) -> Step:
    return Step(Linear(weight.shape[1], weight.shape[0], bias is not None), (value.id,), weight, bias)


def _linear(call: Call) -> Step:
    return _linear_step(call.value(), call.constant("weight", 2), call.optional("bias"))


def _addmm(call: Call) -> Step:
    call.require(alpha=1, beta=1)
    return _linear_step(call.value("mat1"), call.constant("mat2", 2).T, call.constant("self", 1))


def _matmul(call: Call) -> Step:
    other = "mat2" if "mat2" in call.arguments else "other"
    return _linear_step(call.value("self"), call.constant(other, 2).T, None)


def _conv2d(call: Call) -> Step:
    call.require(transposed=False)
    value, weight, bias = call.value(), call.constant("weight", 4), call.optional("bias")
    stride, dilation, groups = call.pair("stride"), call.pair("dilation"), call.arguments["groups"]
    kernel = (weight.shape[2], weight.shape[3])
    op = Conv2d(
        kernel,
        stride,
        _conv_padding(call, kernel, dilation),
        weight.shape[1] * groups,
        weight.shape[0],
        dilation,
        groups,
        bias is not None,
    )
    return Step(op, (value.id,), weight, bias)


def _conv_padding(call: Call, kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int]:
    padding = call.arguments["padding"]
    if padding == "valid":
        return (0, 0)
    if padding != "same":
        return call.pair("padding")
    height, width = (dilation[i] * (kernel[i] - 1) for i in (0, 1))
    if height % 2 or width % 2:
        raise call.refused("pads one side more than the other: use an odd kernel or a padding in numbers")
    return height // 2, width // 2


def _batch_norm(call: Call) -> Step:
    call.require(training=False)
    mean, variance = (call.constant(name, 1) for name in ("running_mean", "running_var"))
    weight, bias = call.optional("weight"), call.optional("bias")
    scale = (1.0 if weight is None else weight) / np.sqrt(variance + call.arguments["eps"])
    shift = (0.0 if bias is None else bias) - mean * scale
    return Step(PerChannel(scale, shift), (call.value().id,))


def _relu(call: Call) -> Step:
    return Step(Relu(), (call.value("self").id,))


def _clamp(call: Call) -> Step:
    """hardtanh, relu6, clamp, clamp_min and clamp_max differ in the names of their bounds only."""
    bounds = [call.arguments.get(name, call.arguments.get(f"{name}_val")) for name in ("min", "max")]
    if not all(bound is None or isinstance(bound, int | float) for bound in bounds):
        raise call.refused("must have fixed numbers as bounds")
    low, high = bounds
    if low == 0 and high is None:
        return _relu(call)
    op = Clamp(-LARGEST if low is None else float(low), LARGEST if high is None else float(high))
    return Step(op, (call.value("self").id,))


def _relu6(call: Call) -> Step:
    return Step(Clamp(0.0, 6.0), (call.value("self").id,))


def _add(call: Call) -> Step:
    """Two tensors with a batch, or a bias that the model adds by hand."""
    call.require(alpha=1)
    sides = [call.arguments["self"], call.arguments["other"]]
    tensors = [side for side in sides if isinstance(side, Value)]
    if len(tensors) == 2:
        if tensors[0].shape != tensors[1].shape:
            raise call.refused(f"adds tensors of shapes {tensors[0].shape} and {tensors[1].shape}, one shape is needed")
        return Step(Add(), (tensors[0].id, tensors[1].id))
    constants = [side for side in sides if isinstance(side, np.ndarray | int | float)]
    if not tensors or not constants or tensors[0].shape != call.shape:
        raise call.refused("adds something else than two tensors of one shape, or a bias")
    shift = _per_channel(call, np.asarray(constants[0], np.float64))
    return Step(PerChannel(np.ones_like(shift), shift), (tensors[0].id,))


def _per_channel(call: Call, constant: Vector) -> Vector:
    """A constant that broadcasts along everything but the channels, as one number per channel."""
    rank = 1 + len(call.shape)
    aligned = constant.reshape((1,) * (rank - constant.ndim) + constant.shape)
    if aligned.size != aligned.shape[1]:
        raise call.refused("adds a constant that differs along more than the channels")
    return np.broadcast_to(aligned.reshape(-1), call.shape[:1])


def _max_pool2d(call: Call) -> Step:
    call.require(ceil_mode=False)
    if call.pair("dilation") != (1, 1):
        raise call.refused("is known without dilation only")
    return Step(MaxPool2d(*_window(call)), (call.value("self").id,))


def _avg_pool2d(call: Call) -> Step:
    call.require(ceil_mode=False, divisor_override=None)
    kernel, stride, padding = _window(call)
    if padding != (0, 0):
        call.require(count_include_pad=True)
    return Step(AvgPool2d(kernel, stride, padding), (call.value("self").id,))


def _window(call: Call) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    kernel = call.pair("kernel_size")
    return kernel, call.pair("stride") if call.arguments["stride"] else kernel, call.pair("padding")


def _adaptive_avg_pool2d(call: Call) -> Value | Step:
    value = call.value("self")
    if len(value.shape) != 3:
        raise call.refused("needs (batch, channels, height, width)")
    (height, width), (rows, columns) = value.shape[1:], call.shape[1:]
    if (rows, columns) == (height, width):
        return value
    if (rows, columns) == (1, 1):
        return Step(GlobalMean(keep=True), (value.id,))
    if height % rows or width % columns:
        raise call.refused(f"to {rows} x {columns} needs an input of a multiple of that, not {height} x {width}")
    kernel = (height // rows, width // columns)
    return Step(AvgPool2d(kernel, kernel, (0, 0)), (value.id,))


def _mean(call: Call) -> Step:
    call.require(dtype=None)
    value, dims = call.value("self"), call.arguments.get("dim")
    rank = 1 + len(value.shape)
    if rank != 4 or not isinstance(dims, Sequence) or sorted(dim % rank for dim in dims) != [2, 3]:
        raise call.refused("is known over the two spatial dimensions only")
    return Step(GlobalMean(keep=bool(call.arguments["keepdim"])), (value.id,))


_CONVERTERS: dict[str, Callable[[Call], Value | Step]] = {
    **dict.fromkeys(("linear",), _linear),
    **dict.fromkeys(("addmm",), _addmm),
    **dict.fromkeys(("mm", "matmul"), _matmul),
    **dict.fromkeys(("conv2d", "convolution"), _conv2d),
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit_no_training"), _batch_norm),
    **dict.fromkeys(("relu", "relu_"), _relu),
    **dict.fromkeys(("relu6", "relu6_"), _relu6),
    **dict.fromkeys(("hardtanh", "clamp", "clamp_min", "clamp_max"), _clamp),
    **dict.fromkeys(("add",), _add),
    **dict.fromkeys(("max_pool2d", "max_pool2d_with_indices"), _max_pool2d),
    **dict.fromkeys(("avg_pool2d",), _avg_pool2d),
    **dict.fromkeys(("adaptive_avg_pool2d", "_adaptive_avg_pool2d"), _adaptive_avg_pool2d),
    **dict.fromkeys(("mean",), _mean),
    **dict.fromkeys(
        ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "expand"), _reshape
    ),
    **dict.fromkeys(("dropout", "clone", "contiguous", "alias", "detach", "lift_fresh_copy", "_to_copy"), _same),
}
KNOWN = (
    "linear, conv2d, batch_norm right after them, relu, relu6, clamp, add of two tensors, max_pool2d, avg_pool2d, "
    "adaptive_avg_pool2d, mean over height and width, reshapes that keep the batch, dropout"
)
