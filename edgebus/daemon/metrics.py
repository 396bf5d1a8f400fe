"""Prometheus text exposition (version 0.0.4) of a node's counters. Pure; parsed back by prometheus_client in tests."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields

from edgebus.stats import LinkStats, NodeStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_PEERS = 64
"""Peers choose their names: so many get series of their own, the rest shares one, whatever they call themselves."""
OTHERS = "(others)"

_GAUGES = {"outstanding", "pending", "bytes_in_flight", "bytes_outstanding", "bytes_pending", "round_trip_s"}
_HELP = {
    "bytes_sent": "Bytes of frames sent, the bus's headers included.",
    "bytes_received": "Bytes of frames received, the bus's headers included.",
    "messages_sent": "Messages sent.",
    "messages_received": "Messages received.",
    "started": "Requests accepted from this node's application.",
    "answered": "Requests that got a reply.",
    "refused": "Requests that were refused.",
    "expired": "Requests whose deadline passed.",
    "unknown": "Requests of which nobody knows whether they were executed.",
    "cancelled": "Requests given up by the caller.",
    "outstanding": "Requests without an outcome yet.",
    "retries": "Requests sent again.",
    "reconnects": "Times a link came up again.",
    "malformed": "Messages that could not be decoded.",
    "failed": "Messages given up by an internal error.",
    "content_bytes_sent": "Bytes of payloads and arrays sent.",
    "content_bytes_received": "Bytes of payloads and arrays received.",
    "received": "Requests that came in, duplicates included.",
    "executed": "Requests handed to this node's application.",
    "duplicates": "Requests that came in again.",
    "turned_away": "Requests refused before they were executed.",
    "repeated": "Requests answered from an idempotency key.",
    "served": "Requests this node's application has answered.",
    "withdrawn": "Requests that their caller gave up.",
    "pending": "Requests that this node's application has not answered yet.",
    "bytes_in_flight": "Bytes of large contents sent for which the peer has not returned credit.",
    "bytes_outstanding": "Bytes in our own requests without an outcome.",
    "bytes_pending": "Bytes in requests of peers without an answer, and of contents that are not whole yet.",
    "copied_bytes_sent": "Bytes of arrays copied on their way out.",
    "copied_bytes_received": "Bytes of arrays copied on their way in.",
    "round_trip_s": "Latest round trip, in seconds.",
    "idle_round_trip_s": "Latest round trip while no request was on its way, in seconds.",
    "rejected_handshakes": "Connections that failed authentication or the handshake.",
    "unroutable": "Messages that had no connection to go to, or a full one.",
    "unended": "Connections that were ended because of messages that had no end.",
    "held_back": "Connections by which too much came while nobody read.",
}
_HEALTHS = ("up", "busy", "wedged", "down")

Sample = tuple[Mapping[str, str], float]


def render(stats: NodeStats, *, name: str, version: str, uptime_s: float) -> str:
    """All series of a node, as text; every numeric field of NodeStats and LinkStats is one."""
    lines: list[str] = []
    lines += family("edgebus_info", "gauge", "Which node this is.", [({"name": name, "version": version}, 1)])
    lines += family("edgebus_uptime_seconds", "gauge", "Seconds since the start.", [({}, uptime_s)])
    lines += family("edgebus_peers", "gauge", "Links known now, by health.", _by_health(stats))
    for field in fields(NodeStats):
        value = getattr(stats, field.name)
        if isinstance(value, int | float):
            lines += _number("edgebus_node_", field.name, [({}, value)])
    by_name = _by_name(stats.peers)
    for field in fields(LinkStats):
        value = getattr(stats.total, field.name)
        if isinstance(value, int | float):
            lines += _number("edgebus_", field.name, [({}, value)])
            samples: list[Sample] = [({"peer": peer}, _combined(field.name, each)) for peer, each in by_name.items()]
            lines += _number("edgebus_peer_", field.name, samples)
    return "\n".join(lines) + "\n"


def _number(prefix: str, field: str, samples: Sequence[Sample]) -> list[str]:
    text = _HELP.get(field, f"{field.replace('_', ' ').capitalize()}.")
    stem = field[:-2] + "_seconds" if field.endswith("_s") else field
    if field in _GAUGES or field.endswith("_s"):
        return family(prefix + stem, "gauge", text, samples)
    return family(f"{prefix}{stem}_total", "counter", text, samples)


def family(name: str, kind: str, text: str, samples: Sequence[Sample]) -> list[str]:
    """The lines of one metric; none if it has no samples.

    Args:
        name: of the metric.
        kind: counter or gauge.
        text: what it is, for people.
        samples: labels and value of each; what is not a number is left out.
    """
    lines = [f"{name}{_labels(labels)} {float(value):.17g}" for labels, value in samples if not math.isnan(value)]
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *lines] if lines else []


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{key}="{_escape(value)}"' for key, value in labels.items()) + "}"


def _escape(value: str) -> str:
    # Format: backslash, quote and line feed. Other control characters would pass, and reach people's terminals.
    printable = "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in value)
    return printable.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _by_health(stats: NodeStats) -> list[Sample]:
    found = [(link.health or "up") for link in stats.peers.values()]
    return [({"health": health}, found.count(health)) for health in _HEALTHS]


def _by_name(peers: Mapping[str, LinkStats]) -> dict[str, list[LinkStats]]:
    """Links by the name of their peer, most names on their own, ordered so that series stay."""
    grouped: dict[str, list[LinkStats]] = defaultdict(list)
    for peer_id, link in peers.items():
        grouped[(link.name or peer_id)[:64]].append(link)
    names = sorted(grouped)
    kept = {name: grouped[name] for name in names[:MAX_PEERS]}
    rest = [link for name in names[MAX_PEERS:] for link in grouped[name]]
    return kept | ({OTHERS: rest} if rest else {})


def _combined(field: str, links: list[LinkStats]) -> float:
    values = [float(getattr(link, field)) for link in links]
    # Of one peer's links the slowest; one that has not been measured yet is not a number.
    return (
        max((each for each in values if not math.isnan(each)), default=math.nan) if field[-2:] == "_s" else sum(values)
    )
