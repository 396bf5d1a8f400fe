"""What is told of a distillation: lines to read, the same as JSON lines, and in the end a card."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgebus.files import write_whole
from sled.distill.acceptance import WINDOWS
from sled.distill.learner import Learner
from sled.distill.settings import Settings
from sled.distill.shapes import as_dict
from sled.distill.trainer import Progress


class Report:
    """Says what happens, and keeps it in report.jsonl.

    Args:
        directory: of the distillation.
        say: takes a line for people.
    """

    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        self._path, self.say = directory / "report.jsonl", say
        self.acceptance: dict[str, dict[str, Any]] = {}

    def note(self, event: str, **values: Any) -> None:
        """Append a line of JSON."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **values}) + "\n")

    def began(self, device: str, settings: Settings, target: str) -> None:
        """A run begins, or goes on."""
        self.note("began", device=device, target=target, students=list(settings.students))
        self.say(f"target {target} on {device}; students {', '.join(settings.students)}")

    def sampled(self, rounds: int, tokens: int, tokens_per_s: float, written: float) -> None:
        """A round of the corpus is on disk."""
        self.note("sampled", rounds=rounds, tokens=tokens, tokens_per_s=round(tokens_per_s, 1), written=written)
        self.say(
            f"corpus: {counted(tokens)} tokens in {rounds} rounds, {tokens_per_s:,.0f} tokens/s, "
            f"{written:.0%} answers"
        )

    def student(self, learner: Learner) -> None:
        """A student is there."""
        shape = learner.shape
        self.note(
            "student",
            student=learner.name,
            parameters=shape.num_parameters,
            shape=as_dict(shape),
            coverage=round(learner.coverage, 4),
        )
        self.say(
            f"student {learner.name}: {shape.num_parameters / 1e6:.2f} M parameters, {shape.layers} layers of "
            f"{shape.width}, {shape.vocab} ids that cover {learner.coverage:.2%} of what the target wrote"
        )

    def trained(self, progress: Progress) -> None:
        """Some steps are done."""
        self.note(
            "trained",
            step=progress.step,
            done=round(progress.done, 4),
            epoch=round(progress.epoch, 3),
            tokens_per_s=round(progress.tokens_per_s, 1),
            losses=progress.losses,
        )
        losses = "; ".join(f"{name} KL {one['kl']:.3f} TV {one['tv']:.3f}" for name, one in progress.losses.items())
        self.say(
            f"step {progress.step}, {progress.done:.0%}, epoch {progress.epoch:.1f}, "
            f"{progress.tokens_per_s:,.0f} tokens/s, rate x{progress.rate:.2f}, TV share {progress.tv_share:.2f}: "
            f"{losses}"
        )

    def evaluated(self, step: int, figures: dict[str, dict[str, Any]]) -> None:
        """Acceptance on held-out texts."""
        self.acceptance = figures
        for name, by_temperature in figures.items():
            self.note("evaluated", step=step, student=name, acceptance=by_temperature)
            for temperature, one in by_temperature.items():
                means = "/".join(f"{one['mean_accepted'][str(window)]:.2f}" for window in WINDOWS)
                places = " ".join("-" if rate is None else f"{rate:.2f}" for rate in one["by_place"])
                self.say(
                    f"  {name} {_label(temperature)}: acceptance {one['acceptance']:.3f} (rejection rule "
                    f"{one['rejection_rule']:.3f}), accepted at windows {'/'.join(map(str, WINDOWS))} {means}, "
                    f"by place {places}"
                )


def counted(tokens: int) -> str:
    """A number of tokens, in millions where it has some.

    >>> counted(3072), counted(41_943_040)
    ('3,072', '41.94 M')
    """
    return f"{tokens / 1e6:.2f} M" if tokens >= 1_000_000 else f"{tokens:,}"


def _label(temperature: str) -> str:
    return "greedy" if temperature == "greedy" else f"T={temperature}"


def write_card(
    directory: Path,
    *,
    settings: Settings,
    target: str,
    licence: str,
    corpus: Mapping[str, Any],
    training: Mapping[str, Any],
    learners: Sequence[Learner],
    acceptance: Mapping[str, Mapping[str, Any]],
    files: Mapping[str, Sequence[str]],
) -> None:
    """README.md: what the drafters are, made of what, how good, and under which licence."""
    asked = "prompts from a file" if settings.prompts else "prompts from the templates of `sled distill`"
    lines = [
        f"# Drafters for {target}",
        "",
        f"Distilled from {target} by `sled distill`; wrong drafts cost time, never correctness.",
        "",
        "## Data",
        "",
        f"{counted(corpus['tokens'])} tokens that the target wrote itself in {corpus['rounds']} rounds of texts of "
        f"{settings.length} tokens, through its chat template where it has one: {asked}, and {settings.open_turns:.0%} "
        "of the user turns written by the target, too; temperatures 0 to 1 mixed. The first round is held out, with "
        "prompts that no other round has.",
        "",
        "## Training",
        "",
        f"{training['steps']} steps of {settings.batch} texts on {training['device']}, {training['minutes']:.1f} "
        f"minutes; KL growing into {settings.tv:.0%} total variation, AdamW, cosine from {settings.lr:g}; "
        f"seed {settings.seed}.",
    ]
    for learner in learners:
        lines += _section(learner, acceptance.get(learner.name, {}), files[learner.name])
    lines += ["", "## Licence", "", licence or f"That of {target}, which was not stated."]
    write_whole(directory / "README.md", ("\n".join(lines) + "\n").encode())


def _section(learner: Learner, acceptance: Mapping[str, Any], files: Sequence[str]) -> list[str]:
    """What the card says of one drafter."""
    shape, windows = learner.shape, ", ".join(map(str, WINDOWS))
    begin = f"layers {', '.join(map(str, shape.kept))} of the target" if shape.kept else "anew"
    lines = [
        "",
        f"## {learner.name}",
        "",
        f"{shape.num_parameters / 1e6:.2f} M parameters, Llama architecture: {shape.layers} layers ({begin}), "
        f"width {shape.width}, {shape.heads} heads / {shape.kv_heads} kv of {shape.head_dim}, ffn {shape.ffn}; "
        f"{shape.vocab} ids, which cover {learner.coverage:.2%} of what the target writes.",
        f"Files: {', '.join(f'`{file}`' for file in files)}.",
        "",
        f"| held-out texts | positions | acceptance | by rejection | accepted at windows {windows} |",
        "|---|---|---|---|---|",
    ]
    for temperature, one in acceptance.items():
        if not one["positions"]:
            lines.append(f"| {_label(temperature)} | 0 | not measured | - | - |")
            continue
        means = " / ".join(f"{one['mean_accepted'][str(window)]:.2f}" for window in WINDOWS)
        lines.append(
            f"| {_label(temperature)} | {one['positions']} | {one['acceptance']:.3f} | {one['rejection_rule']:.3f} | "
            f"{means} |"
        )
    return lines
