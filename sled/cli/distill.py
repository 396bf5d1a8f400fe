"""`sled distill`: a drafter for a target that has none."""

from __future__ import annotations

import signal
import sys
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from edgebus.cli.progress import load_bar
from sled.distill.settings import Settings
from sled.distill.shapes import SIZES
from sled.errors import ParameterError, UnknownModel


class Gguf(StrEnum):
    """How a GGUF file stores matrices."""

    Q8_0 = "q8_0"
    Q4_0 = "q4_0"
    F16 = "f16"


class Dtype(StrEnum):
    """Arithmetic of the target."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def distill(
    target: Annotated[str, typer.Option(help="smollm2-135m, a .gguf file, or a model directory.")],
    out: Annotated[Path, typer.Option(help="Directory of corpus, checkpoint, report, drafters and card.")],
    student: Annotated[
        list[str] | None,
        typer.Option(help="1m, 3m, 12m (default), 25m, 50m, or prune:0,1 for layers of the target; may be repeated."),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(help="Replaces a size of the student, e.g. vocab=8192 (0: the target's), width=256, layers=6."),
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Of sampling and training together; default 30.")] = None,
    steps: Annotated[int | None, typer.Option(help="Of training, instead of minutes.")] = None,
    sample_share: Annotated[float, typer.Option(help="Share of the minutes for the corpus.")] = 0.3,
    corpus_tokens: Annotated[int, typer.Option(help="Tokens of corpus at most; 0 lets the budget decide.")] = 0,
    prompts: Annotated[str, typer.Option(help="File of prompts, one a line; default the package's templates.")] = "",
    gguf: Annotated[list[Gguf] | None, typer.Option(help="GGUF files to write; default q8_0; may be repeated.")] = None,
    licence: Annotated[str, typer.Option(help="Licence of the target, for the card.")] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1; default CUDA where there is one.")] = "",
    dtype: Annotated[Dtype | None, typer.Option(help="Default bfloat16 on CUDA, float32 elsewhere.")] = None,
    compile_: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Through torch.compile; default on CUDA only.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Texts written at once; 0 takes what fits.")] = 0,
    length: Annotated[int, typer.Option(help="Tokens of a text.")] = 512,
    batch: Annotated[int, typer.Option(help="Texts of a training step.")] = 64,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-3,
    seed: Annotated[int, typer.Option(help="Of prompts, samples, weights and order.")] = 0,
    progress_s: Annotated[float, typer.Option(help="Seconds between lines of progress.")] = 20.0,
    evaluation_s: Annotated[float, typer.Option(help="Seconds between measurements of acceptance.")] = 120.0,
) -> None:
    """Make a drafter: the target writes its own corpus, a small model with its vocabulary learns its distribution.

    Ctrl-C or SIGTERM saves and ends; the same command with the same --out goes on. Progress goes to stderr and, as
    JSON lines, to OUT/report.jsonl.

    Example:

        sled distill --target smollm2-135m --out drafter --minutes 30 --licence Apache-2.0

        sled generate ... --drafter drafter/12m.q8_0.gguf
    """
    settings = Settings(
        target=target,
        students=tuple(student or ("12m",)),
        sizes=tuple(sorted(map(_size, size or ()))),
        minutes=30.0 if minutes is None and steps is None else minutes,
        steps=steps,
        sample_share=sample_share,
        corpus_tokens=corpus_tokens,
        prompts=prompts,
        rows=rows,
        length=length,
        batch=batch,
        lr=lr,
        seed=seed,
    )
    try:
        from sled.distill.run import Machine, distill
        from sled.distill.trainer import Every
    except ModuleNotFoundError as error:
        raise UnknownModel(f"distilling needs {error.name}: pip install 'edgebus[distill]'") from None
    machine = Machine(device, dtype.value if dtype else "", compile_, Every(progress_s, evaluation_s))
    stop = Stop()
    with load_bar(f"loading target {target}") as progress:
        finished = distill(
            settings,
            out,
            gguf=tuple(kind.value for kind in gguf or (Gguf.Q8_0,)),
            licence=licence,
            machine=machine,
            say=lambda line: print(line, file=sys.stderr, flush=True),
            stopped=stop,
            progress=progress,
        )
    if not finished:
        sys.exit(128 + stop.number)


def _size(text: str) -> tuple[str, int]:
    name, found, value = text.partition("=")
    if name not in SIZES or not found or not value.isdecimal():
        raise ParameterError(f"size is {text!r}; give {', '.join(SIZES)} with a number, e.g. vocab=8192")
    return name, int(value)


class Stop:
    """Whether a signal has asked for the end; a second Ctrl-C does not wait for it."""

    def __init__(self) -> None:
        self.number = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._asked)

    def __call__(self) -> bool:
        return self.number > 0

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
