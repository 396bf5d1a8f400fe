"""Ragged batches of every kind, for comparing two ways to decide them."""

from typing import Any

import numpy as np
from edgekernels import Bias, History, SparseQ

SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-45, 88.0], np.float32)
TEMPERATURES = [0, 1e-30, 1e-3, 0.3, 0.8, 1, 5, 1e4, 1e30]


def in_dtype(logits: Any, dtype: int) -> Any:
    """float32 logits as float32, float16 or the bits of bfloat16."""
    with np.errstate(all="ignore"):
        return [logits, logits.astype(np.float16), (logits.view(np.uint32) >> 16).astype(np.uint16)][dtype]


def ragged(rng: Any, batch: int, most: int, vocab: int) -> tuple[Any, Any]:
    """Ids of a batch, fewer than `most` of each sequence, and their offsets."""
    starts = np.concatenate([[0], np.cumsum(rng.integers(0, most, batch))]).astype(np.int64)
    return rng.integers(0, vocab, starts[-1]).astype(np.int32), starts


def options(rng: Any, batch: int, vocab: int) -> dict[str, Any]:
    """Filters, penalties and bias, some of them."""
    chosen: dict[str, Any] = {}
    for name, values in {
        "top_k": [0, 1, 2, 20, 300, 4000],
        "top_p": [1, 1e-9, 0.5, 0.9, 0.999999],
        "min_p": [0, 0.01, 0.5, 1.0],
    }.items():
        if rng.random() < 0.35:
            chosen[name] = rng.choice(values, batch)
    if rng.random() < 0.35:
        ids, starts = ragged(rng, batch, 40, vocab)
        chosen["history"] = History(ids, starts, np.minimum(rng.integers(0, 20, batch), np.diff(starts)))
        chosen["repetition_penalty"] = rng.choice([1.0, 1.3, 0.7], batch)
        chosen["frequency_penalty"] = rng.choice([0, 0.5, -0.5], batch)
        chosen["presence_penalty"] = rng.choice([0, 1.5, -3], batch)
    if rng.random() < 0.35:
        ids, starts = ragged(rng, batch, 20, vocab)
        chosen["bias"] = Bias(ids, rng.choice([1, -np.inf, 0.25, -3, 40], len(ids)).astype(np.float32), starts)
    return chosen


def sparse(q: Any, keep: Any) -> SparseQ:
    """The entries (drafts, vocab) of q to keep, as they are."""
    starts = np.concatenate([[0], np.cumsum(keep.sum(axis=1))]).astype(np.int64)
    return SparseQ(np.nonzero(keep)[1].astype(np.int32), q[keep], starts)


def law(rng: Any, drafts: int, vocab: int) -> tuple[Any, Any]:
    """A q, dense or sparse, and drafts sampled from it."""
    q = rng.random((drafts, vocab)) ** rng.choice([1, 5, 30]) + 1e-12
    q = (q / q.sum(axis=1, keepdims=True)).astype(np.float32)
    ids = np.array([rng.choice(vocab, p=row.astype(float) / row.astype(float).sum()) for row in q], np.int32)
    if rng.random() < 0.5:
        return q, ids.reshape(-1)
    level = np.quantile(q, rng.choice([0, 0.5, 0.99]), axis=1, keepdims=True) if drafts else q[:, :1]
    return sparse(q, q >= level), ids.reshape(-1)


def case(seed: int) -> tuple[tuple[Any, Any, Any], dict[str, Any]]:
    """Arguments of `accept`: logits of one of three dtypes, drafts that often agree, and a rule."""
    rng = np.random.default_rng(seed)
    vocab = int(rng.choice([1, 2, 5, 63, 64, 65, 128, 200, 1000, 3000, 5000]))
    batch = int(rng.integers(1, 5))
    starts = np.concatenate([[0], np.cumsum(rng.integers(0, 5, batch) + 1)]).astype(np.int64)
    rows = int(starts[-1])
    logits = rng.standard_normal((rows, vocab)).astype(np.float32) * np.float32(rng.choice([0, 0.01, 1, 4, 40]))
    if rng.random() < 0.3:
        logits = np.round(logits)
    if rng.random() < 0.3:
        logits[rng.integers(0, rows), rng.integers(0, vocab)] += 20
    if rng.random() < 0.25:
        spoilt = rng.random(logits.shape) < rng.choice([0.01, 0.3, 0.98])
        logits[spoilt] = rng.choice(SPECIAL, spoilt.sum())
    parameters = {
        "temperature": rng.choice(TEMPERATURES, batch),
        "seed": rng.integers(0, 2**64, batch, dtype=np.uint64),
        "position": rng.integers(0, 2**40, batch),
    } | options(rng, batch, vocab)
    drafts = rng.integers(-1, vocab + 1, rows - batch).astype(np.int32)
    if rng.random() < 0.6:
        parameters["rule"] = "rejection"
        if rng.random() < 0.7:
            parameters["q"], drafts = law(rng, rows - batch, vocab)
    of_draft = np.setdiff1d(np.arange(rows), starts[1:] - 1)
    likely = rng.random(len(drafts)) < 0.6
    drafts[likely] = np.nan_to_num(logits, nan=-np.inf)[of_draft[likely]].argmax(axis=1)
    return (in_dtype(logits, int(rng.integers(0, 3))), drafts, starts), parameters
