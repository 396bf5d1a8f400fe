"""Read a GGUF model file with numpy alone: metadata, tensors dequantised to float32, or their exact codes and scales.

The file is mapped, not read: only the tensors asked for are touched. Everything in it is checked against the
file's size before it is used, so a truncated or hostile file ends in `GgufError`, not in a crash.

Source: the GGUF specification (ggml project, docs/gguf.md), version 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from edgekernels._gguf_blocks import BY_NAME, BlockType, Factors
from edgekernels._gguf_header import GgufError, parse
from edgekernels._mapped import Bytes, Floats, MappedFile, TensorInfo, bf16, f16, f32

__all__ = ["Codes", "GgufError", "GgufFile", "TensorInfo"]

_FLOATS = {"F32": f32, "F16": f16, "BF16": bf16}
_CHUNK_VALUES = 1 << 18  # worked on at a time, so that what lies between bytes and result stays in cache


@dataclass(frozen=True, slots=True)
class Codes:
    """A quantised tensor as the file holds it: value = code * scale + offset, group by group along a row.

    codes (rows, columns) uint8, each below 2**bits; scale and offset (rows, columns / group), float32 unless asked for
    as stored. `symmetric` says that offset is -2**(bits - 1) * scale throughout; only then it may be None.
    """

    codes: Bytes
    bits: int
    group: int
    scale: Factors
    offset: Factors | None
    symmetric: bool


class GgufFile:
    """A GGUF file opened for reading; use as a context manager.

    Args:
        path: the file.

    Raises:
        GgufError: not a GGUF file, another version, truncated, or a tensor type this reader lacks.
        OSError: the file cannot be opened.

    `metadata` maps keys to Python values; `tensors` maps names to `TensorInfo`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._file = MappedFile(self.path)
        except ValueError as error:
            raise GgufError(f"{path}: {error}") from None
        try:
            self.metadata, self.tensors = parse(self._file.map)
        except GgufError as error:
            self.close()
            raise GgufError(f"{path}: {error}") from None

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the file; arrays already read stay valid, they are copies."""
        self._file.close()

    def read(self, name: str) -> NDArray[np.float32]:
        """One tensor dequantised to float32, in numpy order.

        Raises:
            KeyError: no tensor of this name.
        """
        info = self.tensors[name]
        raw = self._file.view(info.offset, info.num_bytes)
        with np.errstate(all="ignore"):  # scales may be inf or NaN: so are the values then
            if info.type_name in _FLOATS:
                return _FLOATS[info.type_name](raw).reshape(info.shape)
            return _values(BY_NAME[info.type_name], raw).reshape(info.shape)

    def read_codes(self, name: str, *, stored: bool = False) -> Codes:
        """One quantised tensor's codes, scales and offsets, exactly as the file has them.

        Args:
            name: of the tensor; all but its last dimension become rows.
            stored: leave scales and offsets in float16 where the file has them so (all types but the K types), and
                leave out the offset where it is symmetric.

        Raises:
            KeyError: no tensor of this name.
            GgufError: the tensor is not quantised; `read` it.
        """
        info = self.tensors[name]
        if info.type_name not in BY_NAME:
            raise GgufError(f"{self.path}: tensor {name!r} is {info.type_name}, which has no codes; use read()")
        with np.errstate(all="ignore"):
            raw = self._file.view(info.offset, info.num_bytes)
            return _codes(BY_NAME[info.type_name], raw, info.shape[-1], stored)

    def read_all(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Every tensor in file order, one at a time, so that a caller can show progress and keep memory low."""
        for name in self.tensors:
            yield name, self.read(name)


def _codes(kind: BlockType, raw: Bytes, columns: int, stored: bool) -> Codes:
    """Codes of a tensor's bytes, chunk by chunk."""
    blocks = raw.view(kind.layout)
    codes = np.empty((len(blocks), kind.values), np.uint8)
    step = _CHUNK_VALUES // kind.values
    for at in range(0, len(blocks), step):
        kind.spread(codes[at : at + step], blocks[at : at + step])
    scale, offset = kind.factors(blocks)
    dtype = scale.dtype.newbyteorder("=") if stored else np.float32
    scale = scale.astype(dtype)
    if offset is not None:
        offset = offset.astype(dtype)
    elif not stored:
        offset = scale * np.float32(-kind.zero)
    rows = codes.size // columns
    return Codes(
        codes.reshape(rows, columns),
        kind.bits,
        kind.group,
        scale.reshape(rows, -1),
        None if offset is None else offset.reshape(rows, -1),
        symmetric=kind.zero > 0,
    )


def _values(kind: BlockType, raw: Bytes) -> Floats:
    """Floats of a tensor's bytes, chunk by chunk."""
    blocks = raw.view(kind.layout)
    values = np.empty((len(blocks), kind.values // kind.group, kind.group), np.float32)
    step = _CHUNK_VALUES // kind.values
    codes = np.empty((min(step, len(blocks)), kind.values), np.uint8)
    for at in range(0, len(blocks), step):
        part = values[at : at + step]
        kind.spread(codes[: len(part)], blocks[at : at + step])
        scale, offset = kind.factors(blocks[at : at + step])
        part[...] = codes[: len(part)].reshape(part.shape)
        if offset is None:
            part -= np.float32(kind.zero)
        part *= scale.astype(np.float32)[:, :, None]
        if offset is not None:
            part += offset.astype(np.float32)[:, :, None]
    return values
