"""Block layouts of GGUF tensors: from bytes to exact codes and scales.

Every quantised type is one layout (a numpy dtype of one block) and two functions: one spreads the codes of many blocks
over an array, one gives their scales and offsets. A value is (code - zero) * scale, or code * scale + offset where the
type stores minima. Masks and shifts work on eight codes at a time, as uint64.

Source: ggml's block structures (ggml-common.h) as described for gguf in docs/gguf.md; the order of codes within a block
and of operations in float32 is that of the `gguf` package's dequantisation, so the floats agree to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekernels._mapped import Bytes, Floats

Blocks = NDArray[np.void]
Words = NDArray[np.uint64]
Factors = NDArray[Any]  # float32 or float16
# codes (blocks, values of a block) to fill, blocks
Spread = Callable[[Bytes, Blocks], None]
# blocks -> scale (blocks, groups of a block), offset likewise or None; float16 where the file has just these
Factorise = Callable[[Blocks], tuple[Factors, Factors | None]]


@dataclass(frozen=True, slots=True)
class BlockType:
    """A quantised type: `zero` is the code of value 0 where no offsets are stored."""

    name: str
    layout: np.dtype[Any]
    values: int
    group: int
    bits: int
    spread: Spread
    factors: Factorise
    zero: int = 0


def _words(blocks: Blocks, field: str) -> Words:
    """A field's bytes as (blocks, bytes / 8) uint64, contiguous."""
    return np.ascontiguousarray(blocks[field]).view(np.uint64).reshape(len(blocks), -1)


def _f32(blocks: Blocks, field: str) -> Floats:
    """A float16 field as (blocks, 1) float32."""
    return blocks[field].astype(np.float32)[:, None]


def _parts(codes: Bytes, size: int) -> NDArray[np.void]:
    """The codes as (blocks, parts) of `size` bytes each, which are copied as one."""
    return codes.view(np.dtype((np.void, size)))


def _spread(words: Words, codes: Bytes, part: int, bits: int) -> None:
    """Split bytes into 8 / bits fields, lowest first; each field of a run of `part` bytes becomes a run of codes.

    A block's bytes are runs of `part`; run r's field f goes to codes [(r * fields + f) * part, ... + part).
    """
    fields, (num_blocks, _) = 8 // bits, words.shape
    mask = np.uint64(0x0101010101010101 * ((1 << bits) - 1))
    out = _parts(codes, part).reshape(num_blocks, -1, fields)
    for field in range(fields):
        run = words & mask if field == 0 else (words >> np.uint64(bits * field)) & mask
        out[:, :, field] = run.view(np.uint8).view(np.dtype((np.void, part)))


def _stored(blocks: Blocks) -> tuple[Factors, Factors | None]:
    """Scale and offset of types that have one of each for a block."""
    offset = blocks["offset"][:, None] if "offset" in (blocks.dtype.names or ()) else None
    return blocks["scale"][:, None], offset


def _q4(codes: Bytes, blocks: Blocks) -> None:
    _spread(_words(blocks, "codes"), codes, 16, 4)


def _q8(codes: Bytes, blocks: Blocks) -> None:
    np.bitwise_xor(_words(blocks, "codes"), np.uint64(0x8080808080808080), out=codes.view(np.uint64))


def _raise_by(codes: Bytes, high: Bytes, bits: int) -> None:
    """Put `high` above the lower `bits` bits of the codes."""
    words = codes.view(np.uint64)
    words |= high.view(np.uint64) << np.uint64(bits)


def _q5(codes: Bytes, blocks: Blocks) -> None:
    """Bit i of a block's 32-bit mask lies above the four bits of code i."""
    _q4(codes, blocks)
    mask = np.ascontiguousarray(blocks["high"]).view(np.uint8).reshape(-1, 4)
    _raise_by(codes, np.unpackbits(mask, axis=1, bitorder="little"), 4)


def _six_bits(blocks: Blocks) -> tuple[Bytes, Bytes]:
    """Scales and minima of Q4_K and Q5_K, (blocks, 8) each: 12 bytes hold 2 x 8 numbers of six bits.

    Bytes 0-3 and 4-7 are the first four scales and minima and, in their upper two bits, those of the other four, whose
    lower four bits lie in bytes 8-11, scale below minimum.
    """
    raw = np.ascontiguousarray(blocks["scales"]).view(np.uint8).reshape(-1, 3, 4)
    first, second, low = raw[:, 0], raw[:, 1], raw[:, 2]
    scale = np.concatenate([first & 63, (low & 15) | (first >> 2 & 48)], axis=1)
    minimum = np.concatenate([second & 63, (low >> 4) | (second >> 2 & 48)], axis=1)
    return scale, minimum


