"""Measures the bus beside its peers: `python -m bench.peers.run [--quick] [--only NAME]...`.

Writes bench/results/bus.json and the headline figures; workloads that were not asked for keep what they had, each with
the stamp of its own run. --quick shows that everything works and records nothing.
"""

from __future__ import annotations

import argparse
import json
from types import ModuleType
from typing import Any

from bench import record
from bench.peers import registry
from bench.peers.stats import Scale
from bench.peers.workloads import bulk, draft_beside_bulk, fanin64, idle1000, imports, round_trip, shm

COMMAND = "python -m bench.peers.run"
WORKLOADS: dict[str, ModuleType] = {
    "round_trip": round_trip,
    "bulk": bulk,
    "draft_beside_bulk": draft_beside_bulk,
    "fanin64": fanin64,
    "idle1000": idle1000,
    "shm": shm,
    "import": imports,
}


def run(names: list[str], scale: Scale) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure these workloads.

    Returns:
        Results by workload, each with its stamp, and the figures.
    """
    results: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    for name in names:
        stamp = {**record.stamp(), "peer_versions": registry.versions()}
        print(f"{name} ...", flush=True)
        results[name] = {"stamp": stamp, **WORKLOADS[name].measure(scale)}
        for key, (value, unit, peer) in WORKLOADS[name].figures(results[name]).items():
            figures[key] = record.figure(value, unit, peer, f"{COMMAND} --only {name}", stamp)
            print(f"  {key} = {value} ({unit})", flush=True)
    return results, figures


def main() -> None:
    """Measure, show, record."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short try; records nothing")
    parser.add_argument("--only", action="append", choices=WORKLOADS, metavar="NAME", help=", ".join(WORKLOADS))
    arguments = parser.parse_args()
    results, figures = run(arguments.only or list(WORKLOADS), Scale(arguments.quick))
    if arguments.quick:
        print(json.dumps(results, indent=1))
        return
    path = record.RESULTS / "bus.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    record.write("bus", {"workloads": {**known.get("workloads", {}), **results}}, figures)


if __name__ == "__main__":
    main()
