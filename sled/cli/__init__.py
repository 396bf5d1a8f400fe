"""Command line of sled: `sled serve` on the server, `sled generate` on a device."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the `sled` command: status 0, 1 for run errors, 2 for usage errors."""
    try:
        import rich  # noqa: F401 - optional, so looked for only here
        import typer  # noqa: F401
    except ModuleNotFoundError:
        print("sled: the command line needs typer and rich: pip install 'edgebus[cli]'", file=sys.stderr)
        sys.exit(1)
    from edgebus.cli.environment import set_environment

    set_environment()  # before anything loads OpenMP, which reads it then
    from edgebus.cli.running import run_app
    from sled.cli.app import app
    from sled.errors import ParameterError, UnknownModel, VocabularyMismatch

    run_app(app, "sled", (ParameterError, UnknownModel, VocabularyMismatch))
