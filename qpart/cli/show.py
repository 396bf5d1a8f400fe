"""Plans for people and for scripts."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from qpart import explain
from qpart.plan import Plan

WIDTH = 120
_WEIGHTS, _LEFT_COLUMNS = 2, 4


def console() -> Console:
    """The terminal as it is; 120 columns where the output goes elsewhere."""
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)


def plan_object(plan: Plan, *, rows: bool) -> dict[str, Any]:
    """A plan for JSON, with its reason; the table of all cuts only if it is wanted."""
    found: dict[str, Any] = msgspec.to_builtins(plan)
    if not rows:
        del found["rows"]
    return {**found, "after": plan.rows[plan.pattern.cut].after, "reason": explain.reason(plan)}


def plan_lines(plan: Plan) -> list[str]:
    """A plan in a few lines."""
    pattern, last = plan.pattern, plan.rows[-1].cut
    row = plan.rows[pattern.cut]
    load = f"{pattern.download_bytes:,} bytes to load for {plan.inferences:,} inferences"
    weights = f"weights at {explain.widths(pattern.weight_bits)} bits" if pattern.weight_bits else "no weights"
    sent = f"what is sent at {explain.widths(pattern.live_bits)} bits" if pattern.live_bits else "nothing is sent"
    return [
        f"cut {pattern.cut} of {last} (after {row.after}): {weights}, {sent}; "
        f"for an accuracy drop of {plan.accuracy:g}",
        f"{load} (all of it: {pattern.segment_bytes:,}), {pattern.up_bytes:,} bytes up per inference; "
        f"{pattern.device_bytes:,} in memory",
        f"per inference: device {explain.seconds(row.device_time_s)}, channel {explain.seconds(row.channel_time_s)}, "
        f"server {explain.seconds(row.server_time_s)}, {row.energy_j:.3g} J, price {row.price:.3g}, "
        f"U = {row.objective:.4g}",
        explain.reason(plan),
    ]


def plan_table(plan: Plan) -> Table:
    """All cuts of a plan; the chosen one stands out, on a terminal and without one.

    Energy is left out where it does not count, a forbidden cut says why in place of its widths, and the chosen one
    has its mark in front: the table of a network of twenty layers fits into 120 columns.
    """
    head, rows = explain.table(plan)
    shown = [i for i, name in enumerate(head) if name and (name != "energy" or plan.weights.energy)]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for i in shown:
        table.add_column(head[i], justify="left" if i < _LEFT_COLUMNS else "right", no_wrap=i != _WEIGHTS)
    for row, cells in zip(plan.rows, rows, strict=True):
        chosen = row.cut == plan.pattern.cut
        cells[0] = f"> {row.cut}" if chosen else f"  {row.cut}"
        if not row.allowed:
            cells[_WEIGHTS] = cells[-1]
        table.add_row(*(cells[i] for i in shown), style="bold green" if chosen else None)
    return table
