"""What calibration found, for people and for scripts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from rich import box
from rich.table import Table

from qpart import confidence
from qpart.artefact import Artefact
from qpart.cli.show import console
from qpart.noise import Law

MOST_LAWS = 24
"""More tensors than this are counted; only those where the law does not hold are listed."""


def summary(artefact: Artefact, out: Path) -> dict[str, Any]:
    """One JSON object."""
    tables = artefact.tables
    shrunk = Counter(level for _, level in artefact.shrink)
    return {
        "name": artefact.name,
        "model_id": artefact.model_id.hex(),
        "file": str(out),
        "file_bytes": out.stat().st_size,
        "nodes": artefact.network.num_nodes,
        "cuts": artefact.network.num_nodes + 1,
        "inputs": len(artefact.inputs),
        "doubt": confidence.doubt(len(artefact.inputs)),
        "margin": artefact.margin,
        "levels": [
            {**level._asdict(), "cuts_shrunk": shrunk[i], **_seen(artefact, level.accuracy)}
            for i, level in enumerate(confidence.of_levels(artefact))
        ],
        "map": confidence.of_map(artefact)._asdict(),
        "budget": msgspec.to_builtins(tables.budget),
        "laws": [
            {"tensor": name, "kind": kind, **msgspec.to_builtins(law), "holds": law.holds}
            for name, kind, law in _laws(artefact)
        ],
        "extent": msgspec.to_builtins(artefact.extent),
        "patterns": len(artefact.trials),
    }


def show(artefact: Artefact, out: Path) -> None:
    """Tables for the terminal."""
    on, found = console(), summary(artefact, out)
    effort = artefact.extent.effort
    on.print(
        f"{artefact.name}: {found['nodes']} nodes, {found['cuts']} cuts, {found['inputs']} inputs, "
        f"{found['patterns']} patterns, half the mean squared margin {artefact.margin:.4g}",
        markup=False,
    )
    on.print(_levels(found))
    sure = found["map"]
    on.print(
        f"noise to accuracy: {sure['covered']:.0%} of {sure['patterns']} random patterns under the bound (95 %, "
        f"{sure['inputs']:,} inputs each); summed and joint noise correlate {sure['log_correlation']:.3f} (logs), "
        f"noise and changes {sure['rank_correlation']:.3f} (ranks)",
        markup=False,
    )
    on.print(_law_table(found["laws"]))
    cuts = "all cuts" if effort.all_cuts else "cuts that the next one does not dominate"
    on.print(
        f"measured: {artefact.extent.rows} tensors alone, each on {artefact.extent.row_inputs:,} inputs at most, "
        f"{len(artefact.verified)} patterns verified as a whole on {effort.verify_inputs:,} inputs at {cuts}",
        markup=False,
    )
    on.print(f"{out}: {found['file_bytes']:,} bytes, model {found['model_id']}", markup=False)


def _seen(artefact: Artefact, level: float) -> dict[str, float | None]:
    """The most that verified patterns within a level changed and lost; None where there is none, or no label."""
    changed = [one.changed for one in artefact.verified if one.changed <= level]
    drops = [one.drop for one in artefact.verified if one.changed <= level and one.drop is not None]
    return {"most_changed": max(changed, default=None), "most_drop": max(drops, default=None)}


def _laws(artefact: Artefact) -> Iterator[tuple[str, str, Law]]:
    network = artefact.network
    for node, law in artefact.weight_laws.items():
        yield network.name_of(node + 1), "weight", law
    for value, law in artefact.value_laws.items():
        yield network.name_of(value), "value", law


def _levels(found: dict[str, Any]) -> Table:
    """Budgets, what they stand on, and with labels what accuracy is really lost."""
    accuracy = found["extent"]["accuracy"]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    heads = ["accuracy drop", "noise budget", "", "patterns within", "over the drop", "cuts shrunk", "most changed"]
    if accuracy is not None:
        heads.append(f"most lost of {accuracy:.1%}")
    rows = []
    for level in found["levels"]:
        cells = [
            f"{level['accuracy']:g}",
            f"{level['budget']:.4g}",
            level["basis"],
            str(level["patterns"]),
            str(level["over"]),
            f"{level['cuts_shrunk']} of {found['cuts']}",
            _percent(level["most_changed"]),
        ]
        rows.append(cells if accuracy is None else [*cells, _percent(level["most_drop"])])
    longest = [max(map(len, column)) for column in zip(*rows, strict=True)]
    fits = sum(map(max, longest, map(len, heads))) + 2 * len(heads) <= console().width
    for head, most in zip(heads, longest, strict=True):
        least = max(most, *map(len, (*head.split(), "")))  # on a narrow terminal heads take several lines, cells do not
        table.add_column(head, justify="left" if not head else "right", width=None if fits else least)
    for cells in rows:
        table.add_row(*cells)
    return table


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def _law_table(laws: list[dict[str, Any]]) -> Table:
    """The law of noise tensor by tensor; what it does not describe is marked."""
    bad = [law for law in laws if not law["holds"]]
    shown = laws if len(laws) <= MOST_LAWS else bad
    table = Table(
        title=f"psi = s e^(-alpha b): holds within a factor of 2 at 2-8 bits for {len(laws) - len(bad)} of {len(laws)} "
        "tensors; plans use the measured table",
        title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False,
    )  # fmt: skip
    for head in ("tensor", "", "s", "alpha", "R\u00b2", "holds at"):
        table.add_column(head, justify="left" if head in ("tensor", "") else "right")
    for law in shown[:MOST_LAWS]:
        stretch = f"{law['low']}-{law['high']} bits" if law["low"] else "no width"
        numbers = (f"{law['scale']:.3g}", f"{law['alpha']:.3f}", f"{law['r2']:.3f}")
        table.add_row(law["tensor"], law["kind"], *numbers, stretch if law["holds"] else f"! {stretch}")
    if len(shown) > MOST_LAWS:
        table.caption = f"and {len(shown) - MOST_LAWS} more; --json has all"
    return table