def _factors_k(blocks: Blocks) -> tuple[Floats, Floats]:
    scale, minimum = _six_bits(blocks)
    return _f32(blocks, "scale") * scale, -(_f32(blocks, "offset") * minimum)


def _q4_k(codes: Bytes, blocks: Blocks) -> None:
    _spread(_words(blocks, "codes"), codes, 32, 4)


def _q5_k(codes: Bytes, blocks: Blocks) -> None:
    _q4_k(codes, blocks)
    high = np.empty_like(codes)
    _spread(_words(blocks, "high"), high, 32, 1)
    _raise_by(codes, high, 4)


def _q6_k(codes: Bytes, blocks: Blocks) -> None:
    _spread(_words(blocks, "codes"), codes, 64, 4)
    high = np.empty_like(codes)
    _spread(_words(blocks, "high"), high, 32, 2)
    _raise_by(codes, high, 4)


def _factors_q6_k(blocks: Blocks) -> tuple[Floats, None]:
    scale = np.ascontiguousarray(blocks["scales"]).view(np.int8).reshape(-1, 16)
    return _f32(blocks, "scale") * scale, None


def _q2_k(codes: Bytes, blocks: Blocks) -> None:
    _spread(_words(blocks, "codes"), codes, 32, 2)


def _factors_q2_k(blocks: Blocks) -> tuple[Floats, Floats]:
    both = np.ascontiguousarray(blocks["scales"]).view(np.uint8).reshape(-1, 16)
    return _f32(blocks, "scale") * (both & 15), -(_f32(blocks, "offset") * (both >> 4))


def _q3_k(codes: Bytes, blocks: Blocks) -> None:
    _q2_k(codes, blocks)
    high = np.empty_like(codes)
    _spread(_words(blocks, "high"), high, 32, 1)
    _raise_by(codes, high, 2)


def _factors_q3_k(blocks: Blocks) -> tuple[Floats, None]:
    """16 scales of six bits, 32 too high: lower four in the nibbles of bytes 0-7, upper two in bytes 8-11."""
    raw = np.ascontiguousarray(blocks["scales"]).view(np.uint8).reshape(-1, 12)
    low, upper = raw[:, :8], raw[:, 8:]
    scale = np.concatenate([low & 15, low >> 4], axis=1)
    scale |= np.concatenate([(upper >> shift & 3) << 4 for shift in (0, 2, 4, 6)], axis=1)
    return _f32(blocks, "scale") * (scale.view(np.int8) - np.int8(32)), None


def _layout(*fields: tuple[str, str]) -> np.dtype[Any]:
    return np.dtype(list(fields))


_SCALE, _OFFSET = ("scale", "<f2"), ("offset", "<f2")
_SCALES12, _SCALES16 = ("scales", "V12"), ("scales", "V16")
_CODES16, _CODES32, _CODES64, _CODES128 = (("codes", f"V{size}") for size in (16, 32, 64, 128))
_HIGH4, _HIGH32, _HIGH64 = (("high", f"V{size}") for size in (4, 32, 64))
BLOCK_TYPES = {
    2: BlockType("Q4_0", _layout(_SCALE, _CODES16), 32, 32, 4, _q4, _stored, zero=8),
    3: BlockType("Q4_1", _layout(_SCALE, _OFFSET, _CODES16), 32, 32, 4, _q4, _stored),
    6: BlockType("Q5_0", _layout(_SCALE, _HIGH4, _CODES16), 32, 32, 5, _q5, _stored, zero=16),
    7: BlockType("Q5_1", _layout(_SCALE, _OFFSET, _HIGH4, _CODES16), 32, 32, 5, _q5, _stored),
    8: BlockType("Q8_0", _layout(_SCALE, _CODES32), 32, 32, 8, _q8, _stored, zero=128),
    10: BlockType("Q2_K", _layout(_SCALES16, _CODES64, _SCALE, _OFFSET), 256, 16, 2, _q2_k, _factors_q2_k),
    11: BlockType("Q3_K", _layout(_HIGH32, _CODES64, _SCALES12, _SCALE), 256, 16, 3, _q3_k, _factors_q3_k, zero=4),
    12: BlockType("Q4_K", _layout(_SCALE, _OFFSET, _SCALES12, _CODES128), 256, 32, 4, _q4_k, _factors_k),
    13: BlockType("Q5_K", _layout(_SCALE, _OFFSET, _SCALES12, _HIGH32, _CODES128), 256, 32, 5, _q5_k, _factors_k),
    14: BlockType("Q6_K", _layout(_CODES128, _HIGH64, _SCALES16, _SCALE), 256, 16, 6, _q6_k, _factors_q6_k, zero=32),
}
BY_NAME = {kind.name: kind for kind in BLOCK_TYPES.values()}
