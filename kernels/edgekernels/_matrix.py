"""Packed matrices: weights of 1 to 8 bits which stay packed, and their products with activations."""

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from edgekernels import _bits_checks, _checks, _matrix_checks, _select
from edgekernels._quantise import fit

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Factors = npt.NDArray[np.float32] | npt.NDArray[np.float16]

BLOCK, UNIT, PLANE = 16, 32, 64  # rows of a block, columns of a unit, bytes of a plane: docs/spec/kernels-gemm.md
AT_ONCE = 1 << 22  # values held beside the result while quantising


def aligned(size: int) -> Bytes:
    """Uninitialised bytes which begin at a multiple of 64."""
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size]


def realigned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array, or a copy of it which begins at a multiple of 64."""
    if array.flags.c_contiguous and array.ctypes.data % 64 == 0:
        return array
    copy = aligned(array.nbytes).view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def in_blocks(factors: Factors) -> Factors:
    """Scales or offsets (rows, groups) as (blocks, groups, 16), the last block filled up with 0."""
    rows, groups = factors.shape
    blocks = -(-rows // BLOCK)
    padded = np.zeros((blocks * BLOCK, groups), factors.dtype)
    padded[:rows] = factors
    spread: Factors = aligned(padded.nbytes).view(factors.dtype).reshape(blocks, groups, BLOCK)
    spread[...] = padded.reshape(blocks, BLOCK, groups).transpose(0, 2, 1)
    return spread


class PackedMatrix:
    """A matrix (rows, columns) of low-bit codes with a scale, and perhaps an offset, for each group of columns.

    value = code * scale + offset, or without offset (symmetric) value = (code - 2**(bits - 1)) * scale. Where it is
    bent, steps are small in the middle and large at the ends: value = ((1 - a) * u + a * u**3) * scale with
    u = (2 * code + 1) / 2**bits - 1 and a = bend / 16.

    Attributes:
        rows, columns: shape; columns is a multiple of group.
        bits: width of a code, 1 .. 8.
        group: columns which share a scale: 16, 32, 64, 128 or 256; all of them where it is bent.
        bend: None, or 0 .. 15 sixteenths.
        data: the codes, uint8 (bytes,), 64-byte aligned, in the kernels' layout; the same on every machine.
        scale_blocks, offset_blocks: float32 or float16 (blocks of 16 rows, groups, 16); the offset may be None.
        native: what the compiled kernels keep with it.
    """

    __slots__ = ("bend", "bits", "columns", "data", "group", "native", "offset_blocks", "rows", "scale_blocks")

    rows: int
    columns: int
    bits: int
    group: int
    bend: int | None
    data: Bytes
    scale_blocks: Factors
    offset_blocks: Factors | None
    native: Any

    def __init__(self) -> None:
        raise TypeError("PackedMatrix() makes nothing; use PackedMatrix.quantise or PackedMatrix.from_codes")

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__ if name != "native"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.native, self.bend = None, None  # made again when it is used; not in older ones
        for name, value in state.items():
            setattr(self, name, realigned(value) if isinstance(value, np.ndarray) else value)

    @classmethod
    def from_codes(
        cls,
        codes: Bytes,
        bits: int,
        *,
        group: int,
        scale: Factors,
        offset: Factors | None = None,
        bend: int | None = None,
    ) -> Self:
        """Pack codes.

        Args:
            codes: uint8 (rows, columns), C-contiguous, each below 2**bits.
            bits: width of a code, 1 .. 8.
            group: columns which share a scale: 16, 32, 64, 128 or 256; divides columns.
            scale: float32 or float16 (rows, columns / group), finite; kept in its dtype.
            offset: the value of code 0, of the same dtype and shape; None if code 2**(bits - 1) means 0.
            bend: 0 .. 15 sixteenths; then there is no offset, one group for the whole row, and columns is a multiple of
                32. Products of a bent matrix take float activations only.

        Returns:
            The matrix, which shares no memory with the arguments.

        Raises:
            TypeError: an argument has another type or dtype.
            ValueError: an argument has another shape or is out of its range.

        >>> scale = np.full((1, 1), 0.5, np.float32)
        >>> matrix = PackedMatrix.from_codes(np.arange(16, dtype=np.uint8).reshape(1, 16), 4, group=16, scale=scale)
        >>> matrix.dequantise()[0, 6:11].tolist()
        [-1.0, -0.5, 0.0, 0.5, 1.0]
        """
        codes = _checks.array("codes", codes, np.uint8, 2)
        bits = _bits_checks.bits(bits)
        if bend is None:
            group = _matrix_checks.group(group)
        else:
            bend, group = _matrix_checks.bent("codes", bend, codes.shape, group, offset)
        rows, columns = _matrix_checks.shape("codes", codes.shape, group)
        matrix = object.__new__(cls)
        matrix.bend = bend
        matrix.rows, matrix.columns, matrix.bits, matrix.group, matrix.native = rows, columns, bits, group, None
        factors = (rows, columns // group)
        matrix.scale_blocks = in_blocks(_matrix_checks.factors("scale", scale, factors))
        matrix.offset_blocks = None
        if offset is not None:
            matrix.offset_blocks = in_blocks(_matrix_checks.factors("offset", offset, factors, scale.dtype))
        matrix.data = aligned(-(-rows // BLOCK) * -(-columns // UNIT) * bits * PLANE)
        seen = _select.active_gemm.pack(codes, bits, matrix.data)
        if seen >> bits:
            row, column = np.argwhere(codes >> bits)[0]
            raise ValueError(
                f"codes[{row}, {column}] is {codes[row, column]}; pass codes 0 .. {(1 << bits) - 1} for {bits} bits"
            )
        return matrix

    @classmethod
    def quantise(
        cls,
        values: Floats,
        bits: int,
        *,
        group: int,
        symmetric: bool = False,
        factors: npt.DTypeLike = np.float32,
        clip: str = "range",
    ) -> Self:
        """Quantise values to the nearest codes of each group's range.

        Affine: the smallest value of a group gets the lowest code, the largest the highest. Symmetric: the value of
        largest magnitude gets code 0, whatever its sign (its scale may be negative), and 0 is exact.

        Args:
            values: float32 (rows, columns), C-contiguous, finite.
            bits: width of a code, 1 .. 8.
            group: columns which share a scale: 16, 32, 64, 128 or 256; divides columns.
            symmetric: without offsets.
            factors: dtype of scales and offsets, float32 or float16; codes are chosen for the rounded ones.
            clip: "range" as above, between the extremes; "mse": the range of the least squared error, see
                fit; not for symmetric ones.

        Returns:
            The matrix.

        Raises:
            TypeError: an argument has another type or dtype.
            ValueError: an argument has another shape or is out of its range, or a scale overflows its dtype.
        """
        values, bits = _checks.array("values", values, np.float32, 2), _bits_checks.bits(bits)
        group, dtype = _matrix_checks.group(group), _matrix_checks.factor_type(factors)
        rows, columns = _matrix_checks.shape("values", values.shape, group)
        codes = np.empty((rows, columns), np.uint8)
        scale = np.empty((rows, columns // group), dtype)
        offset = None if symmetric else np.empty_like(scale)
        fitted = None
        if _bits_checks.choice("clip", clip, ("range", "mse")):
            if symmetric:
                raise ValueError('clip="mse" needs offsets; leave symmetric out, or clip="range"')
            fitted = fit(values, bits, group=group)
        step = max(1, AT_ONCE // columns)
        for first in range(0, rows, step):
            part = slice(first, first + step)
            grouped = values[part].reshape(-1, columns // group, group)
            low, high = grouped.min(axis=2), grouped.max(axis=2)
            _matrix_checks.extremes(low, high, first, group)
            top = np.float32((1 << bits) - 1)
            with np.errstate(all="ignore"):
                zero = np.float32(1 << (bits - 1) if symmetric else 0)
                if fitted is not None:
                    scale[part] = fitted.scale[part]
                    if offset is not None:
                        offset[part] = fitted.offset[part]
                elif offset is None:
                    scale[part] = np.where(high > -low, high, low) / -zero
                else:
                    scale[part] = high / top - low / top  # each on its own: the difference might overflow
                    offset[part] = low
                _matrix_checks.fitted("scale", scale[part], first)
                if offset is not None:
                    _matrix_checks.fitted("offset", offset[part], first)
                size = scale[part, :, None].astype(np.float32)
                rest = grouped if offset is None else grouped - offset[part, :, None].astype(np.float32)
                steps = np.rint(rest / np.where(size == 0, np.float32(1), size)) + zero
            codes[part] = np.clip(steps, 0, top, out=steps).reshape(-1, columns)
        return cls.from_codes(codes, bits, group=group, scale=scale, offset=offset)

    @property
    def scale(self) -> Factors:
        """Scales (rows, columns / group), a copy."""
        return self._in_rows(self.scale_blocks)

    @property
    def offset(self) -> Factors | None:
        """Offsets (rows, columns / group), a copy, or None."""
        return None if self.offset_blocks is None else self._in_rows(self.offset_blocks)

    def _in_rows(self, blocks: Factors) -> Factors:
        groups = self.columns // self.group
        factors: Factors = blocks.transpose(0, 2, 1).reshape(-1, groups)[: self.rows].copy()
        return factors

    @property
    def symmetric(self) -> bool:
        """Whether there are no offsets."""
        return self.offset_blocks is None

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and offsets."""
        return sum(a.nbytes for a in (self.data, self.scale_blocks, self.offset_blocks) if a is not None)

    def __repr__(self) -> str:
        kind = "symmetric" if self.symmetric else "affine"
        kind = kind if self.bend is None else f"bent {self.bend}/16"
        return f"<PackedMatrix {self.rows} x {self.columns}, {self.bits} bits, group {self.group}, {kind}>"

    def codes(self) -> Bytes:
        """All codes, uint8 (rows, columns)."""
        codes = np.empty((self.rows, self.columns), np.uint8)
        _select.active_gemm.row_codes(self, np.arange(self.rows), codes)
        return codes

    def dequantise(self) -> Floats:
        """All values, float32 (rows, columns): a product and a sum, each rounded to float32, the same everywhere."""
        values = np.empty((self.rows, self.columns), np.float32)
        _select.active_gemm.values(self, values)
        return values

    def gather(self, rows: npt.NDArray[np.int64], *, out: Floats | None = None) -> Floats:
        """Values of some rows, such as embeddings.

        Args:
            rows: int64 (n,), C-contiguous, each 0 .. rows - 1.
            out: float32 (n, columns) to write and return instead of a new array.

        Returns:
            Values float32 (n, columns).

        Raises:
            TypeError: an argument has another type or dtype.
            ValueError: an argument has another shape or is out of its range.
        """
        rows = _matrix_checks.row_numbers(rows, self.rows)
        values = _bits_checks.output("out", out, (len(rows), self.columns), np.float32, rows)
        if len(rows):
            _select.active_gemm.row_values(self, rows, values)
        return values


