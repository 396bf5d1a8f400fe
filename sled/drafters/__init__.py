"""Drafters: whatever small model a device has. torch is imported when a drafter that needs it is opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from sled.errors import UnknownModel
from sled.messages import Described
from sled.types import Sampling
from sled.window import Window

PACKAGED = {"smollm2-12m": "smollm2-draft-12m"}


class Drafter(Protocol):
    """Proposes tokens that continue a text; a wrong proposal costs time, never correctness."""

    name: str

    def start(self, sampling: Sampling) -> None:
        """A new answer begins, to be sampled like this."""

    def draft(self, prefix: Sequence[int], limit: int, window: Window) -> list[int]:
        """At most `limit` target token ids that may follow `prefix`, stopping where `window` says so.

        `prefix` is the whole committed text; across calls of one answer it only grows.
        """


class NoDrafter:
    """Drafts nothing: the server decodes token by token."""

    name = "none"

    def start(self, sampling: Sampling) -> None:
        """Nothing to prepare."""

    def draft(self, prefix: Sequence[int], limit: int, window: Window) -> list[int]:
        """An empty draft."""
        return []


def open_drafter(spec: str, target: Described, *, progress: Callable[[float], None] | None = None) -> Drafter:
    """The drafter a user names: none, ngram, smollm2-12m, a .gguf file or a model directory.

    Args:
        spec: name or path.
        target: what the server said about its model; the drafter must speak its vocabulary.
        progress: called with the share loaded, 0 .. 1.

    Raises:
        UnknownModel: no such drafter.
        VocabularyMismatch: the drafter's token ids are not the target's.
    """
    if spec == "none":
        return NoDrafter()
    if spec == "ngram":
        from sled.drafters.ngram import NgramDrafter

        return NgramDrafter()
    path = Path(__file__).parents[1] / "models" / PACKAGED[spec] if spec in PACKAGED else Path(spec).expanduser()
    is_gguf = path.is_file() and path.suffix == ".gguf"
    if not is_gguf and not (path / "config.json").is_file():
        names = ", ".join(["none", "ngram", *PACKAGED])
        raise UnknownModel(f"no drafter {spec!r}: give {names}, a .gguf file, or a directory with config.json")
    try:
        from sled.drafters.causal_lm import load_drafter
    except ModuleNotFoundError as error:
        raise UnknownModel(f"drafter {spec!r} needs {error.name}: pip install 'edgebus[torch]'") from None
    return load_drafter(path, target, name=spec, progress=progress)
