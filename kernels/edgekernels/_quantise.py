"""Quantising fused with packing, unpacking with dequantising, and the search for good scales and offsets."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgekernels import _bits_checks, _checks, _select
from edgekernels._bits_backend import GRIDS
from edgekernels._packing import packed_bytes

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def packed_shape(rows: int, columns: int, bits: int, align_rows: bool) -> tuple[int, ...]:
    """Shape of the bitstream of a matrix of codes."""
    return (rows, packed_bytes(columns, bits)) if align_rows else (packed_bytes(rows * columns, bits),)


def quantise(
    values: Floats,
    bits: int,
    *,
    scale: Any,
    offset: Any,
    group: int | None = None,
    align_rows: bool = False,
    out: Bytes | None = None,
) -> Bytes:
    """Quantise values, each row or group of columns with its own scale and offset, and pack their codes.

    A code is clip(rint((value - offset) / scale), 0, 2**bits - 1). Every operation is float32 and rounded on its
    own, halves go to the even integer, NaN and a scale of 0 give code 0. The bytes are the same everywhere.

    Args:
        values: float32 (rows, columns), C-contiguous, at least one column.
        bits: width of a code, 1 .. 8.
        scale: a number (rounded to float32) or float32 (rows,), finite, 0 or more; with `group` float32
            (rows, columns / group).
        offset: likewise, finite: the value of code 0.
        group: columns that share a scale and an offset, a divisor of columns; None for the whole row.
        align_rows: let every row begin with a byte of its own, instead of all rows in one bitstream.
        out: array of the returned shape to write and return instead of a new one.

    Returns:
        The bitstream, uint8 (packed_bytes(rows * columns, bits),), or with align_rows one for each row, uint8
        (rows, packed_bytes(columns, bits)).

    Raises:
        TypeError: an argument has another type or dtype.
        ValueError: an argument has another shape or is out of its range.

    >>> quantise(np.array([[-1, -0.5, 0.5, 9]], np.float32), 2, scale=0.5, offset=-1.0).tolist()
    [244]
    """
    values, bits = _bits_checks.values(values), _bits_checks.bits(bits)
    rows, columns = values.shape
    scales = _bits_checks.scales_shape(rows, columns, group)
    shape = packed_shape(rows, columns, bits, align_rows)
    packed = _bits_checks.output("out", out, shape, np.uint8, values, scale, offset)
    _select.active_bits.quantise(
        values,
        bits,
        scale=_bits_checks.per_group("scale", scale, scales, low=0),
        offset=_bits_checks.per_group("offset", offset, scales),
        align_rows=bool(align_rows),
        packed=packed.reshape(-1),
    )
    return packed


def count_rows(packed: Bytes, columns: int, bits: int, *, scale: Any, offset: Any, align_rows: bool, out: Any) -> int:
    """Rows of a packed matrix, from whichever argument has one entry for each of them."""
    if align_rows:
        return len(packed)
    for array in (scale, offset, out):
        if isinstance(array, np.ndarray) and array.ndim:
            return len(array)
    if columns * bits < 8 and len(packed):
        raise ValueError(f"rows of {columns * bits} bits cannot be counted in bytes; pass scale as float32 (rows,)")
    return len(packed) * 8 // (columns * bits)


def dequantise(
    packed: Bytes,
    bits: int,
    *,
    scale: Any,
    offset: Any,
    columns: int,
    group: int | None = None,
    align_rows: bool = False,
    dtype: Any = "float32",
    out: npt.NDArray[Any] | None = None,
) -> npt.NDArray[Any]:
    """Unpack codes and turn them into values, code * scale + offset.

    The product and the sum are float32 and rounded one after the other, and then to a narrower format if that is
    wanted, so the floats are the same everywhere.

    Args:
        packed: what quantise returned: uint8 (packed_bytes(rows * columns, bits),), or with align_rows
            (rows, packed_bytes(columns, bits)). Bits behind the last code are ignored.
        bits: width of a code, 1 .. 8.
        scale: a number (rounded to float32) or float32 (rows,), finite; with `group` (rows, columns / group).
        offset: likewise.
        columns: codes in a row, 1 or more.
        group: columns that share a scale and an offset, a divisor of columns; None for the whole row.
        align_rows: every row begins with a byte of its own.
        dtype: "float32", "float16", or "bfloat16" as the upper 16 bits of float32 in uint16; halves go to even, what
            is too large becomes infinite.
        out: array (rows, columns) of that type to write and return instead of a new one.

    Returns:
        Values (rows, columns), float32, float16 or uint16. There are as many rows as scale, offset or out has; if all
        of them leave it open, as many as the bytes hold.

    Raises:
        TypeError: an argument has another type or dtype.
        ValueError: an argument has another shape or is out of its range.

    >>> dequantise(np.array([244], np.uint8), 2, scale=0.5, offset=-1.0, columns=4).tolist()
    [[-1.0, -0.5, 0.5, 0.5]]
    """
    packed = _checks.array("packed", packed, np.uint8, 2 if align_rows else 1)
    bits, stored = _bits_checks.bits(bits), _bits_checks.stored_as(dtype)
    columns = _bits_checks.integer("columns", columns, 1, _bits_checks.MAX_CODES)
    rows = count_rows(packed, columns, bits, scale=scale, offset=offset, align_rows=align_rows, out=out)
    wanted = packed_shape(rows, columns, bits, align_rows)
    if packed.shape != wanted:
        raise ValueError(f"packed has shape {packed.shape}; pass {wanted} for {rows} x {columns} codes of {bits} bits")
    scales = _bits_checks.scales_shape(rows, columns, group)
    values = _bits_checks.output("out", out, (rows, columns), stored, packed, scale, offset)
    _select.active_bits.dequantise(
        packed.reshape(-1),
        bits,
        scale=_bits_checks.per_group("scale", scale, scales),
        offset=_bits_checks.per_group("offset", offset, scales),
        align_rows=bool(align_rows),
        values=values,
    )
    return values


class Scales(NamedTuple):
    """Where codes lie: value = code * scale + offset.

    Attributes:
        scale: float32 (rows,), or (rows, columns / group).
        offset: of the same shape.
    """

    scale: Floats
    offset: Floats


def fit(values: Floats, bits: int, *, group: int | None = None, grid: str = "asymmetric", clip: str = "mse") -> Scales:
    """Scale and offset for every row, or every group of columns, of a matrix.

    Args:
        values: float32 (rows, columns), C-contiguous, finite and not beyond 2**126, at least one column.
        bits: width of a code, 1 .. 8.
        group: columns that share a scale and an offset, a divisor of columns; None for the whole row.
        grid: "asymmetric": between any two numbers. "symmetric": around 0, which code 2**(bits - 1) stands for.
            "even": around 0, which lies halfway between two codes; better than "symmetric" at 1 and 2 bits.
        clip: "mse": the range of the least squared error, found by trying ranges in steps of 1/128 of the whole one.
            "range": the whole range, so that no value is clipped.

    Returns:
        The Scales, ready for quantise and dequantise. A group whose values are all equal (asymmetric) or all 0 has
        scale 0.

    Raises:
        TypeError: an argument has another type or dtype.
        ValueError: an argument has another shape or is out of its range, or a value is not finite.

    >>> fit(np.array([[-1, 0, 0.5, 2]], np.float32), 2, clip="range")
    Scales(scale=array([1.], dtype=float32), offset=array([-1.], dtype=float32))
    """
    values, bits = _bits_checks.values(values), _bits_checks.bits(bits)
    shape = _bits_checks.scales_shape(values.shape[0], values.shape[1], group)
    kind, searched = _bits_checks.choice("grid", grid, GRIDS), _bits_checks.choice("clip", clip, ("range", "mse"))
    found = Scales(np.empty(shape, np.float32), np.empty(shape, np.float32))
    groups = values.reshape(found.scale.size, -1) if found.scale.size else np.empty((0, 1), np.float32)
    scale, offset = found.scale.reshape(-1), found.offset.reshape(-1)
    bad = _select.active_bits.fit(groups, bits, grid=kind, search=bool(searched), scale=scale, offset=offset)
    if bad >= 0:
        place = bad * groups.shape[1] + int(np.argmin(np.abs(groups[bad]) <= _bits_checks.MOST_VALUE))
        row, column = divmod(place, values.shape[1])
        raise ValueError(f"values[{row}, {column}] is {values[row, column]}; pass finite numbers up to 2**126")
    return found
