"""Layers that are multiplied as they are held: bent codes in the layout of `edgekernels.PackedMatrix`.

Pure. Linear layers, and convolutions of all channels, whose windows are the tokens. Only for few tokens: with many the
weight is dequantised once for all of them and numpy multiplies.
"""

from __future__ import annotations

from math import prod

import numpy as np
from edgekernels import PackedMatrix, backend, matmul, unpack

from qpart.ops import Conv2d, Linear, Op, Shape
from qpart.quantiser import HALF, Floats, QuantisedWeight

FEW_TOKENS = 16
"""Up to so many products on codes are faster than dequantising and multiplying; on processors with AVX2, up to 60."""
_UNIT, _BLOCK = 32, 16  # columns and rows that the layout fills up
_MOST_WASTE = 1 / 8


def is_matrix(op: Op) -> bool:
    """Whether a layer's weight is one matrix (out, in), or (out, *in)."""
    return isinstance(op, Linear) or (isinstance(op, Conv2d) and op.groups == 1)


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
        rows, columns = shape[0], prod(shape[1:])
        filled = -(-columns // _UNIT) * _UNIT
        held = -(-rows // _BLOCK) * _BLOCK * (filled * packed.bits / 8 + 4)
        least = packed.codes.nbytes + packed.scale.nbytes
        if packed.bits == HALF or backend() != "cython" or held > (1 + _MOST_WASTE) * least:
            return None
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
