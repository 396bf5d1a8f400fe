"""Calls that move numbers about: views, permutations, parts and joins."""

from __future__ import annotations

from typing import Any

import numpy as np

from qpart.aten.call import Batch, Call, Value, fixed
from qpart.ops import MAX_INPUTS, AddConstant, Concat, Pad, Slice

MOST_PARTS = 32


def view(call: Call) -> Value:
    """Everything that keeps the numbers in order: reshape, flatten, squeeze, unsqueeze."""
    return call.viewed(call.value("self"), call.shape)


def expand(call: Call) -> Value:
    return call.expanded(call.value("self"), call.shape)


def repeat(call: Call) -> Value:
    """A tensor several times along its dimensions: an axis of 1 before each, repeated, merged."""
    value, times = call.value("self"), list(call.arguments["repeats" if "repeats" in call.arguments else "dims"])
    value = call.viewed(value, (*(1,) * (len(times) - value.rank), *value.traced))
    times = [1 if isinstance(d, Batch) else t for d, t in zip(value.traced, times, strict=True)]
    if not all(isinstance(t, int) for t in times):
        raise call.refused("must repeat a fixed number of times")
    for dim, count in enumerate(times):
        if count > 1:
            traced = value.traced
            value = call.viewed(value, (*traced[:dim], 1, *traced[dim:]))
            value = call.expanded(value, (*traced[:dim], count, *traced[dim:]))
            value = call.viewed(value, (*traced[:dim], fixed(traced[dim : dim + 1])[0] * count, *traced[dim + 1 :]))
    return value


def permute(call: Call) -> Value:
    value = call.value("self")
    return call.permuted(value, [call.dim(value, dim) for dim in call.arguments["dims"]])


def transpose(call: Call) -> Value:
    value = call.value("self")
    names = ("dim0", "dim1") if "dim0" in call.arguments else ("axis0", "axis1")
    first, second = (call.dim(value, call.arguments.get(name, i)) for i, name in enumerate(names))
    order = list(range(value.rank))
    order[first], order[second] = order[second], order[first]
    return call.permuted(value, order)


def _part(call: Call, value: Value, dim: int, start: int, stop: int, step: int = 1) -> Value:
    axis = call.axis(value, dim)
    if (start, stop, step) == (0, value.shape[axis], 1):
        return value
    return call.emit(Slice(axis, start, stop, step), value)


def select(call: Call) -> Value:
    value = call.value("self")
    return _selected(call, value, call.arguments["dim"], call.arguments["index"])


def _selected(call: Call, value: Value, dim: int, index: Any) -> Value:
    axis, dim = call.axis(value, dim), call.dim(value, dim)
    if not isinstance(index, int):
        raise call.refused("must have a fixed index")
    index %= value.shape[axis]
    found = _part(call, value, dim, index, index + 1)
    return call.viewed(found, (*found.traced[:dim], *found.traced[dim + 1 :]))


def slice_(call: Call) -> Value:
    value, step = call.value("self"), call.arguments["step"]
    dim = call.dim(value, call.arguments["dim"])
    if dim == value.at and call.arguments["start"] in (0, None) and step == 1 and call.shape == value.traced:
        return value  # all of the batch
    extent = value.shape[call.axis(value, dim)]
    bounds = [call.arguments["start"], call.arguments["end"]]
    if not all(bound is None or isinstance(bound, int) for bound in bounds):
        raise call.refused("must have fixed bounds")
    start, stop, step = slice(bounds[0], bounds[1], step).indices(extent)
    if stop <= start:
        raise call.refused("leaves nothing")
    return _part(call, value, dim, start, stop, step)


def narrow(call: Call) -> Value:
    value, start = call.value("self"), call.arguments["start"]
    return _part(call, value, call.arguments["dim"], start, start + call.arguments["length"])


