"""The quantiser that ships: nested low-bit codes for weights, one scale and offset for each activation.

The bitstream is that of docs/spec/kernels.md, the arithmetic that of docs/spec/qpart-protocol.md, so planner, device
and server mean the same numbers. What quantising does to the answer is measured, not assumed (`qpart.calibrate`).
"""

from __future__ import annotations

from hashlib import blake2b
from math import prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from edgekernels import dequantise, pack, packed_bytes, quantise, unpack

from qpart import nesting
from qpart.errors import UnsupportedModel
from qpart.nesting import NESTED, TOP, Chain
from qpart.ops.base import buffered

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

HALF = 16
"""The width that stands for float16, which needs neither scale nor offset."""
MOST = 1e30
"""Largest number of an activation, with room for sums in float32."""
_MAX_HALF = float(np.finfo(np.float16).max)
_BLOCK_ITEMS = 1 << 13  # dequantised at once: scratch stays small, and in a cache
_FEW_CODES = 1 << 14
"""Up to so many a table takes less time than the many calls without one."""
_LOOKED_UP = 1 << 10  # at once: numpy makes indices of 8 bytes
_KEPT_CHAINS = 2


class QuantisedWeight(NamedTuple):
    """Codes of a weight: value = scale[channel] * gain * grid(bend, bits)[code].

    Attributes:
        bits: 2 .. 8, or 16 for float16.
        bend: of the grid, see `qpart.nesting`; 0 for float16.
        gain: factor at this width; 1 for float16.
        scale: float16 (output channels,); empty for float16.
        codes: packed bytes, output channels in order without padding; float16 numbers as bytes.
    """

    bits: int
    bend: int
    gain: np.float16
    scale: npt.NDArray[np.float16]
    codes: Bytes


class Range(NamedTuple):
    """Where the codes of an activation lie: value = code * scale + offset.

    At 16 bits a scale of 0 stands for float16 numbers, another one for codes of 16 bits.
    """

    scale: float
    offset: float


def nested_code(weight: Floats) -> Chain:
    """The 8-bit code of a weight (output channels, ...), of which every width below is the first bits.

    The last ones made are kept, since whoever asks for one width of a weight mostly asks for all.

    Raises:
        UnsupportedModel: numbers too large for float16 scales.
    """
    rows = np.ascontiguousarray(weight, np.float32).reshape(weight.shape[0], -1)
    key = blake2b(rows.data, digest_size=16, salt=len(rows).to_bytes(8, "little")).digest()
    if key not in _kept:
        made = nesting.nest(rows)
        while len(_kept) >= _KEPT_CHAINS:
            _kept.pop(next(iter(_kept)), None)
        _kept[key] = made
        return made
    return _kept[key]


_kept: dict[bytes, Chain] = {}


def quantise_weight(weight: Floats, bits: int) -> QuantisedWeight:
    """Codes of a weight (output channels, ...) at this width: the first bits of its nested code, or float16.

    Raises:
        UnsupportedModel: numbers too large for float16, or for float16 scales.
    """
    if bits == HALF:
        rows = np.ascontiguousarray(weight, np.float32)
        if np.abs(rows).max(initial=0) > _MAX_HALF:
            raise UnsupportedModel(f"a weight of {np.abs(rows).max()} does not fit float16; rescale the layer")
        return QuantisedWeight(bits, 0, np.float16(1), np.empty(0, np.float16), _as_bytes(rows.astype(np.float16)))
    chain = nested_code(weight)
    gain, codes = chain.gain[NESTED.index(bits)], np.right_shift(chain.codes.reshape(-1), TOP - bits, dtype=np.uint8)
    return QuantisedWeight(bits, chain.bend, gain, chain.scale, pack(codes, bits))


