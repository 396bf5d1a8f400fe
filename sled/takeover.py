"""What a device does when its server fails it: open the answer there again, go to another server, or give up.

An answer is a function of (target, prompt, sampling), so whoever has the target can finish it. Pure: time and chance
are arguments.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

from edgebus import DeadlineExceeded, LinkLost, NodeClosed, PeerUnreachable, Refused
from edgebus.balance import next_delay
from sled.errors import ServerBusy, SessionUnknown, TargetChanged

MAX_TRIES = 10
AVOID_S = 5.0
AVOID_STRANGERS_S = 60.0
"""A server that failed is left alone for so long, while there are others; one that serves nothing of ours, longer."""


class Next(StrEnum):
    """Where an answer goes on."""

    HERE = "here"
    ELSEWHERE = "elsewhere"  # at this server after a while, if there is no other
    ELSEWHERE_ONLY = "elsewhere only"
    NOWHERE = "nowhere"


_STOPPING = frozenset({"closing", "dropped", "unknown_service", "draining", "busy", "out_of_memory"})
_FAILING = frozenset({"target_failed", "internal"})


def after_failure(error: Exception) -> Next:
    """Where to go on after a request has failed."""
    match error:
        case SessionUnknown():
            return Next.HERE
        case ServerBusy() | LinkLost() | PeerUnreachable() | NodeClosed():
            return Next.ELSEWHERE
        case DeadlineExceeded() | TargetChanged():
            return Next.ELSEWHERE_ONLY
        case Refused() if error.code in _STOPPING:
            return Next.ELSEWHERE
        case Refused() if error.code in _FAILING:
            return Next.ELSEWHERE_ONLY
    return Next.NOWHERE


def avoidance_s(error: Exception) -> float:
    """How long to leave a server alone that has failed so, while there are others."""
    strange = isinstance(error, TargetChanged) or (isinstance(error, Refused) and error.code == "unknown_service")
    return AVOID_STRANGERS_S if strange else AVOID_S


@dataclass(slots=True)
class Patience:
    """How often and how long a device tries to go on without a token in between.

    Args:
        within_s: all tries together.
        chance: of the pauses.
        tries: how many.
        most_pause_s: the longest pause, if none was asked for.
    """

    within_s: float
    chance: random.Random
    tries: int = MAX_TRIES
    most_pause_s: float = 5.0
    _tries: int = 0
    _until: float = 0.0
    _length: int = -1
    _pause_s: float = 0.0

    def allows(self, length: int, *, now: float) -> bool:
        """Whether to try once more.

        Args:
            length: of the text; what is longer than at the last failure is a new trouble.
            now: seconds.
        """
        if length != self._length:
            self._length, self._tries, self._until, self._pause_s = length, 0, now + self.within_s, 0.0
        self._tries += 1
        return self._tries <= self.tries and now < self._until

    def pause_s(self, at_least_s: float, *, now: float) -> float:
        """How long to wait before asking the same server: as it asked for, else growing with jitter."""
        self._pause_s = next_delay(self._pause_s, self.chance, most_s=self.most_pause_s)
        return min(max(self._pause_s, at_least_s), self.left_s(now=now))

    def left_s(self, *, now: float) -> float:
        """How long further tries may take."""
        return max(0.0, self._until - now)
