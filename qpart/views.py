"""Reshapes, permutations and slices that undo each other, or come to less.

Each such step is a view of some tensor: offset and strides into its numbers. What a chain of them comes to is looked
for among: the tensor itself, a reshape of it, a slice along one axis reshaped, its axes permuted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import prod
from typing import NamedTuple

from qpart.aten.call import Step, Steps
from qpart.network import INPUT
from qpart.ops import (
    Activation,
    Add,
    Attention,
    Clamp,
    Elu,
    LeakyRelu,
    MatMul,
    Mul,
    Permute,
    Relu,
    Rescale,
    Reshape,
    Shape,
    Slice,
)

_BY_NUMBER = (Relu, Clamp, LeakyRelu, Elu, Activation, Rescale, Add, Mul)


class View(NamedTuple):
    """Numbers of a tensor: at offset + sum of index * stride, per sample."""

    base: int
    shape: Shape
    strides: tuple[int, ...]
    offset: int


def contiguous(shape: Shape) -> tuple[int, ...]:
    """Strides of numbers that lie in order.

    >>> contiguous((2, 3, 4))
    (12, 4, 1)
    """
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


def reshaped(shape: Shape, strides: tuple[int, ...], wanted: Shape) -> tuple[int, ...] | None:
    """Strides of the same numbers in another shape, or None if strides cannot say it.

    >>> reshaped((2, 6), (6, 1), (2, 2, 3)), reshaped((6, 2), (1, 6), (12,))
    ((6, 3, 1), None)
    """
    runs: list[tuple[int, int]] = []  # of neighbours that follow on each other, from the right
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent > 1 and runs and stride == runs[-1][0] * runs[-1][1]:
            runs[-1] = (runs[-1][0] * extent, runs[-1][1])
        elif extent > 1:
            runs.append((extent, stride))
    found: list[int] = []
    todo = list(reversed(wanted))
    for extent, stride in runs:
        left, step = extent, stride
        while left > 1:
            want = todo[len(found)] if len(found) < len(todo) else 0
            if not want or left % want:
                return None
            found.append(step)
            left, step = left // want, step * want
    found.extend(1 for _ in todo[len(found) :])
    return tuple(reversed(found))


def undo_views(input_shape: Shape, steps: list[Step], output: int) -> tuple[Steps, int]:
    """Steps with shorter chains of views; those that nothing needs any more are still there."""
    new, ids, views = Steps([], [input_shape]), {INPUT: INPUT}, _Views()
    uses = Counter(value for step in steps for value in step.inputs)
    for i, step in enumerate(steps):
        moved = replace(step, inputs=tuple(ids[value] for value in step.inputs))
        alone = all(uses[value] == step.inputs.count(value) for value in step.inputs)
        ids[i + 1] = views.place_before_reshapes(new, moved) if alone else views.place(new, moved)
    return new, ids[output]


class _Views:
    def __init__(self) -> None:
        self._known: dict[int, View] = {}
        self._placed: dict[tuple[object, tuple[int, ...]], int] = {}

    def place_before_reshapes(self, new: Steps, step: Step) -> int:
        """Add a step that nothing else shares inputs with: number by number, it goes before a reshape, not behind it.

        The reshape may then meet its own undoing, as between two convolutions over sequences.
        """
        before = [new.steps[value - 1] for value in step.inputs if value != INPUT]
        shaped = len(before) == len(step.inputs) and all(isinstance(one.op, Reshape) for one in before)
        if shaped and isinstance(step.op, _BY_NUMBER):
            bases = tuple(one.inputs[0] for one in before)
            if len({new.shapes[base] for base in bases}) == len({new.shapes[value] for value in step.inputs}) == 1:
                shape = new.shapes[step.inputs[0]]
                made = new.add(replace(step, inputs=bases))
                return self.place(new, Step(Reshape(shape), (made,)))
        return self.place(new, step)

    def place(self, new: Steps, step: Step) -> int:
        """Add a step, or what it comes to; returns the id of its value."""
        if isinstance(step.op, Attention):
            step = _of_columns(new, step)
        if isinstance(step.op, MatMul):
            step = _transposed(new, step)
        if not isinstance(step.op, Reshape | Permute | Slice):
            return new.add(step)
        view = self._view(new, step)
        if view is None:
            return self._add(new, step)
        made = self._realised(new, view, step)
        if made != view.base:
            self._known[made] = view
        return made

    def _view(self, new: Steps, step: Step) -> View | None:
        value, op = step.inputs[0], step.op
        shape = new.shapes[value]
        view = self._known.get(value, View(value, shape, contiguous(shape), 0))
        if isinstance(op, Permute):
            shape, strides = (tuple(row[axis] for axis in op.order) for row in (view.shape, view.strides))
            return view._replace(shape=shape, strides=strides)
        if isinstance(op, Slice):
            offset = view.offset + op.start * view.strides[op.axis]
            strides = (*view.strides[: op.axis], view.strides[op.axis] * op.step, *view.strides[op.axis + 1 :])
            return view._replace(shape=op.output_shape(view.shape), strides=strides, offset=offset)
        assert isinstance(op, Reshape)
        found = reshaped(view.shape, view.strides, op.shape)
        return None if found is None else view._replace(shape=op.shape, strides=found)

    def _realised(self, new: Steps, view: View, step: Step) -> int:
        base = new.shapes[view.base]
        for axis in range(len(base)):
            sliced = _as_slice(view, base, axis)
            if sliced is not None:
                whole = sliced.stop - sliced.start == base[axis]
                value = view.base if whole else self._add(new, Step(sliced, (view.base,)))
                return self._shaped(new, value, view.shape)
        order = sorted(range(len(view.shape)), key=lambda axis: -view.strides[axis])
        shape = tuple(view.shape[axis] for axis in order)
        if prod(shape) == prod(base) and not view.offset and _same(shape, [view.strides[axis] for axis in order]):
            value = self._shaped(new, view.base, shape)
            return self._add(new, Step(Permute(tuple(order.index(axis) for axis in range(len(order)))), (value,)))
        return self._add(new, step)

    def _shaped(self, new: Steps, value: int, shape: Shape) -> int:
        return value if new.shapes[value] == shape else self._add(new, Step(Reshape(shape), (value,)))

    def _add(self, new: Steps, step: Step) -> int:
        """Each view once."""
        key = step.op, step.inputs
        if key not in self._placed:
            self._placed[key] = new.add(step)
        return self._placed[key]


def _same(shape: Shape, strides: list[int]) -> bool:
    expected = contiguous(shape)
    return all(extent == 1 or a == b for extent, a, b in zip(shape, strides, expected, strict=True))


def _as_slice(view: View, base: Shape, axis: int) -> Slice | None:
    """The slice along an axis of the base that has a view's numbers in its order."""
    outer, inner = prod(base[:axis]), prod(base[axis + 1 :])
    length, rest = divmod(prod(view.shape), outer)
    if rest or length % inner or view.offset % inner:
        return None
    start, count = view.offset // inner, length // inner
    strides = reshaped(view.shape, view.strides, (outer, length))
    good = strides is not None and (length == 1 or strides[1] == 1) and (outer == 1 or strides[0] == base[axis] * inner)
    return Slice(axis, start, start + count) if good and start + count <= base[axis] else None


