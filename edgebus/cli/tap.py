"""`edgebus tap`: what a node sends and receives, decoded, one line a message."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.text import Text

import edgebus
from edgebus.cli.options import Endpoint, Insecure, Json, OwnKeys, ServerKey, Timeout, linked, print_json, safe
from edgebus.counting import count
from edgebus.daemon.tapping import BUFFER_BYTES, TAP_SERVICE, TapRequest
from edgebus.errors import RemoteError
from edgebus.messages import decode_header
from edgebus.payloads import encode
from edgebus.recorder import Lost, Traffic, decode_records

MAX_CONTENT_BYTES = BUFFER_BYTES // 4
_SHOWN_BYTES = 64
Service = Annotated[str, typer.Option("--service", help="Only services that fit this pattern, such as 'sled.*'.")]


def tap(
    endpoint: Endpoint,
    service: Service = "*",
    content: Annotated[bool, typer.Option("--content", help="Show the first bytes of contents too.")] = False,
    count: Annotated[int, typer.Option(min=0, help="End after so many messages; 0 is never.")] = 0,
    server_key: ServerKey = None,
    keys: OwnKeys = None,
    insecure: Insecure = False,
    timeout_s: Timeout = 5.0,
    as_json: Json = False,
) -> None:
    """Show the messages of a node as they come and go: direction, peer, lane, header, sizes.

    The node has to grant it: services=*,edgebus.tap beside our key in its allow-list. Links that tap are not
    shown. Where we are too slow, messages are left out, and a line says how many.

    Example: edgebus tap tcp://server:7000 --service 'sled.*' --server-key server.key --keys ./device
    """
    shown = 0
    with linked(
        endpoint, server_key=server_key, keys=keys, insecure=insecure, timeout_s=timeout_s, name="edgebus-tap"
    ) as link:
        console = Console(soft_wrap=True, highlight=False)
        for record in tapped(link, service, MAX_CONTENT_BYTES if content else 0, lambda: say_open("tapping", link)):
            if isinstance(record, Lost):
                _say_lost(console, record, as_json)
                continue
            print_json(as_plain(record)) if as_json else console.print(as_line(record))
            shown += 1
            if count and shown >= count:
                break


@contextmanager
def _stream(link: edgebus.Link, request: TapRequest) -> Iterator[edgebus.Stream]:
    stream = link.stream(TAP_SERVICE, encode(request))
    try:
        yield stream
    finally:
        stream.cancel()


def tapped(
    link: edgebus.Link, pattern: str, content_bytes: int, on_open: Callable[[], None] = lambda: None
) -> Iterator[Traffic | Lost]:
    """Messages of a node until its tap ends.

    Args:
        link: to the node.
        pattern: of services.
        content_bytes: contents of messages up to this size.
        on_open: called once nothing is missed any more.

    Raises:
        RemoteError: the node refused, or sent something else.
    """
    with _stream(link, TapRequest(pattern=pattern, content_bytes=content_bytes)) as stream:
        for part in stream:
            try:
                records = decode_records(bytes(part.payload))
            except ValueError as error:
                raise RemoteError(f"{link.endpoint}: {error}") from None
            if part.pos == 0:
                on_open()
            yield from records


def say_open(what: str, link: edgebus.Link) -> None:
    """On stderr, once what goes by is seen."""
    print(f"{what} '{safe(link.peer_name)}' at {link.endpoint}, Ctrl-C ends", file=sys.stderr, flush=True)


def header_of(record: Traffic) -> tuple[str, dict[str, Any]]:
    """Kind and fields of a recorded header; "?" for one that this version does not know."""
    try:
        header = decode_header(record.header)
    except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError):
        return "?", {}
    fields = {name: getattr(header, name) for name in header.__struct_fields__}
    return type(header).__name__, {name: value for name, value in fields.items() if value not in (None, (), b"")}


def as_plain(record: Traffic) -> dict[str, Any]:
    """For JSON."""
    kind, fields = header_of(record)
    return {
        "at": record.at,
        "direction": record.direction,
        "peer": record.peer_name,
        "peer_id": record.peer_id,
        "peer_key": record.peer_key or None,
        "lane": record.lane,
        "kind": kind,
        "header": msgspec.to_builtins(fields, builtin_types=()),
        "sizes": list(record.sizes),
        "frames": [frame.hex() for frame in record.frames] if record.frames else None,
    }


def as_line(record: Traffic) -> Text:
    """For a terminal; everything the peer chose is escaped."""
    kind, fields = header_of(record)
    arrow, style = ("→", "cyan") if record.direction == "out" else ("←", "green")
    line = Text(f"{record.at:12.6f} ")
    line.append(f"{arrow} {safe(record.peer_name or record.peer_id, 24)}", style=style)
    line.append(f" {record.lane} ", style="bright_black")
    line.append(kind, style="bold")
    line.append("".join(f" {name}={safe(_short(value), 120)}" for name, value in fields.items()))
    if record.sizes:
        line.append(f" [{' '.join(map(str, record.sizes[:16]))}{' …' if len(record.sizes) > 16 else ''} B]")
    for frame in record.frames[:4]:
        if frame:
            more = "…" if len(frame) > _SHOWN_BYTES else ""
            line.append(f"\n    {safe(repr(frame[:_SHOWN_BYTES])[2:-1], 300)}{more}", style="bright_black")
    return line


def _short(value: Any) -> str:
    if isinstance(value, msgspec.Struct):
        inner = ((name, getattr(value, name)) for name in value.__struct_fields__)
        return "(" + " ".join(f"{name}={_short(item)}" for name, item in inner if item not in (None, (), b"")) + ")"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_short, value[:8])) + (", …" if len(value) > 8 else "") + "]"
    return value.hex() if isinstance(value, bytes) else str(value)


def _say_lost(console: Console, lost: Lost, as_json: bool) -> None:
    if as_json:
        print_json({"lost": lost.count})
    else:
        console.print(
            Text(f"... {count(lost.count, 'message')} left out: the tap was slower than the traffic", style="yellow")
        )
