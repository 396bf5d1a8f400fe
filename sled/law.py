"""The law a drafter samples from under the rejection rule, small enough to travel, and its drafts.

Pure. Lossless is only what is sampled from exactly the law that is sent: cut to a few ids, renormalised and rounded to
float32 first, sampled second (SLED, arXiv 2506.09397; Leviathan et al., arXiv 2211.17192).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import edgekernels
import numpy as np
from numpy.typing import NDArray

from sled.types import Sampling, SparseLaw

MAX_IDS = 64


@dataclass(frozen=True, slots=True)
class Law:
    """One draft's law.

    Args:
        ids: int32 (n,), rising, in the target's vocabulary.
        probabilities: float32 (n,), above 0.
    """

    ids: NDArray[np.int32]
    probabilities: NDArray[np.float32]

    def pick(self, seed: int, position: int) -> int:
        """A sample of this law; the numbers it takes decide nothing else under the rejection rule."""
        logs = np.log(self.probabilities)[None]
        return int(edgekernels.sample(logs, temperature=1.0, seed=seed, position=position, token_ids=self.ids)[0])


def law_of(logits: NDArray[np.float32], sampling: Sampling, ids: NDArray[np.int32] | None = None) -> Law:
    """What a drafter of these logits samples from: the likeliest ids under temperature, top-k, top-p and min-p.

    Args:
        logits: (vocab,), bias and penalties done; one of them at least is finite.
        sampling: of the answer; its temperature is not 0.
        ids: (vocab,) the target's id of each column; None if they are the same.

    >>> law_of(np.log(np.array([0.2, 0.1, 0.7], np.float32)), Sampling(temperature=1.0, top_k=2)).ids.tolist()
    [0, 2]
    """
    count = min(MAX_IDS, sampling.top_k or MAX_IDS, len(logits))
    few = np.argpartition(logits, -count)[-count:]
    few = few[np.argsort(-logits[few], kind="stable")]
    weights = np.exp((logits[few].astype(np.float64) - logits[few[0]]) / sampling.temperature)
    keep = weights >= max(sampling.min_p, 1e-12)
    before = np.cumsum(weights) - weights
    keep &= before < sampling.top_p * weights.sum()
    few, weights = few[keep], weights[keep]
    own = few.astype(np.int32) if ids is None else ids[few]
    order = np.argsort(own)
    return Law(own[order].astype(np.int32), (weights[order] / weights.sum()).astype(np.float32))


def changed(
    logits: NDArray[np.float32],
    sampling: Sampling,
    *,
    text: NDArray[np.int32],
    num_prompt: int,
    bias_ids: NDArray[np.int32],
    bias: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Logits after bias and penalties, as docs/spec/kernels-acceptance.md has them; ids are columns.

    Args:
        logits: (vocab,).
        sampling: whose penalties count.
        text: what the answer holds so far, prompt first.
        num_prompt: how much of it is the prompt.
        bias_ids: (n,) where something is added, once each.
        bias: (n,) what.
    """
    row = logits.copy()
    row[bias_ids] += bias
    if not sampling.counts_tokens or not len(text):
        return row
    seen = np.unique(text)
    row[seen] = np.where(
        row[seen] < 0, row[seen] * sampling.repetition_penalty, row[seen] / sampling.repetition_penalty
    )
    generated, counts = np.unique(text[num_prompt:], return_counts=True)
    row[generated] -= (sampling.frequency_penalty * counts + sampling.presence_penalty).astype(np.float32)
    return row


def certain(token: int) -> Law:
    """The law of a draft that nothing was sampled for."""
    return Law(np.array([token], np.int32), np.ones(1, np.float32))


def packed(laws: Sequence[Law]) -> SparseLaw | None:
    """The laws of a round's drafts as they travel; None where there are none."""
    if not laws:
        return None
    ids = np.concatenate([law.ids for law in laws]).astype("<i4")
    probabilities = np.concatenate([law.probabilities for law in laws]).astype("<f4")
    return SparseLaw([len(law.ids) for law in laws], ids.tobytes(), probabilities.tobytes())


def unpacked(law: SparseLaw) -> Sequence[Law]:
    """The laws that were packed."""
    ids, probabilities = np.frombuffer(law.ids, "<i4"), np.frombuffer(law.probabilities, "<f4")
    ends = np.cumsum(law.counts)[:-1]
    return [Law(i, p) for i, p in zip(np.split(ids, ends), np.split(probabilities, ends), strict=True)]
