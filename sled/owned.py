"""What is known of devices whose sessions have ended, for the next session of the same device.

Pure: no sockets, clock or randomness. docs/spec/sled-goodput.md says how it is weighed.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sled.survival import FORGET, ThinkTimes

Floats = NDArray[np.float64]

MOST_OWNERS = 4096  # of whom something is kept; who has been away longest goes first
KEPT_S = 300.0  # after which an owner is a stranger again
FADE_S = 30.0  # half-life of what is kept: devices and texts change
ALIKE = 24.0  # rounds of a session that its owner's history counts as, before its sessions are known to be alike or not
ALIKE_SESSIONS = 2.0  # that this counts as
MOST_ALIKE, LEAST_ALIKE = 50.0, 1.0
THINK_ROUNDS = 8.0  # rounds that the owner's think time counts as at most
_TOLD = 4.0  # rounds with drafts of a session, at least, for it to be held against those before


@dataclass(slots=True)
class Past:
    """What the ended sessions of one owner had in common.

    Args:
        counts: (2, 2, positions) rounds that tried and that passed, as `sled.survival.Survivals` keeps them.
        sums: (6,) of think times, as `sled.survival.ThinkTimes` keeps them.
        at: seconds, when that was.
        sessions: ended, that had enough rounds to be held against those before.
        between: squared difference of their first shares from those before, less that of chance, summed; in parts of
            the variance of one round.
    """

    counts: Floats
    sums: Floats
    at: float
    sessions: float = 0.0
    between: float = 0.0

    @property
    def alike(self) -> float:
        """Rounds of a new session that this counts as: few where sessions of this owner differ.

        Source: empirical Bayes by moments, as for the population.
        """
        between = (ALIKE_SESSIONS / ALIKE + self.between) / (ALIKE_SESSIONS + self.sessions)
        return float(np.clip(1.0 / max(between, 1e-9), LEAST_ALIKE, MOST_ALIKE))

    def fade(self, now: float) -> None:
        """So much later, less is known."""
        left = 0.5 ** (max(0.0, now - self.at) / FADE_S)
        self.counts *= left
        self.sums *= left
        self.sessions *= left
        self.between *= left
        self.at = max(self.at, now)

    def add(self, counts: Floats, sums: Floats) -> None:
        """A session has ended in which `counts` and `sums` were learned, of this owner's past not included."""
        tried, passed = float(counts[0, 0, 0]), float(counts[1, 0, 0])
        before, good = float(self.counts[0, 0, 0]), float(self.counts[1, 0, 0])
        if tried >= _TOLD and before >= _TOLD:
            share, known = passed / tried, good / before
            mean = (passed + good + 1.0) / (tried + before + 2.0)
            chance = mean * (1.0 - mean)
            self.between += (share - known) ** 2 / chance - 1.0 / tried - 1.0 / before
            self.sessions += 1.0
        self.counts = self.counts * FORGET**tried + counts
        self.sums = self.sums * ThinkTimes.FORGET ** float(sums[0]) + sums


class Owned:
    """The past of each owner, bounded in number and age.

    Args:
        most: owners of whom something is kept.
    """

    def __init__(self, most: int = MOST_OWNERS) -> None:
        self._most = most
        self._pasts: OrderedDict[str, Past] = OrderedDict()  # who has been away longest first

    def __len__(self) -> int:
        return len(self._pasts)

    def past(self, owner: str, now: float) -> tuple[Floats, Floats] | None:
        """Counts and sums that a new session of this owner starts from; None for a stranger.

        Args:
            owner: the device's key.
            now: seconds.
        """
        self._prune(now)
        past = self._pasts.get(owner)
        if past is None:
            return None
        self._pasts.move_to_end(owner)
        past.fade(now)
        rounds, thoughts = float(past.counts[0, 0, 0]), float(past.sums[0])
        counts = past.counts * min(1.0, past.alike / max(rounds, 1e-9))
        return counts, past.sums * min(1.0, THINK_ROUNDS / max(thoughts, 1e-9))

    def ended(self, owner: str, counts: Floats, sums: Floats, now: float) -> None:
        """A session of this owner has ended; what it started from is not in `counts` and `sums`."""
        past = self._pasts.get(owner)
        if past is None:
            past = self._pasts[owner] = Past(np.zeros_like(counts), np.zeros_like(sums), now)
        past.fade(now)
        past.add(counts, sums)
        self._pasts.move_to_end(owner)
        self._prune(now)

    def _prune(self, now: float) -> None:
        while self._pasts:
            owner, past = next(iter(self._pasts.items()))
            if len(self._pasts) <= self._most and now - past.at <= KEPT_S:
                return
            del self._pasts[owner]
