"""Command line of qpart: calibrate and plan on any machine, `qpart serve` on the server, `qpart infer` on a device."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Entry point of the `qpart` command: status 0, 1 for run errors, 2 for usage errors."""
    try:
        import rich  # noqa: F401 - optional, so looked for only here
        import typer  # noqa: F401
    except ModuleNotFoundError:
        print("qpart: the command line needs typer and rich: pip install 'edgebus[cli]'", file=sys.stderr)
        sys.exit(1)
    from edgebus.cli.environment import set_environment

    set_environment()  # before anything loads OpenMP, which reads it then
    if sys.argv[1:2] == ["calibrate"]:  # layers are quantised side by side; several threads for each would only wait
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from edgebus.cli.running import run_app
    from qpart.cli.app import app
    from qpart.errors import ArtefactError, RequestError, ShapeMismatch, UnknownOperation, UnsupportedModel

    run_app(app, "qpart", (ArtefactError, RequestError, ShapeMismatch, UnknownOperation, UnsupportedModel))
