"""A call in an exported graph, and the steps that calls become.

A traced tensor has its batch somewhere among its dimensions, perhaps merged with others: (tokens, batch * heads, size).
A `Value` is the same numbers per sample, batch in front and unmerged, and remembers where the batch was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qpart.errors import ShapeMismatch, UnknownOperation
from qpart.ops import Add, AddConstant, AnyOp, Expand, Mul, MulConstant, Permute, Rescale, Reshape, Shape, Slice

Vector = NDArray[np.float64]


class Batch(NamedTuple):
    """A dimension that is a multiple of the batch size."""

    factor: int


Traced = tuple[int | Batch, ...]


def fixed(extents: Sequence[int | Batch]) -> Shape:
    """Extents none of which has the batch."""
    assert all(isinstance(extent, int) for extent in extents)
    return tuple(extent for extent in extents if isinstance(extent, int))


class Value(NamedTuple):
    """A tensor with a batch.

    Attributes:
        id: of the step that makes it, as in `Node`.
        shape: per sample.
        at: which dimension of the traced tensor has the batch.
        before, after: that dimension is before * batch * after numbers long.
    """

    id: int
    shape: Shape
    at: int = 0
    before: int = 1
    after: int = 1

    @property
    def merged(self) -> int:
        """Axes per sample that the dimension with the batch has."""
        return (self.before > 1) + (self.after > 1)

    @property
    def rank(self) -> int:
        """Dimensions of the traced tensor."""
        return len(self.shape) - self.merged + 1

    @property
    def traced(self) -> Traced:
        """Dimensions of the traced tensor."""
        right = self.at + self.merged
        return (*self.shape[: self.at], Batch(self.before * self.after), *self.shape[right:])

    def axes(self, dim: int) -> tuple[int, ...]:
        """Axes per sample that a dimension, from 0 up, consists of."""
        if dim < self.at:
            return (dim,)
        if dim == self.at:
            return tuple(range(self.at, self.at + self.merged))
        return (dim + self.merged - 1,)


class PerChannel(NamedTuple):
    """y = x * scale + shift along an axis; folded into the step before it, or an operation of its own."""

    axis: int
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


@dataclass
class Steps:
    """Steps in order, and the shapes per sample of the input and of what each of them makes."""

    steps: list[Step]
    shapes: list[Shape]

    def add(self, step: Step) -> int:
        """Append a step; returns the id of its value.

        Raises:
            ShapeMismatch: it cannot take its inputs.
        """
        shapes = [self.shapes[value] for value in step.inputs]
        self.shapes.append(shapes[0] if isinstance(step.op, PerChannel) else step.op.output_shape(*shapes))
        self.steps.append(step)
        return len(self.steps)


@dataclass
class Call:
    """One call in the exported graph.

    Attributes:
        label: where it is in the model, for people.
        function: ATen's name of the operation.
        arguments: by ATen's names, defaults filled in; tensors with a batch are `Value`s, constants arrays.
        shape: of the (first) result.
        steps: what came before; calls append to it.
        path: of the module it is in; owner: of the layer whose parameters it takes; parameter: the first's own name.
    """

    label: str
    function: str
    arguments: dict[str, Any]
    shape: Traced
    steps: Steps = field(default_factory=lambda: Steps([], []))
    path: str = ""
    owner: str = ""
    parameter: str = ""

    def refused(self, why: str) -> UnknownOperation:
        """The error that says what is wrong with this call."""
        return UnknownOperation(f"{self.function} at {self.label} {why}")

    def value(self, name: str = "input") -> Value:
        """An argument that must be a tensor with a batch dimension."""
        found = self.arguments.get(name)
        if found is None and name in ("self", "input"):  # ATen's functions call their first argument either
            found = self.arguments.get("input" if name == "self" else "self")
        if not isinstance(found, Value):
            raise self.refused(f"has no tensor with a batch dimension as {name!r}")
        return found

    def constant(self, name: str, dims: int) -> Vector:
        """An argument that must be a parameter."""
        found = self.arguments.get(name)
        if not isinstance(found, np.ndarray) or found.ndim != dims:
            raise self.refused(f"must have a parameter of {dims} dimensions as {name!r}")
        return found.astype(np.float64)

    def optional(self, name: str) -> Vector | None:
        """An argument that must be a parameter of one dimension, or None."""
        return None if self.arguments.get(name) is None else self.constant(name, 1)

    def number(self, name: str) -> float:
        """An argument that must be one fixed number."""
        found = self.arguments.get(name)
        if isinstance(found, np.ndarray) and found.size == 1:
            return float(found.reshape(-1)[0])
        if not isinstance(found, int | float):
            raise self.refused(f"must have a fixed number as {name!r}")
        return float(found)

    def numbers(self, name: str, count: int = 2) -> tuple[int, ...]:
        """An argument of one integer, or of one for each of `count` dimensions."""
        found = self.arguments[name]
        several = [found] if isinstance(found, int) else list(found)
        if len(several) not in (1, count) or not all(isinstance(item, int) for item in several):
            raise self.refused(f"must have {count} fixed numbers as {name!r}")
        return tuple(several) if len(several) == count else tuple(several * count)

    def pair(self, name: str) -> tuple[int, int]:
        """An argument of one or two integers, for height and width."""
        height, width = self.numbers(name)
        return height, width

    def require(self, **expected: object) -> None:
        """Arguments that must have one value; those that the function does not have are fine."""
        for name, wanted in expected.items():
            if self.arguments.get(name, wanted) != wanted:
                raise self.refused(f"is known with {name}={wanted} only, here it is {self.arguments[name]}")

    def dim(self, value: Value, dim: Any, rank: int | None = None) -> int:
        """A dimension of the traced tensor from 0 up."""
        if not isinstance(dim, int):
            raise self.refused(f"must have a fixed dimension, here it is {dim}")
        return dim % (rank or value.rank)

    def axis(self, value: Value, dim: Any) -> int:
        """The axis per sample that a dimension is; the batch's own is refused."""
        dim = self.dim(value, dim)
        if dim == value.at:
            raise self.refused("works along the batch: the samples of a batch must not know of each other")
        return value.axes(dim)[0]

    def emit(
        self, op: AnyOp | PerChannel, *values: Value, weight: Vector | None = None, bias: Vector | None = None
    ) -> Value:
        """Append a step; its value has the batch where the first input has it."""
        owner = self.owner or self.path
        if weight is not None or isinstance(op, PerChannel):
            name = self.parameter if isinstance(op, AddConstant | MulConstant) and self.parameter else owner
        else:
            name = self.path if isinstance(op, Add | Mul) else ""
        try:
            new = self.steps.add(Step(op, tuple(value.id for value in values), weight, bias, name))
        except ShapeMismatch as error:
            raise self.refused(f"does not fit: {error}") from None
        return values[0]._replace(id=new, shape=self.steps.shapes[new])

    def materialised(self, constant: Any, beside: Sequence[Any]) -> Value:
        """A constant as a tensor with a batch, for an operation that takes no parameter there: 0 times another, and it.

        Args:
            constant: with an extent for one sample where the others have their batch; a `Value` stays what it is.
            beside: what it goes together with, at least one `Value` among them.
        """
        if isinstance(constant, Value):
            return constant
        value = next((one for one in beside if isinstance(one, Value)), None)
        if value is None or not isinstance(constant, np.ndarray) or constant.ndim != value.rank:
            raise self.refused("takes something else than tensors with a batch, and parameters")
        merged = tuple(extent for extent in (value.before, value.after) if extent > 1)
        if constant.shape[value.at] != prod(merged):
            raise self.refused("has a constant that differs along the batch")
        shape = (*constant.shape[: value.at], *merged, *constant.shape[value.at + 1 :])
        ones = (1,) * len(shape)
        one = self.emit(Slice(0, 0, 1), self.emit(Reshape((prod(value.shape),)), value))
        nothing = self.emit(Rescale(0.0), self.emit(Expand(shape), self.emit(Reshape(ones), one)))
        return self.emit(AddConstant(shape), nothing, weight=constant.astype(np.float64).reshape(shape))

    def viewed(self, value: Value, traced: Traced) -> Value:
        """The same numbers in order, in other dimensions."""
        if traced == value.traced:
            return value
        places = [i for i, extent in enumerate(traced) if isinstance(extent, Batch)]
        if len(places) != 1:
            raise self.refused(f"makes a tensor of {said(traced)}: the batch must be one dimension of it")
        at = places[0]
        factor = sum(extent.factor for extent in traced if isinstance(extent, Batch))
        outer = prod(fixed(traced[:at]))
        all_outer = prod(value.shape[: value.at]) * value.before
        before, rest = divmod(all_outer, outer)
        after = factor // before if before else 0
        if rest or before * after != factor:
            raise self.refused("mixes the batch with other dimensions")
        merged = tuple(extent for extent in (before, after) if extent > 1)
        shape = (*fixed(traced[:at]), *merged, *fixed(traced[at + 1 :]))
        if not shape or prod(shape) != prod(value.shape):
            raise self.refused(f"makes a tensor of {said(traced)}: one dimension besides the batch must remain")
        if shape != value.shape:
            value = self.emit(Reshape(shape), value)
        return Value(value.id, shape, at, before, after)

    def permuted(self, value: Value, order: Sequence[int]) -> Value:
        """Dimensions of the traced tensor in another order."""
        axes = tuple(axis for dim in order for axis in value.axes(dim))
        at = list(order).index(value.at)
        if axes != tuple(range(len(axes))):
            value = self.emit(Permute(axes), value)
        return value._replace(at=at)

    def expanded(self, value: Value, traced: Traced) -> Value:
        """Extents of 1 repeated, and dimensions in front."""
        missing = len(traced) - value.rank
        value = self.viewed(value, (*(1,) * missing, *value.traced))
        kept = value.shape[value.at : value.at + value.merged]
        shape = (*fixed(traced[: value.at]), *kept, *fixed(traced[value.at + 1 :]))
        return value if shape == value.shape else self.emit(Expand(shape), value)

    def together(self, first: Value, second: Value) -> tuple[Value, Value]:
        """Two values with the same number of dimensions and the batch in the same place."""
        rank = max(first.rank, second.rank)
        one, two = (self.viewed(v, (*(1,) * (rank - v.rank), *v.traced)) for v in (first, second))
        if (one.at, one.before, one.after) != (two.at, two.before, two.after):
            raise self.refused(f"combines {said(one.traced)} with {said(two.traced)}: the batch must match")
        return one, two

    def beside(self, value: Value, constant: NDArray[Any]) -> tuple[Value, Vector]:
        """A value, and a constant with as many axes as it has per sample; the value is repeated to its shape."""
        rank = max(value.rank, constant.ndim)
        value = self.viewed(value, (*(1,) * (rank - value.rank), *value.traced))
        constant = constant.reshape((1,) * (rank - constant.ndim) + constant.shape).astype(np.float64)
        if constant.shape[value.at] != 1:
            raise self.refused("has a constant that differs along the batch")
        shape = (*constant.shape[: value.at], *(1,) * value.merged, *constant.shape[value.at + 1 :])
        wanted = tuple(max(a, b) if 1 in (a, b) else a for a, b in zip(value.shape, shape, strict=True))
        if wanted != value.shape:
            value = self.emit(Expand(wanted), value)
        return value, constant.reshape(shape)


def said(traced: Traced) -> str:
    """Dimensions for people."""
    inner = ("batch" if d == Batch(1) else f"{d.factor} * batch" if isinstance(d, Batch) else str(d) for d in traced)
    return f"({', '.join(inner)})"
