"""The `qpart` commands as typer sees them."""

from __future__ import annotations

import typer

from qpart.cli.calibrate import calibrate
from qpart.cli.infer import infer
from qpart.cli.options import with_request
from qpart.cli.plan import plan
from qpart.cli.serve import serve

app = typer.Typer(
    name="qpart",
    help="A device runs the first part of a network at few bits, a server the rest: cut and bits by request.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(calibrate)
app.command()(with_request(plan))
app.command()(serve)
app.command()(with_request(infer))
