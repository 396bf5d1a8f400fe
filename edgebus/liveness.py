"""Whether the peer of a link is there: when it is asked, what it said of itself, when it counts as silent. Pure.

docs/spec/bus-liveness.md has the rules.
"""

from __future__ import annotations

import math

from edgebus.config import Limits
from edgebus.link_states import Health
from edgebus.messages import Pong


class Liveness:
    """What is known of one peer.

    Args:
        limits: how often it is asked, and how long it may be silent.
        now: monotonic seconds.

    Attributes:
        round_trip_s: of the latest ping, nan before the first.
        idle_round_trip_s: of the latest one while no request was on its way.
        leased_until: until when the peer said it would be busy.
    """

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self.round_trip_s = self.idle_round_trip_s = math.nan
        self._pinged_at = now
        self._ping_unanswered = self._ping_idle = False
        self._stalled_s = 0.0
        self.leased_until = -math.inf

    def begin(self, now: float) -> None:
        """The link is up (again): what its peer said before holds no longer."""
        self._pinged_at = now
        self._ping_unanswered = False
        self._stalled_s, self.leased_until = 0.0, -math.inf

    def health(self, now: float) -> Health:
        """What can be said of a peer whose link is up."""
        if now < self.leased_until:
            return Health.BUSY
        return Health.WEDGED if self._stalled_s >= self._limits.heartbeat_s else Health.UP

    def ping_at(self, heard_at: float, is_asking: bool) -> float:
        """When it is to be asked. With requests on their way in any case: the node may talk while its application
        does not."""
        quiet_from = self._pinged_at if is_asking else max(heard_at, self._pinged_at)
        return quiet_from + self._limits.heartbeat_s

    def silent_at(self, heard_at: float) -> float:
        """When it counts as silent, unless something is heard of it."""
        return max(heard_at + self._limits.silence_s, self.leased_until)

    def pinged(self, now: float, is_asking: bool) -> None:
        """It is being asked; `is_asking` if requests are on their way."""
        self._pinged_at = now
        self._ping_unanswered, self._ping_idle = True, not is_asking

    def answered(self, pong: Pong, now: float, is_asking: bool) -> None:
        """It has answered, or says of itself how long it will be busy."""
        if self._ping_unanswered:
            self._ping_unanswered = False
            self.round_trip_s = now - self._pinged_at
            if self._ping_idle and not is_asking:
                self.idle_round_trip_s = self.round_trip_s
        self._stalled_s = pong.stalled_ms / 1000
        self.leased_until = now + pong.lease_ms / 1000

    def note(self, pong: Pong) -> str:
        """What requests that end without an answer say of a peer whose last word this was."""
        if pong.lease_ms:
            return f"; it is busy by its own word, for {pong.lease_ms / 1000:.1f} s more"
        if self._stalled_s >= self._limits.heartbeat_s:
            return f"; its application has left requests lying for {self._stalled_s:.1f} s, it may be stuck"
        return ""
