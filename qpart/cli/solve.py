"""`qpart solve`: the pattern of every cut at every accuracy level, before anybody asks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich import box
from rich.table import Table

from qpart import artefact as files
from qpart import explain
from qpart.artefact import Artefact
from qpart.cli.options import SOLVER_HELP, check_solver
from qpart.cli.show import console
from qpart.errors import RequestError
from qpart.heuristics import make_solver
from qpart.limits import factor
from qpart.patterns import Pattern

_WHERE = ("cut", "after", "drop")
_MOVES, _NOISE = ("weights", "sent", "down", "up", "memory"), ("noise", "budget")
_LEFT = (*_WHERE, "weights", "sent")
_WRAPPED = ("after", "weights")
_LEAST_WIDTHS, _LEAST_NAME = 19, 12
"""Columns for widths and names however narrow the terminal is."""


def solve(
    artefact: Annotated[Path, typer.Argument(help="File made by `qpart calibrate`.")],
    solver: Annotated[str, typer.Option(help=SOLVER_HELP)] = "exact",
    cut: Annotated[int | None, typer.Option(min=0, help="This cut only.")] = None,
    level: Annotated[float | None, typer.Option(help="This accuracy drop only, one of the calibrated levels.")] = None,
    inferences: Annotated[int, typer.Option(min=1, help="Over how many the download counts.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Widths with the fewest bytes for every cut and accuracy level: download / inferences + upload.

    Budgets are those that held when patterns were run as a whole. For a request of a device use `qpart plan`.

    Example:

        qpart solve net.qpart --level 0.01 --inferences 1000

        qpart solve net.qpart --cut 4 --solver closed_form
    """
    kind = check_solver(solver)
    loaded = files.load(artefact)
    tables, last = loaded.tables, loaded.network.num_nodes
    if cut is not None and cut > last:
        raise RequestError(f"there is no cut {cut}; the network has 0 to {last}")
    if level is not None and level not in tables.levels:
        raise RequestError(f"level {level:g} was not calibrated; there are {', '.join(map(str, tables.levels))}")
    solving = make_solver(tables, kind)
    rows = [
        _row(loaded, at, wanted, found, budget, inferences)
        for at in range(last + 1)
        if cut in (None, at)
        for wanted, budget in _budgets(loaded, at)
        if level in (None, wanted)
        for found in [solving.best(at, budget, down_weight=1.0 / inferences, up_weight=1.0)]
    ]
    if as_json:
        about = {"model": loaded.name, "model_id": loaded.model_id.hex(), "solver": kind, "inferences": inferences}
        print(json.dumps({**about, "patterns": rows}))
        return
    out = console()
    for names in _side_by_side(rows, out.width):
        out.print(_table(rows, names, out.width))


def _budgets(loaded: Artefact, cut: int) -> Iterator[tuple[float, float]]:
    """Every level and what it allows at a cut."""
    for index, accuracy in enumerate(loaded.tables.levels):
        yield accuracy, loaded.tables.budget.budget(accuracy) * factor(loaded.shrink, cut, index)


def _row(
    loaded: Artefact, cut: int, level: float, found: Pattern | None, budget: float, inferences: int
) -> dict[str, Any]:
    row: dict[str, Any] = {"cut": cut, "after": loaded.network.name_of(cut), "level": level, "budget": budget}
    if found is None:
        return {**row, "pattern": None}
    return {
        **row,
        "pattern": {
            "weight_bits": found.weight_bits,
            "live_bits": found.live_bits,
            "download_bytes": found.download_bytes,
            "up_bytes": found.up_bytes,
            "device_bytes": found.device_bytes,
            "bytes_per_inference": found.download_bytes / inferences + found.up_bytes,
            "psi": found.psi,
        },
    }


def _longest(rows: list[dict[str, Any]], names: Sequence[str]) -> dict[str, int]:
    said = [_cells(row) for row in rows]
    return {name: max(len(name), *(len(cells.get(name, "")) for cells in said)) for name in names}


def _side_by_side(rows: list[dict[str, Any]], width: int) -> Sequence[Sequence[str]]:
    """One table where it fits, two where it does not, as of `qpart plan`."""
    longest = _longest(rows, (*_WHERE, *_MOVES, *_NOISE))
    return ((*_MOVES, *_NOISE),) if sum(longest.values()) + 2 * len(longest) <= width else (_MOVES, _NOISE)


def _table(rows: list[dict[str, Any]], names: Sequence[str], width: int) -> Table:
    """Where it is narrow, widths and long names take several lines; nothing is cut off."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    columns = _longest(rows, (*_WHERE, *names))
    for name, least in (("weights", _LEAST_WIDTHS), ("after", _LEAST_NAME)):
        if name in columns:
            over = sum(columns.values()) + 2 * len(columns) - width
            columns[name] = max(min(columns[name], least), columns[name] - max(0, over))
    for name, most in columns.items():
        justify: Literal["left", "right"] = "left" if name in _LEFT else "right"
        table.add_column(name, justify=justify, no_wrap=name not in _WRAPPED, overflow="fold", width=most)
    known = None
    for row in rows:
        cells = _cells(row)
        if row["cut"] == known:
            cells |= {"cut": "", "after": ""}
        known = row["cut"]
        table.add_row(*(cells.get(name, "") for name in (*_WHERE, *names)))
    return table


def _cells(row: dict[str, Any]) -> dict[str, str]:
    found = row["pattern"]
    cells = {
        "cut": str(row["cut"]), "after": row["after"], "drop": f"{row['level']:g}", "budget": f"{row['budget']:.2g}",
    }  # fmt: skip
    if found is None:
        return {**cells, "weights": "not accurate enough"}
    return {
        **cells,
        "weights": explain.widths(found["weight_bits"]),
        "sent": explain.widths(found["live_bits"]),
        "down": explain.size(found["download_bytes"]),
        "up": explain.size(found["up_bytes"]),
        "memory": explain.size(found["device_bytes"]),
        "noise": f"{found['psi']:.2g}",
    }
