"""The specification in numpy: the bitstream of low-bit codes, and the arithmetic of quantising to it.

Every other backend gives the same bytes and the same floats (docs/spec/kernels.md). Arguments are checked by the
callers.
"""

import numpy as np
import numpy.typing as npt

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


def codes_of(values: Floats, bits: int, scale: Floats, offset: Floats) -> Bytes:
    """Codes (rows, columns) of values (rows, columns): a float32 difference, a quotient, halves to even, clipped."""
    with np.errstate(all="ignore"):  # infinities and NaN are expected here
        steps = np.rint((values - offset[:, None]) / scale[:, None])
    steps = np.clip(steps, 0, (1 << bits) - 1)
    steps[np.isnan(steps) | (scale[:, None] == 0)] = 0
    codes: Bytes = steps.astype(np.uint8)
    return codes


def rows_of(packed: Bytes, codes: Bytes, bits: int) -> Bytes:
    """The bitstreams (rows, bytes) of rows of codes (rows, columns) which begin with a byte of their own."""
    rows, columns = codes.shape
    return packed.reshape(rows, (columns * bits + 7) // 8)


def values_of(codes: Bytes, scale: Floats, offset: Floats) -> Floats:
    """Values (rows, columns) of codes (rows, columns): a float32 product and a float32 sum, each rounded."""
    with np.errstate(all="ignore"):
        values: Floats = codes.astype(np.float32) * scale[:, None] + offset[:, None]
    return values


def quantise(values: Floats, bits: int, *, scale: Floats, offset: Floats, align_rows: bool, packed: Bytes) -> None:
    """Write the bitstream of the codes of values (rows, columns), or one bitstream for each row."""
    codes = codes_of(values, bits, scale, offset)
    if not align_rows:
        pack(codes.reshape(-1), bits, packed)
        return
    for row, row_bytes in zip(codes, rows_of(packed, codes, bits), strict=True):
        pack(row, bits, row_bytes)


def dequantise(packed: Bytes, bits: int, *, scale: Floats, offset: Floats, align_rows: bool, values: Floats) -> None:
    """Write the values (rows, columns) of one bitstream, or of one bitstream for each row."""
    codes = np.empty(values.shape, np.uint8)
    if align_rows:
        for row_bytes, row in zip(rows_of(packed, codes, bits), codes, strict=True):
            unpack(row_bytes, bits, row)
    else:
        unpack(packed, bits, codes.reshape(-1))
    values[:] = values_of(codes, scale, offset)
