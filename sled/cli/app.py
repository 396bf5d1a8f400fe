"""The `sled` commands as typer sees them."""

from __future__ import annotations

import typer

from sled.cli.generate import generate
from sled.cli.serve import serve
from sled.cli.stats import stats

app = typer.Typer(
    name="sled",
    help="Devices draft tokens with a small model, one shared server verifies them: exactly the target's answer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(serve)
app.command()(generate)
app.command()(stats)
