"""How long a forward of so many tokens takes, learned while the server works.

Pure: no sockets, clock or randomness.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

KNOTS = np.array([1.0, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096])
FAR = 1e6
PRIOR_PER_TOKEN = 0.004  # of a one-token step; low on purpose: what is thought cheap is tried
PRIOR_WEIGHT = 0.05  # observations that the prior counts as, for each coefficient
LEAST_TRUST = 1e-12  # of what the largest coefficient is known by: with less, the fit would leave the numbers
AGAINST_ROUNDS = 40.0  # times that for what rounds cost beyond their tokens, believed where nothing else fits
MEMORY = 64.0  # observations that a cell's mean goes back
FADE = 0.999  # of what a cell weighs, with each observation elsewhere
SPIKE = 0.25  # deviations beyond this share of what is known count no more than this
LEAST_SHARE = 0.05  # of the fastest step known, that any step takes at least
SOLVES = 12  # of the fit at most
_DRAFTING, _ROUNDS, _CONTEXT = len(KNOTS), len(KNOTS) + 1, len(KNOTS) + 2
_NUM = len(KNOTS) + 3
_WIDTHS = np.append(np.diff(KNOTS), np.inf)


def _features(tokens: Floats, rounds: Floats, context: Floats) -> Floats:
    """(n, features): a constant, tokens in each segment between knots, rounds that carry drafts, rounds, context.

    Half of all rounds count as carrying drafts, too: else more rounds of the same tokens, which carry fewer, cost less.
    """
    out = np.empty((len(tokens), _NUM))
    out[:, 0] = 1.0
    out[:, 1 : len(KNOTS)] = np.clip(tokens[:, None] - KNOTS[:-1], 0.0, _WIDTHS[:-1])
    out[:, len(KNOTS) - 1] = np.maximum(tokens - KNOTS[-2], 0.0)
    out[:, _DRAFTING] = np.minimum(np.maximum(tokens - rounds, 0.0) * 0.5, rounds) + rounds * 0.5
    out[:, _ROUNDS] = rounds
    out[:, _CONTEXT] = context
    return out


def _cell(tokens: int, rounds: int) -> tuple[int, int]:
    return round(3.0 * math.log2(tokens)), round(2.0 * math.log2(rounds)) if rounds > 0 else -1


class StepCost:
    """Measured step time over tokens, rounds and context; rises with each of them.

    A step takes a constant, a rising piecewise linear function of its tokens (which has the jumps of a CPU's kernels
    and the flat start of a GPU's), and something for each round, for each round that carries drafts and for each
    position of context. Observations are kept as means over cells of similar steps, so that a point of work that was
    left is remembered; the coefficients are the non-negative ones of least squared relative error over all cells. A
    single slow step (a kernel compiled, a page fault) counts little, a lasting change wins within tens of steps.

    Source: the fitted batch time of SmartSpec, arXiv 2406.14066, section 4.
    """

    def __init__(self) -> None:
        self._cells: dict[tuple[int, int], int] = {}
        self._counts: dict[tuple[int, int], int] = {}
        self._means = np.zeros((0, 4))  # tokens, rounds, context, seconds
        self._weights = np.zeros(0)
        self._stale = False
        self._solution = np.zeros(_NUM)
        self._at_knots = np.zeros(len(KNOTS))
        self._knots: list[float] = KNOTS.tolist()
        self._values: list[float] = []
        self._coefficients: list[float] = []
        self.observations = 0

    def observe(self, tokens: int, rounds: int, context: int, took_s: float) -> None:
        """Learn from a step.

        Args:
            tokens: computed in it, prefill included; 0 teaches nothing.
            rounds: rounds and streams in it.
            context: positions of keys and values read.
            took_s: seconds; what is not a positive number teaches nothing.
        """
        if tokens < 1 or not 0.0 < took_s < math.inf:
            return
        self.observations += 1
        key = _cell(tokens, rounds)
        self._counts[key] = self._counts.get(key, 0) + 1
        index = self._cells.get(key)
        if index is None:
            index = self._cells[key] = len(self._cells)
            if index >= len(self._weights):
                self._means = np.concatenate([self._means, np.zeros((32, 4))])
                self._weights = np.concatenate([self._weights, np.zeros(32)])
        weight = float(self._weights[index])
        mean = self._means[index]
        if weight == 0.0:
            mean[:] = (tokens, rounds, context, took_s)
        else:
            known = float(mean[3])
            if weight < 2.0 and took_s < known / (1.0 + SPIKE):
                known = took_s  # what came first was the slow one
                mean[3] = took_s
            bounded = min(max(took_s, known / (1.0 + SPIKE)), known * (1.0 + SPIKE))
            share = 1.0 / (min(weight, MEMORY) + 1.0)
            mean += share * (np.array((tokens, rounds, context, bounded)) - mean)
        self._weights *= FADE
        self._weights[index] = min(weight + 1.0, MEMORY)
        self._stale = True

    def seen(self, tokens: int, rounds: int, times: int = 3) -> bool:
        """Whether steps about like this were observed so many times."""
        return self._counts.get(_cell(tokens, rounds), 0) >= times

    def predict(self, tokens: float, rounds: float, context: float = 0.0) -> float:
        """Seconds of a step; never falls when one of the three rises.

        Args:
            tokens: in the step.
            rounds: rounds and streams in it.
            context: positions of keys and values read.
        """
        self.refresh()
        knots, values, x = self._knots, self._values, self._coefficients
        tokens = max(tokens, 1.0)
        i = min(bisect_right(knots, tokens), len(knots) - 1) - 1
        value = values[i] + (tokens - knots[i]) * x[i + 1]
        drafting = min(max(tokens - rounds, 0.0) * 0.5, rounds) + rounds * 0.5
        return value + drafting * x[_DRAFTING] + rounds * x[_ROUNDS] + context * x[_CONTEXT]

    def lines(self) -> Callable[[Floats, Floats, Floats], Floats]:
        """`predict` over arrays of one shape, as a function for a tight loop; it does not learn any more."""
        self.refresh()
        last, drafting, rounds_s, context_s = self._solution[len(KNOTS) - 1 :].tolist()
        knots = np.append(KNOTS, FAR)
        at = np.append(self._at_knots, self._at_knots[-1] + last * (FAR - KNOTS[-1]))

        def predict(tokens: Floats, rounds: Floats, context: Floats) -> Floats:
            out: Floats = np.interp(tokens, knots, at)
            if drafting:
                out += (np.minimum(np.maximum(tokens - rounds, 0.0) * 0.5, rounds) + rounds * 0.5) * drafting
            if rounds_s:
                out += rounds * rounds_s
            if context_s:
                out += context * context_s
            return out

        return predict

    def refresh(self) -> None:
        """Fit the coefficients to what was observed since the last fit (`predict` does it by itself)."""
        if not self._stale and self._at_knots[0] > 0.0:
            return
        self._stale = False
        self._fit()
        self._at_knots[0] = self._solution[0]
        self._at_knots[1:] = self._solution[0] + np.cumsum(self._solution[1 : len(KNOTS)] * np.diff(KNOTS))
        self._values, self._coefficients = self._at_knots.tolist(), self._solution.tolist()

    def _fit(self) -> None:
        used = np.nonzero(self._weights[: len(self._cells)] > 0.01)[0]
        prior = np.zeros(_NUM)
        prior[1 : len(KNOTS)] = PRIOR_PER_TOKEN
        prior[0] = 1.0
        if len(used) == 0:
            self._solution = prior * 0.03
            return
        means, weights = self._means[used], self._weights[used]
        features = _features(means[:, 0], means[:, 1], means[:, 2])
        # The prior's shape, scaled to what was seen: no cell is much slower for being known a little only.
        prior *= float(np.min(means[:, 3] / (features @ prior)))
        scale = _scales(means, prior[0])
        rows = features * scale / means[:, 3:]
        gram = rows.T @ (rows * weights[:, None])
        right = rows.T @ weights
        start = prior / scale
        diagonal = np.einsum("ii->i", gram)
        trust = np.full(_NUM, max(PRIOR_WEIGHT, LEAST_TRUST * float(diagonal.max())))
        trust[_DRAFTING:] *= AGAINST_ROUNDS
        diagonal += trust
        right += trust * start
        self._solution = _non_negative(gram, right) * scale
        self._solution[0] = max(self._solution[0], LEAST_SHARE * float(means[:, 3].min()))


def _scales(means: Floats, base: float) -> Floats:
    """Size of each coefficient that makes up the largest step known, so that a prior counts the same for each.

    Segments are scaled by the root of their width: then steps rise evenly between two that are known.
    """
    most, tokens = float(means[:, 3].max()), max(2.0, float(means[:, 0].max()))
    out = np.empty(_NUM)
    out[0] = base
    out[1 : len(KNOTS)] = most / np.sqrt(_WIDTHS[:-1] * tokens)
    out[_DRAFTING] = out[_ROUNDS] = most / max(1.0, float(means[:, 1].max()))
    out[_CONTEXT] = most / max(1.0, float(means[:, 2].max()))
    return out


def _non_negative(gram: Floats, right: Floats) -> Floats:
    """Minimise x' gram x / 2 - right' x over x >= 0, `gram` positive definite.

    Source: Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23; coefficients leave together.
    """
    kept = np.ones(len(right), bool)
    x = np.zeros(len(right))
    for _ in range(SOLVES):
        index = np.nonzero(kept)[0]
        part = np.linalg.solve(gram[np.ix_(index, index)], right[index])
        if (part < 0.0).any():
            kept[index[part < 0.0]] = False
            continue
        x[:] = 0.0
        x[index] = part
        pull = right - gram @ x
        pull[kept] = 0.0
        back = int(np.argmax(pull))
        if pull[back] <= 1e-9:
            break
        kept[back] = True
    return x
