"""Calls that work number by number, and those that take means, sums and largest values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpart.aten.call import Call, PerChannel, Value, Vector
from qpart.ops import (
    LARGEST,
    Activation,
    Add,
    AddConstant,
    Clamp,
    Elu,
    GlobalMean,
    LeakyRelu,
    Mul,
    MulConstant,
    Reduce,
    Relu,
    Rescale,
    Softmax,
)

MASKED = -30000.0
"""Stands for minus infinity in a mask before a softmax, where it comes to exactly 0; fits float16."""


def same(call: Call) -> Value:
    return call.value("self" if "self" in call.arguments else "input")


def function(call: Call) -> Value:
    """A function of one tensor without parameters, by ATen's name."""
    name = call.function.rstrip("_")
    if name == "gelu" and call.arguments.get("approximate", "none") == "tanh":
        name = "gelu_tanh"
    if name == "softplus":
        call.require(beta=1, threshold=20)
    return call.emit(Activation(name), call.value("self"))  # type: ignore[arg-type]


def relu(call: Call) -> Value:
    return call.emit(Relu(), call.value("self"))


def relu6(call: Call) -> Value:
    return call.emit(Clamp(0.0, 6.0), call.value("self"))


def clamp(call: Call) -> Value:
    """hardtanh, clamp, clamp_min and clamp_max differ in the names of their bounds only."""
    bounds = [call.arguments.get(name, call.arguments.get(f"{name}_val")) for name in ("min", "max")]
    if not all(bound is None or isinstance(bound, int | float) for bound in bounds):
        raise call.refused("must have fixed numbers as bounds")
    low, high = bounds
    if low == 0 and high is None:
        return relu(call)
    op = Clamp(-LARGEST if low is None else float(low), LARGEST if high is None else float(high))
    return call.emit(op, call.value("self"))


def leaky_relu(call: Call) -> Value:
    return call.emit(LeakyRelu(call.number("negative_slope")), call.value("self"))


def elu(call: Call) -> Value:
    value = call.value("self")
    if call.function.startswith("selu"):
        return call.emit(Elu(1.6732632423543772, 1.0507009873554805, 1.0), value)
    if call.function.startswith("celu"):
        alpha = call.number("alpha")
        return call.emit(Elu(alpha, 1.0, 1.0 / alpha), value)
    return call.emit(Elu(call.number("alpha"), call.number("scale"), call.number("input_scale")), value)


def softmax(call: Call) -> Value:
    value = call.value("self")
    return call.emit(Softmax(call.axis(value, call.arguments["dim"]), "log" in call.function), value)


def negative(call: Call) -> Value:
    return call.emit(Rescale(-1.0), call.value("self"))


def log_sigmoid(call: Call) -> Value:
    """-softplus(-x)."""
    below = call.emit(Activation("softplus"), call.emit(Rescale(-1.0), call.value("self")))
    return call.emit(Rescale(-1.0), below)


def power(call: Call) -> Value:
    known = {2.0: "square", 0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}
    exponent, value = call.number("exponent"), call.value("self")
    if exponent == 1:
        return value
    if exponent == 3:
        return _times(call, value, call.emit(Activation("square"), value))
    if exponent not in known:
        raise call.refused(f"is known for the exponents 1, 2, 3, -1 and +-0.5, here it is {exponent:g}")
    return call.emit(Activation(known[exponent]), value)  # type: ignore[arg-type]


def add(call: Call) -> Value:
    """add, sub and rsub: a tensor and another one, a parameter, or a number."""
    first, second, alpha = call.arguments["self"], call.arguments["other"], call.arguments.get("alpha", 1)
    if call.function.startswith("rsub"):
        first, second = second, first
    second_factor = -alpha if "sub" in call.function else alpha
    if not isinstance(second_factor, int | float):
        raise call.refused("must have a fixed number as alpha")
    if isinstance(first, Value) and isinstance(second, Value):
        return combined(call, first, second, float(second_factor))
    if isinstance(first, Value):
        return added_constant(call, first, _array(call, second) * second_factor)
    if not isinstance(second, Value):
        raise call.refused("has no tensor with a batch dimension")
    value = call.emit(Rescale(float(second_factor)), second) if second_factor != 1 else second
    return added_constant(call, value, _array(call, first))


