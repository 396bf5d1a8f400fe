"""What the picture shows: payload against accuracy drop, planned and measured on held-out images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from qpart import plots
from qpart.demo.baselines import full_precision, one_width, payload, png, raw
from qpart.demo.held_out import HeldOut
from qpart.demo.proof import kept
from qpart.demo.roles import NET_NAMES
from qpart.errors import Infeasible
from qpart.patterns import evaluate
from qpart.profile import Channel, DeviceProfile, Request, ServerProfile
from qpart.rows import CutRow
from qpart.run.served import ServedModel

INFERENCES = 10_000
TITLE = f"Payload per inference over {INFERENCES:,} inferences: download divided among them, request, and answer"
MOST_DROP = 0.05
_BYTES_ONLY = Request(
    # Computing costs nothing, a byte up is worth a byte down.
    accuracy=0.01,
    device=DeviceProfile(macs_per_s=1e18, joules_per_mac=0.0, memory_bytes=1 << 40),
    channel=Channel(up_bits_per_s=1e6, down_bits_per_s=1e6),
    inferences=INFERENCES,
)
_SERVER = ServerProfile(macs_per_s=1e18)


def draw(path: Path, nets: Mapping[str, tuple[ServedModel, HeldOut]]) -> tuple[int, int]:
    """Draw the picture.

    Returns:
        How many plans it shows, and how many of them lost more accuracy than they promised.

    Raises:
        ModuleNotFoundError: there is no matplotlib.
    """
    import matplotlib  # noqa: F401 - known to be missing before the work, not after it

    panels = [_panel(name, served, held) for name, (served, held) in nets.items()]
    plots.payload_against_accuracy(path, panels, TITLE)
    points = [point for panel in panels for curve in panel.curves for point in curve.points]
    return len(points), sum(not kept(point.measured, point.promised) for point in points)


def _panel(name: str, served: ServedModel, held: HeldOut) -> plots.Panel:
    kinds: dict[str, list[plots.Point]] = {"all-server": [], "split": [], "all-device": []}
    for level in served.artefact.tables.levels:
        if level > MOST_DROP:
            continue
        try:
            rows = served.plan(msgspec.structs.replace(_BYTES_ONLY, accuracy=level)).plan.rows
        except Infeasible:
            continue
        split = [row for row in rows[1:-1] if row.weight_bits]
        for kind, candidates in (("all-server", rows[:1]), ("split", split), ("all-device", rows[-1:])):
            point = _best(held, candidates, level)
            if point is not None:
                kinds[kind].append(point)
    full = held.accuracy(held.full)
    ways = [raw(held, _BYTES_ONLY), png(held, _BYTES_ONLY), full_precision(held, _BYTES_ONLY)]
    marks = [plots.Mark(way.name, full - way.accuracy, way.payload_bytes) for way in ways if way is not None]
    same = one_width(held, _BYTES_ONLY, _SERVER)
    if same is not None:
        label = f"{same.name}, for {_BYTES_ONLY.accuracy:.0%}"
        marks.append(plots.Mark(label, full - same.accuracy, same.payload_bytes))
    return plots.Panel(
        f"{NET_NAMES[name]}, {full:.1%} in float32 on {len(held.images):,} held-out images",
        tuple(plots.Curve(kind, tuple(points)) for kind, points in kinds.items() if points),
        tuple(marks),
    )


def _best(held: HeldOut, rows: tuple[CutRow, ...] | list[CutRow], promised: float) -> plots.Point | None:
    """The plan with the smallest payload among some cuts, run on the held-out images."""
    tables = held.artefact.tables
    patterns = [evaluate(tables, row.cut, row.weight_bits, row.live_bits) for row in rows if row.allowed]
    if not patterns:
        return None
    best = min(patterns, key=lambda pattern: payload(tables, pattern, INFERENCES))
    drop = held.accuracy(held.full) - held.accuracy(held.simulated(best))
    return plots.Point(promised, drop, payload(tables, best, INFERENCES))
