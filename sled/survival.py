"""What a device's drafts are worth and how long they take, learned from its rounds.

Pure: no sockets, clock or randomness. Tables learn for many sessions at once, since a server hears of hundreds of
rounds in one step; `Survival` and `ThinkTime` are their faces for one session.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

START, START_ROUNDS = 0.7, 16.0  # survival of one more draft, before anything is known of any device; as so many rounds
PRIOR_ROUNDS = 4.0  # rounds that the belief of the population counts as where devices differ
ALIKE_ROUNDS = 50.0  # and where they do not
NEIGHBOUR_ROUNDS = 4.0  # rounds that the position before counts as
FORGET = 0.996  # of the past, with each round
RELAX_S = 20.0  # half-life of what is known of a session that does not draft
HOPE = 2.5  # standard errors that what is little known is thought better, so that it is given its chance
HOPE_TURNS = 2  # in which hope and the deviation under it are made to agree
SETTLED_ROUNDS = 200.0  # after which nothing is hoped for any more
FIRST_ROUNDS = 8.0  # of the longest session ever heard; until then nothing is known of the server's steps either
FIRST_HOPE, FIRST_SETTLED = 1.5, 400.0  # as HOPE and SETTLED_ROUNDS, in these, for each position alone
POPULATION_ROUNDS = 400.0
_AT_FIRST = np.array([[START], [1.0]])


class Survivals:
    """Per session and position: does a draft get this far, and does the device draft this far at all.

    Position i has survived if the device drafted at least i tokens and the first i were accepted. Of each position two
    shares are kept, given that the one before survived (or was drafted): counts with exponential forgetting over the
    population's belief, which is learned from all rows, and over what the owner's sessions before were like. A position
    that was never tried follows the one before it.

    Args:
        rows: sessions there is room for.
        positions: drafts a round may have.
    """

    def __init__(self, rows: int, positions: int) -> None:
        self.positions = positions
        # [0]: the draft survived; [1]: the device drafted so far
        self._tried = np.zeros((2, rows, positions))
        self._passed = np.zeros((2, rows, positions))
        self._before = np.zeros((2, 2, rows, positions))  # tried and passed in the owner's sessions before
        self._told = np.zeros(rows)  # rounds heard of, the owner's before included; nothing makes them unheard
        self._longest = 0.0  # the most of these that any session ever came to
        self._shared = np.full(2, PRIOR_ROUNDS)  # rounds that the population's belief counts as
        self._all_tried = np.full((2, positions), START_ROUNDS)
        self._all_passed = START_ROUNDS * np.stack([np.full(positions, START), np.ones(positions)])

    @property
    def rows(self) -> int:
        """Sessions there is room for."""
        return int(self._tried.shape[1])

    def grow(self, rows: int) -> None:
        """Make room for so many rows."""
        more = rows - self._tried.shape[1]
        if more > 0:
            empty = np.zeros((2, more, self.positions))
            self._tried = np.concatenate([self._tried, empty], axis=1)
            self._passed = np.concatenate([self._passed, empty], axis=1)
            self._before = np.concatenate([self._before, np.zeros((2, 2, more, self.positions))], axis=2)
            self._told = np.concatenate([self._told, np.zeros(more)])

    def reset(self, row: int, before: Floats | None = None) -> None:
        """A new session takes this row: only what is known of all remains, and of its owner.

        Args:
            row: of the session.
            before: (2, 2, positions) what `learned` of the owner's sessions before counts as; None for a stranger.
        """
        self._tried[:, row] = 0.0
        self._passed[:, row] = 0.0
        self._before[:, :, row] = 0.0 if before is None else before
        self._told[row] = self._before[0, 0, row, 0]

    def learned(self, row: int) -> Floats:
        """(2, 2, positions) what was learned in this session alone: rounds that tried, and that passed."""
        return np.stack([self._tried[:, row], self._passed[:, row]])

    def observe(self, rows: Ints, drafted: Ints, accepted: Ints, limits: Ints) -> None:
        """Learn from rounds; several of one row are fine.

        Args:
            rows: (n,) the session of each round.
            drafted: (n,) drafts it had.
            accepted: (n,) how many of the first survived.
            limits: (n,) the window limit the device knew, at least `drafted`; 0 teaches nothing.
        """
        at = np.arange(self.positions)
        limits = np.minimum(np.maximum(limits, drafted), self.positions)[:, None]
        drafted, accepted = drafted[:, None], accepted[:, None]
        tried = np.stack([(at <= accepted) & (at < limits), (at <= drafted) & (at < limits)]).astype(np.float64)
        passed = np.stack([at < accepted, at < drafted]).astype(np.float64)
        counts = np.bincount(rows, minlength=self._tried.shape[1])
        self._told += counts
        self._longest = max(self._longest, float(self._told.max(initial=0.0)))
        fade = FORGET**counts
        self._tried *= fade[:, None]
        self._passed *= fade[:, None]
        for table, new in ((self._tried, tried), (self._passed, passed)):
            for kind in range(2):
                np.add.at(table[kind], rows, new[kind])
        # what is good and not tried stays so; what is bad is not tried because of that, and would stay so for good
        is_good = self._all_passed >= _AT_FIRST * self._all_tried
        news = np.where(is_good, tried.sum(axis=1), len(rows))
        fade_all = np.maximum(0.2, 1.0 - news / POPULATION_ROUNDS)
        self._all_tried = np.maximum(self._all_tried * fade_all, 0.0) + tried.sum(axis=1)
        self._all_passed = self._all_passed * fade_all + passed.sum(axis=1)

    def relax(self, rows: Ints, elapsed_s: float) -> None:
        """Let what is known of sessions that do not draft fade towards the population's, so that they are tried again.

        Args:
            rows: the sessions.
            elapsed_s: since this was last done.
        """
        fade = 0.5 ** (elapsed_s / RELAX_S)
        self._tried[:, rows] *= fade
        self._passed[:, rows] *= fade
        self._before[:, :, rows] *= fade

    def curves(self, rows: Ints) -> tuple[Floats, Floats]:
        """For each row and i = 0 .. positions: P(the first i survive), and P(the device drafts at least i)."""
        shared = self._shared_rounds()
        prior = (self._all_passed + PRIOR_ROUNDS * _AT_FIRST) / (self._all_tried + PRIOR_ROUNDS)
        tried, passed = np.stack([self._tried[:, rows], self._passed[:, rows]]) + self._before[:, :, rows]
        out = np.ones((2, len(rows), self.positions + 1))
        before = prior[:, None, 0]
        for i in range(self.positions):
            known = passed[:, :, i] + shared[:, None] * prior[:, None, i] + NEIGHBOUR_ROUNDS * before
            before = known / (tried[:, :, i] + shared[:, None] + NEIGHBOUR_ROUNDS)
            out[:, :, i + 1] = before
        np.cumprod(out, axis=2, out=out)
        self._hope(rows, out[0], shared[0])
        return out[0], out[1]

    def _hope(self, rows: Ints, survive: Floats, shared: float) -> None:
        """Think the tokens that a round brings better, under each window by standard errors of their mean; in place.

        After n rounds by HOPE (1 - sqrt(n / SETTLED_ROUNDS)) of them, as they would be if the hope were true: rounds
        that fall short by chance hide what they deviate by, too. Of several sessions, which do not all fall short at
        once, by the difference over the root of their number. Positions are not each hoped for alone: over a long
        draft that would add up to far more than its rounds leave in doubt, and long windows be kept too long. Only the
        very first rounds are hoped for so: long drafts, soon left, show what steps of every size take.

        Args:
            rows: (n,) sessions.
            survive: (n, positions + 1) survival without hope.
            shared: rounds that the population's belief counts as.

        Source: score intervals, Wilson 1927, doi:10.1080/01621459.1927.10502953.
        """
        at = np.arange(1.0, self.positions + 1)
        told = 1.0 + self._told[rows, None] + np.minimum(shared, self._all_tried[0])
        errors = HOPE * np.maximum(told**-0.5 - SETTLED_ROUNDS**-0.5, 0.0)
        known = survive[:, 1:]
        seen = _rises(known, at)
        hoped = known + errors * seen
        for _ in range(HOPE_TURNS):
            hoped = np.minimum.accumulate(np.minimum(hoped, 1.0), axis=1)
            # what chance hid of one session it did not hide of all, and their sum is what is planned for
            hoped = known + errors * (seen + (_rises(hoped, at) - seen) / len(rows) ** 0.5)
        hoped = np.minimum.accumulate(np.minimum(hoped, 1.0), axis=1)
        if self._longest < FIRST_ROUNDS:
            hoped = np.minimum.accumulate(np.maximum(hoped, _each_hoped(survive, told[:, :1])), axis=1)
        survive[:, 1:] = hoped

    def _shared_rounds(self) -> Floats:
        """(2,) rounds that the population's belief counts as: many where sessions differ by chance only.

        What was known of that holds on while too few sessions draft to tell.

        Source: empirical Bayes by moments, the variance of the first share between sessions less that of sampling.
        """
        tried, passed = np.stack([self._tried[:, :, 0], self._passed[:, :, 0]]) + self._before[..., 0]
        for kind in range(2):
            some = tried[kind] >= 8.0
            if np.count_nonzero(some) < 4:
                continue
            shares, counts = passed[kind, some] / tried[kind, some], tried[kind, some]
            mean = float(shares.mean())
            chance = mean * (1.0 - mean)
            between = float(shares.var()) - chance * float((1.0 / counts).mean())
            self._shared[kind] = np.clip(chance / max(between, 1e-9), PRIOR_ROUNDS, ALIKE_ROUNDS)
        return self._shared


def _rises(survive: Floats, at: Floats) -> Floats:
    """(n, positions) how much each draft adds to what a round's tokens deviate by; `at` (positions,) counts from 1."""
    mean, square = np.cumsum(survive, axis=1), np.cumsum((2.0 * at - 1.0) * survive, axis=1)
    rises: Floats = np.diff(np.sqrt(np.maximum(square - mean * mean, 0.0)), axis=1, prepend=0.0)
    return np.maximum(rises, 0.0)