def combined(call: Call, first: Value, second: Value, factor: float) -> Value:
    """first + factor * second."""
    if factor != 1:
        second = call.emit(Rescale(factor), second)
    first, second = call.together(first, second)
    return call.emit(Add(), first, second)


def added_constant(call: Call, value: Value, constant: NDArray[Any]) -> Value:
    """value + constant."""
    if constant.size == 1 and constant.ndim <= value.rank:
        number = float(constant.reshape(-1)[0])
        return call.emit(Rescale(1.0, number), value) if number else value
    value, aligned = call.beside(value, constant)
    if not aligned.any():
        return value
    found = _channel_axis(value, aligned)
    if found is not None:
        shift = aligned.reshape(-1)
        return call.emit(PerChannel(found, np.ones_like(shift), shift), value)
    return call.emit(AddConstant(aligned.shape), value, weight=aligned)


def mul(call: Call) -> Value:
    """mul and div: a tensor and another one, a parameter, or a number."""
    call.require(rounding_mode=None)
    first, second = call.arguments["self"], call.arguments["other"]
    if call.function.startswith("div"):
        second = call.emit(Activation("reciprocal"), second) if isinstance(second, Value) else 1 / _array(call, second)
    if isinstance(first, Value) and isinstance(second, Value):
        return _times(call, first, second)
    value, constant = (first, second) if isinstance(first, Value) else (second, first)
    return times_constant(call, value, _array(call, constant))


def _times(call: Call, first: Value, second: Value) -> Value:
    first, second = call.together(first, second)
    return call.emit(Mul(), first, second)


def times_constant(call: Call, value: Value, constant: NDArray[Any]) -> Value:
    """value * constant."""
    if constant.size == 1 and constant.ndim <= value.rank:
        number = float(constant.reshape(-1)[0])
        return call.emit(Rescale(number), value) if number != 1 else value
    value, aligned = call.beside(value, constant)
    found = _channel_axis(value, aligned)
    if found is not None:
        scale = aligned.reshape(-1)
        return call.emit(PerChannel(found, scale, np.zeros_like(scale)), value)
    return call.emit(MulConstant(aligned.shape), value, weight=aligned)


def _array(call: Call, constant: Any) -> NDArray[Any]:
    if not isinstance(constant, np.ndarray | int | float):
        raise call.refused("takes something else than tensors with a batch, parameters and fixed numbers")
    return np.asarray(constant, np.float64)


def _channel_axis(value: Value, aligned: Vector) -> int | None:
    """The axis along which a constant differs, if it is one, and as long as the value there."""
    wide = [axis for axis, extent in enumerate(aligned.shape) if extent > 1]
    return wide[0] if len(wide) == 1 and aligned.shape[wide[0]] == value.shape[wide[0]] else None


def masked_fill(call: Call) -> Value:
    """value where a constant mask is set: the rest times 0 or 1, plus value."""
    value, mask = call.value("self"), call.arguments["mask"]
    if not isinstance(mask, np.ndarray):
        raise call.refused("needs a mask that is the same for every input")
    return _filled(call, value, mask.astype(np.float64), call.number("value"))


def where(call: Call) -> Value:
    """A tensor where a constant mask is set, a number elsewhere, or the reverse."""
    mask = call.arguments["condition"]
    first, second = call.arguments["self"], call.arguments["other"]
    if not isinstance(mask, np.ndarray) or isinstance(first, Value) == isinstance(second, Value):
        raise call.refused("needs a mask that is the same for every input, a tensor and a number")
    chosen = mask.all() if isinstance(first, Value) else not mask.any()
    if chosen:
        return call.value("self" if isinstance(first, Value) else "other")
    if isinstance(first, Value):
        return _filled(call, first, 1 - mask.astype(np.float64), call.number("other"))
    return _filled(call, call.value("other"), mask.astype(np.float64), call.number("self"))


