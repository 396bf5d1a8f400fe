"""Pictures of plans, with matplotlib where it is installed (`pip install 'edgebus[plots]'`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_COLOURS = ("#0072b2", "#d55e00", "#009e73")  # told apart by readers who do not see all colours
_MARK = "#444444"
_DPI = 130


@dataclass(frozen=True, slots=True)
class Point:
    """One plan: accuracy drop promised and measured, as shares, and its payload in bytes per inference."""

    promised: float
    measured: float
    payload_bytes: float


@dataclass(frozen=True, slots=True)
class Curve:
    """Plans of one kind for several promises."""

    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """Something to compare with: accuracy drop, as a share, and payload in bytes per inference."""

    label: str
    drop: float
    payload_bytes: float


@dataclass(frozen=True, slots=True)
class Panel:
    """One net."""

    title: str
    curves: tuple[Curve, ...]
    marks: tuple[Mark, ...]


def payload_against_accuracy(path: Path, panels: Sequence[Panel], title: str) -> None:
    """Draw payload (log scale) against accuracy drop, one panel beside the other, and write a PNG.

    Full dots stand at the drop that was promised, open ones at the drop that was measured.

    Raises:
        ModuleNotFoundError: there is no matplotlib.
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2 * len(panels), 5.8), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        _draw(axis, panel)
    axes[0].set_ylabel("payload per inference (bytes, log scale)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw(axis: Any, panel: Panel) -> None:
    axis.set_yscale("log")
    for curve, colour in zip(panel.curves, _COLOURS, strict=False):
        promised = [100 * point.promised for point in curve.points]
        measured = [100 * point.measured for point in curve.points]
        payload = [point.payload_bytes for point in curve.points]
        axis.hlines(payload, measured, promised, color=colour, linewidth=0.7, alpha=0.45)
        axis.plot(promised, payload, "o-", color=colour, markersize=4.5, linewidth=1.6, label=curve.label)
        axis.plot(measured, payload, "o", color=colour, markersize=4.5, markerfacecolor="white")
    for mark in panel.marks:
        x = 100 * mark.drop
        axis.plot([x], [mark.payload_bytes], "D", color=_MARK, markersize=6, zorder=3)
        text = f"{mark.label}\n{_bytes(mark.payload_bytes)}"
        where, style = (min(x, 0.0), mark.payload_bytes), {"fontsize": 8, "linespacing": 1.0, "color": _MARK}
        axis.annotate(text, where, (-10, 0), textcoords="offset points", ha="right", va="center", **style)
    axis.plot([], [], "o", color="#888888", markersize=4.5, label="promised")
    axis.plot([], [], "o", color="#888888", markersize=4.5, markerfacecolor="white", label="measured, held-out images")
    axis.plot([], [], "D", color=_MARK, markersize=6, label="without planning")
    most = max(100 * max(p.promised, p.measured) for curve in panel.curves for p in curve.points)
    least = min([0.0, *(100 * point.measured for curve in panel.curves for point in curve.points)])
    axis.set_xlim(least - 0.62 * most, 1.05 * most)
    axis.set_xticks([tick for tick in axis.get_xticks() if 0 <= tick <= most])
    axis.axvline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    axis.set_title(panel.title, fontsize=10.5)
    axis.set_xlabel("accuracy drop (% of predictions)")
    axis.grid(which="major", color="#e6e6e6", linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)


def _bytes(number: float) -> str:
    return f"{number:,.0f} bytes" if number >= 10 else f"{number:.1f} bytes"
