"""The header of a GGUF file: metadata and the places of tensors, all checked against the file's size.

Source: the GGUF specification (ggml project, docs/gguf.md), versions 2 and 3, little-endian.
"""

from __future__ import annotations

import mmap
import struct
from math import prod
from typing import Any

from edgekernels._gguf_blocks import BLOCK_TYPES
from edgekernels._mapped import TensorInfo, overlap, shown

_MAGIC = b"GGUF"
_MAX_STRING_BYTES = 1 << 24
_MAX_DIMENSIONS = 4
# Far above what models have (a vocabulary of 262,144 with its merges makes 1.3 million items), and low enough that the
# Python objects of a hostile file stay within some hundred megabytes.
_MAX_ENTRIES = 1 << 16
_MAX_ITEMS = 1 << 22
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9
# type id: (name, values of a block, bytes of a block)
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    30: ("BF16", 1, 2),
    **{number: (kind.name, kind.values, kind.layout.itemsize) for number, kind in BLOCK_TYPES.items()},
}
_U64 = struct.Struct("<Q")


class GgufError(ValueError):
    """The file is not a GGUF file this reader can use; the message says why."""


class _Cursor:
    """Reads little-endian values in order and refuses to run past the end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0
        self.items_left = _MAX_ITEMS

    def take(self, num_bytes: int) -> bytes:
        if self.at + num_bytes > len(self.data):
            raise GgufError(f"file ends at byte {len(self.data)}, {num_bytes} more needed at {self.at}: truncated?")
        self.at += num_bytes
        return self.data[self.at - num_bytes : self.at]

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        return self.texts(1)[0]

    def texts(self, count: int) -> list[str]:
        """Strings in a row; one loop without calls, for vocabularies are long."""
        data, at, end = self.data, self.at, len(self.data)
        found = []
        for _ in range(count):
            if at + 8 > end:
                raise GgufError(f"file ends at byte {end} within a string's length at {at}: truncated?")
            size = _U64.unpack_from(data, at)[0]
            at += 8
            if size > _MAX_STRING_BYTES:
                raise GgufError(f"a string of {size} bytes at {at}, at most {_MAX_STRING_BYTES} are allowed")
            if at + size > end:
                raise GgufError(f"file ends at byte {end} within a string of {size} bytes at {at}: truncated?")
            try:
                found.append(data[at : at + size].decode())
            except UnicodeDecodeError as error:
                raise GgufError(f"the string of {size} bytes at {at} is not UTF-8 ({error.reason})") from None
            at += size
        self.at = at
        return found

    def flags(self, count: int) -> list[bool]:
        raw = self.take(count)
        if raw.strip(b"\0\1"):
            raise GgufError(f"a bool before byte {self.at} is neither 0 nor 1")
        return [byte == 1 for byte in raw]

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _BOOL:
            return self.flags(1)[0]
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise GgufError(f"metadata type {kind} at byte {self.at} is unknown: file newer than this reader?")
        return self.array(self.scalar("I"), self.scalar("Q"))

    def array(self, item: int, count: int) -> list[Any]:
        if count > self.items_left:
            raise GgufError(f"an array of {count} items at byte {self.at}; metadata has at most {_MAX_ITEMS} in all")
        self.items_left -= count
        if item == _STRING:
            return self.texts(count)
        if item == _BOOL:
            return self.flags(count)
        if item not in _SCALARS:
            raise GgufError(f"arrays of type {item} are not supported (byte {self.at})")
        code = _SCALARS[item]
        raw = self.take(count * struct.calcsize("<" + code))
        return list(struct.unpack(f"<{count}{code}", raw))


def parse(data: mmap.mmap) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """Metadata and tensors of a GGUF file.

    Raises:
        GgufError: the header is not sound, or a tensor lies outside the file, over another or off its alignment.
    """
    cursor = _Cursor(data)
    if cursor.take(4) != _MAGIC:
        raise GgufError("not a GGUF file (no GGUF magic)")
    version = cursor.scalar("I")
    if version not in (2, 3):
        raise GgufError(f"GGUF version {version}; versions 2 and 3, little-endian, are supported")
    num_tensors, num_values = cursor.scalar("Q"), cursor.scalar("Q")
    if max(num_tensors, num_values) > _MAX_ENTRIES:
        raise GgufError(f"{num_tensors} tensors and {num_values} keys, at most {_MAX_ENTRIES} of each are allowed")
    metadata: dict[str, Any] = {}
    for _ in range(num_values):
        key = cursor.text()
        if key in metadata:
            raise GgufError(f"key {shown(key)} is there twice (byte {cursor.at})")
        metadata[key] = cursor.value(cursor.scalar("I"))
    heads = [_tensor_head(cursor) for _ in range(num_tensors)]
    return metadata, _place(heads, metadata, cursor.at, len(data))


_Head = tuple[str, tuple[int, ...], int, int]


def _tensor_head(cursor: _Cursor) -> _Head:
    name, num_dims = cursor.text(), cursor.scalar("I")
    if not 1 <= num_dims <= _MAX_DIMENSIONS:
        raise GgufError(f"tensor {shown(name)} has {num_dims} dimensions, 1 to {_MAX_DIMENSIONS} are allowed")
    shape = tuple(cursor.scalar("Q") for _ in range(num_dims))
    return name, shape[::-1], cursor.scalar("I"), cursor.scalar("Q")


def _place(heads: list[_Head], metadata: dict[str, Any], header_bytes: int, file_bytes: int) -> dict[str, TensorInfo]:
    """Tensors by name; their offsets count from the header's end, rounded up to the alignment."""
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise GgufError(f"general.alignment is {shown(alignment)}, a power of two is needed")
    start = -(-header_bytes // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, shape, kind, offset in heads:
        if name in tensors:
            raise GgufError(f"tensor {shown(name)} is there twice")
        if offset % alignment:
            raise GgufError(f"tensor {shown(name)} at offset {offset} is not aligned to {alignment} bytes")
        tensors[name] = _tensor_info(name, shape, kind, start + offset, file_bytes)
    if shared := overlap(tensors.values()):
        before, after = shared
        raise GgufError(
            f"tensor {shown(before.name)} ends at byte {before.offset + before.num_bytes}, "
            f"tensor {shown(after.name)} begins at {after.offset}: they overlap"
        )
    return tensors


def _tensor_info(name: str, shape: tuple[int, ...], kind: int, offset: int, file_bytes: int) -> TensorInfo:
    if kind not in TYPES:
        known = ", ".join(entry[0] for entry in TYPES.values())
        raise GgufError(f"tensor {shown(name)} has ggml type {kind}; supported are {known}")
    type_name, per_block, block_bytes = TYPES[kind]
    if not all(shape):
        raise GgufError(f"tensor {shown(name)} of shape {shape} is empty")
    if shape[-1] % per_block:
        raise GgufError(f"tensor {shown(name)}: rows of {shape[-1]} values are no whole number of {type_name} blocks")
    num_bytes = prod(shape) // per_block * block_bytes
    if offset + num_bytes > file_bytes:
        raise GgufError(
            f"tensor {shown(name)} of shape {shape} ends at byte {offset + num_bytes}, "
            f"the file at {file_bytes}: truncated?"
        )
    return TensorInfo(name, shape, type_name, offset, num_bytes)
