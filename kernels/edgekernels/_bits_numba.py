"""Low-bit codes where there is no C compiler but numba: the loops of the C kernels, compiled at the first call.

The answers are those of `_bits_reference`, to the bit. Arguments are checked by the callers.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from edgekernels import _bits_reference
from edgekernels._fit_reference import COARSE, FINE, LEAST_SEARCHED, MOST_VALUE, PART, SUMS, UNITS

NAME = "numba"

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def compiled(function: Callable[..., Any]) -> Any:
    """Compile at the first call, without the GIL; on disk if there is a place for it. Never with fast mathematics."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # nowhere to keep it
        return numba.njit(**options)(function)


@compiled
def _write_word(word: int, count: int, bits: int, packed: Bytes, at: int) -> None:
    for k in range((count * bits + 7) // 8):
        packed[at + k] = (word >> (8 * k)) & 255


@compiled
def _read_word(packed: Bytes, at: int, count: int, bits: int) -> int:
    word = 0
    for k in range((count * bits + 7) // 8):
        word |= int(packed[at + k]) << (8 * k)
    return word


@compiled
def _pack(codes: Bytes, bits: int, packed: Bytes) -> int:
    seen = 0
    for first in range(0, len(codes), 8):
        count = min(8, len(codes) - first)
        word = 0
        for k in range(count):
            seen |= int(codes[first + k])
            word |= int(codes[first + k]) << (k * bits)
        _write_word(word, count, bits, packed, first // 8 * bits)
    return seen


@compiled
def _unpack(packed: Bytes, bits: int, codes: Bytes) -> None:
    mask = (1 << bits) - 1
    for first in range(0, len(codes), 8):
        count = min(8, len(codes) - first)
        word = _read_word(packed, first // 8 * bits, count, bits)
        for k in range(count):
            codes[first + k] = (word >> (k * bits)) & mask


@compiled
def _quantise(values: Floats, bits: int, scale: Floats, offset: Floats, group: int, stream: int, packed: Bytes) -> None:
    top, zero = np.float32((1 << bits) - 1), np.float32(0)
    at = 0
    for start in range(0, len(values), stream):
        for first in range(start, start + stream, 8):
            count = min(8, start + stream - first)
            word = 0
            for k in range(count):
                g = (first + k) // group
                if scale[g] != zero:
                    steps = (values[first + k] - offset[g]) / scale[g]
                    if steps > zero:  # NaN does not get here
                        word |= int(np.rint(min(steps, top))) << (k * bits)
            _write_word(word, count, bits, packed, at)
            at += (count * bits + 7) // 8


@compiled
def _dequantise(
    packed: Bytes, bits: int, scale: Floats, offset: Floats, group: int, stream: int, values: Floats
) -> None:
    mask = (1 << bits) - 1
    at = 0
    for start in range(0, len(values), stream):
        for first in range(start, start + stream, 8):
            count = min(8, start + stream - first)
            word = _read_word(packed, at, count, bits)
            at += (count * bits + 7) // 8
            for k in range(count):
                g = (first + k) // group
                values[first + k] = np.float32((word >> (k * bits)) & mask) * scale[g] + offset[g]


@compiled
def _split(packed: Bytes, num_codes: int, bits: int, planes: Bytes) -> None:
    for first in range(0, num_codes, 8):
        count = min(8, num_codes - first)
        word = _read_word(packed, first // 8 * bits, count, bits)
        for plane in range(bits):
            byte = 0
            for k in range(count):
                byte |= ((word >> (k * bits + bits - 1 - plane)) & 1) << k
            planes[plane, first // 8] = byte


@compiled
def _merge(planes: Bytes, num_codes: int, bits: int, packed: Bytes) -> None:
    for first in range(0, num_codes, 8):
        count = min(8, num_codes - first)
        word = 0
        for plane in range(bits):
            byte = int(planes[plane, first // 8])
            for k in range(count):
                word |= ((byte >> k) & 1) << (k * bits + bits - 1 - plane)
        _write_word(word, count, bits, packed, first // 8 * bits)


@compiled
def _squares_of_steps(values: Floats, scale: float, offset: float, top: float) -> float:
    inverse, zero = np.float32(1) / scale, np.float32(0)
    total = 0.0
    for first in range(0, len(values), PART):
        part = values[first : first + PART]
        sums = np.zeros(SUMS, np.float32)
        for i in range(len(part)):
            steps = (part[i] - offset) * inverse
            error = np.rint(min(max(steps, zero), top)) - steps
            sums[i % SUMS] += error * error
        half = SUMS // 2
        while half:
            for k in range(half):
                sums[k] += sums[k + half]
            half //= 2
        total += sums[0]
    return total


@compiled
def _consider(
    values: Floats, low: float, high: float, top: float, reach: float, zero_at: float, begin: int, end: int, best: Any
) -> None:
    """Keep the range begin .. end in best (error, scale, offset, begin, end) if it is better; reach 0: asymmetric."""
    if reach == 0:
        scale = np.float32((high - low) * ((end - begin) / UNITS) / top)
        offset = np.float32(low + (high - low) * (begin / UNITS))
    else:
        scale = np.float32(high * (end / UNITS) / reach)
        offset = -(scale * np.float32(zero_at))
    error = _squares_of_steps(values, scale, offset, np.float32(top)) * (np.float64(scale) * np.float64(scale))
    if error < best[0]:
        best[0], best[1], best[2], best[3], best[4] = error, scale, offset, begin, end


@compiled
def _search(values: Floats, low: float, high: float, top: float, reach: float, zero_at: float, best: Any) -> None:
    """The same ranges in the same order as `_fit_reference.Search.run`."""
    best[0] = np.inf
    if reach == 0:
        for cut in range(0, (UNITS - COARSE) // 2 + 1, COARSE // 2):
            _consider(values, low, high, top, reach, zero_at, cut, UNITS - cut, best)
        begin = int(best[3])
        for end in range(UNITS, begin + COARSE - 1, -COARSE):
            _consider(values, low, high, top, reach, zero_at, begin, end, best)
        end = int(best[4])
        for begin in range(0, end - COARSE + 1, COARSE):
            _consider(values, low, high, top, reach, zero_at, begin, end, best)
    else:
        for end in range(UNITS, 0, -COARSE):
            _consider(values, low, high, top, reach, zero_at, 0, end, best)
    begin, end = int(best[3]), int(best[4])
    for to in range(end - FINE, end + FINE + 1):
        if to != end and begin < to <= UNITS:
            _consider(values, low, high, top, reach, zero_at, begin, to, best)
    begin, end = int(best[3]), int(best[4])
    if reach == 0:
        for start in range(begin - FINE, begin + FINE + 1):
            if start != begin and 0 <= start < end:
                _consider(values, low, high, top, reach, zero_at, start, end, best)


@compiled
def _fit(values: Floats, bits: int, grid: int, search: bool, scale: Floats, offset: Floats) -> int:
    top = float((1 << bits) - 1)
    best = np.zeros(5)
    for g in range(len(values)):
        row = values[g]
        low, high = row[0], row[0]
        for x in row:
            if not -MOST_VALUE <= x <= MOST_VALUE:
                return g
            low, high = min(low, x), max(high, x)
            if x == low and np.signbit(x):  # -0 comes before 0
                low = x
        least, most, reach, zero_at = np.float64(low), np.float64(high), 0.0, 0.0
        if grid == 0:
            scale[g], offset[g] = np.float32((most - least) / top), low
        else:
            most = max(abs(least), abs(most))
            reach = top / 2 if grid == 2 else float(max((1 << (bits - 1)) - 1, 1))
            zero_at = reach if grid == 2 else float(1 << (bits - 1))
            scale[g] = np.float32(most / reach)
            offset[g] = np.float32(0) if scale[g] == 0 else -(scale[g] * np.float32(zero_at))
        if search and scale[g] >= LEAST_SEARCHED:
            _search(row, least, most, top, reach, zero_at, best)
            scale[g], offset[g] = np.float32(best[1]), np.float32(best[2])
    return -1


def stream_of(rows: int, columns: int, bits: int, align_rows: bool) -> int:
    """How many codes share one bitstream."""
    return columns if align_rows and columns * bits % 8 else rows * columns


def pack(codes: Bytes, bits: int, packed: Bytes) -> int:
    """Write the bitstream of codes (n,); returns all codes or-ed together."""
    return int(_pack(codes, bits, packed))


def unpack(packed: Bytes, bits: int, codes: Bytes) -> None:
    """Write the codes (n,) which a bitstream begins with."""
    _unpack(packed, bits, codes)


def quantise(values: Floats, bits: int, *, scale: Floats, offset: Floats, align_rows: bool, packed: Bytes) -> None:
    """Write the bitstream of the codes of values (rows, columns), or one bitstream for each row."""
    if values.size:
        stream = stream_of(values.shape[0], values.shape[1], bits, align_rows)
        _quantise(values.reshape(-1), bits, scale, offset, values.size // len(scale), stream, packed)


def dequantise(
    packed: Bytes, bits: int, *, scale: Floats, offset: Floats, align_rows: bool, values: npt.NDArray[Any]
) -> None:
    """Write the values (rows, columns) of one bitstream, or of one bitstream for each row."""
    if not values.size:
        return
    wide = values if values.dtype == np.float32 else np.empty(values.shape, np.float32)
    stream = stream_of(values.shape[0], values.shape[1], bits, align_rows)
    _dequantise(packed, bits, scale, offset, values.size // len(scale), stream, wide.reshape(-1))
    if values.dtype == np.uint16:
        values[:] = _bits_reference.bfloat16_of(wide)
    elif wide is not values:
        with np.errstate(over="ignore"):
            values[:] = wide


def split(packed: Bytes, num_codes: int, bits: int, planes: Bytes) -> None:
    """Write the planes (bits * bytes,) of a bitstream, the most significant one first."""
    _split(packed, num_codes, bits, planes.reshape(bits, -1))


def merge(planes: Bytes, num_codes: int, bits: int, packed: Bytes) -> None:
    """Write the bitstream of the codes of so many planes."""
    _merge(planes.reshape(bits, -1), num_codes, bits, packed)


def fit(values: Floats, bits: int, *, grid: int, search: bool, scale: Floats, offset: Floats) -> int:
    """Write the scale and offset of every row of values; returns the first row with a bad number, or -1."""
    return int(_fit(values, bits, grid, search, scale, offset))
