"""Pictures of plans, with matplotlib where it is installed (`pip install 'edgebus[plots]'`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

from qpart.sweeps import AtRate, Payload, Widths, changes
from qpart.tables import WIDTHS

_OTHERS = (
    ("#d55e00", "-"), ("#009e73", "-"), ("#cc79a7", "--"), ("#999999", "--"), ("#e69f00", ":"), ("#56b4e9", ":"),
    ("#444444", "-."), ("#b2df00", "-."),
)  # fmt: skip
_BITS_COLOURS = ("#f7fbff", "#deebf7", "#c6dbef", "#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08306b")
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


def payload_by_accuracy(path: Path, curves: Mapping[str, Sequence[Payload]], title: str) -> None:
    """Draw the bytes of one inference (log scale) against the accuracy drop that is allowed, and write a PNG.

    Raises:
        ModuleNotFoundError: there is no matplotlib.
        OSError: the file cannot be written.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator

    figure, axis = _figure(title)
    for (label, points), colour, marker in zip(curves.items(), _COLOURS, "os^", strict=False):
        drops, sizes = [100 * p.accuracy for p in points], [p.bytes_per_inference for p in points]
        line, size = (4.5, 10) if colour == _COLOURS[0] else (1.4, 5)  # the first is ours: seen where they coincide
        axis.plot(drops, sizes, f"{marker}-", color=colour, markersize=size, linewidth=line, label=label)
    axis.set_xscale("log")
    axis.set_yscale("log")
    ticks = sorted({100 * point.accuracy for points in curves.values() for point in points})
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:,.0f}"))
    axis.set_xlabel("accuracy drop allowed (% of predictions, log scale)")
    axis.set_ylabel("bytes per inference (log scale)")
    _finish(figure, axis, path)


def cost_by_bandwidth(path: Path, curves: Mapping[str, Sequence[AtRate]], names: Sequence[str], title: str) -> None:
    """Draw the objective of one inference against the rate up, with the cut that the first curve chooses marked.

    Args:
        path: of the PNG.
        curves: label to points; the first is the plan.
        names: of the cuts, by number.
        title: of the picture.

    Raises:
        ModuleNotFoundError: there is no matplotlib.
        OSError: the file cannot be written.
    """
    figure, axis = _figure(title)
    plan_label, planned = next(iter(curves.items()))
    styles = zip(list(curves.items())[1:], _OTHERS, strict=False)
    for (label, points), (colour, line) in styles:
        _curve(axis, points, label, color=colour, linestyle=line, linewidth=1.3)
    _curve(axis, planned, plan_label, color=_COLOURS[0], linewidth=2.6, zorder=4)
    starts = changes(planned)
    for i, start in enumerate(starts):
        assert start.objective is not None
        axis.plot([start.up_bits_per_s / 1e6], [start.objective], "o", color=_COLOURS[0], markersize=6, zorder=5)
        axis.axvline(start.up_bits_per_s / 1e6, color="#dddddd", linewidth=0.8, zorder=0)
        axis.annotate(
            f"cut {start.cut}\n{names[start.cut or 0]}", (start.up_bits_per_s / 1e6, 0.02 + 0.09 * (i % 2)),
            (3, 0), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=7.5, color=_MARK,
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("rate up (Mbit/s, log scale)")
    axis.set_ylabel("U of one inference (log scale)")
    low, high = axis.get_ylim()
    axis.set_ylim(low / (high / low) ** 0.25, high)  # room for what the cuts are called
    _finish(figure, axis, path)


def bits_by_layer(path: Path, plans: Sequence[Widths], title: str) -> None:
    """Draw the width of every layer, and of what is sent, at every accuracy drop, and write a PNG.

    Raises:
        ModuleNotFoundError: there is no matplotlib.
        OSError: the file cannot be written.
    """
    from matplotlib.colors import BoundaryNorm, ListedColormap

    names = list(dict.fromkeys(name for plan in plans for name, _ in plan.layers))
    sent = list(dict.fromkeys(f"{name} (sent)" for plan in plans for name, _ in plan.sent))
    rows = [*names, *sent]
    figure, axis = _figure(title, size=(max(6.2, 1.2 + 0.55 * len(plans) + 3), max(2.6, 1.6 + 0.26 * len(rows))))
    grid = [[float("nan")] * len(plans) for _ in rows]
    for column, plan in enumerate(plans):
        for name, width in plan.layers:
            grid[rows.index(name)][column] = width
        for name, width in plan.sent:
            grid[rows.index(f"{name} (sent)")][column] = width
    colours = ListedColormap(_BITS_COLOURS)
    edges = [width - 0.5 for width in WIDTHS[:-1]] + [8.5, 16.5]
    axis.imshow(grid, aspect="auto", cmap=colours, norm=BoundaryNorm(edges, colours.N))
    for row, numbers in enumerate(grid):
        for column, bits in enumerate(numbers):
            if not isnan(bits):
                dark = bits >= 7
                axis.text(column, row, f"{bits:.0f}", ha="center", va="center", fontsize=8,
                          color="white" if dark else "black")  # fmt: skip
    axis.set_xticks(range(len(plans)), [f"{100 * plan.accuracy:g} %\ncut {plan.cut}" for plan in plans], fontsize=8)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.set_xlabel("accuracy drop allowed, and the cut")
    axis.tick_params(length=0)
    if sent and names:
        axis.axhline(len(names) - 0.5, color=_MARK, linewidth=1.0)
    axis.spines[:].set_visible(False)
    _write(figure, path)


def _figure(title: str, size: tuple[float, float] = (7.6, 4.8)) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    return figure, figure.subplots()


def _curve(axis: Any, points: Sequence[AtRate], label: str, **style: Any) -> None:
    missing = float("nan")
    costs = [missing if point.objective is None else point.objective for point in points]
    axis.plot([point.up_bits_per_s / 1e6 for point in points], costs, label=label, **style)


def _finish(figure: Any, axis: Any, path: Path) -> None:
    axis.grid(which="major", color="#e6e6e6", linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    handles, _ = axis.get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False, fontsize=8.5)
    _write(figure, path)


def _write(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
