"""The specification in numpy: rejection sampling over integer masses (docs/spec/kernels-acceptance.md)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgekernels._reference_filters import EXP2_SERIES, LOG2_E, Floats, Ints
from edgekernels._task import SparseQ, Task

BLOCK = 64
BLOCK_BITS = 24  # the likeliest id of a block has mass 2**24
ROW_BITS = 40  # and 2**40 if it is the likeliest of the row
EXP2_FINE = (
    1.0,
    0.6931471805599453,
    0.24022650695910072,
    0.05550410866482158,
    0.009618129107628477,
    0.0013333558146428443,
    0.0001540353039338161,
    1.5252733804059841e-05,
)


class Weighed(NamedTuple):
    """A row as masses (blocks, 64), weights (blocks,) and their rounded products' sums (blocks,)."""

    masses: Ints
    weights: npt.NDArray[np.float64]
    sums: Ints

    @classmethod
    def of(cls, masses: Ints, weights: npt.NDArray[np.float64]) -> Weighed:
        return cls(masses, weights, (masses.sum(axis=1) * weights).astype(np.int64))

    @property
    def total(self) -> int:
        return int(self.sums.sum())


def in_blocks(values: Floats, padding: float) -> Floats:
    """Values (vocab,) as (blocks, 64)."""
    blocks = np.full((-(-len(values) // BLOCK), BLOCK), padding, np.float32)
    blocks.reshape(-1)[: len(values)] = values
    return blocks


def weigh(logits: Floats, temperature: float, floor: np.float32) -> Weighed:
    """Masses of a row (vocab,) without NaN and +inf, one logit at least being finite."""
    blocks = in_blocks(logits, -np.inf)
    maxima = blocks.max(axis=1)
    top = maxima.max()
    maxima[maxima == -np.inf] = 0  # nothing there has a mass
    scale = (1.0 / temperature) * LOG2_E
    with np.errstate(over="ignore"):
        t = np.maximum((blocks - maxima[:, None]) * np.float32(scale), np.float32(-BLOCK_BITS - 2))
    whole = np.rint(t)
    fraction = t - whole
    series = np.full_like(fraction, EXP2_SERIES[-1])
    for coefficient in EXP2_SERIES[-2::-1]:
        series = series * fraction + coefficient
    masses = np.rint(np.ldexp(series, whole.astype(np.int32) + BLOCK_BITS)).astype(np.int64)
    masses[~(blocks >= floor)] = 0
    weights = np.clip((maxima.astype(np.float64) - np.float64(top)) * scale, -64.0, 0.0)
    whole_weight = np.rint(weights)
    fraction_weight = weights - whole_weight
    fine = np.full_like(fraction_weight, EXP2_FINE[-1])
    for exact in EXP2_FINE[-2::-1]:
        fine = fine * fraction_weight + exact
    return Weighed.of(masses, np.ldexp(fine, whole_weight.astype(np.int32) + ROW_BITS - BLOCK_BITS))


def law_of_draft(task: Task, draft: int) -> Floats:
    """q (vocab,) of one draft; a draft without a law is certain."""
    assert task.drafts is not None
    if task.q is not None and not isinstance(task.q, SparseQ):
        dense: Floats = task.q[draft]
        return dense
    q = np.zeros(task.logits.shape[1], np.float32)
    if task.q is None:
        q[task.drafts[draft]] = 1
    else:
        here = slice(task.q.starts[draft], task.q.starts[draft + 1])
        q[task.q.ids[here]] = task.q.probabilities[here]
    return q


def passes(task: Task, weighed: Weighed, q: Floats, token: int, u: float) -> bool:
    """Whether a draft within the vocabulary is accepted."""
    block, place = divmod(token, BLOCK)
    total = float(weighed.total)
    p = float(weighed.masses[block, place]) * float(weighed.weights[block]) / total
    if task.accepts is not None:
        return bool(task.accepts.function(p, float(q[token]), u, 2.0**ROW_BITS / total))
    return bool(q[token] > 0) and u * float(q[token]) < p


def residual(weighed: Weighed, q: Floats) -> Weighed:
    """Masses of max(p - q, 0), q (vocab,); those of p where that is nothing."""
    shares = (np.float64(weighed.total) / weighed.weights).astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        laid_out = in_blocks(q, 0.0)
        taken = laid_out * shares[:, None]
        gone = (laid_out >= 1) | (taken >= weighed.masses.astype(np.float32))
        taken[~(taken > 0) | gone] = 0
    left = Weighed.of(np.where(gone, 0, weighed.masses - taken.astype(np.int64)), weighed.weights)
    return left if left.total > 0 else weighed


def emit(weighed: Weighed, number: float) -> int:
    """The id at the place of a number in [0, 1), counting masses block by block."""
    total = weighed.total
    place = min(int(number * float(total)), total - 1)
    ends = np.cumsum(weighed.sums)
    block = int(np.argmax(ends > place))
    rest = float(place - int(ends[block] - weighed.sums[block]))
    running = np.cumsum(weighed.masses[block])
    reached = running * weighed.weights[block] > rest
    within = np.argmax(reached) if reached.any() else np.flatnonzero(weighed.masses[block])[-1]
    return block * BLOCK + int(within)
