"""Charts in characters, for a terminal without pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log10

_MARKS = "●○▲△■□◆◇+"
_FULL = "█"


def bars(
    rows: Sequence[tuple[str, float, str]], *, width: int, log: bool = False, most: float | None = None
) -> list[str]:
    """A bar for each row, as long as its number; on a logarithmic scale from the smallest on.

    Args:
        rows: label, number above 0, and what is written behind the bar.
        width: columns in all.
        log: lengths follow the logarithm.
        most: the number of a full bar; by default the largest.

    >>> for line in bars([("a", 1.0, "1"), ("bb", 4.0, "4")], width=14): print(line)
    a  ██ 1
    bb ████████ 4
    """
    if not rows:
        return []
    labels, behind = max(len(label) for label, _, _ in rows), max(len(text) for _, _, text in rows)
    room = max(1, width - labels - behind - 3)
    least, most = min(number for _, number, _ in rows), most or max(number for _, number, _ in rows)
    lines = []
    for label, number, text in rows:
        share = number / most
        if log:
            share = (1 + 9 * log10(number / least) / log10(most / least)) / 10 if most > least else 1.0
        lines.append(f"{label:<{labels}} {_FULL * max(1, round(share * room))} {text}".rstrip())
    return lines


def scatter(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    width: int,
    height: int = 16,
    x_unit: str = "",
    y_unit: str = "",
) -> list[str]:
    """Points of some curves, both axes logarithmic, and a legend; the first curve is drawn last, over the others.

    Args:
        curves: label to points; numbers above 0.
        width: columns in all.
        height: lines of the picture itself.
        x_unit, y_unit: written at the axes' ends.
    """
    points = [point for some in curves.values() for point in some]
    if not points:
        return ["nothing to show"]
    (left, right), (low, high) = _span([x for x, _ in points]), _span([y for _, y in points])
    marks = {label: _MARKS[i % len(_MARKS)] for i, label in enumerate(curves)}
    ends = [f"{10**high:.3g}", f"{10**low:.3g}"]
    margin = max(map(len, ends))
    columns = max(10, width - margin - 2)
    grid = [[" "] * columns for _ in range(height)]
    for label, some in reversed(list(curves.items())):
        for x, y in some:
            column = round((log10(x) - left) / (right - left) * (columns - 1))
            line = round((high - log10(y)) / (high - low) * (height - 1))
            grid[line][column] = marks[label]
    sides = [ends[0], *[""] * (height - 2), ends[1]]
    picture = [f"{side:>{margin}} │{''.join(line)}".rstrip() for side, line in zip(sides, grid, strict=True)]
    start, end = f"{10**left:.3g}", f"{10**right:.3g} {x_unit}".rstrip()
    axis = f"{'':>{margin}} └{'─' * columns}"
    below = f"{'':>{margin}}  {start}{end:>{max(1, columns - len(start))}}"
    legend = "  ".join(f"{mark} {label}" for label, mark in marks.items())
    return [*([y_unit] if y_unit else []), *picture, axis, below, legend]


def _span(numbers: Sequence[float]) -> tuple[float, float]:
    low, high = log10(min(numbers)), log10(max(numbers))
    return (low, high) if high > low else (low - 0.5, high + 0.5)
