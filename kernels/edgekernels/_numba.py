"""The backend where there is no compiler but Numba: the reference with its loops compiled.

Filters stay with numpy. Importing this costs 0.3 s, the first call of a machine some seconds of compiling.
"""

import math
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from edgekernels import _reference
from edgekernels._hooks import Noise
from edgekernels._reference_filters import EXP2_SERIES, LOG2_E, Floats
from edgekernels._reference_rejection import BLOCK, BLOCK_BITS, EXP2_FINE, ROW_BITS, Weighed, in_blocks
from edgekernels._task import Ids, Task

NAME = "numba"
LARGEST_GUMBEL = 22.875  # as in csrc/coupled.inc.c
SERIES, FINE = EXP2_SERIES, np.array(EXP2_FINE)
NO_IDS = np.empty(0, np.int64)
compiled = numba.njit(nogil=True, cache=True, error_model="numpy")


@compiled
def philox_words(seed, position, counter):  # type: ignore[no-untyped-def]
    """The four words of one counter."""
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    c0, c1, c2, c3 = np.uint64(counter), position & low, position >> half, np.uint64(0x534C4544)
    k0, k1 = seed & low, seed >> half
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1 = (p1 >> half) ^ c1 ^ k0, p1 & low
        c2, c3 = (p0 >> half) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return c0, c1, c2, c3


@compiled
def _word(seed, position, token):  # type: ignore[no-untyped-def]
    w0, w1, w2, w3 = philox_words(seed, position, token >> 2)
    which = token & 3
    return w0 if which == 0 else w1 if which == 1 else w2 if which == 2 else w3


@compiled
def _gumbel(word):  # type: ignore[no-untyped-def]
    return -math.log(-math.log((np.float64(word) + 0.5) * 2.0**-32))


@compiled
def _least_word(needed):  # type: ignore[no-untyped-def]
    """A word below which noise cannot reach `needed`."""
    return np.uint64(max(math.floor(math.ldexp(math.exp(-math.exp(-needed)), 32)) - 2, 0))


@compiled
def _search(logits, ids, floor, inverse, seed, position, start):  # type: ignore[no-untyped-def]
    """The id with the best score, beginning with the column `start`."""
    best_id = ids[start] if len(ids) else start
    best = np.float64(logits[start]) * inverse + _gumbel(_word(seed, position, best_id))
    for first in range(0, len(logits), BLOCK):
        end = min(first + BLOCK, len(logits))
        most = logits[first]
        for i in range(first + 1, end):
            most = max(most, logits[i])
        if most < floor or most == -np.inf:
            continue
        score = np.float64(most) * inverse
        needed = best - score - (1e-9 + 1e-15 * (abs(best) + abs(score)))
        if needed > LARGEST_GUMBEL:
            continue
        least = _least_word(needed)
        words = np.zeros(4, np.uint64)
        for i in range(first, end):
            token = ids[i] if len(ids) else i
            if len(ids):
                word = _word(seed, position, token)
            else:
                if i % 4 == 0:
                    words[0], words[1], words[2], words[3] = philox_words(seed, position, i >> 2)
                word = words[i % 4]
            if word < least or not logits[i] >= floor:
                continue
            score = np.float64(logits[i]) * inverse + _gumbel(word)
            if score > best or (score == best and token < best_id):
                best, best_id = score, token
    return best_id


@compiled
def _masses(logits, maxima, scale, floor, masses):  # type: ignore[no-untyped-def]
    """Masses (blocks, 64) of logits (blocks, 64); see `_reference_rejection.weigh`."""
    powers = np.array([math.ldexp(1.0, n) for n in range(-2, BLOCK_BITS + 1)])
    for b in range(len(logits)):
        for i in range(BLOCK):
            if not logits[b, i] >= floor:
                continue
            t = max((logits[b, i] - maxima[b]) * scale, np.float32(-BLOCK_BITS - 2))
            whole = np.rint(t)
            fraction = t - whole
            series = SERIES[6]
            for k in range(5, -1, -1):
                series = series * fraction + SERIES[k]
            masses[b, i] = np.int64(np.rint(np.float64(series) * powers[int(whole) + BLOCK_BITS + 2]))


@compiled
def _weights(maxima, top, scale, weights):  # type: ignore[no-untyped-def]
    for b in range(len(maxima)):
        t = min(max((np.float64(maxima[b]) - np.float64(top)) * scale, -64.0), 0.0)
        whole = np.rint(t)
        fraction = t - whole
        series = FINE[7]
        for k in range(6, -1, -1):
            series = series * fraction + FINE[k]
        weights[b] = math.ldexp(series, int(whole) + ROW_BITS - BLOCK_BITS)


@compiled
def _fill_words(seed, position, ids, words):  # type: ignore[no-untyped-def]
    for i in range(len(ids)):
        words[i] = _word(seed, position, np.int64(ids[i]))


def best_score(
    logits: Floats,
    ids: npt.NDArray[np.integer] | None,
    floor: np.float32,
    temperature: float,
    seed: int,
    position: int,
    noise: Noise | None,
) -> int:
    """As `_reference.best_score`."""
    if noise is not None:
        return _reference.best_score(logits, ids, floor, temperature, seed, position, noise)
    columns = NO_IDS if ids is None else ids.astype(np.int64)
    start = int(np.argmax(logits))
    found = _search(logits, columns, floor, 1.0 / temperature, np.uint64(seed), np.uint64(position), start)
    return int(found)


def weigh(logits: Floats, temperature: float, floor: np.float32) -> Weighed:
    """As `_reference_rejection.weigh`."""
    blocks = in_blocks(logits, -np.inf)
    maxima = blocks.max(axis=1)
    top = maxima.max()
    maxima[maxima == -np.inf] = 0
    scale = (1.0 / temperature) * LOG2_E
    masses, weights = np.zeros(blocks.shape, np.int64), np.empty(len(blocks))
    _masses(blocks, maxima, np.float32(scale), floor, masses)
    _weights(maxima, top, scale, weights)
    return Weighed.of(masses, weights)


PRIMITIVES = _reference.Primitives(best_score, weigh)


def decide(task: Task) -> None:
    """Write the accepted count and the next token of every sequence."""
    _reference.decide(task, PRIMITIVES)


def noise_bits(seed: int, position: int, token_ids: Ids, words: Any) -> None:
    """Write the noise word (n,) of every token id (n,)."""
    _fill_words(np.uint64(seed), np.uint64(position), token_ids, words)
