"""What every operation answers: its inputs, parameters, shapes, work, scratch, and whether it hides the input."""

from __future__ import annotations

from math import inf, prod
from typing import Annotated

import msgspec

from qpart.errors import ShapeMismatch

Shape = tuple[int, ...]
MAX_DIMS = 6
MAX_INPUTS = 64
MAX_TENSOR_ITEMS = 1 << 28
MAX_TAPS = 1 << 14
BUFFER_ITEMS = 1 << 13
"""Numbers of an operand that numpy copies at once where it is repeated along a short axis, or not in one piece."""
LARGEST = 3.4028234663852886e38
"""The largest float32."""

Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
Padding = Annotated[int, msgspec.Meta(ge=0, le=1 << 12)]
Axis = Annotated[int, msgspec.Meta(ge=0, lt=MAX_DIMS)]
Position = Annotated[int, msgspec.Meta(ge=0, le=1 << 24)]
Dims = Annotated[tuple[Size, ...], msgspec.Meta(min_length=1, max_length=MAX_DIMS)]
Axes = Annotated[tuple[Axis, ...], msgspec.Meta(min_length=1, max_length=MAX_DIMS)]


class Op(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of all operations; `arity` inputs, one output."""

    @property
    def arity(self) -> int:
        return 1

    @property
    def weight_shape(self) -> Shape | None:
        """Shape of the weight, output channels first; None if the operation has no parameters."""
        return None

    @property
    def has_bias(self) -> bool:
        return False

    @property
    def hides_input(self) -> bool:
        """Whether every number of the output is a weighted sum of several of the input, by weights of its own.

        What is made one by one, however it is scaled and shifted, still shows what it was made of.
        """
        return False

    def output_shape(self, *inputs: Shape) -> Shape:
        """Shape of the output.

        Raises:
            ShapeMismatch: the inputs do not fit.
        """
        return inputs[0]

    def scratch_items(self, *inputs: Shape) -> int:
        """Numbers an executor holds per sample besides inputs, weight and output: padded and unfolded copies."""
        return 0

    def macs(self, output: Shape, *inputs: Shape) -> int:
        """Multiply-accumulates per sample; element-wise operations count as none."""
        return 0


def check_axis(axis: int, shape: Shape, what: str) -> None:
    """Refuse an axis that a shape does not have."""
    if not 0 <= axis < len(shape):
        raise ShapeMismatch(f"{what} works along axis {axis}, its input has shape {shape}")


def check_float(number: float, what: str) -> None:
    """Refuse what is no finite number of float32."""
    if not abs(number) <= LARGEST:
        raise ShapeMismatch(f"{what} has the number {number}, which is no finite float32")


def check_bounds(low: float, high: float, what: str) -> None:
    """Refuse what is no range of float32; either end may be infinite."""
    if not low <= high or LARGEST < abs(low) < inf or LARGEST < abs(high) < inf:
        raise ShapeMismatch(f"{what} from {low} to {high} is no range of float32")


def broadcast(first: Shape, second: Shape, what: str) -> Shape:
    """Shape of two tensors combined number by number; an extent of 1 is repeated.

    >>> broadcast((4, 1), (1, 3), "add")
    (4, 3)
    """
    fits = len(first) == len(second) and all(1 in (a, b) or a == b for a, b in zip(first, second, strict=True))
    if not fits:
        raise ShapeMismatch(f"{what} takes two tensors of one shape, or with extents of 1, got {first} and {second}")
    return tuple(map(max, first, second))


def broadcasts_to(small: Shape, large: Shape, what: str) -> None:
    """Refuse a constant that does not repeat to a tensor's shape."""
    if len(small) != len(large) or any(a not in (1, b) for a, b in zip(small, large, strict=True)):
        raise ShapeMismatch(f"{what} has a constant of shape {small}, its input has shape {large}")


def buffered(items: int) -> int:
    """Numbers that numpy copies at once of an operand with so many, or that are computed at once."""
    return min(items, BUFFER_ITEMS)


def averaged(items: int) -> int:
    """Numbers that numpy holds to divide so many sums: some at once, twice, as float64."""
    return 4 * buffered(items)


def items(shape: Shape) -> int:
    """Numbers in a tensor."""
    return prod(shape)
