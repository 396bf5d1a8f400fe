"""Who drives a node's sockets, and where the node's own thread rests until it is needed."""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Callable

NOBODY, OWN = 0, -1
"""Who drives, if it is not an application's thread."""
ASLEEP_S = 1.0
LOOKS = 20
"""At a driver who does not change, before the node's own thread asks to be told when he leaves."""


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
        """Rest until somebody calls, or it is time to look; for the node's own thread.

        Args:
            grace_s: nobody drives for so long before that thread takes over; whoever drives is looked at as often, and
                nothing is to be done before he is the same at LOOKS of them.
            asleep: that was so, and he calls when he leaves: rest for ASLEEP_S.
        """
        seen, looks, wait_s = self.leads, 0, ASLEEP_S if asleep else grace_s
        while wait_s > 0.0 and not self._is_called(wait_s) and not asleep:
            if self.driver == NOBODY:
                wait_s = self.left_at + grace_s - time.monotonic()
                continue
            looks = looks + 1 if self.leads == seen else 0
            seen, wait_s = self.leads, grace_s if looks < LOOKS else 0.0
        while self._is_called(0.0):  # once is enough
            pass

    def _is_called(self, wait_s: float) -> bool:
        try:
            self._calls.get(timeout=wait_s)
        except queue.Empty:
            return False
        return True


open_seat: Callable[[], PlainSeat] = PlainSeat
"""The best there is."""
try:
    from edgebus import _waiting

    open_seat = _waiting.Seat
except ImportError:  # not built
    pass
