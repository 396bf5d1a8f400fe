"""Products of two activations: matrices, and attention."""

from __future__ import annotations

from math import prod

from qpart.errors import ShapeMismatch
from qpart.ops.base import Op, Position, Shape, Size, buffered, check_float

SCORE_ITEMS = 1 << 18
"""Scores of attention at once, unless one head has more: small enough for a cache."""


class MatMul(Op, frozen=True, array_like=True, tag="matmul"):
    """Matrix products over the last two axes, (..., m, k) by (..., k, n), or by (..., n, k) if transposed."""

    transposed: bool = False

    @property
    def arity(self) -> int:
        return 2

    def output_shape(self, *inputs: Shape) -> Shape:
        first, second = inputs
        inner, outer = (second[-1:], second[-2:-1]) if self.transposed else (second[-2:-1], second[-1:])
        if len(first) < 2 or len(first) != len(second) or first[:-2] != second[:-2] or first[-1:] != inner:
            raise ShapeMismatch(f"matmul cannot multiply {first} by {second}{' transposed' if self.transposed else ''}")
        return (*first[:-1], *outer)

    def macs(self, output: Shape, *inputs: Shape) -> int:
        return prod(output) * inputs[0][-1]


class Attention(Op, frozen=True, array_like=True, tag="attention"):
    """Attention of several heads: softmax(q k^T scale) v, by head.

    Inputs (..., tokens, columns), of queries, keys and values; all three may be one tensor. Head h of the queries is
    columns offsets[0] + h head_size onward, and so on; the output is (..., tokens, heads * value_size). If `causal`,
    a query sees no keys behind its own position.
    """

    heads: Size
    head_size: Size
    value_size: Size
    scale: float
    offsets: tuple[Position, Position, Position] = (0, 0, 0)
    causal: bool = False

    @property
    def arity(self) -> int:
        return 3

    def output_shape(self, *inputs: Shape) -> Shape:
        queries, keys, values = inputs
        check_float(self.scale, "attention")
        sizes = (self.head_size, self.head_size, self.value_size)
        if any(len(shape) < 2 or shape[:-2] != queries[:-2] for shape in inputs) or keys[-2] != values[-2]:
            raise ShapeMismatch(f"attention cannot take queries {queries}, keys {keys} and values {values}")
        if any(o + self.heads * s > shape[-1] for o, s, shape in zip(self.offsets, sizes, inputs, strict=True)):
            raise ShapeMismatch(f"attention of {self.heads} heads of {sizes} does not fit columns of {inputs}")
        return (*queries[:-1], self.heads * self.value_size)

    def heads_at_once(self, queries: int, keys: int) -> int:
        """Heads whose scores an executor holds together."""
        return min(self.heads, max(1, SCORE_ITEMS // (queries * keys)))

    def scratch_items(self, *inputs: Shape) -> int:
        queries, keys = inputs[0][-2], inputs[1][-2]
        scores = self.heads_at_once(queries, keys) * queries * (keys + 2) + (queries * keys if self.causal else 0)
        return scores + buffered(scores)

    def macs(self, output: Shape, *inputs: Shape) -> int:
        queries, keys = prod(inputs[0][:-1]), inputs[1][-2]
        return queries * keys * self.heads * (self.head_size + self.value_size)
