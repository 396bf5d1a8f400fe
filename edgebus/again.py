"""When a peer that could not see our memory is asked once more, pure: after a second, doubling up to a minute.

It may have had no room for a moment: with its bound of views reached, say, which its application lets go of later.
"""

from __future__ import annotations

AGAIN_S = 1.0
MOST_AGAIN_S = 60.0


class Again:
    """Those peers, each by a number of its own."""

    def __init__(self) -> None:
        self._at: dict[int, tuple[float, float]] = {}  # when to ask, and how long that had to wait

    def refused(self, number: int, now: float) -> None:
        """It said no: for a message or a question. Several messages may have been on their way then."""
        at, wait_s = self._at.get(number, (now - 2 * MOST_AGAIN_S, 0.0))
        if now < at:
            return
        again = now < at + MOST_AGAIN_S  # it was well for less than a minute
        wait_s = min(2 * wait_s, MOST_AGAIN_S) if again else AGAIN_S
        self._at[number] = (now + wait_s, wait_s)

    def is_due(self, number: int, now: float) -> bool:
        """True once it may be asked again."""
        known = self._at.get(number)
        return known is not None and now >= known[0]

    def forget(self, number: int) -> None:
        """Its link has ended, or begins anew."""
        self._at.pop(number, None)
