"""Linear layers that are multiplied as they are held: bent codes in the layout of `edgekernels.PackedMatrix`.

Pure. Only for few tokens: with many the weight is dequantised once for all of them and numpy multiplies.
"""

from __future__ import annotations

import numpy as np
from edgekernels import PackedMatrix, backend, matmul, unpack

from qpart.ops import Shape
from qpart.quantiser import HALF, Floats, QuantisedWeight

FEW_TOKENS = 16
"""Up to so many products on codes are faster than dequantising and multiplying; on processors with AVX2, up to 60."""
_UNIT, _BLOCK = 32, 16  # columns and rows that the layout fills up
_MOST_WASTE = 1 / 8


class LinearWeight:
    """The weight (out, in) of a linear layer, its codes as a matrix; made by `LinearWeight.of`.

    Attributes:
        num_bytes: that it holds.
    """

    def __init__(self, matrix: PackedMatrix, columns: int) -> None:
        self._matrix, self._columns = matrix, columns
        self.num_bytes = matrix.nbytes

    @classmethod
    def of(cls, packed: QuantisedWeight, shape: Shape) -> LinearWeight | None:
        """The same weight as a matrix; None where it would take much more memory, or there is no compiled kernel."""
        rows, columns = shape
        filled = -(-columns // _UNIT) * _UNIT
        held = -(-rows // _BLOCK) * _BLOCK * (filled * packed.bits / 8 + 4)
        least = packed.codes.nbytes + packed.scale.nbytes
        if packed.bits == HALF or backend() != "cython" or held > (1 + _MOST_WASTE) * least:
            return None
        codes = np.zeros((rows, filled), np.uint8)
        codes[:, :columns] = unpack(packed.codes, rows * columns, packed.bits).reshape(shape)
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
