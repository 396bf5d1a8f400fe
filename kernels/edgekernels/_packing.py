"""Low-bit codes: packing and unpacking, over whichever backend is in use."""

import numpy as np
import numpy.typing as npt

from edgekernels import _bits_checks, _checks, _select

Bytes = npt.NDArray[np.uint8]


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
