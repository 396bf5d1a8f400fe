"""Apply the acceptance rule to a batch of ragged rounds.

Pure: numpy and the kernels only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import edgekernels
import numpy as np
from numpy.typing import NDArray

from sled.types import Logprob, Sampling, SparseLaw


@dataclass(frozen=True, slots=True)
class RoundRows:
    """One round as the rule sees it.

    Args:
        draft: k token ids.
        sampling: how the session samples.
        position: absolute position the first row decides, which is the length of the committed text.
        text: the committed text, for penalties; its first `num_prompt` tokens are the prompt.
        num_prompt: see `text`.
        law: the laws the drafts were sampled from; only with the rejection rule.
        num_logprobs: likeliest tokens to report with each token; -1 reports nothing.
        allowed: uint32 (k + 1, ceil(vocab / 32)), bit i % 32 of word i // 32 says whether row r may choose token i;
            None allows all. Rows behind a draft that is not allowed hold anything.
    """

    draft: Sequence[int]
    sampling: Sampling
    position: int
    text: Sequence[int] = ()
    num_prompt: int = 0
    law: SparseLaw | None = None
    num_logprobs: int = -1
    allowed: NDArray[np.uint32] | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What the target decided for one round: accepted drafts, then the next token.

    `finite` is False where the logits were not numbers: then nothing else holds. `logprobs` has an entry for each of
    the accepted + 1 tokens if they were asked for.
    """

    accepted: int
    next_token: int
    finite: bool = True
    logprobs: tuple[Logprob, ...] = ()


def decide(logits: NDArray[np.float32], rounds: Sequence[RoundRows]) -> list[Decision]:
    """Accepted count and next token of every round.

    Args:
        logits: (rows, vocab) target logits, `len(draft) + 1` rows per round in order.
        rounds: the rounds, in the order of the rows.

    Returns:
        One decision per round.

    Source: coupled sampling, arXiv 2408.07978; greedy is its case without noise.
    """
    if not rounds:
        return []
    counts = [len(r.draft) + 1 for r in rounds]
    row_starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    drafts = np.array([token for r in rounds for token in r.draft], np.int32)
    verdicts = edgekernels.accept(
        logits,
        drafts,
        row_starts,
        temperature=np.array([r.sampling.temperature for r in rounds], np.float64),
        top_k=np.array([r.sampling.top_k for r in rounds], np.int64),
        top_p=np.array([r.sampling.top_p for r in rounds], np.float64),
        seed=np.array([r.sampling.seed for r in rounds], np.uint64),
        position=np.array([r.position for r in rounds], np.int64),
    )
    pairs = zip(verdicts.accepted.tolist(), verdicts.next_token.tolist(), strict=True)
    return [Decision(accepted, token) for accepted, token in pairs]
