"""What `edgebus.stats` answers: a node's counters as a bounded payload, made from NodeStats and read by the tools."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from edgebus import messages
from edgebus.config import Limits
from edgebus.errors import RemoteError
from edgebus.payloads import Payload, decode, encode
from edgebus.stats import LinkStats, NodeStats

if TYPE_CHECKING:
    from edgebus.links import Link

STATS_SERVICE = "edgebus.stats"
_Name = Annotated[str, Meta(max_length=64)]
_Text = Annotated[str, Meta(max_length=256)]
Counters = Annotated[dict[_Name, float], Meta(max_length=128)]


class PeerReport(Payload, frozen=True):
    """One link of the node: who, how it does, and its counters by the names of LinkStats."""

    id: _Text
    name: _Text
    endpoint: _Text
    health: _Name
    counters: Counters


class StatsReport(Payload, frozen=True):
    """A node at one moment. `wall_time` is its clock, seconds since 1970; `node` has the counters of NodeStats."""

    name: _Name
    version: _Name
    protocol_min: Annotated[int, Meta(ge=0, le=65535)]
    protocol_max: Annotated[int, Meta(ge=0, le=65535)]
    wall_time: float
    uptime_s: float
    max_frame_bytes: Annotated[int, Meta(ge=0, le=2**48)]
    services: Annotated[tuple[_Name, ...], Meta(max_length=4096)]
    node: Counters
    total: Counters
    peers: Annotated[tuple[PeerReport, ...], Meta(max_length=65_536)]


def make_report(
    stats: NodeStats, *, name: str, version: str, uptime_s: float, limits: Limits, services: Sequence[str]
) -> StatsReport:
    """The report of a node now."""
    return StatsReport(
        name=name,
        version=version,
        protocol_min=messages.VERSION_MIN,
        protocol_max=messages.VERSION_MAX,
        wall_time=time.time(),
        uptime_s=uptime_s,
        max_frame_bytes=limits.max_frame_bytes,
        services=tuple(services)[:4096],
        node=counters_of(stats),
        total=counters_of(stats.total),
        peers=tuple(_peer(peer_id, link) for peer_id, link in stats.peers.items()),
    )


def counters_of(stats: LinkStats | NodeStats) -> dict[str, float]:
    """The numeric fields by name."""
    found = {field.name: getattr(stats, field.name) for field in fields(stats)}
    # What has not been measured is not a number, which JSON does not have.
    return {name: value for name, value in found.items() if isinstance(value, int | float) and not math.isnan(value)}


def answer_stats(report: StatsReport, most_bytes: int) -> bytes:
    """The report as bytes; peers are left out, the quiet ones first, until it fits."""
    content = encode(report)
    peers = sorted(report.peers, key=lambda peer: -peer.counters.get("messages_received", 0.0))
    while len(content) > most_bytes and peers:
        peers = peers[: len(peers) // 2]
        content = encode(_with_peers(report, peers))
    return content


def ask_stats(link: Link, timeout_s: float) -> StatsReport:
    """What a node says of itself.

    Raises:
        RemoteError: no answer, a refusal, or one that is not a report.
    """
    payload = link.request(STATS_SERVICE, timeout_s=timeout_s).payload
    try:
        return decode(StatsReport, bytes(payload))
    except ValueError as error:
        raise RemoteError(
            f"{link.endpoint} answered {STATS_SERVICE} with something else: {str(error)[:200]!a}"
        ) from None


def _peer(peer_id: str, link: LinkStats) -> PeerReport:
    return PeerReport(
        id=peer_id[:256],
        name=link.name[:64],
        endpoint=link.endpoint[:256],
        health=link.health,
        counters=counters_of(link),
    )


def _with_peers(report: StatsReport, peers: Sequence[PeerReport]) -> StatsReport:
    return msgspec.structs.replace(report, peers=tuple(peers))
