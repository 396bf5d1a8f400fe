"""Pieces: one layer's weight and bias as increments, each addressed by its hash.

A layer's first piece has everything and the highest bit planes of its codes, each further one has some planes more.
The layout stands in docs/spec/qpart-protocol.md.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b
from math import prod
from typing import NamedTuple

import numpy as np
from edgekernels import merge_planes, packed_bytes, split_planes

from edgebus.blobs.manifest import manifest_of
from qpart.errors import SegmentRejected
from qpart.matrices import LinearWeight, is_matrix
from qpart.nesting import MAX_BEND, NESTED, TOP
from qpart.network import Parameters
from qpart.ops import AnyOp, Shape
from qpart.quantiser import HALF, Bytes, Floats, QuantisedWeight, dequantise_weight, nested_code, quantise_weight
from qpart.tables import WIDTHS

Data = bytes | memoryview
_HEAD = struct.Struct("<4B")  # magic, first and last width that it serves, bend or tag
_MAGIC = 0xB2
_MOST_GAIN = 4.0
ID_BYTES = 16
ADDRESS_BYTES = 32
LEAST_PLANE_BYTES = 512
"""Of the planes in one piece: below, an address for each would be more than a few percent of the payload."""


class Step(NamedTuple):
    """A piece of a layer: it takes the widths from `first` to `last` to serve, those below it presupposed."""

    first: int
    last: int

    @property
    def num_planes(self) -> int:
        """How many planes of codes are in it; the first piece has those of 2 bits at least."""
        return self.last if self.first == NESTED[0] else self.last - self.first + 1


def content_id(content: bytes) -> bytes:
    """A hash of these bytes: blake2b of 16 bytes."""
    return blake2b(content, digest_size=ID_BYTES).digest()


def address_of(content: Data) -> bytes:
    """The address of a piece, which is that of a blob with the default chunk size (docs/spec/bus-blobs.md)."""
    return manifest_of(content).blob_id.raw


def ladder(num_codes: int) -> tuple[Step, ...]:
    """The pieces of a layer up to 8 bits: a plane each where planes are large, several where they are small.

    >>> ladder(1500)
    (Step(first=2, last=4), Step(first=5, last=8))
    """
    together = next((k for k in (1, 2, 4) if k * packed_bytes(num_codes, 1) >= LEAST_PLANE_BYTES), TOP)
    lasts = range(max(2, together), TOP + 1, together)
    return tuple(Step(max(2, last - together + 1), last) for last in lasts)


def steps_to(num_codes: int, bits: int) -> tuple[Step, ...]:
    """The pieces that a layer of this width needs, in order."""
    if bits == HALF:
        return (Step(HALF, HALF),)
    return tuple(step for step in ladder(num_codes) if step.first <= bits)


def step_bytes(shape: Shape, has_bias: bool, step: Step) -> int:
    """Exact size of a piece of a weight of this shape, output channels first."""
    bias = 4 * shape[0] if has_bias else 0
    if step.first == HALF:
        return _HEAD.size + bias + 2 * prod(shape)
    gains = 2 * (step.last - step.first + 1)
    first = 2 * shape[0] + bias if step.first == NESTED[0] else 0
    return _HEAD.size + gains + first + step.num_planes * packed_bytes(prod(shape), 1)


def encode_pieces(parameters: Parameters) -> tuple[bytes, ...]:
    """Every piece of a layer at the place of the first of `WIDTHS` that needs it; empty at the others."""
    weight, bias = parameters
    chain, num_codes = nested_code(weight), weight.size
    packed = np.ascontiguousarray(chain.codes.reshape(-1))
    planes = split_planes(packed, num_codes, TOP)  # of 8 bits, codes are bytes
    gains, of_bias = chain.gain.astype("<f2"), b"" if bias is None else bias.astype("<f4").tobytes()
    found = dict.fromkeys(WIDTHS, b"")
    tag = 0
    for step in ladder(num_codes):
        is_first = step.first == NESTED[0]
        found[step.first] = b"".join(
            (
                _HEAD.pack(_MAGIC, step.first, step.last, chain.bend if is_first else tag),
                gains[NESTED.index(step.first) : NESTED.index(step.last) + 1].tobytes(),
                chain.scale.astype("<f2").tobytes() + of_bias if is_first else b"",
                planes[step.last - step.num_planes : step.last].tobytes(),
            )
        )
        tag = tag if not is_first else _tag(found[step.first])
    halves = quantise_weight(weight, HALF).codes.tobytes()
    found[HALF] = _HEAD.pack(_MAGIC, HALF, HALF, 0) + of_bias + halves
    return tuple(found.values())


def addresses_of(pieces: Sequence[bytes]) -> tuple[bytes, ...]:
    """Their addresses; empty where there is none."""
    return tuple(address_of(piece) if piece else b"" for piece in pieces)


class Layer:
    """A layer put together from its pieces, checked; the weight stays packed until it is asked for.

    Args:
        contents: the pieces as received, those of `steps_to` in order.
        op: the layer they are for.
        bits: the width that is wanted.

    Attributes:
        bits: width of the weight's codes.
        bias: float32 (output channels,), or None.

    Raises:
        SegmentRejected: pieces are missing, in another order or of another layer, or their sizes, shapes or numbers
            are not what the layer needs.
    """

    def __init__(self, contents: Sequence[Data], op: AnyOp, bits: int) -> None:
        shape = op.weight_shape
        assert shape is not None
        self._shape = shape
        self.bias: Floats | None = None
        steps = steps_to(prod(shape), bits)
        if len(contents) != len(steps):
            raise SegmentRejected(f"{len(contents)} pieces came for a layer that takes {len(steps)} at {bits} bits")
        for content, step in zip(contents, steps, strict=True):
            _check_head(content, step, step_bytes(shape, op.has_bias, step), shape)
        at = _HEAD.size
        scale, gain, bend = np.empty(0, np.float16), np.float16(1), 0
        if bits != HALF:
            bend = contents[0][3]
            gain = _gain(contents[-1], steps[-1], bits)
            at += 2 * (steps[0].last - steps[0].first + 1)
            scale = np.frombuffer(contents[0], "<f2", shape[0], at).astype(np.float16)
            at += 2 * shape[0]
        if op.has_bias:
            self.bias = np.frombuffer(contents[0], "<f4", shape[0], at).astype(np.float32)
            at += 4 * shape[0]
        if bits == HALF:
            codes = np.frombuffer(contents[0], np.uint8, -1, at)
        else:
            codes = _merged(contents, steps, prod(shape), bits, at)
        _check_numbers(scale, self.bias, gain, codes if bits == HALF else None)
        if bits != HALF and (bend > MAX_BEND or any(content[3] != _tag(contents[0]) for content in contents[1:])):
            raise SegmentRejected("a piece belongs to another layer, or has an unknown grid; ask for a plan again")
        packed = QuantisedWeight(bits, bend, gain, scale, codes)
        self.bits = bits
        self._weight = (LinearWeight.of(packed, shape) if is_matrix(op) else None) or packed

    @property
    def held_bytes(self) -> int:
        """What it holds in memory, packed."""
        weight = self._weight
        held = weight.num_bytes if isinstance(weight, LinearWeight) else weight.codes.nbytes + weight.scale.nbytes
        return held + (0 if self.bias is None else self.bias.nbytes)

    def parameters(self) -> Parameters:
        """The weight dequantised, and the bias; float32."""
        weight = self._weight
        if isinstance(weight, LinearWeight):
            return Parameters(weight.dequantised().reshape(self._shape), self.bias)
        return Parameters(dequantise_weight(weight, self._shape), self.bias)

    def product(self, x: Floats) -> Floats | None:
        """x (tokens, in) times the weight as it is packed, and the bias; a convolution's tokens are its windows.

        None where the layer is not held so, or there are too many tokens for that to pay.
        """
        return self._weight.product(x, self.bias) if isinstance(self._weight, LinearWeight) else None


def _tag(first: Data) -> int:
    """One byte of the first piece's hash: the others repeat it, so that chains are not mixed by mistake."""
    return blake2b(first, digest_size=1).digest()[0]


