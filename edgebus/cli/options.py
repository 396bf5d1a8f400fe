"""Options and output that commands share. What a peer said is escaped before it reaches a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

import edgebus
from edgebus.daemon.dialler import connect_any

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Plaintext, no authentication; no keys then.")]
Endpoint = Annotated[str, typer.Argument(help="tcp://HOST:PORT or ipc://PATH of the node.")]
ServerKey = Annotated[str | None, typer.Option(help="The node's node.key, or its 40 characters.")]
OwnKeys = Annotated[Path | None, typer.Option(help="Our own key directory.")]
Timeout = Annotated[float, typer.Option(min=0.001, max=86_400, help="Seconds to wait for the link and each answer.")]


def check_access(server_key: str | None, keys: Path | None, insecure: bool) -> None:
    """Keys or plaintext, never a mixture.

    Raises:
        BadParameter: both, or neither whole.
    """
    if insecure and (server_key or keys):
        raise typer.BadParameter("--insecure sends plaintext: drop --server-key and --keys")
    if not insecure and not (server_key and keys):
        raise typer.BadParameter("give --server-key and --keys, or --insecure")


@contextmanager
def linked(
    endpoint: str, *, server_key: str | None, keys: Path | None, insecure: bool, timeout_s: float, name: str
) -> Iterator[edgebus.Link]:
    """A link to a node, for as long as the block runs."""
    check_access(server_key, keys, insecure)
    with edgebus.Node(name, keys=edgebus.load_keys(keys) if keys else None, insecure=insecure) as node:
        yield connect_any(node, endpoint, server_key, timeout_s)


def safe(text: str, most: int = 200) -> str:
    r"""Text from elsewhere on one line: control and direction characters escaped, long ones cut.

    >>> safe("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    shown = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text[: most + 1])
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def print_json(value: Any) -> None:
    """One line of JSON; non-ASCII is escaped, control characters with it."""
    typer.echo(json.dumps(value, default=_plain))


def _plain(value: object) -> object:
    return value.hex() if isinstance(value, bytes | bytearray | memoryview) else str(value)
