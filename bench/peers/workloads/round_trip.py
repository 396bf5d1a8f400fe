"""Round trip of a draft of 200 B with its codec on both sides, insecure and with CURVE.

Where the scheduler puts two processes changes a round trip of some 50 us by a factor of two, so beside the free choice
both choices are forced: a core for each end, and one core for both.
"""

from __future__ import annotations

import os
from typing import Any

from bench.peers.registry import PEERS
from bench.peers.stats import Blocks, Scale, in_turn, opened, ratio, spread_us

CLOSE = ("tcp", "pyzmq", "edgebus", "pyzmq_curve", "edgebus_curve")
PAIRS = {"insecure": ("edgebus", "pyzmq"), "curve": ("edgebus_curve", "pyzmq_curve")}
MAX_S = 5.0


def _measure(names: list[str], scale: Scale, cores: tuple[int, int] | None) -> dict[str, Any]:
    with opened(names, cores=cores) as (pairs, absent):
        blocks = Blocks(pairs, absent)
        for name, pair in pairs.items():
            with blocks.trying(name):
                pair.device.ask("rounds", count=scale(500, 50), max_s=MAX_S)
        for name in in_turn(list(pairs), scale(7, 2)):
            if name in blocks.of:
                with blocks.trying(name) as done:
                    done.append(pairs[name].device.ask("rounds", count=scale(1000, 100), max_s=MAX_S))
    rows = {name: spread_us(done) for name, done in blocks.of.items()}
    return {
        "peers": rows,
        "ratios": {
            kind: ratio(rows[ours]["block_p50_us"], rows[theirs]["block_p50_us"])
            for kind, (ours, theirs) in PAIRS.items()
            if ours in rows and theirs in rows
        },
        "absent": blocks.absent,
    }


def measure(scale: Scale) -> dict[str, Any]:
    """All peers placed freely; raw ones and ours with each placement forced."""
    cores = sorted(os.sched_getaffinity(0))
    results = {"free": _measure([name for name, entry in PEERS.items() if entry.drafts], scale, None)}
    if len(cores) > 1:
        results["core_each"] = _measure(list(CLOSE), scale, (cores[0], cores[1]))
    results["one_core"] = _measure(list(CLOSE), scale, (cores[0], cores[0]))
    return results


def figures(results: dict[str, Any]) -> dict[str, tuple[float, str, str]]:
    """Ours over raw pyzmq's, the worse of insecure and CURVE, placed freely."""
    ratios = results["free"]["ratios"]
    if set(ratios) != set(PAIRS):
        return {}
    return {"bus.roundtrip_ratio_pyzmq": (max(ratios.values()), "time ours / theirs, p50", "pyzmq + msgspec")}