def _each_hoped(survive: Floats, told: Floats) -> Floats:
    """(n, positions) survival with each position hoped for alone, from `survive` (n, positions + 1) without hope.

    `told` (n, 1) are the rounds that are known of each session.
    """
    each = survive[:, 1:] / np.maximum(survive[:, :-1], 1e-12)
    doubt = np.maximum(told**-0.5 - FIRST_SETTLED**-0.5, 0.0)
    each += FIRST_HOPE * doubt * np.sqrt(each * np.maximum(1.0 - each, 0.0))
    np.minimum(each, 1.0, out=each)
    return np.cumprod(each, axis=1, dtype=np.float64)


class ThinkTimes:
    """Per session the time from a verdict to the next round, z0 + z1 * drafted, by least squares with forgetting.

    A row that has seen one length of draft only leans on the population for the slope. An answer far beyond what is
    known (the user paused) counts as twice of it.

    Args:
        rows: sessions there is room for.
    """

    FORGET = 0.97
    PRIOR = 0.5  # squared drafts that the population's slope counts as
    BOUND = 2.0
    FIRST_S = 2.0  # at most of the first round: before anything is known of a session, more is thought a pause, too
    LEAN, LEAN_DEVIATION = 3.0, 8.0  # rounds that the population's mean and deviation count as for a new row

    def __init__(self, rows: int) -> None:
        # sums over rounds: 1, drafted, drafted^2, seconds, drafted * seconds, squared deviation
        self._sums = np.zeros((rows, 6))
        self._before = np.zeros((rows, 6))  # what of them is of the owner's sessions before
        self._all = np.zeros(6)  # the same over all rows; the deviation relative

    def grow(self, rows: int) -> None:
        """Make room for so many rows."""
        more = rows - len(self._sums)
        if more > 0:
            self._sums = np.concatenate([self._sums, np.zeros((more, 6))])
            self._before = np.concatenate([self._before, np.zeros((more, 6))])

    def reset(self, row: int, before: Floats | None = None) -> None:
        """A new session takes this row; `before` (6,) is what `learned` of its owner's sessions before counts as."""
        self._before[row] = 0.0 if before is None else before
        self._sums[row] = self._before[row]

    def learned(self, row: int) -> Floats:
        """(6,) what was learned in this session alone."""
        sums: Floats = np.maximum(self._sums[row] - self._before[row], 0.0)
        return sums

    def observe(self, rows: Ints, drafted: Floats, took_s: Floats) -> None:
        """Learn from rounds.

        Args:
            rows: (n,) the session of each round.
            drafted: (n,) drafts it had.
            took_s: (n,) seconds it took, link both ways included.
        """
        z0, z1, _ = self.lines(rows)
        known = z0 + z1 * drafted
        rounds = self._sums[rows, 0]
        new = rounds == 0.0
        # while link and drafting are not told apart, a short draft is thought to be quicker than it can be
        usual = np.maximum(known, self._sums[rows, 3] / np.where(new, 1.0, rounds))
        took_s = np.minimum(took_s, np.where(new, self.FIRST_S, self.BOUND * usual + 1e-4))
        deviation = np.where(new, 0.0, took_s - known)
        one = np.ones(len(rows))
        values = np.stack([one, drafted, drafted**2, took_s, drafted * took_s, deviation**2], axis=1)
        fade = self.FORGET ** np.bincount(rows, minlength=len(self._sums))
        self._sums *= fade[:, None]
        self._before *= fade[:, None]
        np.add.at(self._sums, rows, values)
        values[:, 5] /= np.maximum(known, 1e-9) ** 2
        self._all = self._all * max(0.2, 1.0 - len(rows) / POPULATION_ROUNDS) + values.sum(axis=0)

    def lines(self, rows: Ints) -> tuple[Floats, Floats, Floats]:
        """z0, z1 (seconds, and seconds per draft) and the deviation of a round from them, seconds, of each row."""
        count, x, xx, y, xy, dev = self._all
        shared0, shared1, shared_dev = 0.0, 0.0, 0.0
        if count > 0.0:
            spread = xx - x * x / count
            # what lengths of draft do not tell apart is taken for drafting: a shorter window is tried then, and tells
            slope = y / x if x > 0.0 else 0.0
            shared1 = max(0.0, (xy - x * y / count + count * slope * 0.1) / (spread + count * 0.1))
            shared1 = min(shared1, y / x) if x > 0.0 else 0.0
            shared0, shared_dev = max(0.0, (y - shared1 * x) / count), dev / count
        n, x, xx, y, xy, dev = self._sums[rows].T
        some = n > 0.0
        n = np.where(some, n, 1.0)
        z1 = np.maximum((xy - x * y / n + self.PRIOR * shared1) / (xx - x * x / n + self.PRIOR), 0.0)
        z1 = np.where(x > 0.0, np.minimum(z1, y / np.maximum(x, 1e-12)), z1)
        # a few rounds tell less than those of all others do
        lean, lean_dev = self.LEAN / (1.0 + n), self.LEAN_DEVIATION / (1.0 + 0.25 * n)
        mean = (y + lean * (shared0 + shared1 * x / n)) / (n + lean)
        z0 = np.maximum(mean - z1 * x / n, 0.0)
        dev = np.sqrt((dev + lean_dev * shared_dev * mean * mean) / (n + lean_dev))
        return np.where(some, z0, shared0), np.where(some, z1, shared1), np.where(some, dev, 0.0)


