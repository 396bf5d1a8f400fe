"""Other ways to accept drafts, as their users would write them, and the logits on which all are timed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEAD = 64  # ids which stand out of each row
WINDOW = 4  # drafts of each sequence


def peaked_logits(rows: int, vocab: int, seed: int = 0) -> NDArray[np.float32]:
    """Logits (rows, vocab) with a wide bulk and a head that falls off by Zipf's law, as language models have.

    Bulk: normal, mean 0, deviation 2.5. Head: 64 ids at random places with 16 - 1.6 ln(rank). At T = 0.8
    the head holds 98 to 99.6 % of the mass, 6 or 7 ids reach 90 %, and the entropy is 1.6 to 1.8 nats.
    """
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((rows, vocab), np.float32) * np.float32(2.5)
    head = 16 - 1.6 * np.log(np.arange(1, HEAD + 1))
    for row in logits:
        row[rng.choice(vocab, HEAD, replace=False)] = head
    return logits


@dataclass(frozen=True)
class Case:
    """One batch: logits (batch * 5, vocab), parameters, and how many drafts of each sequence agree."""

    batch: int
    vocab: int
    settings: dict[str, Any]
    agreeing: NDArray[np.int64]
    logits: NDArray[np.float32] = field(repr=False)

    def drafts_from(self, chosen: NDArray[np.integer]) -> NDArray[np.int32]:
        """Drafts (batch, 4) which agree with the choices (batch, 5) for as long as the case says."""
        drafts = chosen[:, :WINDOW].astype(np.int32)
        for b, n in enumerate(self.agreeing):
            if n < WINDOW:
                drafts[b, n] ^= 1
        return drafts


Verdict = tuple[list[int], list[int]]


def settings_of(case: Case) -> tuple[float, int, float]:
    return case.settings["temperature"], case.settings.get("top_k", 0), case.settings.get("top_p", 1.0)


class LazyNumpy:
    """One row at a time, none after a rejection: softmax and inverse transform sampling, float32 throughout.

    This is less work than the coupled rule needs (one random number a row), so it flatters numpy.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.uniform = np.random.default_rng(1).random((case.batch, WINDOW + 1))
        rows = case.logits.reshape(case.batch, WINDOW + 1, -1)
        self.chosen = np.array(
            [[self.choose(rows[b, i], self.uniform[b, i]) for i in range(WINDOW + 1)] for b in range(case.batch)]
        )
        self.drafts = case.drafts_from(self.chosen)

    def law(self, row: NDArray[np.float32]) -> tuple[NDArray[np.int64] | None, NDArray[np.float32]]:
        """Ids (n,), or None for all of them, and their unnormalised probabilities (n,)."""
        temperature, top_k, top_p = settings_of(self.case)
        ids = None
        if top_k:
            ids = np.argpartition(row, -top_k)[-top_k:]
            row = row[ids]
        weight = np.exp((row - row.max()) / np.float32(temperature))
        if top_p < 1:
            order = np.argsort(-weight)
            mass = np.cumsum(weight[order])
            order = order[: int(np.searchsorted(mass, top_p * mass[-1])) + 1]
            ids = order if ids is None else ids[order]
            weight = weight[order]
        return ids, weight

    def choose(self, row: NDArray[np.float32], uniform: float) -> int:
        if self.case.settings["temperature"] == 0:
            return int(row.argmax())
        ids, weight = self.law(row)
        mass = np.cumsum(weight)
        place = min(int(np.searchsorted(mass, uniform * mass[-1], side="right")), len(mass) - 1)
        return place if ids is None else int(ids[place])

    def __call__(self) -> Verdict:
        accepted, following = [], []
        for b in range(self.case.batch):
            for i in range(WINDOW + 1):
                token = self.choose(self.case.logits[b * (WINDOW + 1) + i], self.uniform[b, i])
                if i == WINDOW or token != self.drafts[b, i]:
                    break
            accepted.append(i)
            following.append(token)
        return accepted, following


class Transformers:
    """transformers' own processors, softmax and multinomial over all rows, then its count of matches."""

    def __init__(self, case: Case) -> None:
        import torch
        from transformers.generation import logits_process as processors

        temperature, top_k, top_p = settings_of(case)
        self.torch, self.case = torch, case
        self.logits = torch.from_numpy(case.logits)
        self.processors = processors.LogitsProcessorList()
        if temperature > 0:
            self.processors.append(processors.TemperatureLogitsWarper(temperature))
        if top_k:
            self.processors.append(processors.TopKLogitsWarper(top_k))
        if top_p < 1:
            self.processors.append(processors.TopPLogitsWarper(top_p))
        self.generator = torch.Generator()
        self.chosen = self.choose().numpy()
        self.drafts = torch.from_numpy(case.drafts_from(self.chosen)).long()

    def law(self) -> Any:
        return self.processors(None, self.logits).softmax(dim=-1)

    def choose(self) -> Any:
        if self.case.settings["temperature"] == 0:
            chosen = self.logits.argmax(dim=-1)
        else:
            self.generator.manual_seed(1)  # the same verdict in every round
            chosen = self.torch.multinomial(self.law(), 1, generator=self.generator)
        return chosen.reshape(self.case.batch, WINDOW + 1)

    def __call__(self) -> Verdict:
        chosen = self.choose()
        matches = ((~(self.drafts == chosen[:, :-1])).cumsum(dim=-1) < 1).sum(dim=-1)
        return matches.tolist(), chosen.gather(1, matches[:, None])[:, 0].tolist()


class Edgekernels:
    """The function under test, on one thread."""

    def __init__(self, case: Case) -> None:
        from edgekernels import accept, sample

        self.case, self.accept = case, accept
        positions = 1000 * np.arange(case.batch)[:, None] + np.arange(WINDOW + 1)
        self.chosen = sample(case.logits, seed=7, position=positions.reshape(-1), **case.settings)
        self.chosen = self.chosen.reshape(case.batch, WINDOW + 1)
        self.drafts = case.drafts_from(self.chosen).reshape(-1)
        self.starts = np.arange(case.batch + 1) * (WINDOW + 1)
        self.position = positions[:, 0].copy()

    def __call__(self) -> Verdict:
        verdict = self.accept(
            self.case.logits, self.drafts, self.starts, seed=7, position=self.position, **self.case.settings
        )
        return verdict.accepted.tolist(), verdict.next_token.tolist()


class Reference(Edgekernels):
    """The same answers from the numpy reference, lazily: the coupled rule as numpy can do it."""

    def __call__(self) -> Verdict:
        from edgekernels import _reference, _select

        before = _select.active
        _select.use(_reference)
        try:
            return super().__call__()
        finally:
            _select.use(before)


PEERS: dict[str, Callable[[Case], Any]] = {
    "edgekernels": Edgekernels,
    "numpy, same rule": Reference,
    "numpy, lazy": LazyNumpy,
    "transformers": Transformers,
}
