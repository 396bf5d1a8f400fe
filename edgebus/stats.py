"""Counters as frozen snapshots."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgebus.hub import Attached


@dataclass(slots=True)
class Traffic:
    """What went over one link, in bytes of frames and in messages; content is all frames but the header."""

    bytes_sent: int = 0
    bytes_received: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    malformed: int = 0
    content_bytes_sent: int = 0
    content_bytes_received: int = 0


@dataclass(frozen=True, slots=True)
class LinkStats:
    """One link (or the sum of several): traffic of frames in both directions, and the requests we sent.

    `content_bytes_*` are payloads and arrays alone, what the application gave; `bytes_*` have the bus's headers too.

    started = answered + refused + expired + unknown + cancelled + outstanding, always.
    """

    bytes_sent: int = 0
    bytes_received: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    started: int = 0
    answered: int = 0
    refused: int = 0
    expired: int = 0
    unknown: int = 0
    cancelled: int = 0
    outstanding: int = 0
    retries: int = 0
    reconnects: int = 0
    malformed: int = 0
    content_bytes_sent: int = 0
    content_bytes_received: int = 0

    def __add__(self, other: LinkStats) -> LinkStats:
        return LinkStats(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(LinkStats)))


@dataclass(frozen=True, slots=True)
class NodeStats:
    """A whole node; `total` includes links that are gone, closed or forgotten.

    Attributes:
        peers: by peer id, links known now.
        rejected_handshakes: connections that failed authentication or the handshake.
        malformed: messages that could not be decoded, known peer or not.
        unroutable: messages that had no connection to go to, or a full one; resends cover them.
    """

    total: LinkStats
    peers: dict[str, LinkStats] = field(default_factory=dict)
    rejected_handshakes: int = 0
    malformed: int = 0
    unroutable: int = 0


def link_stats(attached: Attached) -> LinkStats:
    """Snapshot of one link; counters are read one by one, so they may be a message apart."""
    caller, traffic = attached.link.caller, attached.traffic
    outcomes = caller.outcomes
    return LinkStats(
        traffic.bytes_sent,
        traffic.bytes_received,
        traffic.messages_sent,
        traffic.messages_received,
        caller.started,
        outcomes["answered"],
        outcomes["refused"],
        outcomes["expired"],
        outcomes["unknown"],
        outcomes["cancelled"],
        caller.num_outstanding,
        caller.retries,
        max(0, attached.link.num_ups - 1),
        traffic.malformed,
        traffic.content_bytes_sent,
        traffic.content_bytes_received,
    )
