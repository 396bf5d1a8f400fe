"""Counters as frozen snapshots."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgebus.attached import Attached


@dataclass(frozen=True, slots=True)
class LinkStats:
    """One link (or the sum of several): traffic of frames in both directions, the requests we sent and those we got.

    `content_bytes_*` are payloads and arrays alone, what the application gave; `bytes_*` have the bus's headers too.

    What we sent: started = answered + refused + expired + unknown + cancelled + outstanding, always.
    What we got: received = executed + duplicates + turned_away + repeated, and executed = served + withdrawn + pending.

    Attributes:
        retries: requests sent again.
        reconnects: times the link came up again.
        failed: messages given up by an internal error, which is a fault of the bus; the log has it.
        turned_away: requests refused before they were executed: busy, expired, forgotten, stale, not permitted or
            failed.
        repeated: requests answered from an idempotency key.
        bytes_in_flight: of large contents, sent and not yet credited by the peer.
        bytes_outstanding: in our requests without an outcome.
        bytes_pending: in the peer's requests without an answer, and of large contents that are not whole yet.
        copied_bytes_sent, copied_bytes_received: of arrays, copied by us on their way out and in.
        name, endpoint, health, round_trip_s: of one link; empty and nan in a sum.
        idle_round_trip_s: likewise, of the latest ping while no request was on its way: on a slow link any other one
            has waited behind what we send.
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
    failed: int = 0
    content_bytes_sent: int = 0
    content_bytes_received: int = 0
    received: int = 0
    executed: int = 0
    duplicates: int = 0
    turned_away: int = 0
    repeated: int = 0
    served: int = 0
    withdrawn: int = 0
    pending: int = 0
    bytes_in_flight: int = 0
    bytes_outstanding: int = 0
    bytes_pending: int = 0
    copied_bytes_sent: int = 0
    copied_bytes_received: int = 0
    name: str = ""
    endpoint: str = ""
    health: str = ""
    round_trip_s: float = math.nan
    idle_round_trip_s: float = math.nan

    def __add__(self, other: LinkStats) -> LinkStats:
        return LinkStats(*(getattr(self, name) + getattr(other, name) for name in _COUNTERS))


_COUNTERS = [item.name for item in fields(LinkStats) if item.default == 0]


@dataclass(frozen=True, slots=True)
class NodeStats:
    """A whole node; `total` includes links that are gone, closed or forgotten.

    Attributes:
        peers: by peer id, links known now.
        rejected_handshakes: connections that failed authentication or the handshake.
        malformed: messages that could not be decoded, known peer or not.
        unroutable: messages that had no connection to go to, or a full one; resends cover them.
        unended: connections that were ended because of messages that had no end.
        held_back: connections by which too much came while nobody read, and which were kept from sending until then.
    """

    total: LinkStats
    peers: dict[str, LinkStats] = field(default_factory=dict)
    rejected_handshakes: int = 0
    malformed: int = 0
    unroutable: int = 0
    unended: int = 0
    held_back: int = 0


def link_stats(attached: Attached, endpoint: str = "", now: float = math.nan) -> LinkStats:
    """Snapshot of one link; counters are read one by one, so they may be a message apart."""
    link, traffic = attached.link, attached.traffic
    caller, answerer, counts = link.caller, link.answerer, link.answerer.counts
    outcomes = caller.outcomes
    return LinkStats(
        bytes_sent=traffic.bytes_sent,
        bytes_received=traffic.bytes_received,
        messages_sent=traffic.messages_sent,
        messages_received=traffic.messages_received,
        started=caller.started,
        answered=outcomes["answered"],
        refused=outcomes["refused"],
        expired=outcomes["expired"],
        unknown=outcomes["unknown"],
        cancelled=outcomes["cancelled"],
        outstanding=caller.num_outstanding,
        retries=caller.retries,
        reconnects=max(0, link.num_ups - 1),
        malformed=traffic.malformed,
        failed=link.failed,
        content_bytes_sent=traffic.content_bytes_sent,
        content_bytes_received=traffic.content_bytes_received,
        received=counts.received,
        executed=counts.executed,
        duplicates=counts.duplicates,
        turned_away=counts.busy + counts.expired + counts.forgotten + counts.stale + counts.denied + counts.failed,
        repeated=counts.repeated,
        served=counts.answered,
        withdrawn=counts.withdrawn,
        pending=answerer.num_pending,
        bytes_in_flight=link.sender.in_flight_bytes,
        bytes_outstanding=caller.outstanding_bytes,
        bytes_pending=answerer.pending_bytes + link.receiver.held_bytes,
        copied_bytes_sent=traffic.copied_bytes_sent,
        copied_bytes_received=link.receiver.copied_bytes,
        name=link.peer_name,
        endpoint=endpoint,
        health=link.health(now).value if not math.isnan(now) else "",
        round_trip_s=link.liveness.round_trip_s,
        idle_round_trip_s=link.liveness.idle_round_trip_s,
    )
