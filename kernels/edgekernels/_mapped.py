"""What both model file readers stand on: a file mapped for reading, and where its tensors lie."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies in its file.

    `shape` is in numpy order (slowest dimension first), so a linear layer's weight is (out_features, in_features).
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    num_bytes: int


class MappedFile:
    """The bytes of a regular file, mapped and not read.

    Args:
        path: the file.

    Raises:
        ValueError: empty, or no regular file (opening a pipe would wait for ever).
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("no regular file; give the path of a model file")
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ValueError("empty file: 0 bytes")
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.size = len(self.map)
        self._bytes: Bytes | None = np.frombuffer(self.map, np.uint8)

    def view(self, offset: int, num_bytes: int) -> Bytes:
        """Bytes [offset, offset + num_bytes) without a copy; they must not outlive the file."""
        if self._bytes is None:
            raise ValueError("the file is closed")
        if offset < 0 or num_bytes < 0 or offset + num_bytes > self.size:
            raise ValueError(f"bytes {offset} to {offset + num_bytes} of a file of {self.size}")
        return self._bytes[offset : offset + num_bytes]

    def close(self) -> None:
        """Unmap the file; where a view is still held, when that goes."""
        self._bytes = None
        try:
            self.map.close()
        except BufferError:
            return


def overlap(tensors: Iterable[TensorInfo]) -> tuple[TensorInfo, TensorInfo] | None:
    """The first two tensors that share bytes, or None."""
    placed = sorted((info for info in tensors if info.num_bytes), key=lambda info: info.offset)
    for before, after in pairwise(placed):
        if before.offset + before.num_bytes > after.offset:
            return before, after
    return None


def shown(value: Any) -> str:
    """What a file says, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}... ({len(text)} characters)"


def f64(raw: Bytes) -> Floats:
    """Little-endian float64, rounded."""
    return raw.view("<f8").astype(np.float32)


def f32(raw: Bytes) -> Floats:
    """Little-endian float32, copied."""
    return raw.view("<f4").astype(np.float32)


def f16(raw: Bytes) -> Floats:
    """Little-endian float16, exactly."""
    return raw.view("<f2").astype(np.float32)


def bf16(raw: Bytes) -> Floats:
    """Little-endian bfloat16, exactly: the upper half of a float32."""
    wide = raw.view("<u2").astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def integers(code: str) -> Callable[[Bytes], Floats]:
    """A reader of little-endian integers of a numpy type code, rounded."""

    def read(raw: Bytes) -> Floats:
        return raw.view(f"<{code}").astype(np.float32)

    return read


def flags(raw: Bytes) -> Floats:
    """Bools of one byte each, as 0 and 1."""
    return raw.astype(np.bool_).astype(np.float32)
