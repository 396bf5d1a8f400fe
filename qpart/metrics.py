"""What a server counts, as plain numbers, and the report made of them: for `qpart.stats`, for people, for Prometheus.

Pure: no sockets, clock or threads. The table of names is in docs/guide/qpart-device.md.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

from edgebus.daemon.histograms import COUNTS, SECONDS, Histogram, HistogramReport, histogram_lines
from edgebus.daemon.metrics import Sample, family
from edgebus.payloads import Payload

_Name = Annotated[str, Meta(max_length=128)]
_Numbers = Annotated[dict[_Name, float], Meta(max_length=128)]


class ServerReport(Payload, frozen=True, array_like=True):
    """A server at one moment, the answer to `qpart.stats`; names are those of the metrics without `qpart_` and units.

    Attributes:
        models: names of what is served.
        phase: serving, draining or closing.
        uptime_s: seconds since the start.
        gauges: what is now.
        counters: what has been since the start.
        refusals: requests refused, by code.
        histograms: by name.
    """

    models: Annotated[list[_Name], Meta(max_length=256)]
    phase: _Name
    uptime_s: float
    gauges: _Numbers
    counters: _Numbers
    refusals: _Numbers
    histograms: Annotated[dict[_Name, HistogramReport], Meta(max_length=32)]


@dataclass(slots=True)
class Board:
    """Everything that the server's shell counts; the batcher has totals of its own."""

    counters: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    tail_s: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    batch_requests: Histogram = field(default_factory=lambda: Histogram(COUNTS))
    batch_samples: Histogram = field(default_factory=lambda: Histogram(COUNTS))
    queue_s: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    plan_s: Histogram = field(default_factory=lambda: Histogram(SECONDS))

    def histograms(self) -> dict[str, HistogramReport]:
        """All of them by name."""
        return {
            "tail_seconds": self.tail_s.report(),
            "batch_requests": self.batch_requests.report(),
            "batch_samples": self.batch_samples.report(),
            "queue_seconds": self.queue_s.report(),
            "plan_seconds": self.plan_s.report(),
        }


HELP = {
    "waiting": "Inference requests that wait for a forward.",
    "running": "Inference requests in a forward.",
    "planning": "Requests for plans that wait or are worked on.",
    "accepted": "Inference requests accepted.",
    "answered": "Inference requests answered.",
    "failed": "Inference requests whose forward failed.",
    "expired": "Inference requests dropped at their deadline, not computed.",
    "withdrawn": "Inference requests dropped because their device was gone or gave up, not computed.",
    "batches": "Forwards computed.",
    "samples": "Samples computed.",
    "plans": "Requests for plans worked on, refused ones included.",
    "received_bytes": "Bytes of activations received.",
    "sent_bytes": "Bytes of answers sent.",
    "tail_seconds": "Time of a forward.",
    "batch_requests": "Requests in a forward.",
    "batch_samples": "Samples in a forward.",
    "queue_seconds": "Time a request waited until its forward began.",
    "plan_seconds": "Time to make a plan, running patterns as a whole included.",
}


def render(report: ServerReport, *, name: str, version: str) -> str:
    """A report as Prometheus reads it (text format 0.0.4).

    Args:
        report: of the server now.
        name: what the node calls itself.
        version: of the package.
    """
    lines = family("qpart_info", "gauge", "Which server this is.", [({"name": name, "version": version}, 1)])
    models: list[Sample] = [({"model": model}, 1.0) for model in report.models]
    lines += family("qpart_model", "gauge", "Which models it serves.", models)
    lines += family("qpart_uptime_seconds", "gauge", "Seconds since the start.", [({}, report.uptime_s)])
    phases: list[Sample] = [
        ({"phase": each}, float(each == report.phase)) for each in ("serving", "draining", "closing")
    ]
    lines += family("qpart_phase", "gauge", "Whether the server takes requests.", phases)
    for key, value in report.gauges.items():
        lines += family(f"qpart_{key}", "gauge", _help(key), [({}, value)])
    for key, value in report.counters.items():
        lines += family(f"qpart_{key}_total", "counter", _help(key), [({}, value)])
    codes: list[Sample] = [({"code": code}, value) for code, value in sorted(report.refusals.items())]
    lines += family("qpart_refusals_total", "counter", "Requests refused.", codes)
    for key, histogram in report.histograms.items():
        lines += histogram_lines(f"qpart_{key}", _help(key), histogram)
    return "\n".join(lines) + "\n"


def _help(key: str) -> str:
    return HELP.get(key, f"{key.replace('_', ' ').capitalize()}.")
