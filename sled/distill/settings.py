"""What a distillation is told, and the rule that one directory belongs to one set of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgebus.files import write_whole
from sled.errors import ParameterError

GGUF_TYPES = ("q8_0", "q4_0", "f16")
_FILE = "settings.json"
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that decides what comes out.

    Args:
        target: known name, .gguf file or Hugging Face directory of the model to imitate.
        students: what learns from it, see `shapes.shape_of`; all of them share the corpus and the target's forward.
        sizes: fields of `shapes.Shape` that replace the preset's.
        minutes: of sampling and training together; None ends after `steps`.
        steps: of training; None goes by `minutes`.
        sample_share: of the minutes, for the corpus.
        corpus_tokens: where the corpus ends at the latest; 0 lets minutes or steps decide.
        prompts: file of prompts, one a line; empty takes the templates of the package.
        rows: texts written at once; 0 takes what the device has room for.
        length: tokens of a text.
        batch: texts of a training step.
        lr: highest learning rate.
        warmup: steps up to it.
        tv: weight of total variation in the end, that of KL is the rest.
        prompt_weight: weight of tokens that the target was given, one that it wrote has 1.
        open_turns: share of user turns that the target writes, too.
        seed: of prompts, samples, weights and order.
    """

    target: str
    students: tuple[str, ...] = ("12m",)
    sizes: tuple[tuple[str, int], ...] = ()
    minutes: float | None = None
    steps: int | None = None
    sample_share: float = 0.3
    corpus_tokens: int = 0
    prompts: str = ""
    rows: int = 0
    length: int = 512
    batch: int = 64
    lr: float = 2e-3
    warmup: int = 200
    tv: float = 0.7
    prompt_weight: float = 0.1
    open_turns: float = 0.4
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise ParameterError("give either minutes or steps, to say when the training ends")
        if len(set(self.students)) < max(1, len(self.students)):
            raise ParameterError(f"students are {', '.join(self.students) or 'none'}; give each once, and one at least")
        if self.sizes and len(self.students) > 1:
            raise ParameterError(f"sizes are given and {len(self.students)} students; sizes are for one of them")
        ranges: dict[str, tuple[float, float]] = {
            "minutes": (1e-3, 1e6),
            "steps": (1, 1e9),
            "sample_share": (0.01, 0.95),
            "corpus_tokens": (0, 1e12),
            "rows": (0, 1 << 16),
            "length": (32, 1 << 16),
            "batch": (1, 1 << 16),
            "lr": (1e-8, 1.0),
            "warmup": (1, 1e9),
            "tv": (0, 1),
            "prompt_weight": (0, 1),
            "open_turns": (0, 1),
            "seed": (0, (1 << 31) - 1),
        }
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise ParameterError(f"{name} is {value}; give {least:g} .. {most:g}")

    @property
    def most_tokens(self) -> float:
        """Where the corpus ends whatever the clock says; by steps each text is read about a dozen times."""
        if self.corpus_tokens:
            return self.corpus_tokens
        return float("inf") if self.steps is None else self.steps * self.batch * self.length / 12


def keep_settings(directory: Path, settings: Settings, more: Mapping[str, Any]) -> None:
    """Note what a directory was begun with, or insist on it.

    Args:
        directory: of the distillation.
        settings: of this run.
        more: what else must not change, such as the target's vocabulary.

    Raises:
        ParameterError: it was begun with something else, or its note cannot be read.
    """
    path = directory / _FILE
    ours = json.loads(json.dumps(asdict(settings) | {"prompts": _digest(settings.prompts)} | dict(more)))
    if not path.is_file():
        write_whole(path, json.dumps(ours, indent=1).encode() + b"\n")
        return
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes")
        theirs = json.loads(path.read_bytes())
        if not isinstance(theirs, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        raise ParameterError(f"{path} cannot be read ({error}); use another directory") from None
    for name, value in ours.items():
        if theirs.get(name) != value:
            raise ParameterError(
                f"{directory} was begun with {name} {theirs.get(name)!r}, now it is {value!r}; "
                "give what it was, or another directory"
            )


def _digest(prompts: str) -> str:
    """The content of a file of prompts, in short."""
    try:
        return hashlib.sha256(Path(prompts).expanduser().read_bytes()).hexdigest()[:16] if prompts else ""
    except OSError as error:
        raise ParameterError(f"prompts {prompts!r} cannot be read: {error.strerror}") from None