def dequantise_weight(packed: QuantisedWeight, shape: tuple[int, ...]) -> Floats:
    """The weight which codes stand for, float32 of `shape`: scale times gain, which is exact, times the grid."""
    if packed.bits == HALF:
        return packed.codes.view(np.float16).astype(np.float32).reshape(shape)
    num_codes, bend = prod(shape), np.float32(packed.bend / 16)
    factor = (packed.scale.astype(np.float32) * np.float32(packed.gain))[:, None]
    if num_codes <= _FEW_CODES:
        table, codes = nesting.grid(packed.bend, packed.bits), unpack(packed.codes, num_codes, packed.bits)
        few = np.empty(num_codes, np.float32)
        for start in range(0, num_codes, _LOOKED_UP):
            part = slice(start, start + _LOOKED_UP)
            table.take(codes[part], out=few[part], mode="clip")  # with "raise" numpy would copy; no code is too large
        del codes
        by_channel = few.reshape(shape[0], -1)
        by_channel *= factor
        return few.reshape(shape)
    first, step = np.array([2.0**-packed.bits - 1], np.float32), np.array([2.0 ** (1 - packed.bits)], np.float32)
    rows = dequantise(packed.codes, packed.bits, scale=step, offset=first, columns=num_codes).reshape(shape[0], -1)
    at_once = max(1, _BLOCK_ITEMS // rows.shape[1])
    scratch = np.empty((min(at_once, len(rows)), rows.shape[1]), np.float32)
    for start in range(0, len(rows), at_once):
        some, bent = rows[start : start + at_once], scratch[: len(rows) - start]
        np.multiply(
            some, some, out=bent
        )  # up to here and for the next two all is exact: `nesting.grid` without a table
        bent *= bend
        bent += 1 - bend
        some *= bent
        bent[...] = factor[start : start + at_once]  # spread out here: numpy would buffer a product with a column
        some *= bent
    return rows.reshape(shape)


def dequantise_items(shape: tuple[int, ...]) -> int:
    """Float32 numbers that `dequantise_weight` holds besides its result, at most."""
    num_codes, columns = prod(shape), prod(shape[1:])
    if num_codes <= _FEW_CODES:
        looking_up = -(-num_codes // 4) + 2 * min(num_codes, _LOOKED_UP)
        return max(looking_up, buffered(num_codes)) + 2 * shape[0]
    return min(num_codes, max(_BLOCK_ITEMS, columns)) + 2 * shape[0]


def activation_bytes(items: int, bits: int) -> int:
    """Bytes of one sample's activation on the wire."""
    return 2 * items if bits == HALF else packed_bytes(items, bits)


def quantise_activation(values: Floats, bits: int, found: Range) -> npt.NDArray[np.uint8] | npt.NDArray[np.float16]:
    """Activation (batch, ...) as it travels: uint8 (batch, bytes), or float16 (batch, items).

    Codes of 16 bits travel in the place of float16 numbers.
    """
    rows = np.ascontiguousarray(values, np.float32).reshape(len(values), -1)
    if bits == HALF and found.scale:
        codes = rows - np.float32(found.offset)
        codes /= np.float32(found.scale)
        np.clip(np.rint(codes, out=codes), 0, (1 << HALF) - 1, out=codes)
        carried: npt.NDArray[np.float16] = codes.astype("<u2").view("<f2")
        return carried
    if bits == HALF:
        return np.clip(rows, -_MAX_HALF, _MAX_HALF).astype(np.float16)
    return quantise(rows, bits, scale=found.scale, offset=found.offset, align_rows=True)


def dequantise_activation(
    packed: npt.NDArray[np.uint8] | npt.NDArray[np.float16], bits: int, found: Range, shape: tuple[int, ...]
) -> Floats:
    """What arrived, as float32 (batch, *shape)."""
    if bits == HALF and found.scale:
        codes = np.ascontiguousarray(packed, "<f2").view("<u2").astype(np.float32)
        return (codes * np.float32(found.scale) + np.float32(found.offset)).reshape(len(packed), *shape)
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
