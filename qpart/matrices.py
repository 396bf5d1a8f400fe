"""Layers that are multiplied as they are held: bent codes in the layout of `edgekernels.PackedMatrix`.

Pure. Linear layers, and convolutions of all channels, whose windows are the tokens. Only for few tokens: with many the
weight is dequantised once for all of them and numpy multiplies.
"""

from __future__ import annotations

from math import prod

import numpy as np
from edgekernels import PackedMatrix, backend, matmul, packed_bytes, unpack

from qpart.ops import Conv2d, Linear, Op, Shape
from qpart.quantiser import HALF, Floats, QuantisedWeight

FEW_TOKENS = 16
"""Up to so many products on codes are faster than dequantising and multiplying; on processors with AVX2, up to 60."""
_UNIT, _BLOCK = 32, 16  # columns and rows that the layout fills up
_MOST_WASTE = 1 / 8


def is_matrix(op: Op) -> bool:
    """Whether a layer's weight is one matrix (out, in), or (out, *in)."""
    return isinstance(op, Linear) or (isinstance(op, Conv2d) and op.groups == 1)


def filled_columns(shape: Shape) -> int:
    """Columns of the matrix that holds a weight (out, *in)."""
    return -(-prod(shape[1:]) // _UNIT) * _UNIT


def matrix_bytes(shape: Shape, bits: int) -> int:
    """Bytes of a weight (out, *in) held as a matrix; 0 where it is none, since that would take much more."""
    if bits == HALF:
        return 0
    held = -(-shape[0] // _BLOCK) * _BLOCK * (filled_columns(shape) * bits // 8 + 4)
    least = packed_bytes(prod(shape), bits) + 2 * shape[0]
    return 0 if held > (1 + _MOST_WASTE) * least else held


class LinearWeight:
    """The weight of a layer as a matrix (out, in) of its codes; made by `LinearWeight.of`.

    Attributes:
        num_bytes: that it holds.
    """

    def __init__(self, matrix: PackedMatrix, columns: int) -> None:
        self._matrix, self._columns = matrix, columns
        self.num_bytes = matrix.nbytes

    @classmethod
    def of(cls, packed: QuantisedWeight, shape: Shape) -> LinearWeight | None:
        """The same weight (out, *in) as a matrix; None where that takes much more memory, or no kernel is compiled."""
        if backend() != "cython" or not matrix_bytes(shape, packed.bits):
            return None
        rows, columns = shape[0], prod(shape[1:])
        filled = filled_columns(shape)
        codes = np.zeros((rows, filled), np.uint8)
        codes[:, :columns] = unpack(packed.codes, rows * columns, packed.bits).reshape(rows, columns)
        scale = (packed.scale.astype(np.float32) * np.float32(packed.gain))[:, None]
        return cls(PackedMatrix.from_codes(codes, packed.bits, group=filled, scale=scale, bend=packed.bend), columns)

    def dequantised(self) -> Floats:
        """The weight, float32 (out, in): the same numbers as `dequantise_weight`."""
        return self._matrix.dequantise()[:, : self._columns]

    def product(self, x: Floats, bias: Floats | None) -> Floats | None:
        """x (tokens, in) times the weight, and the bias, in float32; None for more than a few tokens."""
        if len(x) > FEW_TOKENS:
            return None
        if self._matrix.columns != self._columns:
            filled = np.zeros((len(x), self._matrix.columns), np.float32)
            filled[:, : self._columns] = x
            x = filled
        return matmul(self._matrix, np.ascontiguousarray(x), bias=bias, activations="float")
