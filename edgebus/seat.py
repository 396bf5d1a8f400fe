"""Who drives a node's sockets, and where the node's own thread rests until it is needed."""

from __future__ import annotations

import contextlib
import math
import queue
from collections.abc import Callable

NOBODY, OWN = 0, -1
"""Who drives, if it is not an application's thread."""
ASLEEP_S = 1.0


class PlainSeat:
    """Who drives, and the place where the node's own thread rests.

    That thread looks every few milliseconds whether it has to take over. Compiled it does so without Python's lock: the
    threads that carry a large content want it just then, and two cores are all that some devices have (ADR 8).
    """

    driver: int
    """NOBODY, OWN or the identity of an application's thread."""
    leads: int
    """Counts changes of the driver."""
    left_at: float
    """Monotonic time when the last one left."""

    def __init__(self) -> None:
        self.driver, self.leads, self.left_at = NOBODY, 0, -math.inf
        self._calls: queue.SimpleQueue[None] = queue.SimpleQueue()  # a signal handler may come in the middle of it

    def call(self) -> None:
        """The node's own thread shall look now."""
        self._calls.put(None)

    def rest(self, grace_s: float, asleep: bool) -> None:
        """Rest until it is time to look; for the node's own thread.

        Args:
            grace_s: nobody drives for so long before that thread takes over.
            asleep: somebody has been driving for longer, and calls when he leaves.
        """
        with contextlib.suppress(queue.Empty):
            self._calls.get(timeout=ASLEEP_S if asleep else grace_s)


open_seat: Callable[[], PlainSeat] = PlainSeat
"""The best there is."""
try:
    from edgebus import _waiting

    open_seat = _waiting.Seat
except ImportError:  # not built
    pass
