"""The specification in numpy: the bitstream of low-bit codes, and the arithmetic of quantising to it.

Every other backend gives the same bytes and the same floats (docs/spec/kernels.md). Arguments are checked by the
callers.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from edgekernels import _fit_reference

NAME = "numpy"

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def pack(codes: Bytes, bits: int, packed: Bytes) -> int:
    """Write the bitstream of codes (n,); returns all codes or-ed together, so that the caller can check them."""
    each_bit = (codes[:, None] >> np.arange(bits, dtype=np.uint8)) & 1
    packed[:] = np.packbits(each_bit, bitorder="little")
    return int(np.bitwise_or.reduce(codes, initial=0))


def unpack(packed: Bytes, bits: int, codes: Bytes) -> None:
    """Write the codes (n,) which a bitstream begins with."""
    each_bit = np.unpackbits(packed, count=len(codes) * bits, bitorder="little").reshape(-1, bits)
    np.bitwise_or.reduce(each_bit << np.arange(bits, dtype=np.uint8), axis=1, out=codes)


def spread(by_group: Floats, shape: tuple[int, int]) -> Floats:
    """One number for each value (rows, columns) from one for each group, flat."""
    rows, columns = shape
    by_row = by_group.reshape(rows, -1) if rows else by_group.reshape(0, 1)
    return np.repeat(by_row, columns // by_row.shape[1], axis=1)


def codes_of(values: Floats, bits: int, scale: Floats, offset: Floats) -> Bytes:
    """Codes (rows, columns) of values (rows, columns): a float32 difference, a quotient, halves to even, clipped."""
    wide = spread(scale, values.shape)
    with np.errstate(all="ignore"):  # infinities and NaN are expected here
        steps = np.rint((values - spread(offset, values.shape)) / wide)
    steps = np.clip(steps, 0, (1 << bits) - 1)
    steps[np.isnan(steps) | (wide == 0)] = 0
    codes: Bytes = steps.astype(np.uint8)
    return codes


def rows_of(packed: Bytes, codes: Bytes, bits: int) -> Bytes:
    """The bitstreams (rows, bytes) of rows of codes (rows, columns) which begin with a byte of their own."""
    rows, columns = codes.shape
    return packed.reshape(rows, (columns * bits + 7) // 8)


def values_of(codes: Bytes, scale: Floats, offset: Floats) -> Floats:
    """Values (rows, columns) of codes (rows, columns): a float32 product and a float32 sum, each rounded."""
    with np.errstate(all="ignore"):
        values: Floats = codes.astype(np.float32) * spread(scale, codes.shape) + spread(offset, codes.shape)
    return values


def bfloat16_of(values: Floats) -> npt.NDArray[np.uint16]:
    """The upper halves of float32 numbers (none of them NaN), rounded to nearest, halves to even."""
    words = values.view(np.uint32)
    upper: npt.NDArray[np.uint16] = ((words + 0x7FFF + (words >> 16 & 1)) >> 16).astype(np.uint16)
    return upper


def quantise(values: Floats, bits: int, *, scale: Floats, offset: Floats, align_rows: bool, packed: Bytes) -> None:
    """Write the bitstream of the codes of values (rows, columns), or one bitstream for each row."""
    codes = codes_of(values, bits, scale, offset)
    if not align_rows:
        pack(codes.reshape(-1), bits, packed)
        return
    for row, row_bytes in zip(codes, rows_of(packed, codes, bits), strict=True):
        pack(row, bits, row_bytes)


def dequantise(
    packed: Bytes, bits: int, *, scale: Floats, offset: Floats, align_rows: bool, values: npt.NDArray[Any]
) -> None:
    """Write the values (rows, columns) of one bitstream, or of one bitstream for each row."""
    codes = np.empty(values.shape, np.uint8)
    if align_rows:
        for row_bytes, row in zip(rows_of(packed, codes, bits), codes, strict=True):
            unpack(row_bytes, bits, row)
    else:
        unpack(packed, bits, codes.reshape(-1))
    wide = values_of(codes, scale, offset)
    with np.errstate(over="ignore"):
        values[:] = bfloat16_of(wide) if values.dtype == np.uint16 else wide


def split(packed: Bytes, num_codes: int, bits: int, planes: Bytes) -> None:
    """Write the planes (bits * bytes,) of a bitstream, the most significant one first."""
    codes = np.empty(num_codes, np.uint8)
    unpack(packed, bits, codes)
    shifts = np.arange(bits - 1, -1, -1, dtype=np.uint8)[:, None]
    planes.reshape(bits, -1)[:] = np.packbits(codes >> shifts & 1, axis=1, bitorder="little")


def merge(planes: Bytes, num_codes: int, bits: int, packed: Bytes) -> None:
    """Write the bitstream of the codes of so many planes."""
    each_bit = np.unpackbits(planes.reshape(bits, -1), axis=1, count=num_codes, bitorder="little")
    packed[:] = np.packbits(each_bit[::-1].T, bitorder="little")


def fit(values: Floats, bits: int, *, grid: int, search: bool, scale: Floats, offset: Floats) -> int:
    """Write the scale and offset of every row of values; returns the first row with a bad number, or -1."""
    return _fit_reference.fit(values, bits, grid=grid, search=search, scale=scale, offset=offset)
