"""`sled stats`: what a server does, live."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

import edgebus
from edgebus.cli.options import Insecure, Json, Timeout, linked, print_json, safe
from edgebus.payloads import decode
from sled import messages
from sled.errors import ProtocolError
from sled.metrics import ServerReport, mean_accepted, rates


class Shot(NamedTuple):
    """A report and when it came."""

    at: float
    report: ServerReport


def stats(
    server: Annotated[str, typer.Option(help="The server's endpoint, e.g. tcp://10.0.0.5:5555.")],
    server_key: Annotated[
        str | None, typer.Option(help="The server's public key: its node.key file or 40 characters.")
    ] = None,
    keys: Annotated[Path | None, typer.Option(help="Our key directory (`edgebus keygen DIR`).")] = None,
    insecure: Insecure = False,
    every_s: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once (rates need two looks) and end.")] = False,
    timeout_s: Timeout = 5.0,
    as_json: Json = False,
) -> None:
    """Show what a server does: sessions, queue, memory, step time, acceptance, goodput, refusals.

    On a terminal one table that changes, elsewhere one below the other; with --json one object per look and line.

    Example: sled stats --server tcp://10.0.0.5:5555 --server-key server.key --keys device-keys
    """
    with linked(
        server, server_key=server_key, keys=keys, insecure=insecure, timeout_s=timeout_s, name="sled-stats"
    ) as link:
        first = look(link, timeout_s)
        if once and not as_json:
            width = None if sys.stdout.isatty() else 100
            Console(width=width).print(render(server, first, None))
        elif as_json:
            _print_json(link, first, every_s, timeout_s, once=once)
        else:
            _watch(server, link, first, every_s, timeout_s)


def look(link: edgebus.Link, timeout_s: float) -> Shot:
    """Ask a server for its numbers.

    Raises:
        RemoteError: no answer, a refusal, or one that is not a report.
    """
    payload = link.request(messages.STATS, timeout_s=timeout_s).payload
    try:
        return Shot(time.monotonic(), decode(ServerReport, payload))
    except ValueError as error:
        raise ProtocolError(f"{error}; check that both sides run the same version") from None


def _print_json(link: edgebus.Link, shot: Shot, every_s: float, timeout_s: float, *, once: bool) -> None:
    while True:
        print_json(plain(shot.report))
        if once:
            return
        time.sleep(every_s)
        shot = look(link, timeout_s)


def _watch(server: str, link: edgebus.Link, before: Shot, every_s: float, timeout_s: float) -> None:
    console = Console(width=None if sys.stdout.isatty() else 100)
    # Ctrl-C is how one leaves: no failure.
    if not console.is_terminal:
        with contextlib.suppress(KeyboardInterrupt):
            _write_each(console, server, link, before, every_s, timeout_s)
        return
    with (
        contextlib.suppress(KeyboardInterrupt),
        Live(render(server, before, None), console=console, auto_refresh=False) as live,
    ):
        while True:
            time.sleep(every_s)
            after = look(link, timeout_s)
            live.update(render(server, after, before), refresh=True)
            before = after


def _write_each(
    console: Console, server: str, link: edgebus.Link, shot: Shot, every_s: float, timeout_s: float
) -> None:
    """One look below the other, each at once: whoever reads the pipe need not wait for the end."""
    before = None
    while True:
        console.print(render(server, shot, before))
        console.file.flush()
        time.sleep(every_s)
        before, shot = shot, look(link, timeout_s)


def plain(report: ServerReport) -> dict[str, object]:
    """A report with the names of its fields."""
    found = {name: getattr(report, name) for name in report.__struct_fields__ if name != "histograms"}
    histograms = {
        name: {field: getattr(each, field) for field in each.__struct_fields__}
        for name, each in report.histograms.items()
    }
    builtins: dict[str, object] = msgspec.to_builtins(found)
    return builtins | {"histograms": histograms}


def render(server: str, shot: Shot, before: Shot | None) -> Group:
    """A table of one server; rates need the look before."""
    report = shot.report
    gauges, counters = report.gauges, report.counters
    per_s = rates(report, before.report, shot.at - before.at) if before is not None else {}
    head = Text(f"{safe(server)}  {safe(report.target)} {safe(report.dtype)} {safe(report.engine)}", style="bold")
    head.append(f"  {safe(report.phase)}  up {report.uptime_s:.0f} s", style="not bold")
    table = Table(box=None, pad_edge=False, padding=(0, 2), show_header=False)
    for _ in range(4):
        table.add_column(no_wrap=True)
    cells = [
        ("sessions", _number(gauges, "sessions")),
        ("committed", f"{gauges.get('goodput', 0.0):.1f} tokens/s over 10 s"),
        ("rounds waiting", _number(gauges, "waiting_rounds")),
        ("steps", f"{per_s['steps']:.1f}/s" if per_s else _number(counters, "steps")),
        ("decode streams", _number(gauges, "streams")),
        ("tokens a step", _per(counters, "tokens", "steps")),
        ("oldest waits", f"{gauges.get('queue_age_seconds', 0.0) * 1e3:.0f} ms"),
        ("rounds a step", _per(counters, "rounds", "steps")),
        ("keys and values", _memory(report)),
        ("step", _mean_ms(report)),
        ("window limit", f"{gauges.get('window_limit_mean', 0.0):.1f}"),
        ("tokens a round", f"{mean_accepted(report):.2f}"),
        ("evictions", _number(counters, "evictions")),
        ("drafts wasted", _share(counters, "wasted", "drafted")),
    ]
    for left, right in zip(cells[::2], cells[1::2], strict=True):
        table.add_row(Text(left[0], style="bright_black"), left[1], Text(right[0], style="bright_black"), right[1])
    lines: list[Text | Table] = [head, table]
    if report.drafted_at:
        shares = [f"{a / d:.2f}" if d else "-" for d, a in zip(report.drafted_at, _padded(report), strict=True)]
        lines.append(Text(f"accepted by position  {' '.join(shares[:24])}"))
    if report.refusals:
        told = ", ".join(f"{safe(code, 32)} {count:.0f}" for code, count in sorted(report.refusals.items())[:16])
        lines.append(Text(f"refused  {told}"))
    return Group(*lines)


def _padded(report: ServerReport) -> list[int]:
    missing = len(report.drafted_at) - len(report.accepted_at)
    return [*report.accepted_at, *[0] * missing][: len(report.drafted_at)]


def _number(values: dict[str, float], name: str) -> str:
    return f"{values.get(name, 0.0):.0f}"


def _per(values: dict[str, float], what: str, unit: str) -> str:
    count = values.get(unit, 0.0)
    return f"{values.get(what, 0.0) / count:.1f}" if count else "-"


def _share(values: dict[str, float], part: str, whole: str) -> str:
    total = values.get(whole, 0.0)
    return f"{values.get(part, 0.0):.0f} of {total:.0f}" if total else "-"


def _memory(report: ServerReport) -> str:
    used, budget = report.gauges.get("kv_bytes_used", 0.0), report.gauges.get("kv_bytes_budget", 0.0)
    return f"{used / 2**20:.0f} of {budget / 2**20:.0f} MiB" if budget else "-"


def _mean_ms(report: ServerReport) -> str:
    histogram = report.histograms.get("step_seconds")
    count = sum(histogram.counts) if histogram is not None else 0
    return f"{histogram.total / count * 1e3:.1f} ms" if histogram is not None and count else "-"
