"""Runs a typer application so that every expected failure is one line on stderr and an exit status."""

from __future__ import annotations

import os
import sys

import typer

from edgebus.cli.options import safe
from edgebus.errors import ConfigError, EdgebusError, KeyFileError
from edgebus.files import cure

_MOST = 4000
# typer brings click along under different names from version to version; this one is in all of them.
_UsageError: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def run_app(app: typer.Typer, name: str, usage_errors: tuple[type[EdgebusError], ...] = ()) -> None:
    """Run a command line: status 0, 1 for run errors, 2 for usage errors, 130 when interrupted, 141 when nobody reads.

    Args:
        app: the commands.
        name: how the program is called, in front of every error line.
        usage_errors: our errors that are the caller's mistake, besides settings and key files.
    """
    mistakes: tuple[type[EdgebusError], ...] = (ConfigError, KeyFileError, *usage_errors)
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], prog_name=name, standalone_mode=False))
    except _UsageError as error:
        message = " ".join(error.format_message().split())  # type: ignore[attr-defined]
        _fail(name, f"{message} (see {name} --help)", 2)
    except mistakes as error:
        _fail(name, str(error), 2)
    except EdgebusError as error:
        _fail(name, str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:  # a full disk, say; errors that have to do with keys and sockets are ours above
        where = error.filename or "standard output"
        _fail(name, f"{error.strerror or error}: {where}; {cure(error)}", 1)


def _fail(name: str, message: str, status: int) -> None:
    print(f"{name}: {safe(message, _MOST)}", file=sys.stderr)  # a peer may have said it
    sys.exit(status)
