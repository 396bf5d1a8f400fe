"""64 devices at one server, in two processes of 32 links: drafts answered a second.

In a wave every link sends its drafts, one message each, and the next wave begins when all are answered. `depth` is how
many each link has on its way: 1 is a device that waits for its verdict before it drafts again.
"""

from __future__ import annotations

import statistics
from typing import Any

from bench.peers.processes import Pair
from bench.peers.stats import Blocks, Scale, in_turn, opened, ratio

LINKS, PROCESSES = 64, 2
DEPTHS = (1, 8)
NAMES = ("pyzmq", "edgebus", "pyzmq_curve", "edgebus_curve")
PAIRS = {"insecure": ("edgebus", "pyzmq"), "curve": ("edgebus_curve", "pyzmq_curve")}


def _block(pair: Pair, depth: int, max_s: float) -> float:
    for device in pair.devices:
        device.tell("waves", count=1_000_000, depth=depth, max_s=max_s)
    told = [device.told(max_s + 30.0) for device in pair.devices]
    return float(sum(part["count"] for part in told) / max(part["seconds"] for part in told))


def _at(depth: int, pairs: dict[str, Pair], absent: dict[str, str], scale: Scale) -> dict[str, Any]:
    blocks = Blocks({name: pair for name, pair in pairs.items() if name not in absent}, absent)
    for name in in_turn(list(blocks.of), scale(5, 2)):
        if name in blocks.of:
            with blocks.trying(name) as done:
                done.append(_block(pairs[name], depth, 0.3 if scale.quick else 2.0))
    return {
        "peers": {
            name: {"per_s": round(statistics.median(done)), "block_per_s": [round(rate) for rate in done]}
            for name, done in blocks.of.items()
        },
        "ratios": {
            kind: ratio(blocks.of[ours], blocks.of[theirs])
            for kind, (ours, theirs) in PAIRS.items()
            if ours in blocks.of and theirs in blocks.of
        },
    }


def measure(scale: Scale) -> dict[str, Any]:
    """Both depths over raw pyzmq and edgebus, same processes on both sides."""
    with opened(NAMES, links=LINKS + PROCESSES, num_devices=PROCESSES) as (pairs, absent):
        blocks = Blocks(pairs, absent)
        for name, pair in pairs.items():
            with blocks.trying(name):
                for device in pair.devices:
                    device.ask("hold", links=LINKS // PROCESSES)
        depths = {f"depth_{depth}": _at(depth, pairs, absent, scale) for depth in DEPTHS}
    return {"links": LINKS, "processes": PROCESSES, **depths, "absent": absent}


def figures(results: dict[str, Any]) -> dict[str, tuple[float, str, str]]:
    """Our drafts a second over raw pyzmq's, insecure, one on its way for each device."""
    ratios = results["depth_1"]["ratios"]
    if "insecure" not in ratios:
        return {}
    return {"bus.fanin64_ratio_pyzmq": (ratios["insecure"], "drafts/s ours / theirs, 64 links", "pyzmq DEALER/ROUTER")}
