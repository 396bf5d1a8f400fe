"""The header of a safetensors file, and the index over the shards of a large model, checked before they are used.

Source: the safetensors format (huggingface/safetensors, README): eight bytes of header size, JSON, then the tensors
one after another without gaps.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from math import prod
from pathlib import PurePath
from typing import Any

from edgekernels._mapped import Bytes, Floats, MappedFile, TensorInfo, bf16, f16, f32, f64, flags, integers, shown

# JSON becomes Python objects some twenty times its size. Headers of real files have some megabytes at most.
_MAX_HEADER_BYTES = 1 << 24
_MAX_DIMENSIONS = 32
_MAX_SIZE = 1 << 62
# name: (bytes of a value, reader)
TYPES: dict[str, tuple[int, Callable[[Bytes], Floats]]] = {
    "F64": (8, f64),
    "F32": (4, f32),
    "F16": (2, f16),
    "BF16": (2, bf16),
    "BOOL": (1, flags),
    **{f"{sign}{8 * size}": (size, integers(f"{sign.lower()}{size}")) for sign in "IU" for size in (1, 2, 4, 8)},
}


class SafetensorsError(ValueError):
    """The file is not a safetensors file this reader can use; the message says why."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of which no key may be there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, count = Counter(key for key, _ in pairs).most_common(1)[0]
        raise SafetensorsError(f"key {shown(twice)} is there {count} times")
    return found


def _constant(text: str) -> Any:
    raise SafetensorsError(f"{text} is no JSON")


def parse_json(raw: bytes, what: str) -> dict[str, Any]:
    """An object from JSON that may be anything.

    Raises:
        SafetensorsError: no UTF-8, no JSON, no object, a key twice, or nested too deep.
    """
    try:
        found = json.loads(raw.decode(), object_pairs_hook=_object, parse_constant=_constant)
    except RecursionError:
        raise SafetensorsError(f"{what} of {len(raw)} bytes is nested too deep") from None
    except SafetensorsError as error:
        raise SafetensorsError(f"{what}: {error}") from None
    except ValueError as error:  # of JSON, of UTF-8, or of a number with thousands of digits
        raise SafetensorsError(f"{what} of {len(raw)} bytes is no JSON ({str(error)[:200]})") from None
    if not isinstance(found, dict):
        raise SafetensorsError(f"{what} is a JSON {type(found).__name__}, an object is needed")
    return found


def parse_header(file: MappedFile) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """Metadata and tensors of one file.

    Raises:
        SafetensorsError: the header is not sound, or the tensors do not fill the file exactly.
    """
    if file.size < 8:
        raise SafetensorsError(f"not a safetensors file: {file.size} bytes, the header's size alone needs 8")
    size = int.from_bytes(file.map[:8], "little")
    if size > min(_MAX_HEADER_BYTES, file.size - 8):
        raise SafetensorsError(
            f"a header of {size} bytes in a file of {file.size}, at most {_MAX_HEADER_BYTES} are allowed: "
            "truncated, or not a safetensors file"
        )
    raw = file.map[8 : 8 + size]
    if not raw.startswith(b"{"):
        raise SafetensorsError("not a safetensors file (the header does not begin with {)")
    entries = parse_json(raw, "the header")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise SafetensorsError("__metadata__ is no map of strings to strings")
    tensors = {name: _tensor_info(name, entry, 8 + size) for name, entry in entries.items()}
    _check_places(tensors, 8 + size, file.size)
    return metadata, tensors


def _sizes(value: Any, what: str) -> tuple[int, ...]:
    """A list of sizes: integers of at least 0, and neither bools nor floats."""
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item <= _MAX_SIZE for item in value):
        raise SafetensorsError(f"{what} is {shown(value)}; a list of integers from 0 to {_MAX_SIZE} is needed")
    return tuple(value)


def _tensor_info(name: str, entry: Any, start: int) -> TensorInfo:
    """One entry of the header, its type, shape and size agreeing."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise SafetensorsError(f"tensor {shown(name)} needs dtype, shape and data_offsets and nothing else")
    type_name = entry["dtype"]
    if not isinstance(type_name, str) or type_name not in TYPES:
        raise SafetensorsError(f"tensor {shown(name)} has dtype {shown(type_name)}; supported are {', '.join(TYPES)}")
    shape = _sizes(entry["shape"], f"the shape of tensor {shown(name)}")
    offsets = _sizes(entry["data_offsets"], f"the data_offsets of tensor {shown(name)}")
    if len(shape) > _MAX_DIMENSIONS:
        raise SafetensorsError(
            f"tensor {shown(name)} has {len(shape)} dimensions, at most {_MAX_DIMENSIONS} are allowed"
        )
    if len(offsets) != 2:
        raise SafetensorsError(f"tensor {shown(name)} has {len(offsets)} data_offsets, 2 are needed")
    item_bytes = TYPES[type_name][0]
    # a zero beside it makes numpy no happier; what is read becomes float32
    if prod(size for size in shape if size) * max(item_bytes, 4) > _MAX_SIZE:
        raise SafetensorsError(f"tensor {shown(name)} of shape {shape} is too large")
    num_bytes = prod(shape) * item_bytes
    if offsets[1] - offsets[0] != num_bytes:
        raise SafetensorsError(
            f"tensor {shown(name)} has {offsets[1] - offsets[0]} bytes {offsets}, "
            f"but {type_name} of shape {shape} has {num_bytes}"
        )
    return TensorInfo(name, shape, type_name, start + offsets[0], num_bytes)


def _check_places(tensors: dict[str, TensorInfo], start: int, end: int) -> None:
    """The tensors must follow one another from header to end of file, as the format says."""
    at = start
    for info in sorted(tensors.values(), key=lambda info: (info.offset, info.num_bytes)):
        if info.offset != at:
            what = "overlaps the one before" if info.offset < at else "leaves a gap"
            raise SafetensorsError(
                f"tensor {shown(info.name)} begins at byte {info.offset}, {at} was expected: it {what}"
            )
        at += info.num_bytes
    if at != end:
        raise SafetensorsError(f"the tensors end at byte {at}, the file at {end}: truncated, or not what it says")


def parse_index(file: MappedFile) -> dict[str, str]:
    """Tensor name to the name of the shard that holds it, from `model.safetensors.index.json`.

    Raises:
        SafetensorsError: not sound, or a shard outside the index's own directory.
    """
    if file.size > _MAX_HEADER_BYTES:
        raise SafetensorsError(f"an index of {file.size} bytes, at most {_MAX_HEADER_BYTES} are allowed")
    shards = parse_json(file.map[:], "the index").get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise SafetensorsError("the index has no weight_map")
    for name, shard in shards.items():
        if not isinstance(shard, str) or PurePath(shard).name != shard or "\\" in shard or "\0" in shard:
            raise SafetensorsError(f"tensor {shown(name)} lies in {shown(shard)}; a file beside the index is needed")
        if not shard.endswith(".safetensors"):
            raise SafetensorsError(f"tensor {shown(name)} lies in {shown(shard)}, which is no .safetensors file")
    return shards