_ROW = np.zeros(1, np.int64)


class Survival:
    """One session's survival by position.

    Args:
        positions: drafts a round may have.
    """

    def __init__(self, positions: int = 8) -> None:
        self._table = Survivals(1, positions)

    def observe(self, drafted: int, accepted: int, limit: int = 0) -> None:
        """Learn from a round.

        Args:
            drafted: drafts it had.
            accepted: how many of the first survived.
            limit: the window limit the device knew, if it drafted less than it might.

        Raises:
            ValueError: more accepted than drafted, or negative counts.
        """
        if not 0 <= accepted <= drafted:
            raise ValueError(f"{accepted} of {drafted} drafts accepted; give 0 <= accepted <= drafted")
        self._table.observe(_ROW, np.array([drafted]), np.array([accepted]), np.array([max(limit, drafted)]))

    def relax(self, elapsed_s: float) -> None:
        """The session did not draft for so long."""
        self._table.relax(_ROW, elapsed_s)

    def at(self, position: int) -> float:
        """Probability that the first `position` drafts are there and survive; 1 for 0."""
        return float(self._table.curves(_ROW)[0][0, min(position, self._table.positions)])

    def expected(self, window: int) -> float:
        """Mean tokens that a round with this window commits, the target's own included."""
        return float(self._table.curves(_ROW)[0][0, : min(window, self._table.positions) + 1].sum())

    def sent(self, window: int) -> float:
        """Mean drafts that a round with this window has."""
        return float(self._table.curves(_ROW)[1][0, 1 : min(window, self._table.positions) + 1].sum())

    def curves(self, positions: int) -> tuple[Sequence[float], Sequence[float]]:
        """`at` and its share of drafted for 0 .. positions, the last known ones repeated beyond what is kept."""
        survive, draft = (curve[0] for curve in self._table.curves(_ROW))
        index = np.minimum(np.arange(positions + 1), self._table.positions)
        return survive[index].tolist(), draft[index].tolist()


class ThinkTime:
    """One session's time from a verdict to its next round."""

    def __init__(self) -> None:
        self._table = ThinkTimes(1)

    def observe(self, drafted: int, took_s: float) -> None:
        """Learn from a round of so many drafts that arrived so many seconds after the last verdict.

        Raises:
            ValueError: a negative number.
        """
        if drafted < 0 or not took_s >= 0.0:
            raise ValueError(f"{drafted} drafts in {took_s} s; give numbers of 0 and more")
        self._table.observe(_ROW, np.array([float(drafted)]), np.array([took_s]))

    def predict(self, drafted: float) -> float:
        """Seconds for a round of so many drafts; 0 before anything is known."""
        z0, z1, _ = self._table.lines(_ROW)
        return float(z0[0] + z1[0] * drafted)
