"""Drafters: whatever small model a device has. numpy is enough for most; torch is imported where it is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from sled.errors import UnknownModel
from sled.messages import Described
from sled.types import Sampling, SparseLaw
from sled.window import Window

PACKAGED = {"smollm2-12m": "smollm2-draft-12m"}
TORCH = "torch:"


class Drafter(Protocol):
    """Proposes tokens that continue a text; a wrong proposal costs time, never correctness."""

    name: str

    def start(self, sampling: Sampling) -> None:
        """A new answer begins, to be sampled like this."""

    def draft(self, prefix: Sequence[int], limit: int, window: Window) -> list[int]:
        """At most `limit` target token ids that may follow `prefix`, stopping where `window` says so.

        `prefix` is the whole committed text; across calls of one answer it only grows.
        """


@runtime_checkable
class SamplingDrafter(Drafter, Protocol):
    """A drafter that knows where the prompt ends, and under the rejection rule tells what its drafts were sampled from.

    Other drafters' drafts count as certain under that rule, which is lossless too, and accepts less. A drafter with a
    law must not look at a sample to decide whether to send it: what is sent would have another law.

    Attributes:
        law: of the last draft; None counts its tokens as certain.
    """

    law: SparseLaw | None

    def opened(self, num_prompt: int) -> None:
        """The text's first `num_prompt` tokens are the prompt; penalties count what comes behind it."""


class NoDrafter:
    """Drafts nothing: the server decodes token by token."""

    name = "none"

    def start(self, sampling: Sampling) -> None:
        """Nothing to prepare."""

    def draft(self, prefix: Sequence[int], limit: int, window: Window) -> list[int]:
        """An empty draft."""
        return []


def open_drafter(
    spec: str, target: Described, *, threads: int = 0, progress: Callable[[float], None] | None = None
) -> Drafter:
    """The drafter a user names: none, ngram, smollm2-12m, a .gguf file or a model directory.

    Models of the Llama family run on the native decoder, all others in torch; with `torch:` before its name or path
    any model runs in torch.

    Args:
        spec: name or path.
        target: what the server said about its model; the drafter must speak its vocabulary.
        threads: threads for a model; 0 lets it decide (the native decoder takes 1).
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
    name = spec.removeprefix(TORCH)
    path = Path(__file__).parents[1] / "models" / PACKAGED[name] if name in PACKAGED else Path(name).expanduser()
    is_gguf = path.is_file() and path.suffix == ".gguf"
    if not is_gguf and not (path / "config.json").is_file():
        names = ", ".join(["none", "ngram", *PACKAGED])
        raise UnknownModel(f"no drafter {spec!r}: give {names}, a .gguf file, or a directory with config.json")
    if spec.startswith(TORCH):
        return _open_in_torch(path, target, spec, threads, progress, "")
    from edgekernels.decoder import DecoderError

    from sled.drafters.native import load_native_drafter

    try:
        return load_native_drafter(path, target, name=spec, threads=threads or 1, progress=progress)
    except DecoderError as error:
        return _open_in_torch(path, target, spec, threads, progress, f" ({error})")


def _open_in_torch(
    path: Path, target: Described, spec: str, threads: int, progress: Callable[[float], None] | None, why: str
) -> Drafter:
    try:
        import torch

        from sled.drafters.causal_lm import load_drafter
    except ModuleNotFoundError as error:
        raise UnknownModel(f"drafter {spec!r} needs {error.name}{why}: pip install 'edgebus[torch]'") from None
    if threads:
        torch.set_num_threads(threads)
    return load_drafter(path, target, name=spec, progress=progress)
