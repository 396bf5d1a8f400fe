"""Write GGUF files: metadata, and tensors as floats or in blocks of 8 or 4 bits.

Source: the GGUF specification (ggml project, docs/gguf.md), version 3; blocks as ggml's reference quantisation has
them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ALIGNMENT, _BLOCK = 32, 32
_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 8}
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9

Floats = NDArray[np.float32]


def encode(values: Floats, kind: str) -> bytes:
    """A tensor's bytes.

    Args:
        values: float32 (..., columns); of a quantised kind, columns a multiple of 32.
        kind: f32, f16, q8_0 or q4_0.

    >>> len(encode(np.ones((2, 32), np.float32), "q8_0")), len(encode(np.ones((2, 32), np.float32), "q4_0"))
    (68, 36)
    """
    if kind == "f32":
        return values.astype("<f4").tobytes()
    if kind == "f16":
        return values.astype("<f2").tobytes()
    blocks = np.ascontiguousarray(values, np.float32).reshape(-1, _BLOCK)
    return (_q8_0 if kind == "q8_0" else _q4_0)(blocks).tobytes()


def _q8_0(blocks: Floats) -> NDArray[Any]:
    """A scale for each block, the largest magnitude at 127."""
    out = np.empty(len(blocks), np.dtype([("scale", "<f2"), ("codes", "i1", _BLOCK)]))
    scale = np.abs(blocks).max(axis=1) / np.float32(127)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    out["scale"] = scale
    codes = blocks * inverse[:, None]
    whole = np.floor(np.abs(codes))
    out["codes"] = np.copysign(whole + (np.abs(codes) - whole >= 0.5), codes)  # halves away from 0, as C's roundf
    return out


def _q4_0(blocks: Floats) -> NDArray[Any]:
    """A scale for each block, the value of largest magnitude at code 0; lower half in low nibbles."""
    out = np.empty(len(blocks), np.dtype([("scale", "<f2"), ("codes", "u1", _BLOCK // 2)]))
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)[:, 0]
    scale = largest / np.float32(-8)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    codes = np.clip(np.floor(blocks * inverse[:, None] + np.float32(8.5)), 0, 15).astype(np.uint8)
    out["scale"] = scale
    out["codes"] = codes[:, : _BLOCK // 2] | codes[:, _BLOCK // 2 :] << 4
    return out


def kind_for(values: Floats, kind: str) -> str:
    """What a tensor is stored as where `kind` is asked for: norms as float32, rows that make no blocks as float16."""
    if values.ndim < 2:
        return "f32"
    return kind if kind in ("f32", "f16") or values.shape[-1] % _BLOCK == 0 else "f16"


def gguf_bytes(metadata: Mapping[str, Any], tensors: Mapping[str, tuple[Floats, str]]) -> bytes:
    """A whole GGUF file.

    Args:
        metadata: strings, bools, ints (as uint32), floats (as float32), and lists of ints (as int32).
        tensors: by name, values in numpy order and how to store them, see `encode`.
    """
    head = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        head += _text(key) + _value(value)
    body = bytearray()
    for name, (values, kind) in tensors.items():
        head += _text(name) + struct.pack(f"<I{values.ndim}Q", values.ndim, *values.shape[::-1])
        head += struct.pack("<IQ", _TYPES[kind], len(body))
        body += encode(values, kind)
        body += bytes(-len(body) % _ALIGNMENT)
    head += bytes(-len(head) % _ALIGNMENT)
    return bytes(head + body)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<IB", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _U32, value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    return struct.pack("<IIQ", _ARRAY, _I32, len(value)) + np.asarray(value, "<i4").tobytes()
