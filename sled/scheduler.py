"""Which tokens of which sessions go into the next forward: the earliest deadline first.

Pure: no sockets, clock or randomness.
Source: earliest deadline first, Liu and Layland 1973; prefill in pieces beside decoding, arXiv 2308.16369.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Generic, Protocol, TypeVar

CATCH_UP_S = 0.5
LEAD_S = 1.0
_FLOOR_SHARE = 8
_WORTH = 2.0  # times what a step takes that computes next to nothing: so long prefill alone may take at least


class Cost(Protocol):
    """What a forward takes."""

    def predict(self, tokens: int, rounds: int, context: int) -> float:
        """Seconds of a forward of so many tokens and rounds that reads so many cached positions."""


class Work(Protocol):
    """What the scheduler needs to know of a session that has something to compute."""

    @property
    def uncached(self) -> int:
        """Committed tokens whose keys and values are not computed yet."""

    @property
    def num_drafts(self) -> int | None:
        """Drafts that wait for their verdict; None when no token is wanted, only the text to be computed ahead."""

    @property
    def cached(self) -> int:
        """Positions whose keys and values are there."""

    @property
    def due(self) -> float:
        """When its next tokens are due."""

    @property
    def interval_s(self) -> float:
        """Seconds a token at its promised rate."""


W = TypeVar("W", bound=Work)
T = TypeVar("T")


@dataclass(slots=True)
class Promise:
    """A rate promised to a session, and since when it counts.

    >>> promise = Promise(rate=10.0, began_at=0.0)
    >>> promise.due(0, now=0.0), promise.due(1, now=0.05)
    (0.1, 0.2)
    >>> promise.due(2, now=60.0)
    59.5
    >>> round(promise.due(3, now=60.0), 3)
    59.6

    Args:
        rate: tokens per second.
        began_at: when the answer began; later if the session was idle.
    """

    rate: float
    began_at: float

    def due(self, num_tokens: int, *, now: float) -> float:
        """When the token after the first `num_tokens` of the answer is due.

        A session that was away makes up for `CATCH_UP_S` at most, so that it does not push others back for long; one
        that is ahead is not put off further than `LEAD_S`, so that it is not forgotten.
        """
        ideal = self.began_at + (num_tokens + 1) / self.rate
        late = now - CATCH_UP_S - ideal
        if late > 0:
            self.began_at += late
            return now - CATCH_UP_S
        return min(ideal, now + LEAD_S)


class Queue(Generic[T]):
    """Things in the order of (deadline, arrival)."""

    def __init__(self) -> None:
        self._items: list[tuple[float, int, T]] = []

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        return map(itemgetter(2), self._items)

    def __reversed__(self) -> Iterator[T]:
        return map(itemgetter(2), reversed(self._items))

    def add(self, due: float, number: int, item: T) -> None:
        """Put in; `number` is unique."""
        insort(self._items, (due, number, item), key=itemgetter(0, 1))

    def remove(self, due: float, number: int) -> None:
        """Take out what was put in with these."""
        index = bisect_left(self._items, (due, number), key=itemgetter(0, 1))
        assert self._items[index][:2] == (due, number)
        del self._items[index]


@dataclass(frozen=True, slots=True)
class Share(Generic[W]):
    """A session's part of the next forward: `committed` tokens not cached yet, then its draft if `verify`."""

    work: W
    committed: int
    verify: bool


def plan(
    ready: Iterable[W],
    behind: Iterable[W],
    *,
    budget: int,
    prefill_beside_rounds: int,
    now: float = 0.0,
    cost: Cost | None = None,
    away_s: float = math.inf,
) -> list[Share[W]]:
    """Divide one forward of about `budget` tokens.

    Every round that waits and whose text is (all but) computed is verified now, the earliest deadline first, as far as
    the budget goes: nobody waits for a batch to fill (a window policy may put the whole forward off for rounds that are
    about to come). Texts that are behind are computed in pieces beside them: no more than keeps the deadlines of the
    rounds, so that a long prompt does not hold up the verdicts of others, and always a little, so that busy devices do
    not shut out a new one.

    Args:
        ready: sessions that want tokens and whose text is all but computed, the earliest deadline first.
        behind: sessions whose text is to be computed first, in the order they get on.
        budget: tokens in one forward; a round's drafts are never split, so the last may exceed it.
        prefill_beside_rounds: tokens of prefill in a forward that also carries rounds, where `cost` is not known.
        now: seconds.
        cost: what a forward takes.
        away_s: what a forward may take for the sake of rounds that are still to come, but no less than twice what it
            takes anyway: in smaller pieces a text would cost more than it keeps others waiting.
    """
    waiting = iter(behind)
    first = next(waiting, None)
    floor = max(1, min(prefill_beside_rounds // _FLOOR_SHARE, budget)) if first is not None else 0
    shares: list[Share[W]] = []
    used, context, slack_s = 0, 0, away_s
    for work in ready:
        if shares and used >= budget - floor:
            break
        whole = work.uncached + (work.num_drafts or 0)
        in_pieces = whole > budget and work.uncached > 1  # the last of its text first, the round when that is there
        shares.append(Share(work, min(work.uncached - 1, budget) if in_pieces else work.uncached, not in_pieces))
        used += whole
        context += work.cached
        slack_s = min(slack_s, work.interval_s, work.due - now)
    if first is None:
        return shares
    if cost is None:
        left = min(prefill_beside_rounds, budget) if shares else budget
    else:
        if not shares:
            slack_s = max(slack_s, _WORTH * cost.predict(floor, 0, 0))
        left = _largest_prefill(cost, used, len(shares), context, slack_s, floor, max(floor, budget - used))
    for work in chain((first,), waiting):
        if left <= 0:
            break
        whole = work.uncached + (work.num_drafts or 0)
        if work.num_drafts is not None and (whole <= left or work.uncached == 1):  # found computed
            shares.append(Share(work, work.uncached, True))
            left -= whole
        elif work.uncached > 1:
            # The last committed token is fed together with the draft, so prefill leaves it out.
            piece = min(work.uncached - 1, left)
            shares.append(Share(work, piece, False))
            left -= piece
    return shares


def _largest_prefill(cost: Cost, used: int, rounds: int, context: int, slack_s: float, floor: int, most: int) -> int:
    """Most tokens of prefill with which the forward is done in time; `floor` if none are."""
    low, high = floor, most
    while low < high:
        middle = (low + high + 1) // 2
        if cost.predict(used + middle, rounds, context) <= slack_s:
            low = middle
        else:
            high = middle - 1
    return low
