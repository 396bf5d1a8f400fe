"""Read a GGUF model file with numpy alone: metadata, and tensors dequantised to float32.

The file is mapped, not read: only the tensors asked for are touched. Everything in it is checked against the
file's size before it is used, so a truncated or hostile file ends in `GgufError`, not in a crash.

Source: the GGUF specification (ggml project, docs/gguf.md), version 3; block layouts as in ggml's Q4_0, Q4_1, Q8_0.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"GGUF"
_MAX_STRING_BYTES = 1 << 24
_MAX_DIMENSIONS = 4
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class GgufError(ValueError):
    """The file is not a GGUF file this reader can use; the message says why."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies in the file.

    `shape` is in numpy order (slowest dimension first), so a linear layer's weight is (out_features, in_features).
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    num_bytes: int


def _f32(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    return raw.view(np.float32).copy()


def _f16(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    return raw.view(np.float16).astype(np.float32)


def _bf16(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _scale(blocks: NDArray[np.uint8], start: int) -> NDArray[np.float32]:
    """The float16 that stands at byte `start` of every block, as (blocks, 1) float32."""
    return blocks[:, start : start + 2].copy().view(np.float16).astype(np.float32)


def _nibbles(packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(blocks, 16) bytes to (blocks, 32) values 0..15: low nibbles are the first half of the block."""
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)


def _q4_0(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    blocks = raw.reshape(-1, 18)
    return (_nibbles(blocks[:, 2:]) - 8.0) * _scale(blocks, 0)


def _q4_1(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    blocks = raw.reshape(-1, 20)
    return _nibbles(blocks[:, 4:]) * _scale(blocks, 0) + _scale(blocks, 2)


def _q8_0(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    blocks = raw.reshape(-1, 34)
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _scale(blocks, 0)


# type id: (name, values per block, bytes per block, decoder)
_TYPES: dict[int, tuple[str, int, int, Callable[[NDArray[np.uint8]], NDArray[np.float32]]]] = {
    0: ("F32", 1, 4, _f32),
    1: ("F16", 1, 2, _f16),
    2: ("Q4_0", 32, 18, _q4_0),
    3: ("Q4_1", 32, 20, _q4_1),
    8: ("Q8_0", 32, 34, _q8_0),
    30: ("BF16", 1, 2, _bf16),
}
_DECODERS = {name: decode for name, _, _, decode in _TYPES.values()}


class _Cursor:
    """Reads little-endian values in order and refuses to run past the end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def take(self, num_bytes: int) -> bytes:
        if num_bytes < 0 or self.at + num_bytes > len(self.data):
            raise GgufError(f"file ends at byte {len(self.data)}, {num_bytes} more needed at {self.at}: truncated?")
        self.at += num_bytes
        return self.data[self.at - num_bytes : self.at]

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        size = self.scalar("Q")
        if size > _MAX_STRING_BYTES:
            raise GgufError(f"a string of {size} bytes at {self.at}: not a sound GGUF file")
        return self.take(size).decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise GgufError(f"metadata type {kind} at byte {self.at} is unknown: file newer than this reader?")
        item, count = self.scalar("I"), self.scalar("Q")
        if item in _SCALARS:
            code = _SCALARS[item]
            raw = self.take(count * struct.calcsize("<" + code))
            return list(struct.unpack(f"<{count}{code}", raw))
        if count > len(self.data):
            raise GgufError(f"an array of {count} items at byte {self.at} cannot fit the file")
        if item != _STRING:
            raise GgufError(f"arrays of type {item} are not supported (byte {self.at})")
        return [self.text() for _ in range(count)]


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
        with self.path.open("rb") as file:
            try:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError as error:
                raise GgufError(f"{path}: empty file") from error
        try:
            self.metadata, self.tensors = self._parse()
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
        self._map.close()

    def _parse(self) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
        cursor = _Cursor(self._map)
        if cursor.take(4) != _MAGIC:
            raise GgufError("not a GGUF file (no GGUF magic)")
        version = cursor.scalar("I")
        if version not in (2, 3):
            raise GgufError(f"GGUF version {version}; versions 2 and 3 are supported")
        num_tensors, num_values = cursor.scalar("Q"), cursor.scalar("Q")
        metadata: dict[str, Any] = {}
        for _ in range(num_values):
            key = cursor.text()
            metadata[key] = cursor.value(cursor.scalar("I"))
        heads = [self._tensor_head(cursor) for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0:
            raise GgufError(f"general.alignment is {alignment!r}, a positive integer is needed")
        start = -(-cursor.at // alignment) * alignment
        return metadata, {head[0]: self._tensor_info(start, *head) for head in heads}

    @staticmethod
    def _tensor_head(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
        name, num_dims = cursor.text(), cursor.scalar("I")
        if not 1 <= num_dims <= _MAX_DIMENSIONS:
            raise GgufError(f"tensor {name!r} has {num_dims} dimensions, 1 to {_MAX_DIMENSIONS} are allowed")
        shape = tuple(cursor.scalar("Q") for _ in range(num_dims))
        return name, shape[::-1], cursor.scalar("I"), cursor.scalar("Q")

    def _tensor_info(self, start: int, name: str, shape: tuple[int, ...], kind: int, offset: int) -> TensorInfo:
        if kind not in _TYPES:
            known = ", ".join(entry[0] for entry in _TYPES.values())
            raise GgufError(f"tensor {name!r} has ggml type {kind}; supported are {known}")
        type_name, per_block, block_bytes, _ = _TYPES[kind]
        count = 1
        for size in shape:
            count *= size
        if shape[-1] % per_block:
            raise GgufError(f"tensor {name!r}: rows of {shape[-1]} values are no whole number of {type_name} blocks")
        num_bytes = count // per_block * block_bytes
        if start + offset + num_bytes > len(self._map):
            raise GgufError(f"tensor {name!r} ends past the file's {len(self._map)} bytes: truncated?")
        return TensorInfo(name, shape, type_name, start + offset, num_bytes)

    def read(self, name: str) -> NDArray[np.float32]:
        """One tensor dequantised to float32, in numpy order.

        Raises:
            KeyError: no tensor of this name.
        """
        info = self.tensors[name]
        raw = np.frombuffer(self._map[info.offset : info.offset + info.num_bytes], np.uint8)
        return _DECODERS[info.type_name](raw).reshape(info.shape)

    def read_all(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Every tensor in file order, one at a time, so that a caller can show progress and keep memory low."""
        for name in self.tensors:
            yield name, self.read(name)
