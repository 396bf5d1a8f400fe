"""`edgebus top`: nodes and their links, live."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

import edgebus
from edgebus.cli.options import Insecure, Json, OwnKeys, Timeout, check_access, print_json, safe
from edgebus.counting import count
from edgebus.daemon.dialler import connect_any
from edgebus.daemon.reports import PeerReport, StatsReport, ask_stats
from edgebus.errors import ConfigError, EdgebusError

_COLOURS = {"up": "green", "busy": "yellow", "wedged": "red", "down": "red"}
_MAX_ROWS = 40
Counters = Mapping[str, float]


class Shot(NamedTuple):
    """A node's report and when it came; `error` where there was none."""

    endpoint: str
    at: float
    report: StatsReport | None
    error: str = ""


def top(
    endpoints: Annotated[list[str], typer.Argument(help="Nodes to watch: tcp://HOST:PORT or ipc://PATH.")],
    server_key: Annotated[
        list[str] | None, typer.Option(help="node.key of the nodes: one for all, or one for each in order.")
    ] = None,
    keys: OwnKeys = None,
    insecure: Insecure = False,
    every_s: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once (rates need two looks) and end.")] = False,
    timeout_s: Timeout = 5.0,
    as_json: Json = False,
) -> None:
    """Show what nodes do: their links, health, messages and bytes per second, requests and how they ended.

    flight: bytes sent without credit yet. asked: the node's requests without an outcome; ref, exp, unk: those refused,
    expired, unknown. todo: requests of the peer without an answer. Narrow terminals get fewer columns.

    The node has to grant us its counters: services=*,edgebus.stats beside our key in its allow-list.
    With --json one object per look and line.

    Example: edgebus top tcp://server:7000 --server-key server.key --keys ./device
    """
    check_access(server_key[0] if server_key else None, keys, insecure)
    public = _keys_of(endpoints, server_key)
    with ExitStack() as stack:
        own = edgebus.load_keys(keys) if keys else None
        node = stack.enter_context(edgebus.Node("edgebus-top", keys=own, insecure=insecure))
        links = [connect_any(node, each, key, timeout_s) for each, key in zip(endpoints, public, strict=True)]
        before = _look(links, timeout_s)
        if once:
            _show_once(before, as_json)
        elif as_json:
            _print_forever(links, before, every_s, timeout_s)
        else:
            _watch(links, before, every_s, timeout_s)


def _keys_of(endpoints: list[str], given: list[str] | None) -> list[str | None]:
    if not given:
        return [None] * len(endpoints)
    if len(given) not in (1, len(endpoints)):
        raise typer.BadParameter(f"{len(given)} --server-key for {len(endpoints)} nodes: give one, or one for each")
    return list(given * len(endpoints) if len(given) == 1 else given)


def _look(links: list[edgebus.Link], timeout_s: float) -> list[Shot]:
    return [_shot(link, timeout_s) for link in links]


def _shot(link: edgebus.Link, timeout_s: float) -> Shot:
    try:
        report = ask_stats(link, timeout_s)
    except edgebus.Refused as error:
        if error.code == "unknown_service":
            raise ConfigError(f"{link.endpoint} has no edgebus.stats: run it as `edgebus node`") from None
        raise
    except EdgebusError as error:
        return Shot(link.endpoint, time.monotonic(), None, str(error))
    return Shot(link.endpoint, time.monotonic(), report)


def _show_once(shots: list[Shot], as_json: bool) -> None:
    if as_json:
        for shot in shots:
            print_json(_plain(shot))
    else:
        console = Console(width=None if sys.stdout is not None and sys.stdout.isatty() else 130)
        console.print(render(shots, None, console.width))
    if any(shot.report is None for shot in shots):
        raise typer.Exit(1)


def _print_forever(links: list[edgebus.Link], before: list[Shot], every_s: float, timeout_s: float) -> None:
    while True:
        for shot in before:
            print_json(_plain(shot))
        time.sleep(every_s)
        before = _look(links, timeout_s)


def _watch(links: list[edgebus.Link], before: list[Shot], every_s: float, timeout_s: float) -> None:
    # Ctrl-C is how one leaves: no failure.
    console = Console()
    with (
        contextlib.suppress(KeyboardInterrupt),
        Live(render(before, None, console.width), console=console, auto_refresh=False) as live,
    ):
        while True:
            time.sleep(every_s)
            after = _look(links, timeout_s)
            live.update(render(after, before, console.width), refresh=True)
            before = after


def render(shots: list[Shot], before: list[Shot] | None, width: int = 120) -> Group:
    """A table for each node; rates need the look before. Narrow terminals get fewer columns."""
    earlier: list[Shot | None] = list(before) if before else [None] * len(shots)
    return Group(*(_node(shot, old, width) for shot, old in zip(shots, earlier, strict=True)))


