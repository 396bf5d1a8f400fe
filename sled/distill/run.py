"""From a target to a drafter: corpus, training, files; stopped at any time, gone on from where it stood."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgebus.files import write_whole
from sled.distill.acceptance import measure
from sled.distill.alone import alone_in, look_alone
from sled.distill.conversation import conversation_of
from sled.distill.corpus import Corpus, Rows
from sled.distill.export import gguf_of, write_directory
from sled.distill.learner import Learner
from sled.distill.prompts import open_prompts
from sled.distill.report import Report, write_card
from sled.distill.sampler import Sampler, rows_that_fit
from sled.distill.settings import Settings, keep_settings
from sled.distill.shapes import shape_of
from sled.distill.teacher import Teacher
from sled.distill.trainer import Every, Trainer
from sled.errors import ParameterError
from sled.targets.catalog import find_model
from sled.targets.loading import load_model

_FORMS = 64  # programs of one compiled function: sizes of texts, students, whole or step by step


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and how it is computed; may change from one run to the next.

    Args:
        device: "cpu", "cuda", "cuda:1"; empty takes CUDA where there is one.
        dtype: of the target; empty takes bfloat16 on CUDA, float32 elsewhere.
        compiled: through torch.compile; None does so on CUDA.
        every: how often something is said, measured and saved.
    """

    device: str = ""
    dtype: str = ""
    compiled: bool | None = None
    every: Every = Every()


def distill(
    settings: Settings,
    out: Path,
    *,
    gguf: tuple[str, ...] = ("q8_0",),
    licence: str = "",
    machine: Machine | None = None,
    say: Callable[[str], None] = print,
    stopped: Callable[[], bool] = lambda: False,
    progress: Callable[[float], None] | None = None,
) -> bool:
    """Make drafters for a target; with the same settings and directory, go on where an earlier run stood.

    Args:
        settings: what decides the result.
        out: directory of corpus, checkpoint, report, drafters and card.
        gguf: types of GGUF files beside the safetensors.
        licence: of the target, for the card.
        machine: where and how.
        say: takes lines for people.
        stopped: asked often; once true, what there is is saved and the run ends.
        progress: of loading the target, 0 .. 1.

    Returns:
        Whether it is finished; False where it was stopped.

    Raises:
        ParameterError: settings out of range, or others than the directory was begun with.
        UnknownModel: no such target, or one that cannot be imitated.
        OutOfMemory: the device has no room for it.
        DirectoryInUse: another run has the same `out`.
        OSError: a file cannot be written.
    """
    prompts = open_prompts(settings.prompts)
    look_alone(out)  # before a second target takes the first run's memory
    teacher, compiled = _load(settings, machine or Machine(), progress)
    out.mkdir(parents=True, exist_ok=True)
    like = {"vocab": teacher.num_ids, "theta": teacher.theta(), "positions": teacher.positions}
    with alone_in(out):
        shapes = {name: shape_of(name, dict(settings.sizes), teacher.shape(), like) for name in settings.students}
        if settings.length > teacher.positions:
            raise ParameterError(f"length is {settings.length}, {teacher.name} knows {teacher.positions} positions")
        keep_settings(out, settings, {"target_vocab_hash": teacher.vocab_hash.hex()})
        report = Report(out, say)
        report.began(_device_name(teacher.device), settings, teacher.name)
        corpus = Corpus(out / "corpus", settings.length, teacher.num_ids)
        if not _sample(settings, teacher, prompts, corpus, report, compiled, stopped):
            return False
        rows = corpus.learned()
        torch.manual_seed(settings.seed)
        learners = [Learner(_file_name(name), shape, teacher, rows, settings.length) for name, shape in shapes.items()]
        for learner in learners:
            report.student(learner)
        trainer = _trainer(settings, out, corpus, learners, rows, compiled)
        held_out = corpus.held_out()

        def evaluate() -> None:
            report.evaluated(trainer.clock.step, measure(learners, held_out, trainer.batch))

        every = (machine or Machine()).every
        if not trainer.run(every, stopped=stopped, on_progress=report.trained, on_evaluation=evaluate):
            step, done = trainer.clock.step, trainer.done
            say(f"stopped at step {step}, {done:.0%} of the training; the same command goes on from here")
            return False
        evaluate()
        _finish(settings, out, gguf, licence, corpus, trainer, learners, report)
        return True


def _trainer(
    settings: Settings, out: Path, corpus: Corpus, learners: Sequence[Learner], rows: Rows, compiled: bool
) -> Trainer:
    """What trains for the minutes that sampling has left, if it goes by minutes."""
    budget_s = None if settings.minutes is None else max(1.0, settings.minutes * 60 - corpus.seconds)
    return Trainer(learners, rows, settings, out / "checkpoint.safetensors", budget_s=budget_s, compiled=compiled)


