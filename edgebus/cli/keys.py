"""`edgebus keygen`, `allow`, `deny`, `keys` and `rotate`: key pairs, and who may do what."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgebus.allowedit import list_file, read_list
from edgebus.cli.options import Json, print_json
from edgebus.counting import count
from edgebus.grants import OPTIONS
from edgebus.keyfiles import PUBLIC_FILE, SECRET_FILE
from edgebus.keys import allow_keys, deny_keys, generate_keys
from edgebus.rotation import NEW, OLD, Rotation, activate_rotation, read_rotation, start_rotation

Directory = Annotated[Path, typer.Argument(help="Key directory of the server (or its allow-list file).")]


def keygen(
    directory: Annotated[Path, typer.Argument(help="Key directory; a new one gets mode 0700.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a key that is there already.")] = False,
    as_json: Json = False,
) -> None:
    """Make a key pair: DIR/node.key to give away, DIR/node.key_secret to keep.

    Example: edgebus keygen ~/.config/edgebus
    """
    keys = generate_keys(directory, force=force)
    public_file = directory / PUBLIC_FILE
    if as_json:
        print_json({"public_key": keys.public, "public_file": str(public_file)})
    else:
        typer.echo(f"public key {keys.public}\ngive {public_file} to the nodes that shall know this one")


def allow(
    directory: Directory,
    public_keys: Annotated[list[str], typer.Argument(help="node.key files of peers, or keys of 40 characters.")],
    name: Annotated[str | None, typer.Option(help="What to call them.")] = None,
    like: Annotated[str | None, typer.Option(help="Key or name in the list whose options new keys get.")] = None,
    services: Annotated[str | None, typer.Option(help="Patterns of what they may call: sled.*,edgebus.ping")] = None,
    deny_services: Annotated[str | None, typer.Option("--deny", help="Patterns of what they may not call.")] = None,
    requests_per_s: Annotated[str | None, typer.Option(help="Requests in the long run: 50")] = None,
    burst: Annotated[str | None, typer.Option(help="Requests at once; one second's worth otherwise.")] = None,
    bytes_per_s: Annotated[str | None, typer.Option(help="Bytes of requests in the long run: 10MB, 1MiB")] = None,
    bytes_burst: Annotated[str | None, typer.Option(help="Bytes at once, and so the largest request.")] = None,
    max_links: Annotated[str | None, typer.Option(help="Links at once.")] = None,
    until: Annotated[str | None, typer.Option(help="Last day, UTC: 2031-12-31 (or 2031-12-31T18:00Z)")] = None,
    as_json: Json = False,
) -> None:
    """Let peers connect, or change what they may do: a line each in DIR/allowed_keys. A running server notices.

    `none` takes an option off again; what is not given stays as it is.

    Example: edgebus allow ./server phone/node.key --services 'sled.*,edgebus.ping' --requests-per-s 50
    """
    values = (services, deny_services, requests_per_s, burst, bytes_per_s, bytes_burst, max_links, until)
    given = {option: value for option, value in zip(OPTIONS, values, strict=True) if value is not None}
    options = {option: None if value == "none" else value for option, value in given.items()}
    done = allow_keys(directory, *public_keys, options=options, name=name, like=like)
    if as_json:
        print_json({"file": str(done.file), "added": done.added, "updated": done.updated, "given": len(public_keys)})
    else:
        changed = f", changed {count(done.updated, 'line')}" if done.updated else ""
        typer.echo(f"added {done.added} of {count(len(public_keys), 'key')} to {done.file}{changed}")


def deny(
    directory: Directory,
    keys_or_names: Annotated[list[str], typer.Argument(help="Keys, names in the list, or node.key files.")],
    as_json: Json = False,
) -> None:
    """Take peers off DIR/allowed_keys. A running server cuts their links within two seconds.

    Example: edgebus deny ./server phone
    """
    gone = deny_keys(directory, *keys_or_names)
    if as_json:
        print_json({"file": str(list_file(directory)), "removed": [line.key for line in gone]})
    else:
        typer.echo(f"removed {count(len(gone), 'line')} from {list_file(directory)}")


def keys(directory: Directory, as_json: Json = False) -> None:
    """Show who may do what, and which lines of the list allow nobody.

    Example: edgebus keys ./server
    """
    rows = _rows(directory)
    own = _own(directory)
    if as_json:
        print_json({"file": str(list_file(directory)), "own": own, "keys": rows})
        return
    for title, key in own.items():
        typer.echo(f"{title} {key}")
    table = Table(title=str(list_file(directory)), title_justify="left")
    shown = [(title, [cell(row) for row in rows]) for title, cell in _COLUMNS]
    shown = [(title, cells) for title, cells in shown if any(cells)]
    for title, _ in shown:
        table.add_column(title)
    for cells in zip(*(cells for _, cells in shown), strict=True):
        table.add_row(*(Text(cell, overflow="fold") for cell in cells))
    Console().print(table)


def rotate(
    directory: Annotated[Path, typer.Argument(help="Key directory.")],
    activate: Annotated[bool, typer.Option("--activate", help="Put the waiting key in place.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Make another one though one waits.")] = False,
    as_json: Json = False,
) -> None:
    """Change a node's key in two steps: make the next one, tell the peers, then put it in place.

    Example: edgebus rotate ./server, and once the peers know: edgebus rotate ./server --activate
    """
    if activate and force:
        raise typer.BadParameter("--force makes a new key, --activate uses the one that waits: give one of them")
    state = activate_rotation(directory) if activate else start_rotation(directory, force=force)
    if as_json:
        waiting = state.waiting.public if state.waiting else None
        print_json(
            {"public_key": state.current.public, "waiting": waiting, "previous": state.previous, "made": state.is_made}
        )
    else:
        typer.echo(_after(directory, state) if activate else _steps(directory, state))


def _with_burst(rate: str, burst: str) -> str:
    return f"{rate} (at once {burst})" if burst else rate


_COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("key", lambda row: row["key"] or "?"),
    ("name", lambda row: row["name"]),
    ("may call", lambda row: row["services"] or ("all but guarded" if row["state"] == "ok" else "")),
    ("not", lambda row: row["deny"]),
    ("requests/s", lambda row: _with_burst(row["requests_per_s"], row["burst"])),
    ("bytes/s", lambda row: _with_burst(row["bytes_per_s"], row["bytes_burst"])),
    ("links", lambda row: row["max_links"]),
    ("until", lambda row: row["until"]),
    ("state", lambda row: row["state"]),
)
COMMANDS = (keygen, allow, deny, keys, rotate)


def _steps(folder: Path, state: Rotation) -> str:
    assert state.waiting is not None
    made = "made" if state.is_made else "waits already"
    new = folder / (PUBLIC_FILE + NEW)
    return f"""next key {state.waiting.public} ({made}); {state.current.public} stays in use