def _filled(call: Call, value: Value, mask: Vector, number: float) -> Value:
    if not mask.any():
        return value
    if number <= MASKED:
        return added_constant(call, value, mask * MASKED)
    value = times_constant(call, value, 1 - mask)
    return added_constant(call, value, mask * number) if number else value


def added_mask(mask: NDArray[Any]) -> Vector:
    """What a mask of attention adds to scores: bool says what is seen, numbers are added themselves."""
    numbers = np.where(mask, 0.0, MASKED) if mask.dtype == bool else mask.astype(np.float64)
    added: Vector = np.maximum(numbers, MASKED)
    return added


def mean(call: Call) -> Value:
    """mean, sum, amax and max over some dimensions, the batch never."""
    call.require(dtype=None)
    value = call.value("self")
    dims = call.arguments.get("dim")
    dims = [dims] if isinstance(dims, int) else dims or [d for d in range(value.rank) if d != value.at]
    axes = tuple(sorted(call.axis(value, dim) for dim in dims))
    kind = {"sum": "sum", "mean": "mean"}.get(call.function, "max")
    if kind == "mean" and len(value.shape) == 3 and axes == (1, 2):
        return call.emit(GlobalMean(keep=bool(call.arguments["keepdim"])), value)
    keep = bool(call.arguments.get("keepdim", False))
    if len(axes) == len(value.shape) and not keep:
        raise call.refused("leaves nothing but the batch: keep one dimension, or use keepdim=True")
    found = call.emit(Reduce(kind, axes, keep), value)  # type: ignore[arg-type]
    at = value.at if keep else value.at - sum(call.dim(value, dim) < value.at for dim in dims)
    return found._replace(at=at)


def largest(call: Call) -> list[Value]:
    """max over one dimension; where it was is not known."""
    return [mean(call)]


def variance(call: Call) -> Value | list[Value]:
    """var, var_mean and std: mean of squared differences, over n - correction."""
    value, correction = call.value("self"), call.arguments.get("correction")
    if "unbiased" in call.arguments:
        correction = int(call.arguments["unbiased"])
    correction = 1 if correction is None else correction
    dims = call.arguments.get("dim")
    dims = [dims] if isinstance(dims, int) else dims or [d for d in range(value.rank) if d != value.at]
    axes = tuple(sorted(call.axis(value, dim) for dim in dims))
    count = int(np.prod([value.shape[axis] for axis in axes]))
    centre = call.emit(Reduce("mean", axes, True), value)
    difference = combined(call, value, centre, -1.0)
    found = call.emit(Reduce("mean", axes, True), call.emit(Activation("square"), difference))
    if correction:
        found = call.emit(Rescale(count / (count - correction)), found)
    if call.function == "std":
        found = call.emit(Activation("sqrt"), found)
    made = [found, centre]
    if not call.arguments.get("keepdim", False):
        dropped = {call.dim(value, dim) for dim in dims}
        kept = tuple(extent for dim, extent in enumerate(value.traced) if dim not in dropped)
        made = [call.viewed(one, kept) for one in made]
    return made if call.function == "var_mean" else made[0]


def vector_norm(call: Call) -> Value:
    call.require(dtype=None)
    if call.number("ord") != 2:
        raise call.refused("is known for the 2-norm only")
    squares = call.emit(Activation("square"), call.value("self"))
    total = Call(
        call.label, "sum", {**call.arguments, "self": squares, "dtype": None}, call.shape, call.steps, call.path
    )
    return call.emit(Activation("sqrt"), mean(total))
