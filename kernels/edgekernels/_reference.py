"""The specification in numpy: noise, filters and acceptance as docs/spec/kernels.md defines them.

Every other backend gives the same answers. Arguments are checked by the callers; rows are read one at a time,
and only as long as drafts are accepted.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgekernels import _reference_rejection as rejection
from edgekernels._hooks import Noise
from edgekernels._reference_filters import Changes, as_float32, filter_floor
from edgekernels._task import REJECTION, Task

NAME = "numpy"

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int32]
Words = npt.NDArray[np.uint32]

DOMAIN = 0x534C4544  # "SLED": noise of tokens
REJECTION_DOMAIN = 0x524A4354  # "RJCT": numbers of the rejection rule


def philox(counter: npt.NDArray[np.uint64], key: tuple[int, int]) -> Words:
    """Philox4x32-10 of counters (n, 4), held in 64-bit integers, as words (n, 4)."""
    low32 = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    c0, c1, c2, c3 = counter.T
    k0, k1 = key
    for _ in range(10):
        p0 = c0 * np.uint64(0xD2511F53)
        p1 = c2 * np.uint64(0xCD9E8D57)
        c0, c1 = (p1 >> half) ^ c1 ^ np.uint64(k0), p1 & low32
        c2, c3 = (p0 >> half) ^ c3 ^ np.uint64(k1), p0 & low32
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def noise_words(seed: int, position: int, token_ids: npt.NDArray[np.integer]) -> Words:
    """Noise words (n,) of tokens (n,) at one position."""
    quads = (token_ids >> 2).astype(np.int64)
    place = np.arange(len(quads))
    if len(quads) and quads.max() - quads.min() < len(quads):  # dense ids share counters, four to each
        place = quads - quads.min()
        quads = np.arange(quads.min(), quads.max() + 1)
    counter = np.empty((len(quads), 4), np.uint64)
    counter[:, 0] = quads
    counter[:, 1] = position & 0xFFFFFFFF
    counter[:, 2] = position >> 32
    counter[:, 3] = DOMAIN
    words = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
    chosen: Words = words[place, token_ids & 3]
    return chosen


def gumbel(words: Words) -> Doubles:
    """Gumbel variates of noise words, elementwise."""
    uniform = (words.astype(np.float64) + 0.5) * 2.0**-32
    gumbels: Doubles = -np.log(-np.log(uniform))
    return gumbels


def uniform(seed: int, position: int, stream: int) -> float:
    """A number in [0, 1) of 53 bits: stream 0 is that of the acceptance test, 1 that of the token after it."""
    counter = np.array([[stream, position & 0xFFFFFFFF, position >> 32, REJECTION_DOMAIN]], np.uint64)
    high, low = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))[0, :2].tolist()
    return float(((high << 32 | low) >> 11) * 2.0**-53)


def survivors(logits: Floats, temperature: float, top_k: int, top_p: float) -> npt.NDArray[np.bool_]:
    """Which logits (vocab,), none of them NaN or +inf, survive top-k and then top-p."""
    kept: npt.NDArray[np.bool_] = logits >= filter_floor(logits, temperature, top_k, top_p, -np.inf)
    return kept


def best_score(
    logits: Floats,
    ids: npt.NDArray[np.integer] | None,
    floor: np.float32,
    temperature: float,
    seed: int,
    position: int,
    noise: Noise | None,
) -> int:
    """The id with the largest sum of logit / temperature and gumbel noise; the lowest id wins ties."""
    keep = logits >= floor
    ids = np.flatnonzero(keep) if ids is None else ids[keep]
    words = noise_words(seed, position, ids) if noise is None else noise.words(seed, position, ids)
    scores = logits[keep].astype(np.float64) * (1.0 / temperature) + gumbel(words)
    return int(ids[scores == scores.max()].min())


class Primitives(NamedTuple):
    """What a backend may do faster than numpy, with equal results."""

    best_score: Callable[..., int] = best_score
    weigh: Callable[..., rejection.Weighed] = rejection.weigh


NUMPY = Primitives()


def choose(
    row: Floats,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    position: int,
    log_min_p: float = -np.inf,
    token_ids: Ids | None = None,
    noise: Noise | None = None,
    primitives: Primitives = NUMPY,
) -> int:
    """The token which one row (vocab,) decides by the coupled rule."""
    logits = np.where(np.isnan(row), np.float32(-np.inf), row)
    top = logits.max()
    if temperature == 0.0 or np.isinf(top):
        at_top = np.flatnonzero(logits == top)
        return int(at_top[0] if token_ids is None else token_ids[at_top].min())
    floor = filter_floor(logits, temperature, top_k, top_p, log_min_p)
    return primitives.best_score(logits, token_ids, floor, temperature, seed, position, noise)


def reject(
    task: Task, logits: Floats, rule: Any, position: int, draft: int | None, primitives: Primitives
) -> tuple[bool, int]:
    """Whether the draft of a row (vocab,) passes, and the token instead of it; None is the last row's draft."""
    seed = int(rule["seed"])
    floor = filter_floor(
        logits, float(rule["temperature"]), int(rule["top_k"]), float(rule["top_p"]), float(rule["log_min_p"])
    )
    weighed = primitives.weigh(logits, float(rule["temperature"]), floor)
    if draft is not None:
        assert task.drafts is not None
        token = int(task.drafts[draft])
        known = 0 <= token < len(logits)
        if known or task.q is not None:
            q = rejection.law_of_draft(task, draft)
            if known and rejection.passes(task, weighed, q, token, uniform(seed, position, 0)):
                return True, token
            weighed = rejection.residual(weighed, q)
    return False, rejection.emit(weighed, uniform(seed, position, 1))


def decide_row(
    task: Task, logits: Floats, rule: Any, position: int, draft: int | None, primitives: Primitives
) -> tuple[bool, int]:
    """Whether the draft of a row (vocab,) is accepted, and the token which the row gives."""
    if task.kind == REJECTION and rule["temperature"] > 0 and not np.isinf(logits.max()):
        return reject(task, logits, rule, position, draft, primitives)
    token = choose(
        logits,
        temperature=float(rule["temperature"]),
        top_k=int(rule["top_k"]),
        top_p=float(rule["top_p"]),
        log_min_p=float(rule["log_min_p"]),
        seed=int(rule["seed"]),
        position=position,
        token_ids=task.token_ids,
        noise=task.noise,
        primitives=primitives,
    )
    return draft is not None and task.drafts is not None and token == task.drafts[draft], token


def decide(task: Task, primitives: Primitives = NUMPY) -> None:
    """Write the accepted count and the next token of every sequence."""
    for b, rule in enumerate(task.rules):
        start, end = (b, b + 1) if task.row_starts is None else task.row_starts[b : b + 2].tolist()
        changes = Changes(task, b)
        for row in range(start, end):
            logits = changes.apply(as_float32(task.logits[row], task.dtype))
            draft = None if row == end - 1 else row - b
            passed, token = decide_row(task, logits, rule, int(rule["position"]) + row - start, draft, primitives)
            if not passed:
                task.accepted[b], task.next_token[b] = row - start, token
                break
            changes.see(token)


def noise_bits(seed: int, position: int, token_ids: Ids, words: Words) -> None:
    """Write the noise word (n,) of every token id (n,)."""
    words[:] = noise_words(seed, position, token_ids)
