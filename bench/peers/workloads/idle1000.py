"""1,000 connected idle devices at one server: its memory, and the CPU it uses while nothing happens.

Raw pyzmq is measured as it is, which notices nobody's death, and with the heartbeat of its protocol.
"""

from __future__ import annotations

import time
from typing import Any

from bench.peers.processes import Pair
from bench.peers.stats import Blocks, Scale, opened

PROCESSES = 8
NAMES = ("pyzmq", "pyzmq_beating", "edgebus", "edgebus_curve")


def _measure(pair: Pair, links: int, idle_s: float) -> dict[str, float]:
    empty = pair.server.ask("usage")
    for device in pair.devices:
        device.tell("hold", links=links // PROCESSES - 1)  # each has one already
    begun = time.perf_counter()
    for device in pair.devices:
        device.told(120.0)
    connected_s = time.perf_counter() - begun
    time.sleep(2.0)  # let the last greetings settle
    before, at = pair.server.ask("usage"), time.perf_counter()
    time.sleep(idle_s)
    after, spent_s = pair.server.ask("usage"), time.perf_counter() - at
    return {
        "links": links,
        "rss_mib": round(after["rss_bytes"] / 2**20, 1),
        "rss_mib_empty": round(empty["rss_bytes"] / 2**20, 1),
        "kib_per_link": round((after["rss_bytes"] - empty["rss_bytes"]) / links / 1024, 1),
        "cpu_percent": round(100 * (after["cpu_s"] - before["cpu_s"]) / spent_s, 2),
        "connect_s": round(connected_s, 2),
    }


def measure(scale: Scale) -> dict[str, Any]:
    """One peer after the other, so that none uses what another left idle."""
    rows: dict[str, Any] = {}
    absent: dict[str, str] = {}
    links = scale(1000, 80)
    for name in NAMES:
        with opened([name], links=links, num_devices=PROCESSES) as (pairs, missing):
            blocks = Blocks(pairs, missing)
            for pair in pairs.values():
                with blocks.trying(name):
                    rows[name] = _measure(pair, links, scale(20, 2))
        absent.update(missing)
    return {"processes": PROCESSES, "peers": rows, "absent": absent}


def figures(results: dict[str, Any]) -> dict[str, tuple[float, str, str]]:
    """Stated, not compared."""
    rows = results["peers"]
    stated: dict[str, tuple[float, str, str]] = {}
    for name in ("edgebus", "edgebus_curve"):
        if name in rows and rows[name]["links"] == 1000:
            stated[f"bus.idle1000.{name}_rss_mib"] = (rows[name]["rss_mib"], "MiB resident, 1,000 idle links", "")
            stated[f"bus.idle1000.{name}_cpu_percent"] = (
                rows[name]["cpu_percent"],
                "% of a core, 1,000 idle links",
                "",
            )
    return stated