def _node(shot: Shot, before: Shot | None, width: int) -> Group | Text:
    report = shot.report
    if report is None:
        return Text(f"{safe(shot.endpoint)}: {safe(shot.error, 400)}", style="red")
    old = before.report if before is not None else None
    span_s = shot.at - before.at if before is not None and old is not None else 0.0
    head = Text(f"{safe(shot.endpoint)}  '{safe(report.name)}'", style="bold")
    head.append(
        f"  edgebus {safe(report.version)}  up {_span(report.uptime_s)}  {count(len(report.peers), 'peer')}"
        f"  handshakes rejected {_count(report.node.get('rejected_handshakes', 0))}"
        f"  malformed {_count(report.node.get('malformed', 0))}"
        f"  unroutable {_count(report.node.get('unroutable', 0))}"
        f"  unended {_count(report.node.get('unended', 0))}"
        f"  held back {_count(report.node.get('held_back', 0))}",
        style="not bold",
    )
    services = Text(f"services {safe(', '.join(report.services), 300)}", style="bright_black")
    columns = [column for column in _COLUMNS if column.is_vital or width >= _WIDE]
    table = Table(box=None, pad_edge=False, padding=(0, 1), collapse_padding=True)
    table.add_column("peer", max_width=28 if width >= _WIDE else 11, no_wrap=True)
    table.add_column("health")
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True)
    everything = [column.cell(report.total, old.total if old else None, span_s) for column in columns]
    table.add_row("(all)", "", *everything, style="bold")
    by_id = {peer.id: peer.counters for peer in old.peers} if old else {}
    peers = sorted(report.peers, key=lambda peer: (peer.name, peer.id))
    for peer in peers[:_MAX_ROWS]:
        cells = (column.cell(peer.counters, by_id.get(peer.id), span_s) for column in columns)
        table.add_row(*_who(peer), *cells)
    if len(peers) > _MAX_ROWS:
        table.add_row(Text(f"... and {len(peers) - _MAX_ROWS} more"))
    return Group(head, services, table, Text(""))


class Column(NamedTuple):
    """What a column shows; rates are differences over time."""

    title: str
    counter: str
    kind: str = "count"  # rate, count or millis
    is_vital: bool = True

    def cell(self, now: Counters, before: Counters | None, span_s: float) -> str:
        """Its text for one row."""
        value = now.get(self.counter)
        if value is None or not math.isfinite(value):
            return "-"
        if self.kind == "millis":
            return f"{value * 1e3:.2f}"
        if self.kind == "count":
            return _count(value)
        if before is None or span_s <= 0:
            return "-"
        # A counter that fell belongs to a node that started anew.
        return _count(max(0.0, value - before.get(self.counter, 0.0)) / span_s)


_WIDE = 110
_COLUMNS = (
    Column("in/s", "messages_received", "rate"),
    Column("out/s", "messages_sent", "rate"),
    Column("B in/s", "bytes_received", "rate"),
    Column("B out/s", "bytes_sent", "rate"),
    Column("flight", "bytes_in_flight"),
    Column("asked", "outstanding", is_vital=False),
    Column("todo", "pending"),
    Column("rtt ms", "round_trip_s", "millis"),
    Column("served", "served", is_vital=False),
    Column("turned away", "turned_away", is_vital=False),
    Column("answered", "answered", is_vital=False),
    Column("ref", "refused"),
    Column("exp", "expired"),
    Column("unk", "unknown"),
)


def _who(peer: PeerReport) -> tuple[Text, Text]:
    health = safe(peer.health, 12)
    return Text(safe(peer.name or peer.id, 28)), Text(health, style=_COLOURS.get(health, "default"))


def _count(value: float) -> str:
    """Three digits or so: 1234567 is 1.23M."""
    for unit in ("", "k", "M", "G", "T"):
        if abs(value) < 1000:
            return f"{value:.0f}" if unit == "" and value == int(value) else f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}P"


def _span(seconds: float) -> str:
    minutes, rest = divmod(int(min(max(seconds, 0.0), 1e9)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}d {hours:02}:{minutes:02}:{rest:02}" if days else f"{hours:02}:{minutes:02}:{rest:02}"


def _plain(shot: Shot) -> dict[str, Any]:
    if shot.report is None:
        return {"endpoint": shot.endpoint, "error": shot.error}
    report = shot.report
    plain = {name: getattr(report, name) for name in report.__struct_fields__ if name != "peers"}
    peers = [{name: getattr(peer, name) for name in peer.__struct_fields__} for peer in report.peers]
    return {"endpoint": shot.endpoint} | plain | {"peers": peers}
