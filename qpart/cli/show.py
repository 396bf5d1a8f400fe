"""Plans for people and for scripts."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from edgebus.cli.options import safe
from qpart import explain
from qpart.plan import Plan

WIDTH = 120
_LEFT = ("cut", "after", "weights", "sent")


def console() -> Console:
    """The terminal as it is; 120 columns where the output goes elsewhere."""
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)


def plan_object(plan: Plan, *, rows: bool) -> dict[str, Any]:
    """A plan for JSON, with its reason; the table of all cuts only if it is wanted."""
    found: dict[str, Any] = msgspec.to_builtins(plan)
    del found["table"]
    if rows:
        found["rows"] = msgspec.to_builtins(plan.rows)
    return {**found, "after": plan.row().after, "reason": explain.reason(plan)}


def printable(plan: Plan) -> Plan:
    """A plan from elsewhere, with names that may reach a terminal."""
    replace = msgspec.structs.replace
    return replace(plan, table=replace(plan.table, after=tuple(safe(name, 64) for name in plan.table.after)))


def plan_lines(plan: Plan) -> list[str]:
    """A plan in a few lines."""
    pattern, last = plan.pattern, plan.last_cut
    row = plan.row()
    load = f"{pattern.download_bytes:,} bytes to load for {plan.inferences:,} inferences"
    weights = f"weights at {explain.widths(pattern.weight_bits)} bits" if pattern.weight_bits else "no weights"
    sent = f"what is sent at {explain.widths(pattern.live_bits)} bits" if pattern.live_bits else "nothing is sent"
    return [
        f"cut {pattern.cut} of {last} (after {row.after}): {weights}, {sent}; "
        f"for an accuracy drop of {plan.accuracy:g}",
        f"{load} (all of it: {pattern.segment_bytes:,}), {pattern.up_bytes:,} bytes up per inference; "
        f"{pattern.device_bytes:,} in memory",
        f"per inference: device {explain.seconds(row.device_time_s)}, channel {explain.seconds(row.channel_time_s)}, "
        f"server {explain.seconds(row.server_time_s)}, energy {explain.joules(row.energy_j)}, price {row.price:.3g}, "
        f"U = {row.objective:.4g}",
        explain.reason(plan),
    ]


def plan_table(plan: Plan, *, width: int | None = None) -> Group:
    """All cuts of a plan; the chosen one stands out, on a terminal and without one.

    A price is left out where there is none, a forbidden cut says why in place of its widths, and the chosen one has its
    mark in front. What does not fit side by side stands in two tables: what moves and is held, and what it costs.

    Args:
        width: columns that there are; those of the terminal if left out.
    """
    head, rows = explain.table(plan)
    left_out = () if any(row.price for row in plan.rows) else ("price",)
    shown = [name for name in head if name and name not in left_out]
    longest = [max(len(cells[i]) for cells in (head, *rows)) for i, name in enumerate(head) if name in shown]
    if sum(longest) + 2 * len(longest) + 2 <= (width or console().width):
        return Group(_part(plan, head, rows, shown))
    parts = [name for name in shown if name in explain.MOVES], [name for name in shown if name in explain.COSTS]
    return Group(*(_part(plan, head, rows, ["cut", "after", *part]) for part in parts))


def _part(plan: Plan, head: list[str], rows: list[list[str]], shown: list[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in shown:
        table.add_column(name, justify="left" if name in _LEFT else "right", no_wrap=name != "weights")
    why_in = next(name for name in shown if name not in ("cut", "after"))
    for row, cells in zip(plan.rows, rows, strict=True):
        chosen = row.cut == plan.pattern.cut
        said = dict(zip(head, cells, strict=True))
        said["cut"] = f"> {row.cut}" if chosen else f"  {row.cut}"
        if not row.allowed:
            said[why_in] = said[""] if why_in == "weights" else "-"
        table.add_row(*(Text(said[name]) for name in shown), style="bold green" if chosen else None)
    return table
