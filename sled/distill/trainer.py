"""Students learn from the corpus: one forward of the target a step, shared by all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sled.distill import checkpoint
from sled.distill.checkpoint import Clock, Trained
from sled.distill.corpus import Rows
from sled.distill.learner import Learner
from sled.distill.loss import Chunk, chunk_loss, chunk_size, distillation_loss
from sled.distill.remembered import Remembered
from sled.distill.settings import Settings

Tensor = Any  # torch.Tensor
_DECAY, _BETAS, _CLIP = 0.05, (0.9, 0.95), 1.0
_PRUNED_RATE = 0.4  # of the learning rate, where layers have already learned
_LOWEST, _WARM_BY = 0.02, 0.1
_TV_FROM, _TV_FULL = 0.3, 0.7  # shares of the budget between which total variation grows


def rate_at(done: float, step: int, warmup: int) -> float:
    """Share of the learning rate: a warm-up in steps, then a cosine over the share of the budget that is used.

    A budget of few steps is not spent on warming up: by a tenth of it at the latest it is over.

    >>> [round(rate_at(done, 1000, 200), 2) for done in (0.0, 0.5, 1.0)]
    [1.0, 0.51, 0.02]
    >>> round(rate_at(0.05, 3, 200), 2)
    0.5
    """
    warm = min(1.0, max((step + 1) / warmup, done / _WARM_BY))
    return warm * (_LOWEST + (1 - _LOWEST) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def tv_at(done: float, most: float) -> float:
    """Share of total variation in the loss.

    >>> [round(tv_at(done, 0.8), 2) for done in (0.3, 0.5, 0.9)]
    [0.0, 0.4, 0.8]
    """
    return most * min(1.0, max(0.0, (done - _TV_FROM) / (_TV_FULL - _TV_FROM)))


@dataclass(slots=True)
class Progress:
    """What is said of a training on its way: by student, mean loss since the last time."""

    step: int
    done: float
    epoch: float
    tokens_per_s: float
    rate: float
    tv_share: float
    losses: dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Every:
    """Seconds between what is said, between evaluations, and between checkpoints."""

    progress_s: float = 20.0
    evaluation_s: float = 120.0
    checkpoint_s: float = 60.0


class Trainer:
    """Trains students until the budget is used.

    Args:
        learners: the students.
        rows: of the corpus.
        settings: of the distillation.
        path: of the checkpoint, gone on from if it is there.
        budget_s: seconds of training; None goes by `settings.steps`.
        compiled: compile the chunks of the loss and the students' blocks.
        clock: seconds.
    """

    def __init__(
        self,
        learners: Sequence[Learner],
        rows: Rows,
        settings: Settings,
        path: Path,
        *,
        budget_s: float | None,
        compiled: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._learners, self._rows, self._settings, self._path = learners, rows, settings, path
        self._budget_s, self._now = budget_s, clock
        self._device = learners[0].teacher.device
        self.batch = min(settings.batch, len(rows.tokens))
        self._trained = {one.name: Trained(one.student, _optimiser(one, settings.lr)) for one in learners}
        self._ids = {one.name: one.ids for one in learners}
        self.clock = checkpoint.load(path, self._trained, self._ids)
        self._compute: Chunk = torch.compile(chunk_loss, dynamic=False) if compiled else chunk_loss
        if compiled:
            for one in learners:
                for block in one.student.blocks:
                    block.compile(dynamic=False)
        self._sums = {one.name: torch.zeros(2, device=self._device) for one in learners}
        self._order: tuple[int, Any] = (-1, None)
        self._target = Remembered(learners[0].teacher)

    @property
    def done(self) -> float:
        """Share of the budget that is used."""
        shares = [0.0]
        if self._budget_s is not None:
            shares.append(self.clock.used_s / self._budget_s)
        if self._settings.steps is not None:
            shares.append(self.clock.step / self._settings.steps)
        return max(shares)

    def save(self) -> None:
        """Write the checkpoint."""
        checkpoint.save(self._path, self._trained, self.clock, self._ids)

    def run(
        self,
        every: Every,
        *,
        stopped: Callable[[], bool],
        on_progress: Callable[[Progress], None],
        on_evaluation: Callable[[], None],
    ) -> bool:
        """Train; whether the budget is used. The first step of a process, which compiles, is off the clock."""
        last = {"progress": self._now(), "evaluation": self._now(), "checkpoint": self._now()}
        since, first = self.clock.step, True
        while self.done < 1 and not stopped():
            began = self._now()
            self._step()
            if first:
                self._wait()
                self._forget_sums()
                last = dict.fromkeys(last, self._now())
                self.clock = Clock(self.clock.step + 1, self.clock.used_s)
                since, first = self.clock.step, False
                continue
            self.clock = Clock(self.clock.step + 1, self.clock.used_s + self._now() - began)
            now = self._now()
            if now - last["progress"] >= every.progress_s:
                self._wait()
                on_progress(self._progress(since, self._now() - last["progress"]))
                since, last["progress"] = self.clock.step, self._now()
            if now - last["evaluation"] >= every.evaluation_s and self.done < 1:
                on_evaluation()
                last["evaluation"] = last["progress"] = self._now()
                self._forget_sums()
                since = self.clock.step
            if now - last["checkpoint"] >= every.checkpoint_s:
                self.save()
                last["checkpoint"] = self._now()
        self._wait()
        if self.clock.step > since:
            on_progress(self._progress(since, self._now() - last["progress"]))
        self.save()
        return self.done >= 1

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _forget_sums(self) -> None:
        for sums in self._sums.values():
            sums.zero_()

    def _progress(self, since: int, seconds: float) -> Progress:
        steps, settings = max(1, self.clock.step - since), self._settings
        losses = {}
        for name, sums in self._sums.items():
            kl, tv = (sums / steps).tolist()
            losses[name] = {"kl": round(kl, 4), "tv": round(tv, 4)}
        self._forget_sums()
        return Progress(
            self.clock.step,
            min(1.0, self.done),
            self.clock.step * self.batch / len(self._rows.tokens),
            steps * self.batch * settings.length / max(seconds, 1e-9),
            rate_at(self.done, self.clock.step, settings.warmup),
            tv_at(self.done, settings.tv),
            losses,
        )

    def _texts(self, step: int) -> Any:
        """Row numbers of a step: each epoch an order of its own, the same whenever it is asked for."""
        per_epoch = len(self._rows.tokens) // self.batch
        epoch, place = divmod(step, per_epoch)
        if self._order[0] != epoch:
            chance = np.random.default_rng([self._settings.seed, epoch])
            self._order = (epoch, chance.permutation(len(self._rows.tokens)))
        return np.sort(self._order[1][place * self.batch : (place + 1) * self.batch])

    def _step(self) -> None:
        settings, step, done = self._settings, self.clock.step, self.done
        numbers = self._texts(step)
        tokens = torch.from_numpy(self._rows.tokens[numbers].astype(np.int64)).to(self._device, non_blocking=True)
        written = torch.from_numpy(self._rows.written[numbers]).to(self._device, non_blocking=True)
        weights = torch.where(written[:, 1:], 1.0, settings.prompt_weight).reshape(-1)
        weights = weights / weights.sum().clamp_min(1e-9)
        share = torch.full((), tv_at(done, settings.tv), device=self._device)
        with torch.no_grad():
            target = self._target.hidden(numbers.tolist(), tokens)[:, :-1]
            target = target.reshape(-1, target.shape[-1])
        for learner in self._learners:
            hidden = learner.hidden(tokens)[:, :-1].reshape(-1, learner.shape.width)
            loss, kl, tv = distillation_loss(
                hidden,
                learner.student.head,
                target,
                learner.head,
                weights=weights,
                share=share,
                size=chunk_size(learner.shape.vocab, self._device),
                compute=self._compute,
            )
            loss.backward()
            self._sums[learner.name] += torch.stack([kl, tv])
            nn.utils.clip_grad_norm_(learner.student.parameters(), _CLIP)
            optimiser = self._trained[learner.name].optimiser
            for group in optimiser.param_groups:
                group["lr"] = group["highest"] * rate_at(done, step, settings.warmup)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)


def _optimiser(learner: Learner, lr: float) -> Any:
    lr *= _PRUNED_RATE if learner.shape.kept else 1
    weights = list(learner.student.parameters())
    groups = [
        {"params": [w for w in weights if w.dim() > 1], "weight_decay": _DECAY, "highest": lr},
        {"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0, "highest": lr},
    ]
    fused = {"fused": True} if learner.teacher.device.type == "cuda" else {}
    return torch.optim.AdamW(groups, lr=lr, betas=_BETAS, **fused)
