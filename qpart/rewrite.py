"""Fewer and cheaper steps that compute the same: attention put together, constants folded, views undone.

Every node less is a cut less to measure and to plan, and a copy less on the device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np

from qpart.aten.attention import attend, is_causal
from qpart.aten.call import PerChannel, Step, Steps, Vector
from qpart.network import INPUT
from qpart.ops import (
    Add,
    AddConstant,
    Affine,
    Conv2d,
    Expand,
    Linear,
    MatMul,
    Mul,
    Pad,
    Permute,
    Rescale,
    Shape,
    Softmax,
)
from qpart.views import undo_views

Rule = Callable[[Steps, Step, "_Uses"], int]


def simplified(input_shape: Shape, steps: list[Step], output: int) -> Steps:
    """Steps in topological order, as few as these rules find; the last makes the output."""
    made = Steps(steps, [])
    for rule in (_attention, _folded):
        made, output = _rewritten(input_shape, made.steps, output, rule)
    undone, last = undo_views(input_shape, made.steps, output)
    undone, _ = _needed(input_shape, undone.steps, last)
    return undone if len(undone.steps) <= len(made.steps) else made


class _Uses:
    """How often values are used: a step that disappears in another's place leaves its own uses to that one."""

    def __init__(self, steps: list[Step], output: int) -> None:
        self._old = Counter(value for step in steps for value in step.inputs)
        self._old[output] += 1
        self._new: dict[int, int] = {}

    def stands_for(self, new: int, old: int) -> None:
        """A new value in place of an old one."""
        self._new[new] = self._new.get(new, 1) - 1 + self._old[old]

    def once(self, new: int) -> bool:
        """Whether a new value is used by one step only."""
        return self._new.get(new) == 1


def _rewritten(input_shape: Shape, steps: list[Step], output: int, rule: Rule) -> tuple[Steps, int]:
    new, ids, uses = Steps([], [input_shape]), {INPUT: INPUT}, _Uses(steps, output)
    for i, step in enumerate(steps):
        ids[i + 1] = rule(new, replace(step, inputs=tuple(ids[value] for value in step.inputs)), uses)
        uses.stands_for(ids[i + 1], i + 1)
    return _needed(input_shape, new.steps, ids[output])


def _needed(input_shape: Shape, steps: list[Step], output: int) -> tuple[Steps, int]:
    """Only what the output depends on, which becomes the last."""
    needed = {output}
    for i in range(len(steps), 0, -1):
        if i in needed:
            needed.update(steps[i - 1].inputs)
    new, ids = Steps([], [input_shape]), {INPUT: INPUT}
    for i, step in enumerate(steps):
        if i + 1 in needed:
            ids[i + 1] = new.add(replace(step, inputs=tuple(ids[value] for value in step.inputs)))
    return new, ids[output]


def _before(new: Steps, value: int) -> Step | None:
    return new.steps[value - 1] if value != INPUT else None


def _attention(new: Steps, step: Step, uses: _Uses) -> int:
    """softmax(q k^T scale) v written by hand."""
    if isinstance(step.op, MatMul) and not step.op.transposed:
        found = _scores(new, step.inputs[0], uses)
        if found is not None:
            queries, keys, scale, causal = found
            return attend(new, (queries, keys, step.inputs[1]), scale, causal)
    return new.add(step)


def _scores(new: Steps, value: int, uses: _Uses) -> tuple[int, int, float, bool] | None:
    """Queries, keys and scale of a softmax over the last axis of their product, and whether it is causal."""
    softmax = _before(new, value)
    if softmax is None or softmax.op != Softmax(len(new.shapes[value]) - 1) or not uses.once(value):
        return None
    (value,) = softmax.inputs
    mask = _before(new, value)
    causal = mask is not None and mask.weight is not None and isinstance(mask.op, AddConstant) and uses.once(value)
    if causal:
        assert mask is not None
        if not is_causal(mask.weight):
            return None
        (value,) = mask.inputs
    scale, unscaled = _factor(new, value)
    product = _before(new, unscaled)
    alone = uses.once(unscaled) and (unscaled == value or uses.once(value))
    if product is None or not isinstance(product.op, MatMul) or not alone:
        return None
    of_queries, queries = _factor(new, product.inputs[0])
    of_keys, keys = _factor(new, product.inputs[1])
    if not product.op.transposed:
        rank = len(new.shapes[keys])
        swap, swapped = Permute((*range(rank - 2), rank - 1, rank - 2)), _before(new, keys)
        direct = swapped is not None and swapped.op == swap
        keys = swapped.inputs[0] if swapped is not None and direct else new.add(Step(swap, (keys,)))
    return queries, keys, scale * of_queries * of_keys, causal


