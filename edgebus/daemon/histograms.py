"""Histograms of what a server does, as plain numbers, as payloads, and as Prometheus reads them. Pure."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

from edgebus.payloads import Payload

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
COUNTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0)


@dataclass(slots=True)
class Histogram:
    """How often a value was at most each bound, and the sum of all values."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def report(self) -> HistogramReport:
        """As it is now."""
        return HistogramReport(list(self.bounds), list(self.counts), self.total)


class HistogramReport(Payload, frozen=True, array_like=True):
    """A histogram: values up to each bound, those above the last one at the end, and the sum of all."""

    bounds: Annotated[list[float], Meta(max_length=64)]
    counts: Annotated[list[int], Meta(max_length=65)]
    total: float


def histogram_lines(name: str, text: str, histogram: HistogramReport) -> list[str]:
    """The lines of one histogram in Prometheus's text format."""
    lines, count = [f"# HELP {name} {text}", f"# TYPE {name} histogram"], 0
    for bound, number in zip([*map(repr, map(float, histogram.bounds)), "+Inf"], histogram.counts, strict=True):
        count += number
        lines.append(f'{name}_bucket{{le="{bound}"}} {count}')
    return [*lines, f"{name}_sum {float(histogram.total):.17g}", f"{name}_count {count}"]
