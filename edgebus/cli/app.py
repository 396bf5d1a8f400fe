"""The commands of `edgebus`, put together."""

from __future__ import annotations

import typer

from edgebus.cli import keys as key_commands
from edgebus.cli.doctor import doctor
from edgebus.cli.node import node
from edgebus.cli.ping import ping
from edgebus.cli.record import record, replay
from edgebus.cli.running import run_app
from edgebus.cli.tap import tap
from edgebus.cli.top import top

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root() -> None:
    """Keys, nodes, and what goes on between them, for the edgebus message bus.

    Three steps to a secure link:

      edgebus keygen ./server                         on the server

      edgebus keygen ./device                         on the device

      edgebus allow ./server device.key               on the server, with the device's node.key

    Then on the server:

      edgebus node --bind tcp://0.0.0.0:7000 --keys ./server

    And from the device; where that fails, doctor in place of ping says why:

      edgebus ping tcp://HOST:PORT --server-key server.key --keys ./device
    """


for _command in (*key_commands.COMMANDS, node, ping, doctor, top, tap, record, replay):
    app.command()(_command)


def run() -> None:
    """Run the command line."""
    run_app(app, "edgebus")
