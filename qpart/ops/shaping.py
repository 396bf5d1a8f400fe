"""Operations that move numbers about and compute nothing."""

from __future__ import annotations

from math import prod
from typing import Annotated

import msgspec

from qpart.errors import ShapeMismatch
from qpart.ops.base import (
    MAX_DIMS,
    MAX_INPUTS,
    Axes,
    Axis,
    Dims,
    Op,
    Padding,
    Position,
    Shape,
    Size,
    check_axis,
    check_float,
)

Sides = Annotated[tuple[Padding, ...], msgspec.Meta(min_length=1, max_length=MAX_DIMS)]


class Reshape(Op, frozen=True, array_like=True, tag="reshape"):
    """The same values in another shape, batch apart."""

    shape: Dims

    def output_shape(self, *inputs: Shape) -> Shape:
        if prod(inputs[0]) != prod(self.shape):
            raise ShapeMismatch(f"cannot reshape {inputs[0]} to {self.shape}")
        return self.shape


class Permute(Op, frozen=True, array_like=True, tag="permute"):
    """Axes in another order: axis i of the output is axis order[i] of the input."""

    order: Axes

    def output_shape(self, *inputs: Shape) -> Shape:
        if sorted(self.order) != list(range(len(inputs[0]))):
            raise ShapeMismatch(f"{self.order} is no order of the axes of {inputs[0]}")
        return tuple(inputs[0][axis] for axis in self.order)


class Slice(Op, frozen=True, array_like=True, tag="slice"):
    """Every step-th value along one axis, from start on, before stop."""

    axis: Axis
    start: Position
    stop: Position
    step: Size = 1

    def output_shape(self, *inputs: Shape) -> Shape:
        shape = inputs[0]
        check_axis(self.axis, shape, "slice")
        if not 0 <= self.start < self.stop <= shape[self.axis] or self.step < 1:
            raise ShapeMismatch(f"slice from {self.start} to {self.stop} of axis {self.axis} leaves the shape {shape}")
        extent = (self.stop - self.start + self.step - 1) // self.step
        return (*shape[: self.axis], extent, *shape[self.axis + 1 :])


class Concat(Op, frozen=True, array_like=True, tag="concat"):
    """Tensors one behind the other along one axis."""

    axis: Axis
    count: Annotated[int, msgspec.Meta(ge=2, le=MAX_INPUTS)] = 2

    @property
    def arity(self) -> int:
        return self.count

    def output_shape(self, *inputs: Shape) -> Shape:
        check_axis(self.axis, inputs[0], "concat")
        others = {(*shape[: self.axis], *shape[self.axis + 1 :]) for shape in inputs}
        if len(others) > 1 or len({len(shape) for shape in inputs}) > 1:
            raise ShapeMismatch(f"concat along axis {self.axis} cannot join {inputs}")
        extent = sum(shape[self.axis] for shape in inputs)
        return (*inputs[0][: self.axis], extent, *inputs[0][self.axis + 1 :])


class Pad(Op, frozen=True, array_like=True, tag="pad"):
    """A value added before and after along each axis."""

    before: Sides
    after: Sides
    value: float = 0.0

    def output_shape(self, *inputs: Shape) -> Shape:
        check_float(self.value, "pad")
        if not len(self.before) == len(self.after) == len(inputs[0]) or min(*self.before, *self.after) < 0:
            raise ShapeMismatch(f"pad of {self.before} and {self.after} does not fit the shape {inputs[0]}")
        return tuple(map(sum, zip(inputs[0], self.before, self.after, strict=True)))


class Expand(Op, frozen=True, array_like=True, tag="expand"):
    """Extents of 1 repeated."""

    shape: Dims

    def output_shape(self, *inputs: Shape) -> Shape:
        fits = len(inputs[0]) == len(self.shape)
        if not fits or any(a not in (1, b) for a, b in zip(inputs[0], self.shape, strict=True)):
            raise ShapeMismatch(f"cannot expand {inputs[0]} to {self.shape}")
        return self.shape
