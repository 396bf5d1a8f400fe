"""Tails per second of a server with 1, 4 and 16 devices, with and without batches over devices.

`python -m bench.macro.tails`, about 4 minutes on two idle cores once the nets are there. The server computes on one
thread; devices live in a process of their own, each with a link of its own and one image on its way at any time, packed
beforehand, so that heads cost nothing here; the cut is the one a microcontroller gets, near the input. Links are tcp on
loopback, not encrypted: this is about the forwards. With and without batches take turns, and the median of three rounds
counts. Results go to bench/results/tails.json.
"""

from __future__ import annotations

import argparse
import os
from statistics import median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch comes along

from bench import record, report
from bench.macro._partition_world import Net, nets, say
from bench.macro._tail_load import TailRate, measure_tails, row
from bench.macro.promise import MICROCONTROLLER
from bench.nets.recipes import RECIPES
from qpart.plan import plan
from qpart.profile import ServerProfile
from qpart.solve import Solver

COMMAND = "python -m bench.macro.tails"
DEVICES, BATCHES = (1, 4, 16), (1, 32)
SECONDS = 2.0
_SERVER = ServerProfile(macs_per_s=1e10)


def rounds(net: Net, repeats: int) -> list[dict[str, Any]]:
    """One net: every number of devices with and without batches, in turns; the median round of each."""
    pattern = plan(Solver(net.artefact.tables), MICROCONTROLLER, _SERVER, shrink=net.artefact.shrink).pattern
    wanted, rows = [(pattern.cut, pattern.live_bits)], []
    for devices in DEVICES:
        found: dict[int, list[TailRate]] = {batch: [] for batch in BATCHES}
        for _ in range(repeats):
            for batch in BATCHES:
                found[batch].append(
                    measure_tails(net.artefact, wanted, devices=devices, max_batch=batch, seconds=SECONDS)
                )
        for batch, several in found.items():
            middle = sorted(several, key=lambda one: one.tails_per_s)[len(several) // 2]
            rows.append({"net": net.name, "cut": pattern.cut, **row(middle)})
            say(
                f"{net.name}, cut {pattern.cut}, {devices} devices, batches of at most {batch}: "
                f"{middle.tails_per_s:,.0f} tails/s, median {middle.median_ms:.1f} ms, p99 {middle.p99_ms:.1f} ms, "
                f"{middle.mean_batch:.1f} in a forward"
            )
    return rows


def figures(rows: list[dict[str, Any]], stamped: dict[str, Any]) -> dict[str, record.Figure]:
    """Headline figures: the most devices, over the nets and net by net."""

    def rate(net: str, batch: int) -> float:
        most = max(DEVICES)
        return next(
            float(one["tails_per_s"])
            for one in rows
            if (one["net"], one["devices"], one["max_batch"]) == (net, most, batch)
        )

    made, ratios = {}, []
    for net in dict.fromkeys(one["net"] for one in rows):
        alone, batched = (rate(net, batch) for batch in BATCHES)
        ratios.append(batched / alone)
        made[f"qpart.tails_per_s.{net}"] = record.figure(
            round(batched, 1),
            f"tails per second with {max(DEVICES)} devices and batches over devices, one thread",
            f"the same server without batches: {alone:.1f}",
            COMMAND,
            stamped,
        )
    made["qpart.tails_batched_ratio"] = record.figure(
        round(median(ratios), 2),
        f"times the tails per second, {max(DEVICES)} devices, median of {len(ratios)} nets; least {min(ratios):.2f}",
        "the same server without batches",
        COMMAND,
        stamped,
    )
    return made


def main() -> None:
    """Measure, record, render."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--net", choices=list(RECIPES), action="append", help="these only")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="record nothing")
    args = parser.parse_args()
    stamped, found = record.stamp(), nets(args.net or tuple(RECIPES))
    rows = [one for net in found.values() for one in rounds(net, args.repeats)]
    headline = figures(rows, stamped)
    for name, figure in headline.items():
        say(f"{name}: {figure['value']:,} {figure['unit']} ({figure['peer']})")
    if not args.dry:
        record.write("tails", {"rows": rows}, headline, stamped)
        report.render()


if __name__ == "__main__":
    main()
