"""Read safetensors model files with numpy alone: one file, or the shards of an index, as float32.

The files are mapped, not read: only the tensors asked for are touched. Everything in them is checked against the
files' sizes before it is used, so a truncated or hostile file ends in `SafetensorsError`, not in a crash.

Source: the safetensors format (huggingface/safetensors, README).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from edgekernels._mapped import MappedFile, TensorInfo, shown
from edgekernels._safetensors_header import TYPES, SafetensorsError, parse_header, parse_index

__all__ = ["SafetensorsError", "SafetensorsFile", "TensorInfo"]

_MAX_SHARDS = 1 << 10


class SafetensorsFile:
    """A safetensors file, or the shards named by an index, opened for reading; use as a context manager.

    Args:
        path: a `.safetensors` file, or a `.safetensors.index.json`, whose shards lie beside it.

    Raises:
        SafetensorsError: not such a file, truncated, contradicting itself, or of a dtype this reader lacks.
        OSError: a file cannot be opened.

    `metadata` maps strings to strings (of the first shard that says something, for each key); `tensors` maps names to
    `TensorInfo`, whose offsets count within their shard.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.metadata: dict[str, str] = {}
        self.tensors: dict[str, TensorInfo] = {}
        self._files: list[MappedFile] = []
        self._file_of: dict[str, MappedFile] = {}
        try:
            if self.path.suffix == ".json":
                self._open_index()
            else:
                self._open(self.path)
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path) -> None:
        """Map one file and take its tensors, which no other shard may have."""
        try:
            file = MappedFile(path)
        except ValueError as error:
            raise SafetensorsError(f"{path}: {error}") from None
        self._files.append(file)
        try:
            metadata, tensors = parse_header(file)
            if twice := tensors.keys() & self.tensors.keys():
                raise SafetensorsError(f"tensor {shown(min(twice))} is in another shard too")
        except SafetensorsError as error:
            raise SafetensorsError(f"{path}: {error}") from None
        self.metadata = metadata | self.metadata
        self.tensors |= tensors
        self._file_of |= dict.fromkeys(tensors, file)

    def _open_index(self) -> None:
        """Open every shard of the index; what it says must be what the shards hold."""
        try:
            file = MappedFile(self.path)
            try:
                places = parse_index(file)
            finally:
                file.close()
        except ValueError as error:
            raise SafetensorsError(f"{self.path}: {error}") from None
        shards = dict.fromkeys(places.values())
        if len(shards) > _MAX_SHARDS:
            raise SafetensorsError(f"{self.path}: {len(shards)} shards, at most {_MAX_SHARDS} are allowed")
        for shard in shards:
            before = self.tensors.keys() | set()
            self._open(self.path.parent / shard)
            said = {name for name, place in places.items() if place == shard}
            if wrong := said ^ (self.tensors.keys() - before):
                raise SafetensorsError(f"{self.path}: tensor {shown(min(wrong))} and shard {shown(shard)} do not agree")

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the files; arrays already read stay valid, they are copies."""
        for file in self._files:
            file.close()

    def read(self, name: str) -> NDArray[np.float32]:
        """One tensor as float32: exact for F32, F16, BF16 and integers up to 2**24, rounded for the others.

        Raises:
            KeyError: no tensor of this name.
        """
        info = self.tensors[name]
        raw = self._file_of[name].view(info.offset, info.num_bytes)
        with np.errstate(all="ignore"):  # a float64 may be too large, a float16 no number
            return TYPES[info.type_name][1](raw).reshape(info.shape)

    def read_all(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Every tensor in file order, one at a time, so that a caller can show progress and keep memory low."""
        for name in self.tensors:
            yield name, self.read(name)