def _factor(new: Steps, value: int) -> tuple[float, int]:
    """A number that a value is another one times, and that one."""
    step = _before(new, value)
    if step is None or not isinstance(step.op, Rescale) or step.op.shift:
        return 1.0, value
    return step.op.scale, step.inputs[0]


def _folded(new: Steps, step: Step, uses: _Uses) -> int:
    """Constants worked into the layer before them, and padding into the convolution behind it."""
    value, op = step.inputs[0], step.op
    before = _before(new, value) if uses.once(value) else None
    if isinstance(op, PerChannel):
        return _per_channel(new, step, op, before)
    if isinstance(op, Rescale) and before is not None:
        return _rescaled(new, step, op, before)
    if isinstance(op, AddConstant) and before is not None and isinstance(before.op, AddConstant):
        assert step.weight is not None
        assert before.weight is not None
        total = before.weight + step.weight
        return _in_place(new, value, replace(before, op=AddConstant(total.shape), weight=total, name=step.name))
    if isinstance(op, Add | Mul):
        step = _unexpanded(new, step)
    if isinstance(op, Conv2d) and before is not None and isinstance(before.op, Pad):
        low, high = before.op.before, before.op.after
        padding = (op.padding[0] + low[1], op.padding[1] + low[2])
        reach = tuple(d * (k - 1) for d, k in zip(op.dilation, op.kernel, strict=True))
        if low == high and not low[0] and not before.op.value and all(map(int.__le__, padding, reach)):
            step = replace(step, op=msgspec.structs.replace(op, padding=padding), inputs=before.inputs)
    return new.add(step)


def _unexpanded(new: Steps, step: Step) -> Step:
    """Sums and products repeat extents of 1 themselves."""
    assert isinstance(step.op, Add | Mul)
    wanted = step.op.output_shape(*(new.shapes[value] for value in step.inputs))
    for i in range(2):
        before = _before(new, step.inputs[i])
        if before is not None and isinstance(before.op, Expand):
            inputs = tuple(before.inputs[0] if j == i else value for j, value in enumerate(step.inputs))
            if step.op.output_shape(*(new.shapes[value] for value in inputs)) == wanted:
                step = replace(step, inputs=inputs)
    return step


def _in_place(new: Steps, value: int, step: Step) -> int:
    new.steps[value - 1] = step
    return value


def _per_channel(new: Steps, step: Step, op: PerChannel, before: Step | None) -> int:
    value = step.inputs[0]
    if before is not None and _channel_axis(before, new.shapes[value]) == op.axis:
        return _in_place(new, value, _scaled(before, op.scale, op.shift))
    if (op.scale == 1).all():
        if not op.shift.any():
            return value
        shape = tuple(len(op.shift) if axis == op.axis else 1 for axis in range(len(new.shapes[value])))
        return new.add(replace(step, op=AddConstant(shape), weight=op.shift.reshape(shape)))
    bias = op.shift if op.shift.any() else None
    return new.add(replace(step, op=Affine(len(op.scale), op.axis, bias is not None), weight=op.scale, bias=bias))


def _channel_axis(layer: Step, shape: Shape) -> int | None:
    """The axis of a layer's outputs that has one weight row each."""
    if isinstance(layer.op, Linear):
        return len(shape) - 1
    if isinstance(layer.op, Affine):
        return layer.op.axis
    return 0 if isinstance(layer.op, Conv2d) else None


def _rescaled(new: Steps, step: Step, op: Rescale, before: Step) -> int:
    value = step.inputs[0]
    if isinstance(before.op, Rescale):
        scale = before.op.scale * op.scale
        return _in_place(new, value, replace(before, op=Rescale(scale, before.op.shift * op.scale + op.shift)))
    axis = _channel_axis(before, new.shapes[value])
    if axis is None:
        return new.add(step)
    channels = new.shapes[value][axis]
    return _in_place(new, value, _scaled(before, np.full(channels, op.scale), np.full(channels, op.shift)))


def _scaled(layer: Step, scale: Vector, shift: Vector) -> Step:
    """A layer with a scale and a shift per output channel behind it."""
    assert layer.weight is not None
    assert isinstance(layer.op, Linear | Conv2d | Affine)
    weight = layer.weight * scale.reshape(-1, *(1,) * (layer.weight.ndim - 1))
    bias = layer.bias if layer.bias is None else layer.bias * scale
    if shift.any() or bias is not None:
        bias = shift if bias is None else bias + shift
    op = msgspec.structs.replace(layer.op, bias=bias is not None)
    return replace(layer, op=op, weight=weight, bias=bias)
