"""The `sled` commands as typer sees them."""

from __future__ import annotations

import typer

from sled.cli.api import api
from sled.cli.chat import chat
from sled.cli.distill import distill
from sled.cli.drafters import drafters
from sled.cli.generate import generate
from sled.cli.serve import serve
from sled.cli.stats import stats
from sled.cli.swarm import swarm

app = typer.Typer(
    name="sled",
    help="Devices draft tokens with a small model, one shared server verifies them: exactly the target's answer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(serve)
app.command()(generate)
app.command()(drafters)
app.command()(chat)
app.command()(api)
app.command()(stats)
app.command()(swarm)
app.command()(distill)
