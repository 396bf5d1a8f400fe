"""Rejection sampling with a dense q, as its users would write it. Logits and q are those of `RejectionCase`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.micro._acceptance_peers import WINDOW, Verdict, peaked_logits

TEMPERATURE = 0.8


@dataclass(frozen=True)
class RejectionCase:
    """Target logits (batch * 5, vocab), draft laws q (batch * 4, vocab), drafts, and how many of them must pass.

    q is p where a draft passes, so that any uniform number accepts it. Where one must not pass, q is certain of an id
    which p has nothing for.
    """

    batch: int
    vocab: int
    passing: NDArray[np.int64]
    logits: NDArray[np.float32] = field(repr=False)
    q: NDArray[np.float32] = field(repr=False)
    drafts: NDArray[np.int32] = field(repr=False)

    @classmethod
    def of(cls, batch: int, vocab: int, passing: NDArray[np.int64]) -> "RejectionCase":
        logits = peaked_logits(batch * (WINDOW + 1), vocab)
        rows = logits.reshape(batch, WINDOW + 1, vocab)
        for b, n in enumerate(passing):
            if n < WINDOW:
                rows[b, n, vocab // 2] = -200
        scores = rows[:, :WINDOW].astype(np.float64) / TEMPERATURE
        q = np.exp(scores - scores.max(axis=2, keepdims=True))
        q = (q / q.sum(axis=2, keepdims=True)).astype(np.float32)
        drafts = q.argmax(axis=2).astype(np.int32)
        for b, n in enumerate(passing):
            if n < WINDOW:
                q[b, n] = 0
                q[b, n, vocab // 2] = 1
                drafts[b, n] = vocab // 2
        return cls(batch, vocab, passing, logits, q.reshape(-1, vocab), drafts.reshape(-1))


class LazyNumpy:
    """One row at a time, none after a rejection: one softmax in float32 for each, the residual only where it is due."""

    def __init__(self, case: RejectionCase) -> None:
        self.case = case
        self.uniform = np.random.default_rng(1).random((case.batch, WINDOW + 2))

    def pick(self, weight: NDArray[np.float32], number: float) -> int:
        mass = np.cumsum(weight)
        return min(int(np.searchsorted(mass, number * mass[-1], side="right")), len(mass) - 1)

    def __call__(self) -> Verdict:
        case, accepted, following = self.case, [], []
        for b in range(case.batch):
            for i in range(WINDOW + 1):
                row = case.logits[b * (WINDOW + 1) + i]
                weight = np.exp((row - row.max()) * np.float32(1 / TEMPERATURE))
                if i == WINDOW:
                    break
                draft = b * WINDOW + i
                token = case.drafts[draft]
                p = weight[token] / weight.sum()
                if not self.uniform[b, i] * case.q[draft, token] < p:
                    weight = np.maximum(weight / weight.sum() - case.q[draft], 0)
                    break
            accepted.append(i)
            following.append(self.pick(weight, self.uniform[b, WINDOW + 1]))
        return accepted, following


class Transformers:
    """transformers' own `_speculative_sampling`, for each sequence as its assisted decoding calls it."""

    def __init__(self, case: RejectionCase) -> None:
        import torch
        from transformers.generation import utils
        from transformers.generation.logits_process import LogitsProcessorList, TemperatureLogitsWarper

        self.torch, self.case, self.speculative = torch, case, utils._speculative_sampling
        self.warp = LogitsProcessorList([TemperatureLogitsWarper(TEMPERATURE)])
        self.logits = torch.from_numpy(case.logits).view(case.batch, WINDOW + 1, case.vocab)
        self.scores = torch.from_numpy(case.q).log().view(case.batch, WINDOW, case.vocab)
        self.drafts = torch.from_numpy(case.drafts).long().view(case.batch, WINDOW)

    def __call__(self) -> Verdict:
        accepted, following = [], []
        for b in range(self.case.batch):
            logits = self.warp(None, self.logits[b])[None]
            tokens, matches = self.speculative(self.drafts[b : b + 1], self.scores[b : b + 1], WINDOW, logits)
            accepted.append(int(matches))
            following.append(int(tokens[0, -1]))
        return accepted, following


class Torch:
    """The whole batch at once in torch operations."""

    def __init__(self, case: RejectionCase) -> None:
        import torch

        self.torch, self.case = torch, case
        self.logits = torch.from_numpy(case.logits)
        self.q = torch.from_numpy(case.q).view(case.batch, WINDOW, case.vocab)
        self.drafts = torch.from_numpy(case.drafts).long().view(case.batch, WINDOW, 1)

    def __call__(self) -> Verdict:
        torch, case = self.torch, self.case
        p = torch.softmax(self.logits / TEMPERATURE, dim=-1).view(case.batch, WINDOW + 1, case.vocab)
        ratio = (p[:, :-1].gather(2, self.drafts) / self.q.gather(2, self.drafts))[:, :, 0]
        matches = (torch.rand_like(ratio) < ratio).long().cumprod(dim=1).sum(dim=1)
        rest = p[torch.arange(case.batch), matches]
        rejected = torch.nonzero(matches < WINDOW)[:, 0]
        rest[rejected] = (rest[rejected] - self.q[rejected, matches[rejected]]).clamp_min(0)
        return matches.tolist(), torch.multinomial(rest, 1)[:, 0].tolist()


class Edgekernels:
    """The function under test."""

    def __init__(self, case: RejectionCase, num_threads: int = 1) -> None:
        from edgekernels import accept

        self.accept, self.case, self.num_threads = accept, case, num_threads
        self.starts = np.arange(case.batch + 1) * (WINDOW + 1)

    def __call__(self) -> Verdict:
        case = self.case
        verdict = self.accept(
            case.logits, case.drafts, self.starts, temperature=TEMPERATURE, rule="rejection", q=case.q, seed=7,
            num_threads=self.num_threads,
        )  # fmt: skip
        return verdict.accepted.tolist(), verdict.next_token.tolist()


PEERS: dict[str, Callable[[RejectionCase], Any]] = {
    "edgekernels": Edgekernels,
    "numpy, lazy": LazyNumpy,
    "torch": Torch,
    "transformers": Transformers,
}