if this node is dialled (a server): give both keys to the nodes that dial it, which try them in order
    cat {folder / PUBLIC_FILE} {new} > server.key
if this node dials (a device): on each server, let the new key in and the old one out after a while
    edgebus allow SERVER_DIR {new.name} --like={state.current.public!r}
    edgebus allow SERVER_DIR {PUBLIC_FILE} --until=DATE
then, here: edgebus rotate {folder} --activate, and restart the node"""


def _after(folder: Path, state: Rotation) -> str:
    return f"""key {state.current.public} is in place; the previous one is kept as {SECRET_FILE}{OLD}
restart the node: a running one keeps the key it was started with
when nobody uses the previous key any more: rm {folder / (SECRET_FILE + OLD)} {folder / (PUBLIC_FILE + OLD)}"""


def _rows(directory: Path) -> list[dict[str, Any]]:
    lines, parsed = read_list(directory)
    now = time.time()
    rows = []
    for line in lines:
        state = "ok" if line.grant is not None and now < line.grant.until else "expired"
        if line.key not in parsed.grants:
            reason = parsed.problems.get(line.number, "another line of the key is malformed or says otherwise")
            state = f"line {line.number} allows nobody: {reason}"
        options = line.options if line.grant is not None else {}
        values = {option: options.get(option, "") for option in OPTIONS}
        rows.append({"line": line.number, "key": line.key, "name": line.name, **values, "state": state})
    return rows


def _own(directory: Path) -> dict[str, str]:
    """The keys of the directory itself, by what they are."""
    if not (directory / SECRET_FILE).exists():
        return {}
    state = read_rotation(directory)
    own = {"own key": state.current.public}
    if state.waiting is not None:
        own["waiting"] = state.waiting.public
    if state.previous is not None:
        own["previous"] = state.previous
    return own
