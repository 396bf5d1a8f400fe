"""The quantiser that ships: low-bit codes with one scale per output channel, or one scale and offset per activation.

Arithmetic and bitstream are those of docs/spec/kernels.md, so planner, device and server mean the same numbers.
Clipping is chosen for the least squared error; what that does to the answer is measured, not assumed
(`qpart.calibrate`).
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from edgekernels import dequantise, packed_bytes, quantise

from qpart.errors import UnsupportedModel

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

HALF = 16
"""The width that stands for float16, which needs neither scale nor offset."""
_SHARES = np.geomspace(0.2, 1.0, 28)
MOST = 1e30
"""Largest number of an activation, with room for sums in float32."""
_MAX_HALF = float(np.finfo(np.float16).max)


class QuantisedWeight(NamedTuple):
    """Codes of a weight.

    Attributes:
        bits: 2 .. 8, or 16 for float16.
        has_zero: whether a code stands for 0 exactly; otherwise the codes lie evenly around it.
        scale: float16 (output channels,); empty for float16.
        codes: packed bytes, output channels in order without padding; float16 numbers as bytes.
    """

    bits: int
    has_zero: bool
    scale: npt.NDArray[np.float16]
    codes: Bytes


class Range(NamedTuple):
    """Where the codes of an activation lie: value = code * scale + offset."""

    scale: float
    offset: float


def offsets(bits: int, has_zero: bool, scale: npt.NDArray[np.float16]) -> Floats:
    """Value of code 0 for every channel, exact in float32."""
    steps = 2 ** (bits - 1) if has_zero else (2**bits - 1) / 2
    return -scale.astype(np.float32) * np.float32(steps)


def quantise_weight(weight: Floats, bits: int) -> QuantisedWeight:
    """Codes of a weight (output channels, ...) at this width.

    Every channel gets the scale of least squared error; the tensor as a whole gets the better of two grids, one with
    a zero and one without (which at 2 bits is worth having, because it is symmetric).

    Raises:
        UnsupportedModel: numbers too large for float16 scales.
    """
    rows = np.ascontiguousarray(weight, np.float32).reshape(weight.shape[0], -1)
    if bits == HALF:
        if np.abs(rows).max(initial=0) > _MAX_HALF:
            raise UnsupportedModel(f"a weight of {np.abs(rows).max()} does not fit float16; rescale the layer")
        return QuantisedWeight(bits, True, np.empty(0, np.float16), _as_bytes(rows.astype(np.float16)))
    _, has_zero, scale = min((_best_scales(rows, bits, grid) for grid in (True, False)), key=lambda found: found[0])
    offset = offsets(bits, has_zero, scale)
    return QuantisedWeight(bits, has_zero, scale, quantise(rows, bits, scale=scale.astype(np.float32), offset=offset))


def dequantise_weight(packed: QuantisedWeight, shape: tuple[int, ...]) -> Floats:
    """The weight which codes stand for, float32 of `shape`."""
    if packed.bits == HALF:
        return packed.codes.view(np.float16).astype(np.float32).reshape(shape)
    columns = prod(shape[1:])
    scale, offset = packed.scale.astype(np.float32), offsets(packed.bits, packed.has_zero, packed.scale)
    return dequantise(packed.codes, packed.bits, scale=scale, offset=offset, columns=columns).reshape(shape)


def _best_scales(rows: Floats, bits: int, has_zero: bool) -> tuple[float, bool, npt.NDArray[np.float16]]:
    """Least squared error over a grid of clipping shares, channel by channel."""
    most = np.abs(rows).max(axis=1)
    reach = 2 ** (bits - 1) - (1 if has_zero else 0.5)
    least = np.full(len(rows), np.inf)
    best = np.zeros(len(rows), np.float16)
    for share in _SHARES:
        with np.errstate(over="ignore"):
            scale = (share * most / reach).astype(np.float16)
        if not np.isfinite(scale).all():
            raise UnsupportedModel(f"a weight of {most.max()} is too large for a float16 scale; rescale the layer")
        error = _squared_error(rows, bits, scale, offsets(bits, has_zero, scale))
        better = error < least
        least[better], best[better] = error[better], scale[better]
    return float(least.sum()), has_zero, best


def _squared_error(rows: Floats, bits: int, scale: npt.NDArray[np.float16], offset: Floats) -> npt.NDArray[np.float64]:
    """Squared error of every row; the arithmetic is the kernels', without packing."""
    wide, low = scale.astype(np.float32)[:, None], offset[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.nan_to_num(np.rint((rows - low) / wide))
    np.clip(codes, 0, 2**bits - 1, out=codes)
    difference = np.where(wide > 0, codes * wide + low, 0) - rows
    error: npt.NDArray[np.float64] = np.square(difference, dtype=np.float64).sum(axis=1)
    return error


def fit_range(sample: Floats, bits: int) -> Range:
    """Range of least squared error for an activation, from a sample of its values (any shape).

    What is never negative may keep 0 as its lowest value, and does so where 0 occurs (after a ReLU).

    Raises:
        UnsupportedModel: numbers that are not finite, or too large.
    """
    if bits == HALF:
        return Range(0.0, 0.0)
    numbers = np.ascontiguousarray(sample, np.float32).reshape(1, -1)
    low, high = float(numbers.min()), float(numbers.max())
    if not (np.isfinite(low) and np.isfinite(high) and high - low < MOST):
        raise UnsupportedModel(f"an activation goes from {low} to {high}; check the inputs, or rescale the model")
    if high == low:
        return Range(0.0, low)
    best, least = Range(0.0, 0.0), np.inf
    for share in _SHARES:
        for bottom in (0.0, low) if low >= 0 else (low, low * share):
            top = high * share if high > 0 else high
            if top <= bottom:
                continue
            found = Range(float(np.float32((top - bottom) / (2**bits - 1))), float(np.float32(bottom)))
            error = float(np.square(_round_trip(numbers, bits, found) - numbers, dtype=np.float64).sum())
            if error < least:
                best, least = found, error
    return best


def _round_trip(numbers: Floats, bits: int, found: Range) -> Floats:
    codes = quantise(numbers, bits, scale=found.scale, offset=found.offset)
    return dequantise(codes, bits, scale=found.scale, offset=found.offset, columns=numbers.shape[1])


def activation_bytes(items: int, bits: int) -> int:
    """Bytes of one sample's activation on the wire."""
    return 2 * items if bits == HALF else packed_bytes(items, bits)


def quantise_activation(values: Floats, bits: int, found: Range) -> npt.NDArray[np.uint8] | npt.NDArray[np.float16]:
    """Activation (batch, ...) as it travels: uint8 (batch, bytes), or float16 (batch, items)."""
    rows = np.ascontiguousarray(values, np.float32).reshape(len(values), -1)
    if bits == HALF:
        return np.clip(rows, -_MAX_HALF, _MAX_HALF).astype(np.float16)
    return quantise(rows, bits, scale=found.scale, offset=found.offset, align_rows=True)


def dequantise_activation(
    packed: npt.NDArray[np.uint8] | npt.NDArray[np.float16], bits: int, found: Range, shape: tuple[int, ...]
) -> Floats:
    """What arrived, as float32 (batch, *shape)."""
    if bits == HALF:
        return packed.astype(np.float32).reshape(len(packed), *shape)
    rows = dequantise(
        np.ascontiguousarray(packed, np.uint8),
        bits,
        scale=found.scale,
        offset=found.offset,
        columns=prod(shape),
        align_rows=True,
    )
    return rows.reshape(len(packed), *shape)


def _as_bytes(values: npt.NDArray[np.float16]) -> Bytes:
    return np.frombuffer(values.astype("<f2").tobytes(), np.uint8)