def _of_columns(new: Steps, step: Step) -> Step:
    """Attention that reads its columns where they are, in place of slices of them."""
    assert isinstance(step.op, Attention)
    inputs, offsets = list(step.inputs), list(step.op.offsets)
    for i, value in enumerate(step.inputs):
        before = new.steps[value - 1] if value != INPUT else None
        if before is not None and isinstance(before.op, Slice):
            cut, shape = before.op, new.shapes[before.inputs[0]]
            if cut.axis == len(shape) - 1 and cut.step == 1:
                inputs[i], offsets[i] = before.inputs[0], offsets[i] + cut.start
    op = Attention(step.op.heads, step.op.head_size, step.op.value_size, step.op.scale, tuple(offsets), step.op.causal)  # type: ignore[arg-type]
    return replace(step, op=op, inputs=tuple(inputs))


def _transposed(new: Steps, step: Step) -> Step:
    """A product with the transposed of a matrix, in place of a transposition before it."""
    assert isinstance(step.op, MatMul)
    first, second = step.inputs
    before = new.steps[second - 1] if second != INPUT else None
    rank = len(new.shapes[second])
    if before is None or before.op != Permute((*range(rank - 2), rank - 1, rank - 2)):
        return step
    return replace(step, op=MatMul(not step.op.transposed), inputs=(first, before.inputs[0]))
