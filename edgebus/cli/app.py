"""Commands of `edgebus`."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import edgebus
from edgebus.cli.running import run_app
from edgebus.keys import ALLOW_FILE, PUBLIC_FILE

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Plaintext, no authentication; no keys then.")]


@app.callback()
def root() -> None:
    """Keys and reachability for nodes of the edgebus message bus.

    Three steps to a secure link:

      edgebus keygen ./server                         on the server

      edgebus keygen ./device                         on the device

      edgebus allow ./server device.key               on the server, with the device's node.key

    Then from the device:

      edgebus ping tcp://HOST:PORT --server-key server.key --keys ./device
    """


@app.command()
def keygen(
    directory: Annotated[Path, typer.Argument(help="Key directory; a new one gets mode 0700.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a key that is there already.")] = False,
    as_json: Json = False,
) -> None:
    """Make a key pair: DIR/node.key to give away, DIR/node.key_secret to keep.

    Example: edgebus keygen ~/.config/edgebus
    """
    keys = edgebus.generate_keys(directory, force=force)
    public_file = directory / PUBLIC_FILE
    if as_json:
        _print_json({"public_key": keys.public, "public_file": str(public_file)})
    else:
        _print(f"public key {keys.public}\ngive {public_file} to the nodes that shall know this one")


@app.command()
def allow(
    directory: Annotated[Path, typer.Argument(help="Key directory of the server (or its allow-list file).")],
    public_keys: Annotated[list[str], typer.Argument(help="node.key files of peers, or keys of 40 characters.")],
    as_json: Json = False,
) -> None:
    """Let peers connect: add their public keys to DIR/allowed_keys. A running server notices.

    Example: edgebus allow ./server phone/node.key laptop/node.key
    """
    added = edgebus.add_to_allow_list(directory, *public_keys)
    file = directory / ALLOW_FILE if directory.is_dir() else directory
    if as_json:
        _print_json({"file": str(file), "added": added, "given": len(public_keys)})
    else:
        _print(f"{added} of {len(public_keys)} keys were new in {file}")


@app.command()
def ping(
    endpoint: Annotated[str, typer.Argument(help="tcp://HOST:PORT or ipc://PATH of the server.")],
    server_key: Annotated[str | None, typer.Option(help="The server's node.key, or its 40 characters.")] = None,
    keys: Annotated[Path | None, typer.Option(help="Our own key directory.")] = None,
    insecure: Insecure = False,
    count: Annotated[int, typer.Option(min=1, max=100_000, help="Round trips to measure.")] = 5,
    timeout_s: Annotated[float, typer.Option(min=0.001, help="Seconds to wait for the link and each answer.")] = 5.0,
    as_json: Json = False,
) -> None:
    """Measure round trips to a node; says what is wrong where there is none.

    Example: edgebus ping tcp://server:7000 --server-key server.key --keys ./device --count 20
    """
    if insecure and (server_key or keys):
        raise typer.BadParameter("--insecure sends plaintext: drop --server-key and --keys")
    if not insecure and not (server_key and keys):
        raise typer.BadParameter("give --server-key and --keys, or --insecure")
    with edgebus.Node("edgebus-ping", keys=edgebus.load_keys(keys) if keys else None, insecure=insecure) as node:
        link = node.connect(endpoint, edgebus.read_public_key(server_key) if server_key else None, timeout_s)
        times_s = [_round_trip_s(link, timeout_s) for _ in range(count)]
        peer = link.peer_name
    _report(endpoint, peer, times_s, as_json)


def _round_trip_s(link: edgebus.Link, timeout_s: float) -> float:
    start = time.perf_counter()
    link.request("edgebus.ping", bytes(200), timeout_s=timeout_s)
    return time.perf_counter() - start


def _report(endpoint: str, peer: str, times_s: list[float], as_json: bool) -> None:
    micros = [round(value * 1e6, 1) for value in times_s]
    result = {
        "endpoint": endpoint,
        "peer": peer,
        "count": len(micros),
        "min_us": min(micros),
        "median_us": round(statistics.median(micros), 1),
        "max_us": max(micros),
    }
    if as_json:
        _print_json(result | {"round_trips_us": micros})
        return
    # The peer chose its name: escape what could drive the terminal.
    table = Table(title=f"{endpoint} ({peer!a})", title_justify="left")
    for column in ("round trips", "min us", "median us", "max us"):
        table.add_column(column, justify="right")
    table.add_row(*(str(result[key]) for key in ("count", "min_us", "median_us", "max_us")))
    Console().print(table)


def _print(text: str) -> None:
    typer.echo(text)


def _print_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value))


def run() -> None:
    """Run the command line."""
    run_app(app, "edgebus")
