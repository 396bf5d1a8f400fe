"""A network as a list of operations in topological order, and what crosses each of its cuts."""

from __future__ import annotations

from functools import cached_property
from math import prod
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from qpart.errors import ShapeMismatch
from qpart.ops import MAX_DIMS, MAX_INPUTS, MAX_TENSOR_ITEMS, AnyOp, Embedding, Shape, Size

MAX_NODES = 4096
INPUT = 0

ValueId = Annotated[int, msgspec.Meta(ge=0, lt=MAX_NODES + 1)]


class Parameters(NamedTuple):
    """A node's weight (output channels, ...) and its bias (output channels,), if it has one; float32."""

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32] | None


class Node(msgspec.Struct, frozen=True, array_like=True):
    """One operation and where its inputs come from.

    Attributes:
        op: what is computed.
        inputs: value ids: 0 is the network's input, i + 1 the output of node i.
        name: for people; the plan and its errors show it.
    """

    op: AnyOp
    inputs: Annotated[tuple[ValueId, ...], msgspec.Meta(min_length=1, max_length=MAX_INPUTS)]
    name: Annotated[str, msgspec.Meta(max_length=64)] = ""


class Network(msgspec.Struct, frozen=True, dict=True):
    """A network with one input and one output, the output of its last node.

    Attributes:
        input_shape: per sample.
        nodes: in topological order.

    Cut c in 0 .. len(nodes): the device runs nodes[:c], the server nodes[c:].

    Raises:
        ShapeMismatch: a node takes what is not there yet, or a tensor of another shape than it can.
    """

    input_shape: Annotated[tuple[Size, ...], msgspec.Meta(min_length=1, max_length=MAX_DIMS)]
    nodes: Annotated[tuple[Node, ...], msgspec.Meta(min_length=1, max_length=MAX_NODES)]

    def __post_init__(self) -> None:
        _ = self.shapes  # a network that stands has been checked

    @cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """Shape of every value, per sample; entry 0 is the input."""
        return infer_shapes({INPUT: self.input_shape}, self.nodes)

    @cached_property
    def macs(self) -> tuple[int, ...]:
        """Multiply-accumulates of every node, per sample."""
        shapes = self.shapes
        return tuple(
            node.op.macs(shapes[i + 1], *(shapes[value] for value in node.inputs)) for i, node in enumerate(self.nodes)
        )

    @property
    def num_nodes(self) -> int:
        return len(self.nodes)

    def items(self, value: int) -> int:
        """Numbers in a value, per sample."""
        return prod(self.shapes[value])

    @cached_property
    def live(self) -> tuple[tuple[int, ...], ...]:
        """For every cut, the values that the server needs and the device has, in ascending order.

        At the last cut nothing has to travel: the answer is on the device.
        """
        last_use = {value: i for i, node in enumerate(self.nodes) for value in node.inputs}
        cuts = (tuple(v for v in range(cut + 1) if last_use.get(v, -1) >= cut) for cut in range(self.num_nodes))
        return (*cuts, ())

    @cached_property
    def parametric(self) -> tuple[int, ...]:
        """Indices of the nodes that have weights."""
        return tuple(i for i, node in enumerate(self.nodes) if node.op.weight_shape is not None)

    @cached_property
    def takes_tokens(self) -> bool:
        """Whether it looks rows of a table up: then whole numbers are tokens."""
        return any(isinstance(node.op, Embedding) for node in self.nodes)

    def shows_input(self, cut: int) -> bool:
        """Whether the input, or what shows it, would travel at this cut."""
        return any(self._showing[value] for value in self.live[cut])

    @cached_property
    def _showing(self) -> tuple[bool, ...]:
        return showing_input(self.nodes)

    def name_of(self, value: int) -> str:
        """A value's name for people."""
        return "input" if value == INPUT else (self.nodes[value - 1].name or f"node {value - 1}")


def showing_input(nodes: tuple[Node, ...]) -> tuple[bool, ...]:
    """For every value whether it shows the input: the input itself, and what no weights have mixed on the way.

    A ReLU of pixels is the picture, an average of it a smaller picture, and a sum with it still has it inside. So has a
    product or an attention one of whose sides shows it. Constants, gains and tables of embeddings change nothing about
    that: whoever has the model takes them off again.
    """
    showing = [True]
    for node in nodes:
        showing.append(not node.op.hides_input and any(showing[value] for value in node.inputs))
    return tuple(showing)


def infer_shapes(
    known: dict[int, Shape], nodes: tuple[Node, ...], max_items: int = MAX_TENSOR_ITEMS
) -> tuple[Shape, ...]:
    """Shapes of all values, checked on the way.

    Args:
        known: shapes of the values that are given.
        nodes: in order.
        max_items: numbers in the largest tensor, padding included, of one sample or a weight.

    Returns:
        Shapes by value id; values that are neither given nor computed have the shape ().

    Raises:
        ShapeMismatch: see `Network`.
    """
    for value, shape in known.items():
        if not shape or len(shape) > MAX_DIMS or min(shape) < 1 or prod(shape) > max_items:
            raise ShapeMismatch(f"value {value} has the shape {shape}, which cannot be")
    shapes: list[Shape] = [known.get(INPUT, ())]
    available = set(known)
    for i, node in enumerate(nodes):
        label = f"node {i} ({node.name or type(node.op).__name__})"
        if len(node.inputs) != node.op.arity:
            raise ShapeMismatch(f"{label} has {len(node.inputs)} inputs, it takes {node.op.arity}")
        missing = [value for value in node.inputs if value not in available]
        if missing:
            raise ShapeMismatch(f"{label} takes value {missing[0]}, which nothing has computed before it")
        try:
            check_numbers(node.op)
            shapes.append(_output_shape(node.op, [shapes[value] for value in node.inputs], max_items))
        except ShapeMismatch as error:
            raise ShapeMismatch(f"{label}: {error}") from None
        available.add(i + 1)
    return tuple(shapes)


def check_numbers(op: AnyOp) -> None:
    """Refuse parameters out of their bounds, which those that came off the wire never are.

    Raises:
        ShapeMismatch: one is.
    """
    try:
        msgspec.convert(msgspec.to_builtins(op), type(op))
    except (msgspec.ValidationError, TypeError, OverflowError) as error:
        raise ShapeMismatch(f"has parameters out of bounds: {error}") from None


def _output_shape(op: AnyOp, inputs: list[Shape], max_items: int) -> Shape:
    shape = op.output_shape(*inputs)
    if not shape or len(shape) > MAX_DIMS:
        raise ShapeMismatch(f"makes a tensor of shape {shape}; 1 to {MAX_DIMS} dimensions are allowed")
    if min(shape) < 1:
        raise ShapeMismatch(f"makes a tensor of shape {shape}, which is empty")
    largest = max(prod(shape), op.scratch_items(*inputs), prod(op.weight_shape or (0,)))
    if largest > max_items:
        raise ShapeMismatch(f"holds {largest} numbers in one tensor; at most {max_items} are allowed")
    return shape