def _check_head(content: Data, step: Step, size: int, shape: Shape) -> None:
    if len(content) != size:
        raise SegmentRejected(
            f"a piece of {len(content)} bytes does not fit a layer of shape {shape}, which needs {size}; fetch it again"
        )
    if tuple(content[:3]) != (_MAGIC, *step) or (step.first == HALF and content[3]):
        raise SegmentRejected(
            f"a piece has an unknown header, or is for other widths than {step.first} to {step.last}; "
            "check that device and server run the same version"
        )


def _gain(content: Data, step: Step, bits: int) -> np.float16:
    return np.float16(np.frombuffer(content, "<f2", 1, _HEAD.size + 2 * (bits - step.first))[0])


def _merged(contents: Sequence[Data], steps: Sequence[Step], num_codes: int, bits: int, at: int) -> Bytes:
    """Codes of so many bits; besides the pieces it needs their planes once more, and the codes."""
    plane_bytes = packed_bytes(num_codes, 1)
    planes, done = np.empty((bits, plane_bytes), np.uint8), 0
    for content, step in zip(contents, steps, strict=True):
        begin = at if done == 0 else _HEAD.size + 2 * (step.last - step.first + 1)
        count = min(step.num_planes, bits - done)
        planes[done : done + count] = np.frombuffer(content, np.uint8, count * plane_bytes, begin).reshape(count, -1)
        done += count
    return merge_planes(planes, num_codes)


def _check_numbers(scale: np.ndarray, bias: Floats | None, gain: np.float16, halves: np.ndarray | None) -> None:
    numbers = [scale] if bias is None else [scale, bias]
    numbers += [] if halves is None else [halves.view("<f2")]
    if not all(np.isfinite(some).all() for some in numbers) or (scale < 0).any() or not 0 <= gain <= _MOST_GAIN:
        raise SegmentRejected("a piece holds numbers that are not finite, or negative scales; fetch it again")
