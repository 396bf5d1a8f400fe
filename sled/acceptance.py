"""Apply the acceptance rule to a batch of ragged rounds.

Pure: numpy and the kernels only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import edgekernels
import numpy as np
from numpy.typing import NDArray

from sled.types import Sampling


@dataclass(frozen=True, slots=True)
class RoundRows:
    """One round as the rule sees it: its draft, its sampling and the position the first row decides."""

    draft: Sequence[int]
    sampling: Sampling
    position: int


def decide(logits: NDArray[np.float32], rounds: Sequence[RoundRows]) -> list[tuple[int, int]]:
    """Accepted count and next token of every round.

    Args:
        logits: (rows, vocab) target logits, `len(draft) + 1` rows per round in order.
        rounds: the rounds, in the order of the rows.

    Returns:
        One (accepted, next_token) per round.

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
    return list(zip(verdicts.accepted.tolist(), verdicts.next_token.tolist(), strict=True))
