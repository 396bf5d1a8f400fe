"""The command `edgebus`. Needs the extra `cli`; without it, one line says so."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point: exit status 0, 1 for run errors, 2 for usage errors."""
    try:
        import rich  # noqa: F401 - optional, so looked for only here
        import typer  # noqa: F401
    except ModuleNotFoundError:
        print("edgebus: the command line needs typer and rich: pip install 'edgebus[cli]'", file=sys.stderr)
        sys.exit(1)
    from edgebus.cli.app import run

    run()
