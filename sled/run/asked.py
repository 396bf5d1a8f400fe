"""Rounds in flight, and who waits for their verdicts."""

from __future__ import annotations

from typing import NamedTuple

from edgebus import Pending
from sled.chain import Flight
from sled.events import RoundEnded, RoundSent


class Asked(NamedTuple):
    """A round on its way.

    Args:
        flight: what it proposes.
        pending: gets its verdict.
        sent_s: when it was sent, seconds since the answer began.
        came_s: when its verdict came, likewise; noted by the node's thread, for nobody looks while a token is drafted.
    """

    flight: Flight
    pending: Pending
    sent_s: float
    came_s: list[float]

    @property
    def confidences(self) -> list[float]:
        """Of its drafts."""
        return [proposal.confidence for proposal in self.flight.drafts]

    def sent(self) -> RoundSent:
        """What is told when it goes."""
        return RoundSent(self.flight.base, len(self.flight.drafts), bool(self.flight.hoped), self.sent_s)

    def ended(self, now_s: float, limit: int, accepted: int = 0, tokens: int = 0, batch: int = 0) -> RoundEnded:
        """What is told when its verdict is there; without tokens, that there will be none."""
        flight = self.flight
        return RoundEnded(flight.base, len(flight.drafts), accepted, tokens, limit, batch, self.sent_s, now_s)
