"""Bit planes: one bit of every code of a tensor, so that more bits can follow without sending the first ones again."""

from typing import Any

import numpy as np
import numpy.typing as npt

from edgekernels import _bits_checks, _checks, _select
from edgekernels._packing import packed_bytes
from edgekernels._quantise import Floats, Scales

Bytes = npt.NDArray[np.uint8]


def split_planes(packed: Bytes, num_codes: int, bits: int, *, out: Bytes | None = None) -> Bytes:
    """Bit planes of a bitstream, the most significant one first.

    The first k planes are a code of k bits: what remains of every code when its lower bits are dropped.

    Args:
        packed: uint8 (packed_bytes(num_codes, bits),), C-contiguous. Bits behind the last code are ignored.
        num_codes: 0 or more.
        bits: width of a code, 1 .. 8.
        out: uint8 of the returned shape to write and return instead of a new array.

    Returns:
        Planes uint8 (bits, packed_bytes(num_codes, 1)): row k has bit `bits - 1 - k` of code i at its bit i, counted
        as in `pack`. The bits behind the last code are 0.

    Raises:
        TypeError: an argument has another type or dtype.
        ValueError: an argument has another shape or is out of its range.

    >>> split_planes(np.array([0b11_10_01_00], np.uint8), 4, 2).tolist()  # codes 0, 1, 2, 3
    [[12], [10]]
    """
    packed = _checks.array("packed", packed, np.uint8, 1)
    wanted = packed_bytes(num_codes, bits)
    if len(packed) != wanted:
        raise ValueError(f"packed has {len(packed)} bytes; pass {wanted} for {num_codes} codes of {bits} bits")
    planes = _bits_checks.output("out", out, (bits, packed_bytes(num_codes, 1)), np.uint8, packed)
    _select.active_bits.split(packed, num_codes, bits, planes.reshape(-1))
    return planes


def merge_planes(planes: Bytes, num_codes: int, *, out: Bytes | None = None) -> Bytes:
    """Bitstream of the codes of some planes, the inverse of split_planes.

    Args:
        planes: uint8 (bits, packed_bytes(num_codes, 1)), C-contiguous, the most significant plane first; as many of
            them as are there, 1 .. 8. Bits behind the last code are ignored.
        num_codes: 0 or more.
        out: uint8 (packed_bytes(num_codes, bits),) to write and return instead of a new array.

    Returns:
        The bitstream uint8 (packed_bytes(num_codes, bits),) of codes of as many bits as there are planes.

    Raises:
        TypeError: an argument has another type or dtype.
        ValueError: an argument has another shape or is out of its range.

    >>> merge_planes(np.array([[12]], np.uint8), 4).tolist()  # the upper bits of 0, 1, 2, 3
    [12]
    """
    planes = _checks.array("planes", planes, np.uint8, 2)
    plane_bytes = packed_bytes(num_codes, 1)
    if not 1 <= len(planes) <= 8 or planes.shape[1] != plane_bytes:
        raise ValueError(f"planes has shape {planes.shape}; pass (1 .. 8, {plane_bytes}) for {num_codes} codes")
    bits = len(planes)
    packed = _bits_checks.output("out", out, (packed_bytes(num_codes, bits),), np.uint8, planes)
    _select.active_bits.merge(planes.reshape(-1), num_codes, bits, packed)
    return packed


def coarser(scale: Any, offset: Any, num_planes: int) -> Scales:
    """Scale and offset of codes whose lowest planes are left out.

    A code then stands for the middle of the codes which it may have been.

    Args:
        scale: float32 of any shape, of the whole codes.
        offset: likewise.
        num_planes: how many planes are left out, 0 .. 7.

    Returns:
        Scales for the codes which merge_planes makes of the other planes.

    Raises:
        TypeError: num_planes is not an integer.
        ValueError: num_planes is out of its range.

    >>> coarser(np.float32(1), np.float32(0), 1)  # 0, 1 | 2, 3 | ...: 0.5, 2.5, ...
    Scales(scale=np.float32(2.0), offset=np.float32(0.5))
    """
    step, shift = _steps(num_planes)
    return Scales(_product(scale, step), _sum(offset, _product(scale, shift)))


def finer(scale: Any, offset: Any, num_planes: int) -> Scales:
    """Scale and offset of codes with more planes, whose first planes are codes of the given scale: inverts coarser.

    Fitted to the width that is used first, planes are at their best there; those that follow only divide its steps.

    Args:
        scale: float32 of any shape, of the codes with fewer planes.
        offset: likewise.
        num_planes: how many planes are added, 0 .. 7.

    Returns:
        Scales for the whole codes.

    Raises:
        TypeError: num_planes is not an integer.
        ValueError: num_planes is out of its range.

    >>> finer(np.float32(2), np.float32(0.5), 1)
    Scales(scale=np.float32(1.0), offset=np.float32(0.0))
    """
    step, shift = _steps(num_planes)
    fine = _product(scale, 1 / step)
    return Scales(fine, _sum(offset, _product(fine, -shift)))


def _steps(num_planes: int) -> tuple[float, float]:
    """How many steps become one, and how far its middle is from the first of them."""
    step = 2.0 ** _bits_checks.integer("num_planes", num_planes, 0, 7)
    return step, (step - 1) / 2


def _product(numbers: Any, factor: float) -> Floats:
    product: Floats = np.asarray(numbers, np.float32) * np.float32(factor)
    return product


def _sum(left: Any, right: Any) -> Floats:
    total: Floats = np.asarray(left, np.float32) + right
    return total
