"""Low-bit codes: packing, unpacking, and quantising fused with them, over whichever backend is in use."""

from typing import Any

import numpy as np
import numpy.typing as npt

from edgekernels import _bits_checks, _checks, _select

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def packed_bytes(num_codes: int, bits: int) -> int:
    """Bytes of the bitstream of some codes.

    Args:
        num_codes: 0 or more.
        bits: width of a code, 1 .. 8.

    Returns:
        num_codes * bits / 8, rounded up.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is out of its range.

    >>> packed_bytes(9, 3)
    4
    """
    count = _bits_checks.integer("num_codes", num_codes, 0, _bits_checks.MAX_CODES)
    return (count * _bits_checks.bits(bits) + 7) // 8


def pack(codes: Bytes, bits: int, *, out: Bytes | None = None) -> Bytes:
    """Pack codes into a linear bitstream, least significant bit first.

    Code i occupies the bits i * bits .. i * bits + bits - 1; bit j of the stream is bit j % 8 of byte j // 8.
    The bits behind the last code are 0.

    Args:
        codes: uint8 (n,), C-contiguous, each below 2**bits.
        bits: width of a code, 1 .. 8.
        out: uint8 (packed_bytes(n, bits),) to write and return instead of a new array.

    Returns:
        The bitstream, uint8 (packed_bytes(n, bits),).

    Raises:
        TypeError: an argument has another type or dtype.
        ValueError: an argument has another shape or is out of its range, or a code has more bits; `out` may be
            written all the same.

    >>> pack(np.array([1, 2, 7], np.uint8), 3).tolist()  # 0b1_11_010_001
    [209, 1]
    """
    codes = _checks.array("codes", codes, np.uint8, 1)
    packed = _bits_checks.output("out", out, (packed_bytes(len(codes), bits),), np.uint8, codes)
    seen = _select.active_bits.pack(codes, bits, packed)
    if seen >> bits:
        first = int(np.argmax(codes >> bits != 0))
        raise ValueError(f"codes[{first}] is {codes[first]}; pass codes 0 .. {(1 << bits) - 1} for {bits} bits")
    return packed


def unpack(packed: Bytes, num_codes: int, bits: int, *, out: Bytes | None = None) -> Bytes:
    """Unpack the codes of a bitstream, the inverse of pack.

    Args:
        packed: uint8 (packed_bytes(num_codes, bits),), C-contiguous. Bits behind the last code are ignored.
        num_codes: 0 or more.
        bits: width of a code, 1 .. 8.
        out: uint8 (num_codes,) to write and return instead of a new array.

    Returns:
        Codes uint8 (num_codes,).

    Raises:
        TypeError: an argument has another type or dtype.
        ValueError: an argument has another shape or is out of its range.

    >>> unpack(np.array([209, 1], np.uint8), 3, 3).tolist()
    [1, 2, 7]
    """
    packed = _checks.array("packed", packed, np.uint8, 1)
    wanted = packed_bytes(num_codes, bits)
    if len(packed) != wanted:
        raise ValueError(f"packed has {len(packed)} bytes; pass {wanted} for {num_codes} codes of {bits} bits")
    codes = _bits_checks.output("out", out, (num_codes,), np.uint8, packed)
    _select.active_bits.unpack(packed, bits, codes)
    return codes


def packed_shape(rows: int, columns: int, bits: int, align_rows: bool) -> tuple[int, ...]:
    """Shape of the bitstream of a matrix of codes."""
    return (rows, packed_bytes(columns, bits)) if align_rows else (packed_bytes(rows * columns, bits),)


def quantise(
    values: Floats,
    bits: int,
    *,
    scale: Any,
    offset: Any,
    align_rows: bool = False,
    out: Bytes | None = None,
) -> Bytes:
    """Quantise values row by row and pack their codes.

    A code is clip(rint((value - offset) / scale), 0, 2**bits - 1). Every operation is float32 and rounded on its
    own, halves go to the even integer, NaN and a scale of 0 give code 0. The bytes are the same everywhere.

    Args:
        values: float32 (rows, columns), C-contiguous, at least one column.
        bits: width of a code, 1 .. 8.
        scale: a number (rounded to float32) or float32 (rows,), finite, 0 or more.
        offset: a number (rounded to float32) or float32 (rows,), finite: the value of code 0.
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
    shape = packed_shape(rows, columns, bits, align_rows)
    packed = _bits_checks.output("out", out, shape, np.uint8, values, scale, offset)
    _select.active_bits.quantise(
        values,
        bits,
        scale=_bits_checks.per_row("scale", scale, rows, low=0),
        offset=_bits_checks.per_row("offset", offset, rows),
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
    align_rows: bool = False,
    out: Floats | None = None,
) -> Floats:
    """Unpack codes and turn them into values, code * scale + offset.

    The product and the sum are float32 and rounded one after the other, so the floats are the same everywhere.

    Args:
        packed: what quantise returned: uint8 (packed_bytes(rows * columns, bits),), or with align_rows
            (rows, packed_bytes(columns, bits)). Bits behind the last code are ignored.
        bits: width of a code, 1 .. 8.
        scale: a number (rounded to float32) or float32 (rows,), finite.
        offset: a number (rounded to float32) or float32 (rows,), finite.
        columns: codes in a row, 1 or more.
        align_rows: every row begins with a byte of its own.
        out: float32 (rows, columns) to write and return instead of a new array.

    Returns:
        Values float32 (rows, columns). There are as many rows as scale, offset or out has; if all of them
        leave it open, as many as the bytes hold.

    Raises:
        TypeError: an argument has another type or dtype.
        ValueError: an argument has another shape or is out of its range.

    >>> dequantise(np.array([244], np.uint8), 2, scale=0.5, offset=-1.0, columns=4).tolist()
    [[-1.0, -0.5, 0.5, 0.5]]
    """
    packed = _checks.array("packed", packed, np.uint8, 2 if align_rows else 1)
    bits = _bits_checks.bits(bits)
    columns = _bits_checks.integer("columns", columns, 1, _bits_checks.MAX_CODES)
    rows = count_rows(packed, columns, bits, scale=scale, offset=offset, align_rows=align_rows, out=out)
    wanted = packed_shape(rows, columns, bits, align_rows)
    if packed.shape != wanted:
        raise ValueError(f"packed has shape {packed.shape}; pass {wanted} for {rows} x {columns} codes of {bits} bits")
    values = _bits_checks.output("out", out, (rows, columns), np.float32, packed, scale, offset)
    _select.active_bits.dequantise(
        packed.reshape(-1),
        bits,
        scale=_bits_checks.per_row("scale", scale, rows),
        offset=_bits_checks.per_row("offset", offset, rows),
        align_rows=bool(align_rows),
        values=values,
    )
    return values