def split(call: Call) -> list[Value]:
    """split, split_with_sizes and chunk: parts along one dimension."""
    value, dim = call.value("self"), call.arguments["dim"]
    extent = value.shape[call.axis(value, dim)]
    if "chunks" in call.arguments:
        size: Any = -(-extent // call.arguments["chunks"])
    else:
        size = call.arguments["split_sizes" if "split_sizes" in call.arguments else "split_size"]
    sizes = list(size) if isinstance(size, list | tuple) else [size] * -(-extent // size)
    parts, start = [], 0
    for length in sizes:
        parts.append(_part(call, value, dim, start, min(start + length, extent)))
        start += length
    return parts


def unbind(call: Call) -> list[Value]:
    value, dim = call.value("self"), call.arguments["dim"]
    return [_selected(call, value, dim, i) for i in range(value.shape[call.axis(value, dim)])]


def index(call: Call) -> Value:
    """Fixed positions along one dimension."""
    value = call.value("self")
    if "indices" in call.arguments:
        given = [(dim, i) for dim, i in enumerate(call.arguments["indices"]) if i is not None]
        if len(given) != 1:
            raise call.refused("is known along one dimension only")
        dim, positions = given[0]
    else:
        dim, positions = call.arguments["dim"], call.arguments["index"]
    if not isinstance(positions, np.ndarray) or positions.ndim != 1 or positions.dtype == bool or not positions.size:
        raise call.refused("needs positions that are the same for every input")
    extent = value.shape[call.axis(value, dim)]
    return _gathered(call, value, dim, [int(p) % extent for p in positions])


def _gathered(call: Call, value: Value, dim: int, positions: list[int]) -> Value:
    """Runs of neighbours, one behind the other."""
    runs: list[list[int]] = []
    for position in positions:
        if runs and position == runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([position, position + 1])
    if len(runs) > MOST_PARTS:
        raise call.refused(f"picks {len(runs)} runs of positions, at most {MOST_PARTS} are possible")
    return _joined(call, [_part(call, value, dim, *run) for run in runs], dim)


def flip(call: Call) -> Value:
    value = call.value("self")
    for dim in call.arguments["dims"]:
        value = _gathered(call, value, dim, list(range(value.shape[call.axis(value, dim)]))[::-1])
    return value


def roll(call: Call) -> Value:
    value, dims = call.value("self"), call.arguments["dims"]
    if not dims:  # torch flattens first, the batch too
        raise call.refused("works along the batch: the samples of a batch must not know of each other")
    for shift, dim in zip(call.arguments["shifts"], dims, strict=True):
        extent = value.shape[call.axis(value, dim)]
        value = _gathered(call, value, dim, [(i - shift) % extent for i in range(extent)])
    return value


def _joined(call: Call, values: list[Value], dim: int) -> Value:
    if len(values) == 1:
        return values[0]
    axis = call.axis(values[0], dim)
    return call.emit(Concat(axis, len(values)), *values)


def cat(call: Call) -> Value:
    """Tensors one behind the other; parameters among them, such as a class token, are added to zeros."""
    tensors = call.arguments["tensors"]
    values = [tensor for tensor in tensors if isinstance(tensor, Value)]
    if not values or len(tensors) > MAX_INPUTS or any(v[2:] != values[0][2:] for v in values):
        raise call.refused("joins tensors whose batches are in different places, or too many")
    dim = call.dim(values[0], call.arguments["dim"])
    axis = call.axis(values[0], dim)
    joined = _joined(call, values, dim)
    if len(values) == len(tensors):
        return joined
    return _with_constants(call, joined, tensors, dim, axis)


def _with_constants(call: Call, joined: Value, tensors: list[Any], dim: int, axis: int) -> Value:
    kinds = [isinstance(tensor, Value) for tensor in tensors]
    first, last = kinds.index(True), len(kinds) - kinds[::-1].index(True)
    if not all(kinds[first:last]):
        raise call.refused("joins a parameter between two tensors")
    parts = []
    for tensor in (*tensors[:first], *tensors[last:]):
        if not isinstance(tensor, np.ndarray) or tensor.ndim != joined.rank or tensor.shape[joined.at] != 1:
            raise call.refused("joins a tensor with what is no parameter repeated for the batch")
        array = tensor.astype(np.float64).squeeze(joined.at)
        wanted = (*joined.shape[:axis], array.shape[dim - (dim > joined.at)], *joined.shape[axis + 1 :])
        parts.append(
            np.broadcast_to(
                array.reshape((*array.shape[: joined.at], *(1,) * joined.merged, *array.shape[joined.at :])), wanted
            )
        )
    extents = [part.shape[axis] for part in parts]
    before, after = sum(extents[:first]), sum(extents[first:])
    zeros = [np.zeros(joined.shape)]
    constant = np.concatenate([*parts[:first], *zeros, *parts[first:]], axis)
    none = [0] * len(joined.shape)
    low, high = list(none), list(none)
    low[axis], high[axis] = before, after
    padded = call.emit(Pad(tuple(low), tuple(high)), joined)
    return call.emit(AddConstant(constant.shape), padded, weight=constant) if constant.any() else padded


def stack(call: Call) -> Value:
    """cat of tensors that have one dimension more."""
    tensors = call.arguments["tensors"]
    values = [tensor for tensor in tensors if isinstance(tensor, Value)]
    if len(values) != len(tensors):
        raise call.refused("stacks tensors with parameters")
    dim = call.dim(values[0], call.arguments["dim"], values[0].rank + 1)
    wide = [call.viewed(value, (*value.traced[:dim], 1, *value.traced[dim:])) for value in values]
    return _joined(call, wide, dim)


def pad(call: Call) -> Value:
    """A number around a tensor; negative widths cut off."""
    if call.arguments.get("mode", "constant") != "constant":
        raise call.refused("is known with a fixed number as padding only")
    value, sides = call.value("self"), list(call.arguments["pad"])
    number = call.arguments.get("value")
    low, high = [0] * len(value.shape), [0] * len(value.shape)
    for i in range(len(sides) // 2):
        before, after = sides[2 * i : 2 * i + 2]
        dim = value.rank - 1 - i
        if not before == after == 0:
            axis = call.axis(value, dim)
            low[axis], high[axis] = max(before, 0), max(after, 0)
            value = _part(call, value, dim, max(-before, 0), value.shape[axis] - max(-after, 0))
    if not any(low) and not any(high):
        return value
    return call.emit(Pad(tuple(low), tuple(high), 0.0 if number is None else call.number("value")), value)


def upsample_nearest(call: Call) -> Value:
    """Each pixel several times, a whole number of them."""
    value = call.value("self" if "self" in call.arguments else "input")
    sizes = call.shape[2:]
    traced: tuple[Any, ...] = value.traced[:2]
    wide: tuple[Any, ...] = traced
    for extent, wanted in zip(fixed(value.traced[2:]), fixed(sizes), strict=True):
        if wanted % extent:
            raise call.refused("is known for whole factors only")
        traced, wide = (*traced, extent, 1), (*wide, extent, wanted // extent)
    return call.viewed(call.expanded(call.viewed(value, traced), wide), call.shape)