def _finish(
    settings: Settings,
    out: Path,
    gguf: tuple[str, ...],
    licence: str,
    corpus: Corpus,
    trainer: Trainer,
    learners: Sequence[Learner],
    report: Report,
) -> None:
    """Write drafters and card."""
    teacher = learners[0].teacher
    files = {learner.name: write_drafter(out, learner, gguf, licence) for learner in learners}
    training = {
        "steps": trainer.clock.step,
        "minutes": trainer.clock.used_s / 60,
        "device": _device_name(teacher.device),
    }
    write_card(
        out,
        settings=settings,
        target=teacher.name,
        licence=licence,
        corpus={"tokens": corpus.num_tokens, "rounds": corpus.num_rounds},
        training=training,
        learners=learners,
        acceptance=report.acceptance,
        files=files,
    )
    report.note("finished", **training, files=files)
    names = [str(out / file) for one in files.values() for file in one]
    report.say(f"finished: {', '.join(names)}; card {out / 'README.md'}")


def write_drafter(out: Path, learner: Learner, gguf: tuple[str, ...], licence: str) -> list[str]:
    """A student's directory and GGUF files; their names within `out`."""
    teacher, shape = learner.teacher, learner.shape
    weights = {name: weight.numpy() for name, weight in learner.student.hugging_face().items()}
    config = shape.config(teacher.vocab_size, teacher.vocab_hash)
    write_directory(out / learner.name, weights, learner.target_ids, config)
    names = [f"{learner.name}/"]
    ids = None if learner.target_ids is None else learner.target_ids.tolist()
    for kind in gguf:
        names.append(f"{learner.name}.{kind}.gguf")
        title = f"{teacher.name}-draft-{learner.name}"
        write_whole(out / names[-1], gguf_of(title, shape, weights, ids, teacher.vocab_hash, kind, licence))
    return names


def _load(settings: Settings, machine: Machine, progress: Callable[[float], None] | None) -> tuple[Teacher, bool]:
    """The target, and whether to compile."""
    device = machine.device or ("cuda" if torch.cuda.is_available() else "cpu")
    cuda = device.startswith("cuda")
    dtype = machine.dtype or ("bfloat16" if cuda else "float32")
    files = find_model(settings.target)
    model, codec = load_model(files, dtype=dtype, device=device, progress=progress)
    teacher = Teacher(model, codec, files.name)
    compiled = cuda if machine.compiled is None else machine.compiled
    if cuda:
        torch.set_float32_matmul_precision("high")
    if compiled:
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, _FORMS)
        config.suppress_errors = True  # what cannot be compiled is computed as it is
        teacher.compile()
    return teacher, compiled


def _sample(
    settings: Settings,
    teacher: Teacher,
    prompts: Any,
    corpus: Corpus,
    report: Report,
    compiled: bool,
    stopped: Callable[[], bool],
) -> bool:
    """Write rounds until the corpus is large enough; one is held out, one at least is learned from."""

    def enough() -> bool:
        share_s = float("inf") if settings.minutes is None else settings.minutes * 60 * settings.sample_share
        full = corpus.seconds >= share_s or corpus.num_tokens >= settings.most_tokens
        return corpus.num_rounds >= 2 and full

    if enough():
        return True
    rows = settings.rows or rows_that_fit(teacher, settings.length)
    sampler = Sampler(
        teacher,
        conversation_of(teacher.codec),
        prompts,
        rows=rows,
        length=settings.length,
        open_turns=settings.open_turns,
        compiled=compiled,
    )
    if teacher.device.type == "cuda" and not sampler.captured:
        report.say("no CUDA graphs of this target: writing is several times slower")
    try:
        while not enough():
            began, number = time.monotonic(), corpus.num_rounds
            seed = settings.seed * 1_000_003 + number
            texts = sampler.write(seed, held_out=number == 0, stopped=stopped)
            if texts is None:
                report.say(f"stopped after {number} rounds; the same command goes on from here")
                return False
            seconds = time.monotonic() - began
            corpus.add(texts, seconds)
            written = round(float(texts.written.mean()), 3)
            report.sampled(corpus.num_rounds, corpus.num_tokens, texts.tokens.size / seconds, written)
    finally:
        sampler.close()
        if teacher.device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def _file_name(student: str) -> str:
    """`prune:0,1` as `prune-0-1`."""
    return student.replace(":", "-").replace(",", "-")


def _device_name(device: Any) -> str:
    with suppress(RuntimeError, AssertionError):
        if device.type == "cuda":
            return str(torch.cuda.get_device_name(device))
    return str(device)
