"""A piece: one layer's quantised weight and its bias as bytes, addressed by their hash.

The layout stands in docs/spec/qpart-protocol.md.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from math import prod

import numpy as np
from edgekernels import packed_bytes

from qpart.errors import SegmentRejected
from qpart.network import Parameters
from qpart.ops import AnyOp, Shape
from qpart.quantiser import HALF, Floats, QuantisedWeight, dequantise_weight, quantise_weight
from qpart.tables import WIDTHS

_MAGIC = b"QPT1"
_HEAD = struct.Struct("<4sBBBB")
_BIAS, _ZERO = 1, 2
ID_BYTES = 16


def content_id(content: bytes) -> bytes:
    """The address of these bytes: blake2b of 16 bytes."""
    return blake2b(content, digest_size=ID_BYTES).digest()


def piece_bytes(shape: Shape, has_bias: bool, bits: int) -> int:
    """Exact size of the piece of a weight of this shape (output channels first) at this width."""
    num_codes = prod(shape)
    scales = 0 if bits == HALF else 2 * shape[0]
    codes = 2 * num_codes if bits == HALF else packed_bytes(num_codes, bits)
    return _HEAD.size + 4 * len(shape) + scales + scales % 4 + (4 * shape[0] if has_bias else 0) + codes


def encode_piece(parameters: Parameters, bits: int) -> bytes:
    """Quantise a layer's weight to this width and lay it out as a piece."""
    shape, bias = parameters.weight.shape, parameters.bias
    packed = quantise_weight(parameters.weight, bits)
    flags = (_BIAS if bias is not None else 0) | (_ZERO if packed.has_zero else 0)
    scales = packed.scale.astype("<f2").tobytes()
    return b"".join(
        (
            _HEAD.pack(_MAGIC, bits, flags, len(shape), 0),
            struct.pack(f"<{len(shape)}I", *shape),
            scales,
            bytes(len(scales) % 4),
            b"" if bias is None else bias.astype("<f4").tobytes(),
            packed.codes.tobytes(),
        )
    )


class Piece:
    """A checked piece; the weight stays packed until it is asked for.

    Args:
        content: bytes as received.
        op: the layer it is for.

    Raises:
        SegmentRejected: sizes, shape, width or numbers are not what the layer needs.
    """

    def __init__(self, content: bytes, op: AnyOp) -> None:
        shape = op.weight_shape
        assert shape is not None
        self._shape = shape
        offset = _HEAD.size + 4 * len(shape)
        if len(content) < offset:
            raise SegmentRejected(f"a piece of {len(content)} bytes has no header; fetch it again")
        magic, bits, flags, num_dims, reserved = _HEAD.unpack_from(content)
        known = magic == _MAGIC and bits in WIDTHS and flags <= (_BIAS | _ZERO) and reserved == 0
        if not known or num_dims != len(shape):
            raise SegmentRejected("a piece has an unknown header; check that device and server run the same version")
        dims = struct.unpack_from(f"<{num_dims}I", content, _HEAD.size)
        has_bias = bool(flags & _BIAS)
        if dims != shape or has_bias != op.has_bias or len(content) != piece_bytes(shape, has_bias, bits):
            raise SegmentRejected(
                f"a piece of {len(content)} bytes and shape {dims} does not fit a layer of shape {shape} at {bits} bits"
            )
        rows = shape[0]
        scale = np.frombuffer(content, "<f2", 0 if bits == HALF else rows, offset)
        offset += scale.nbytes + scale.nbytes % 4
        self.bias: Floats | None = None
        if has_bias:
            self.bias = np.frombuffer(content, "<f4", rows, offset).astype(np.float32)
            offset += 4 * rows
        codes = np.frombuffer(content, np.uint8, -1, offset)
        _check_numbers(scale, self.bias, codes if bits == HALF else None)
        self._packed = QuantisedWeight(bits, bool(flags & _ZERO), scale.astype(np.float16), codes)

    @property
    def bits(self) -> int:
        """Width of the weight's codes."""
        return self._packed.bits

    def parameters(self) -> Parameters:
        """The weight dequantised, and the bias; float32."""
        return Parameters(dequantise_weight(self._packed, self._shape), self.bias)


def _check_numbers(scale: np.ndarray, bias: Floats | None, halves: np.ndarray | None) -> None:
    good = bool(np.isfinite(scale).all() and (scale >= 0).all())
    good = good and (bias is None or bool(np.isfinite(bias).all()))
    good = good and (halves is None or bool(np.isfinite(halves.view("<f2")).all()))
    if not good:
        raise SegmentRejected("a piece holds numbers that are not finite, or negative scales; fetch it again")
