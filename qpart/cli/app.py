"""The `qpart` commands as typer sees them."""

from __future__ import annotations

import typer

from qpart.cli.calibrate import calibrate
from qpart.cli.infer import infer
from qpart.cli.keygen import keygen
from qpart.cli.options import with_request
from qpart.cli.plan import plan
from qpart.cli.plot import plot
from qpart.cli.profile import profile
from qpart.cli.serve import serve
from qpart.cli.solve import solve
from qpart.cli.stats import stats

app = typer.Typer(
    name="qpart",
    help="A device runs the first part of a network at few bits, a server the rest: cut and bits by request.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(calibrate)
app.command()(solve)
app.command()(with_request(plan))
app.command()(with_request(plot, accuracy=0.01))
app.command()(profile)
app.command()(serve)
app.command()(stats)
app.command()(keygen)
app.command()(with_request(infer))
