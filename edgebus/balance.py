"""Whom to ask, pure: the less loaded of two servers, when another one may be tried, how long to wait meanwhile.

Rules: docs/spec/bus-directory.md.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from enum import StrEnum
from typing import NamedTuple

from edgebus.errors import (
    DeadlineExceeded,
    EdgebusError,
    KeyNotAllowed,
    LinkLost,
    NodeClosed,
    PeerUnreachable,
    QueueFull,
    Refused,
    VersionMismatch,
    WrongServerKey,
)

NOT_EXECUTED = frozenset({"busy", "unknown_service", "rate_limited", "queue_full"})
"""Refusals of the bus itself that say the application never saw the request."""
MAYBE_EXECUTED = frozenset({"closing", "dropped", "forgotten"})
"""Refusals that leave it open: a node that closes says "closing" also of what its application has in hand."""
_OF_THE_LINK = (
    DeadlineExceeded, LinkLost, NodeClosed, PeerUnreachable, QueueFull, KeyNotAllowed, WrongServerKey, VersionMismatch,
)  # fmt: skip
_USABLE = ("up", "busy")  # Health values, in the order we like them; wedged and down get nothing


class Candidate(NamedTuple):
    """A server that could be asked.

    Attributes:
        id: what it is called in the pool.
        health: of the link to it: up, busy, wedged or down.
        load: as it announced it, the part of its capacity in use.
        capacity: requests it works on at once.
        outstanding: requests of ours it has not answered.
    """

    id: str
    health: str = "up"
    load: float = 0.0
    capacity: float = 1.0
    outstanding: int = 0

    def score(self, doubt: float = 1.0) -> float:
        """Its load, taken `doubt` times, with our own requests and the next one."""
        return doubt * self.load + (self.outstanding + 1) / self.capacity


def choose(candidates: Sequence[Candidate], chance: random.Random, exclude: Collection[str] = ()) -> str | None:
    """The less loaded of two servers drawn at random: who always takes the least loaded runs with the herd.

    Announced loads are old, and everybody has the same ones: each draws its own doubt (exponential, so that of two
    loads a and b the first wins with odds b : a). Our own requests are known exactly.

    Args:
        candidates: all servers.
        chance: source of the draw.
        exclude: ids that were tried already.

    Returns:
        An id, or None if no server is left that is up or at least busy.

    >>> choose([Candidate("a", outstanding=3), Candidate("b", outstanding=1)], random.Random(0))
    'b'

    Source: M. Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, IEEE TPDS 12 (2001); How Useful
    Is Old Information?, IEEE TPDS 11 (2000).
    """
    for health in _USABLE:
        usable = [each for each in candidates if each.health == health and each.id not in exclude]
        if usable:
            drawn = chance.sample(usable, min(2, len(usable)))
            return min(drawn, key=lambda each: each.score(chance.expovariate(1.0))).id
    return None


class Next(StrEnum):
    """What to do after an attempt has failed."""

    ELSEWHERE = "elsewhere"
    FAIL = "fail"


def after_failure(error: EdgebusError, *, sent: bool, may_repeat: bool) -> Next:
    """Whether another server may be asked: always if this one never executed the request, else only if it may repeat.

    Args:
        error: how the attempt ended.
        sent: False if the request never left this process.
        may_repeat: executing it twice is harmless.
    """
    if isinstance(error, Refused):
        if error.code in NOT_EXECUTED or (may_repeat and error.code in MAYBE_EXECUTED):
            return Next.ELSEWHERE
        return Next.FAIL  # the application's own no
    if isinstance(error, _OF_THE_LINK):
        return Next.ELSEWHERE if may_repeat or not sent else Next.FAIL
    return Next.FAIL


def next_delay(previous_s: float, chance: random.Random, *, least_s: float = 0.05, most_s: float = 5.0) -> float:
    """Seconds before the next try: decorrelated jitter, so that many who lost one server do not return as one.

    Args:
        previous_s: the last delay, 0 for the first.
        chance: source of the jitter.
        least_s: least delay.
        most_s: greatest delay.

    Source: M. Brooker, Exponential Backoff and Jitter, AWS Architecture Blog, 2015.
    """
    return min(most_s, chance.uniform(least_s, max(least_s, 3 * previous_s)))
