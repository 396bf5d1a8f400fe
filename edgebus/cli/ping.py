"""`edgebus ping`."""

from __future__ import annotations

import statistics
import time
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import edgebus
from edgebus.cli.options import Endpoint, Insecure, Json, OwnKeys, ServerKey, Timeout, linked, print_json, safe


def ping(
    endpoint: Endpoint,
    server_key: ServerKey = None,
    keys: OwnKeys = None,
    insecure: Insecure = False,
    count: Annotated[int, typer.Option(min=1, max=100_000, help="Round trips to measure.")] = 5,
    timeout_s: Timeout = 5.0,
    as_json: Json = False,
) -> None:
    """Measure round trips to a node; says what is wrong where there is none.

    Example: edgebus ping tcp://server:7000 --server-key server.key --keys ./device --count 20
    """
    with linked(
        endpoint, server_key=server_key, keys=keys, insecure=insecure, timeout_s=timeout_s, name="edgebus-ping"
    ) as link:
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
        print_json(result | {"round_trips_us": micros})
        return
    # The peer chose its name: escape what could drive the terminal.
    table = Table(title=Text(f"{endpoint} ('{safe(peer)}')"), title_justify="left")
    for column in ("round trips", "min us", "median us", "max us"):
        table.add_column(column, justify="right")
    table.add_row(*(str(result[key]) for key in ("count", "min_us", "median_us", "max_us")))
    Console().print(table)
