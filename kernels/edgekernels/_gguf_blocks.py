"""Block layouts of GGUF tensors: from bytes to exact codes and scales.

Every quantised type is one layout (a numpy dtype of one block) and one function, which spreads the codes of many blocks
over an array and gives their scales. A value is (code - zero) * scale, or code * scale + offset where the type stores
minima. Masks and shifts work on eight codes at a time, as uint64.

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
# codes (blocks, values of a block) to fill, blocks -> scale (blocks, groups of a block), offset likewise or None
Unpack = Callable[[Bytes, Blocks], tuple[Floats, Floats | None]]


@dataclass(frozen=True, slots=True)
class BlockType:
    """A quantised type: `zero` is the code of value 0 where no offsets are stored."""

    name: str
    layout: np.dtype[Any]
    values: int
    group: int
    bits: int
    unpack: Unpack
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


def _q4_0(codes: Bytes, blocks: Blocks) -> tuple[Floats, None]:
    _spread(_words(blocks, "codes"), codes, 16, 4)
    return _f32(blocks, "scale"), None


def _q4_1(codes: Bytes, blocks: Blocks) -> tuple[Floats, Floats]:
    _spread(_words(blocks, "codes"), codes, 16, 4)
    return _f32(blocks, "scale"), _f32(blocks, "offset")


def _q8_0(codes: Bytes, blocks: Blocks) -> tuple[Floats, None]:
    np.bitwise_xor(_words(blocks, "codes"), np.uint64(0x8080808080808080), out=codes.view(np.uint64))
    return _f32(blocks, "scale"), None


def _layout(*fields: tuple[str, str]) -> np.dtype[Any]:
    return np.dtype(list(fields))


_SCALE, _OFFSET = ("scale", "<f2"), ("offset", "<f2")
BLOCK_TYPES = {
    2: BlockType("Q4_0", _layout(_SCALE, ("codes", "V16")), 32, 32, 4, _q4_0, zero=8),
    3: BlockType("Q4_1", _layout(_SCALE, _OFFSET, ("codes", "V16")), 32, 32, 4, _q4_1),
    8: BlockType("Q8_0", _layout(_SCALE, ("codes", "V32")), 32, 32, 8, _q8_0, zero=128),
}
BY_NAME = {kind.name: kind for kind in BLOCK_TYPES.values()}
