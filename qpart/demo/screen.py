"""What the demonstration shows: plans and why, and what else could have been done."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from qpart.cli.show import plan_lines, plan_table
from qpart.demo.baselines import Way, full_precision, one_width, payload, png, raw
from qpart.demo.held_out import HeldOut
from qpart.demo.proof import Outcome
from qpart.demo.roles import NET_NAMES
from qpart.profile import ServerProfile


def show_plan(console: Console, outcome: Outcome, held: HeldOut) -> None:
    """A device's plan, with the table that it was chosen from."""
    role, plan = outcome.role, outcome.plan
    console.print()
    console.print(f"[bold]{role.name}[/bold] ({NET_NAMES[role.net]}): {role.about}", highlight=False)
    console.print(plan_table(plan))
    for line in plan_lines(plan):
        console.print(line, markup=False, highlight=False)
    each = outcome.printed["seconds_per_inference"]
    console.print(f"{len(outcome.logits):,} images, one at a time: {1e3 * each:.1f} ms each", highlight=False)


def ways(outcome: Outcome, held: HeldOut, server: ServerProfile) -> list[Way]:
    """The plan as it was carried out, and what else could have been done, on the same images."""
    plan, request = outcome.plan, outcome.role.request
    total = payload(held.artefact.tables, plan.pattern, request.inferences)
    chosen = Way("[bold]the plan[/bold]", plan.pattern.cut, total, held.accuracy(outcome.logits))
    others = [raw(held, request), png(held, request), full_precision(held, request), one_width(held, request, server)]
    return [chosen, *(way for way in others if way is not None)]


def comparison(rows: Sequence[tuple[Outcome, HeldOut, list[Way]]]) -> Table:
    """Payload per inference and accuracy, device by device."""
    table = Table(title="what an inference moves, and what it is worth", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, justify in (("device", "left"), ("way", "left"), ("cut", "right"), ("bytes/inference", "right")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for name in ("of the raw image", "accuracy"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for outcome, _, found in rows:
        whole = next(way.payload_bytes for way in found if way.name.endswith("raw image"))
        for i, way in enumerate(found):
            table.add_row(
                outcome.role.name if i == 0 else "",
                way.name,
                str(way.cut),
                f"{way.payload_bytes:,.1f}",
                f"{way.payload_bytes / whole:.1%}",
                f"{way.accuracy:.1%}",
                way.note,
                end_section=i == len(found) - 1,
            )
    table.caption = f"float32 accuracy: {_float_accuracies(rows)}"
    return table


def _float_accuracies(rows: Sequence[tuple[Outcome, HeldOut, list[Way]]]) -> str:
    found = {NET_NAMES[outcome.role.net]: held.accuracy(held.full) for outcome, held, _ in rows}
    return ", ".join(f"{name} {share:.1%}" for name, share in found.items())
