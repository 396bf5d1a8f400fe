"""What a device moves: planned bytes beside those that the links counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

from edgebus.stats import LinkStats


@dataclass(slots=True)
class Traffic:
    """Bytes of payloads and arrays, the bus's headers apart.

    Attributes:
        planned_download_bytes, download_bytes: the segment's description and its missing pieces: as planned, and as
            the link counted them.
        planned_up_bytes, up_bytes: inference requests.
        planned_answer_bytes, answer_bytes: their answers.
        control_bytes: describing, planning and asking, both ways.
        wire_bytes: everything on the links, headers of the bus included, both ways.
        resends: requests that the bus sent again because no answer came for a while; they count as sent.
        asked_again: inference requests that we asked again, since their server was lost or busy; they count as sent.
    """

    planned_download_bytes: int = 0
    download_bytes: int = 0
    planned_up_bytes: int = 0
    up_bytes: int = 0
    planned_answer_bytes: int = 0
    answer_bytes: int = 0
    control_bytes: int = 0
    wire_bytes: int = 0
    resends: int = 0
    asked_again: int = 0

    def add(self, other: Traffic) -> None:
        """Take in what was counted elsewhere."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


class Counted(NamedTuple):
    """What was moved between two looks."""

    sent: int
    received: int


class Meter:
    """Says what a line has moved since the last look, and keeps the totals of the wire.

    Args:
        stats: of the line now.
        traffic: whose `wire_bytes` and `resends` are kept.
        since: what the first look is compared with; all that ever moved if left out.
    """

    def __init__(self, stats: Callable[[], LinkStats], traffic: Traffic, since: LinkStats | None = None) -> None:
        self._stats, self._traffic = stats, traffic
        self._before = since or LinkStats()

    def skip(self) -> None:
        """What has moved until now was counted elsewhere."""
        self._before = self._stats()

    def take(self) -> Counted:
        """Contents sent and received since the last time."""
        before, after = self._before, self._stats()
        self._before = after
        traffic = self._traffic
        traffic.wire_bytes += after.bytes_sent + after.bytes_received - before.bytes_sent - before.bytes_received
        traffic.resends += after.retries - before.retries
        return Counted(
            after.content_bytes_sent - before.content_bytes_sent,
            after.content_bytes_received - before.content_bytes_received,
        )