def matmul(
    matrix: PackedMatrix,
    x: Floats,
    *,
    bias: Floats | None = None,
    activations: str = "int8",
    out: Floats | None = None,
    num_threads: int = 1,
) -> Floats:
    """Multiply a packed matrix with each row of x: x @ matrix.T + bias.

    With "int8" the activations of each group are rounded to 127 steps of their largest magnitude, and the result is
    the same to the bit on every machine. With "float" they are taken as they are. A token with a NaN or an infinity
    gets NaN (with "float": NaN or infinities) in every row; others are not touched by it.

    Args:
        matrix: (rows, columns).
        x: activations float32 (m, columns), C-contiguous; m may be 0.
        bias: float32 (rows,), C-contiguous, added in the end.
        activations: "int8" or "float".
        out: float32 (m, rows) to write and return instead of a new array.
        num_threads: threads that share the rows, at most; changes nothing in the result.

    Returns:
        Products float32 (m, rows).

    Raises:
        TypeError: an argument has another type or dtype.
        ValueError: an argument has another shape or is out of its range.

    >>> half = np.full((1, 1), 0.5, np.float32)
    >>> matrix = PackedMatrix.from_codes(np.full((1, 16), 9, np.uint8), 4, group=16, scale=half)  # 16 times 0.5
    >>> matmul(matrix, np.ones((1, 16), np.float32)).tolist()
    [[8.0]]
    """
    if type(matrix) is not PackedMatrix:
        raise TypeError(f"matrix is {type(matrix).__name__}; pass a PackedMatrix")
    x = _checks.array("x", x, np.float32, 2)
    if x.shape[1] != matrix.columns:
        raise ValueError(f"x has shape {x.shape}; pass (m, {matrix.columns}), the columns of the matrix")
    if bias is not None:
        bias = _matrix_checks.bias(bias, matrix.rows)
    if activations not in ("int8", "float"):
        raise ValueError(f"activations is {activations!r}; pass 'int8' or 'float'")
    if matrix.bend is not None and activations == "int8":
        raise ValueError("activations is 'int8', but bent codes are no multiples of a step; pass 'float'")
    if num_threads != 1:
        num_threads = _checks.num_threads(num_threads)
    y = _bits_checks.output("out", out, (len(x), matrix.rows), np.float32, x, bias)
    if len(x):
        quantised = activations == "int8"
        _select.active_gemm.multiply(matrix, x, bias=bias, y=y, quantised=quantised, num_threads=num_threads)
    return y
