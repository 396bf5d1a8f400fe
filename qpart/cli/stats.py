"""`qpart stats`: what a server does, once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.table import Table

from edgebus.cli.options import Insecure, Json, Timeout, linked, print_json, safe
from edgebus.payloads import decode
from qpart import messages
from qpart.cli.show import console
from qpart.errors import ProtocolError
from qpart.metrics import HELP, ServerReport


def stats(
    server: Annotated[str, typer.Option(help="The server's endpoint, e.g. tcp://10.0.0.5:5556.")],
    server_key: Annotated[
        str | None, typer.Option(help="The server's public key: its node.key file or 40 characters.")
    ] = None,
    keys: Annotated[Path | None, typer.Option(help="Our key directory (`edgebus keygen DIR`).")] = None,
    insecure: Insecure = False,
    timeout_s: Timeout = 5.0,
    as_json: Json = False,
) -> None:
    """Show what a server has done and does now: queue, batches, tails, plans, bytes, refusals.

    Example:

        qpart stats --server tcp://10.0.0.5:5556 --server-key server.key --keys device-keys
    """
    with linked(
        server, server_key=server_key, keys=keys, insecure=insecure, timeout_s=timeout_s, name="qpart-stats"
    ) as link:
        payload = link.request(messages.STATS, timeout_s=timeout_s).payload
    try:
        report = decode(ServerReport, payload)
    except ValueError as error:
        raise ProtocolError(f"{error}; check that both sides run the same version") from None
    if as_json:
        print_json(_plain(report))
        return
    models = ", ".join(safe(model, 64) for model in report.models)
    console().print(f"{safe(server)}  {models}  {safe(report.phase, 16)}, up {report.uptime_s:.0f} s", markup=False)
    console().print(_table(report))


def _plain(report: ServerReport) -> dict[str, Any]:
    """A report with the names of its fields."""
    found = {name: getattr(report, name) for name in report.__struct_fields__ if name != "histograms"}
    histograms = {
        name: {field: getattr(each, field) for field in each.__struct_fields__}
        for name, each in report.histograms.items()
    }
    builtins: dict[str, Any] = msgspec.to_builtins(found)
    return builtins | {"histograms": histograms}


def _table(report: ServerReport) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2), show_header=False)
    for name, value in (*report.gauges.items(), *report.counters.items()):
        table.add_row(safe(name, 32), f"{value:,.0f}", HELP.get(name, ""))
    for name, histogram in report.histograms.items():
        count = sum(histogram.counts)
        mean = histogram.total / count if count else 0.0
        unit = f"{1e3 * mean:.2f} ms" if name.endswith("_seconds") else f"{mean:.2f}"
        table.add_row(safe(name, 32), unit, f"mean of {count:,}. {HELP.get(name, '')}")
    for code, count_of in sorted(report.refusals.items())[:16]:
        table.add_row(f"refused {safe(code, 24)}", f"{count_of:,.0f}", "")
    return table
