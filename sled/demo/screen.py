"""Shows what the devices say: live panels on a terminal, lines with marks elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sled.demo.plan import Role

_LINE = 88
LEGEND = "drafted on the device, accepted by the target"


@dataclass(slots=True)
class Column:
    """One device's answer so far, as (text, drafted) pieces, and its figures when it has finished."""

    role: Role
    pieces: list[tuple[str, bool]] = field(default_factory=list)
    state: str = "loading drafter"
    answer: dict[str, Any] | None = None
    printed: int = 0

    def styled(self) -> Text:
        text = Text()
        for piece, drafted in self.pieces:
            text.append(piece, style="green" if drafted else "")
        return text

    def marked(self) -> str:
        """Runs of accepted drafts between « and »."""
        out, inside = "", False
        for piece, drafted in self.pieces:
            if drafted != inside:
                out += "«" if drafted else "»"
                inside = drafted
            out += piece
        return out + ("»" if inside else "")

    def title(self) -> str:
        how = "greedy" if self.role.greedy else f"T={self.role.sampling.temperature}"
        return f"{self.role.name}: drafter {self.role.drafter}, {how}, {self.state}"


class Screen:
    """Columns for the devices, updated as events arrive; use as a context manager."""

    def __init__(self, console: Console, roles: Sequence[Role]) -> None:
        self.columns = {role.name: Column(role) for role in roles}
        self._console = console
        self._live = Live(self._panels(), console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Screen:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.update(self._panels(), refresh=True)
            self._live.stop()

    def refresh(self, name: str) -> None:
        """Show what is new in one device's column."""
        if self._live:
            self._live.update(self._panels(), refresh=True)
        else:
            self._print_lines(self.columns[name])

    def _panels(self) -> Group:
        return Group(
            Text.assemble(("green", "green"), f" = {LEGEND}"),
            *(Panel(c.styled(), title=c.title(), title_align="left") for c in self.columns.values()),
        )

    def _print_lines(self, column: Column) -> None:
        """Print the part that fills whole lines, or all of it at the end; each line carries the device's name."""
        text = column.marked().replace("\n", " ").rstrip("»" if column.answer is None else "")
        new = text[column.printed :]
        while len(new) >= _LINE or (new and column.answer is not None):
            self._console.print(f"{column.role.name:>8} | {new[:_LINE]}", markup=False, highlight=False)
            column.printed += len(new[:_LINE])
            new = new[_LINE:]


def results_table(columns: Sequence[Column]) -> Table:
    """The figures of every device."""
    heads = (
        "device",
        "drafter",
        "tokens",
        "tokens/s",
        "acceptance rate",
        "mean accepted length",
        "bytes/token",
        "rounds",
        "mean verify batch",
    )
    table = Table(*heads, title="what each answer took")
    for column in columns:
        assert column.answer is not None
        s = column.answer["stats"]
        table.add_row(
            column.role.name,
            column.role.drafter,
            str(len(column.answer["tokens"])),
            f"{s['tokens_per_s']:.1f}",
            f"{s['acceptance_rate']:.2f}" if s["drafted"] else "-",
            f"{s['mean_accepted_length']:.2f}",
            f"{s['bytes_per_token']:.0f}",
            str(s["rounds"]),
            f"{s['mean_verify_batch']:.2f}",
        )
    return table
