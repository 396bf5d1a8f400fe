"""How long the next step waits for rounds that are about to come.

Pure: no sockets, clock or randomness.
"""

from __future__ import annotations

import math

LATE = 3.0  # deviations after which a round that was expected is not waited for any more
LATE_SHARE = 0.02  # of its think time, at least


class Gathering:
    """Rounds that are under way, by row of a table: when each is expected, and when it is late.

    A step that waits does so once, from the moment at which there was something to compute, for rounds that are
    expected within a given time, and until the last of them is there or late. Where none is expected it begins at once,
    so that whoever is alone never waits.
    """

    def __init__(self) -> None:
        self._expected: dict[int, tuple[float, float]] = {}  # row -> when its round is there, and when it is late
        self._since = math.inf  # when there was something to compute

    def away(self, row: int, at: float, deviation_s: float, think_s: float) -> None:
        """A session was told its verdict; its round is expected `at`, which is `think_s` from then."""
        self._expected[row] = (at, at + LATE * deviation_s + LATE_SHARE * think_s)

    def here(self, row: int) -> None:
        """Its round is there, or none will come."""
        self._expected.pop(row, None)

    def began(self) -> None:
        """A step has begun, or is done: the next one's wait is another."""
        self._since = math.inf

    def until(self, now: float, patience_s: float) -> float:
        """When the next step begins if nothing else comes; `now` if at once.

        Args:
            now: seconds; something waits to be computed.
            patience_s: that a step waits at most.
        """
        self._since = min(self._since, now)
        end = self._since + patience_s
        if now >= end:
            return now
        late = [late for at, late in self._expected.values() if at <= end and now < late]
        return min(end, max(late)) if late else now
