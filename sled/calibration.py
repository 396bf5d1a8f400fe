"""How often a drafter is right when it says so: its confidences turned into shares that were measured.

Pure: no sockets, clock or randomness.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

EDGES = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.96, 0.99, 1.0)
_CENTRES = (0.05, 0.15, 0.28, 0.43, 0.58, 0.73, 0.85, 0.93, 0.975, 0.995, 1.0)
_BINS = range(len(_CENTRES))
_FIRST_NEXT = (1, 1, 1, 1, 1, 1, 1, 1, 2, 4, 1)  # what confidence is thought to follow at first: mostly a high one
_RUNS = (0, 1, 2, 2, 3, 3, 3, 3, 4)  # of a run of so many right tokens, its row; longer ones share the last
_LONGEST = len(_RUNS) - 1
_ROWS = _RUNS[-1] + 1
BARE = 0.75  # share of right tokens of a drafter that states no confidence but 1, as bare tokens do
TRUST = 0.9  # a drafter nothing is known of is right as often as it says, times this; the surer it is, the nearer to 1
PRIOR_TOKENS = 4.0  # that this belief counts as
ROW_PRIOR_TOKENS = 6.0  # that all runs count as where one of them is asked for
UNHEARD = 0.3  # tokens that a confidence nothing was heard of counts as, against its neighbours
FORGET = 0.998  # of the past, with each token heard of
MOST_TOKENS = 1024.0  # heard of, that are left of any past
TEXT_FORGET = 0.97  # of what this text has shown so far
TEXT_PRIOR = 3.0  # wrong tokens that the belief in the shares counts as, against what this text shows: texts differ
AFTER_WRONG, AFTER_RIGHT, ANYWHERE = len(_CENTRES), len(_CENTRES) + 1, len(_CENTRES) + 2


class Calibration:
    """Acceptance by stated confidence and by run, how many tokens right before were the drafter's and right.

    The run tells copying from guessing for drafters whose confidence says nothing: a token that was looked up is right
    more often behind ten that were. Each cell is a share with exponential forgetting, drawn towards the share of its
    confidence over all runs, and that towards the confidence itself. Within a run the shares never fall with confidence
    (pool adjacent violators), since a drafter's order is more trustworthy than its numbers.

    Texts differ, and the tokens of one are right or wrong together: each has a frailty, by which the hazards (-log of
    the shares) are multiplied, Gamma distributed with mean 1 before anything of the text is known. So the first n
    tokens of a text nothing is known of are right more often than the product of their shares says.

    Attributes:
        run: the run at the end of the committed text.

    >>> round(Calibration().survival([0.58], 0), 3)
    0.585

    Sources: isotonic calibration, Zadrozny and Elkan 2002; shared frailty, Vaupel, Manton and Stallard 1979.
    """

    def __init__(self) -> None:
        self.run = 0
        self._tried = [[0.0 for _ in _BINS] for _ in range(_ROWS)]
        self._right = [[0.0 for _ in _BINS] for _ in range(_ROWS)]
        self._next = [
            [0.2 * (_FIRST_NEXT[bin_] + (bin_ == before)) for bin_ in _BINS] for before in range(ANYWHERE + 1)
        ]
        self._wrong = self._feared = 0.0  # tokens of late that were wrong, and that the shares had said would be
        self._expected: dict[tuple[int, int], float] = {}
        self._shares: list[list[float]] = []
        self._hazards: list[list[float]] = []
        self._tabulate()

    def counts(self) -> tuple[list[list[float]], list[list[float]], list[list[float]]]:
        """Tokens heard of and right ones, by run and confidence, and what confidence followed which."""
        tried = [list(row) for row in self._tried]
        right = [[min(r, t) for r, t in zip(*rows, strict=True)] for rows in zip(self._right, tried, strict=True)]
        return tried, right, [list(row) for row in self._next]

    @classmethod
    def of_counts(
        cls, tried: Sequence[Sequence[float]], right: Sequence[Sequence[float]], following: Sequence[Sequence[float]]
    ) -> Calibration:
        """One that has `counts`.

        Raises:
            ValueError: they are of another shape, or none of a calibration.
        """
        made = cls()
        for mine, given in ((made._tried, tried), (made._right, right), (made._next, following)):
            if [len(row) for row in given] != [len(row) for row in mine]:
                raise ValueError(f"counts of {len(given)} rows, expected {len(mine)} of {len(mine[0])} numbers")
            mine[:] = [[float(count) for count in row] for row in given]
        every = [(t, r) for rows in zip(tried, right, strict=True) for t, r in zip(*rows, strict=True)]
        if not all(0.0 <= r <= t < math.inf for t, r in every):
            raise ValueError("counts of right tokens that are not between 0 and those heard of")
        if sum(map(sum, tried)) > MOST_TOKENS:
            raise ValueError(f"counts of more than {MOST_TOKENS:.0f} tokens")
        if not all(0.0 <= weight < math.inf for row in following for weight in row) or min(map(sum, following)) < 1.0:
            raise ValueError("counts of what follows that are no weights")
        made._tabulate()
        return made

    def answer(self) -> None:
        """Another text begins, which may be harder or easier."""
        self.run = 0
        self._wrong = self._feared = 0.0

    def chance(self, hazard: float) -> float:
        """Probability that tokens of this hazard in all are right: over all frailties that the text may have."""
        feared = self._feared + TEXT_PRIOR
        return float((feared / (feared + hazard)) ** (self._wrong + TEXT_PRIOR))

    def hazard(self, confidences: Sequence[float], run: int) -> float:
        """Of tokens that follow each other behind a run, all together, before the text's frailty."""
        total, table = 0.0, self._hazards
        for confidence in confidences:
            total += table[_RUNS[run if run < _LONGEST else _LONGEST]][bisect_right(EDGES, confidence)]
            run += 1
        return total

    def survival(self, confidences: Sequence[float], run: int) -> float:
        """Probability that all of these, which follow each other behind a run, are right."""
        return self.chance(self.hazard(confidences, run))

    def length(self, confidences: Sequence[float], run: int) -> float:
        """Expected number of these, which follow each other behind a run, that are right before the first wrong one."""
        hazard, total, table = 0.0, 0.0, self._hazards
        for confidence in confidences:
            hazard += table[_RUNS[run if run < _LONGEST else _LONGEST]][bisect_right(EDGES, confidence)]
            total += self.chance(hazard)
            run += 1
        return total

    def next_hazard(self, before: int, run: int) -> float:
        """Expected hazard of a token that is not drafted yet.

        Args:
            before: where it stands, of `place`, or ANYWHERE.
            run: right tokens before it.
        """
        row = _RUNS[run if run < _LONGEST else _LONGEST]
        known = self._expected.get((before, row))
        if known is None:
            weights, shares = self._next[before], self._shares[row]
            known = max(0.0, -math.log(sum(w * p for w, p in zip(weights, shares, strict=True)) / sum(weights)))
            self._expected[before, row] = known
        return known

    def place(self, before: float | None, run: int) -> int:
        """Where a token stands: behind one of this confidence, or at the end of the committed text."""
        if before is None:
            return AFTER_RIGHT if run else AFTER_WRONG
        return bisect_right(EDGES, before)

    def drafted(self, before: int, confidence: float) -> None:
        """A token of this confidence was drafted at such a place."""
        found = bisect_right(EDGES, confidence)
        for row in (self._next[before], self._next[ANYWHERE]):
            for i in _BINS:
                row[i] *= 0.98
            row[found] += 1.0

    def told(self, confidences: Sequence[float], accepted: int) -> None:
        """Learn from tokens behind the committed text, the first `accepted` of them right, and move to their end."""
        heard = confidences[: accepted + 1]
        fade = FORGET ** len(heard)
        for table in (self._tried, self._right):
            for row in table:
                for i in _BINS:
                    row[i] *= fade
        for i, confidence in enumerate(heard):
            at, bin_ = _RUNS[min(self.run + i, _LONGEST)], bisect_right(EDGES, confidence)
            self._tried[at][bin_] += 1.0
            self._right[at][bin_] += i < accepted
            self._wrong = TEXT_FORGET * self._wrong + (i >= accepted)
            self._feared = TEXT_FORGET * self._feared + 1.0 - self._shares[at][bin_]
        self.run = 0 if accepted < len(confidences) else self.run + accepted
        if heard:
            self._tabulate()

    def _tabulate(self) -> None:
        overall = []
        for i in _BINS:
            tried, right = sum(row[i] for row in self._tried), sum(row[i] for row in self._right)
            overall.append((right + PRIOR_TOKENS * _trusted(_CENTRES[i])) / (tried + PRIOR_TOKENS))
        self._shares = []
        for tried_row, right_row in zip(self._tried, self._right, strict=True):
            shares = [(right_row[i] + ROW_PRIOR_TOKENS * overall[i]) / (tried_row[i] + ROW_PRIOR_TOKENS) for i in _BINS]
            weights = [tried + UNHEARD for tried in tried_row]
            self._shares.append([*rising(shares[:-1], weights[:-1]), shares[-1]])
        self._hazards = [[max(0.0, -math.log(share)) for share in row] for row in self._shares]
        self._expected.clear()


def _trusted(confidence: float) -> float:
    """How often tokens of this confidence are thought to be right before any was heard of."""
    if confidence == 1.0:
        return BARE
    return confidence * (TRUST + (1.0 - TRUST) * confidence)


def rising(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The nearest values that never fall, by weighted least squares (pool adjacent violators).

    >>> rising([0.2, 0.6, 0.4, 0.9], [1, 1, 1, 1])
    [0.2, 0.5, 0.5, 0.9]
    """
    pools: list[tuple[float, float, int]] = []
    for pool in zip(values, weights, [1] * len(values), strict=True):
        mean, weight, count = pool
        while pools and pools[-1][0] > mean:
            before, its_weight, its_count = pools.pop()
            mean = (before * its_weight + mean * weight) / (its_weight + weight)
            weight, count = weight + its_weight, count + its_count
        pools.append((mean, weight, count))
    return [mean for mean, _, count in pools for _ in range(count)]
