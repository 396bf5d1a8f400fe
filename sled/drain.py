"""How a server ends: it takes no more sessions, lets those that run go on for a while, then sends them elsewhere.

    serving --begin--> draining --no session left, or the time is over--> closing

Pure: time is an argument.
"""

from __future__ import annotations

import math
from enum import StrEnum


class Phase(StrEnum):
    """Where a server stands."""

    SERVING = "serving"
    DRAINING = "draining"
    CLOSING = "closing"


class Drain:
    """The end of a server.

    Args:
        drain_s: sessions that run go on for so long; 0 ends at once.

    Raises:
        ValueError: `drain_s` is negative.
    """

    def __init__(self, drain_s: float) -> None:
        if not 0.0 <= drain_s <= 86_400.0:
            raise ValueError(f"drain_s is {drain_s}, give 0 to 86400 seconds")
        self._drain_s = drain_s
        self._until = math.inf
        self.phase = Phase.SERVING

    def begin(self, *, now: float) -> None:
        """Take no more sessions; asking twice changes nothing."""
        if self.phase is Phase.SERVING:
            self.phase = Phase.DRAINING
            self._until = now + self._drain_s

    def look(self, *, num_sessions: int, now: float) -> Phase:
        """The phase now; draining ends with the last session, or when its time is over."""
        if self.phase is Phase.DRAINING and (num_sessions == 0 or now >= self._until):
            self.phase = Phase.CLOSING
        return self.phase

    def remaining_s(self, *, now: float) -> float:
        """How long sessions may go on; inf while serving."""
        return max(0.0, self._until - now)
