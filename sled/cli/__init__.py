"""Command line of sled: `sled serve` on the server, `sled generate` on a device."""

from __future__ import annotations

import os
import sys

_ENVIRONMENT = {
    # Nothing is ever loaded from a model hub, and its libraries keep their bars and warnings to themselves.
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    # Threads that spin while they wait make a model several times slower as soon as anything else wants the core.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def set_environment() -> None:
    """Set what torch and transformers read when they are imported, unless the user has set it."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def main() -> None:
    """Entry point of the `sled` command: status 0, 1 for run errors, 2 for usage errors."""
    try:
        import rich  # noqa: F401 - optional, so looked for only here
        import typer  # noqa: F401
    except ModuleNotFoundError:
        print("sled: the command line needs typer and rich: pip install 'edgebus[cli]'", file=sys.stderr)
        sys.exit(1)
    from edgebus.cli.running import run_app
    from sled.cli.app import app
    from sled.errors import ParameterError, UnknownModel, VocabularyMismatch

    set_environment()
    run_app(app, "sled", (ParameterError, UnknownModel, VocabularyMismatch))
