"""64 devices at one server, in two processes of 32 links: drafts answered a second.

In a wave every link sends its drafts, one message each, and the next wave begins when all are answered. `depth` is how
many each link has on its way: 1 is a device that waits for its verdict before it drafts again.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from bench.peers.processes import Pair
from bench.peers.stats import Blocks, Gathered, Scale, compared, in_turn, opened

LINKS, PROCESSES = 64, 2
DEPTHS = (1, 8)
NAMES = ("pyzmq", "edgebus", "pyzmq_curve", "edgebus_curve")
PAIRS = {"insecure": ("edgebus", "pyzmq"), "curve": ("edgebus_curve", "pyzmq_curve")}


def _block(pair: Pair, depth: int, max_s: float) -> float:
    for device in pair.devices:
        device.tell("waves", count=1_000_000, depth=depth, max_s=max_s)
    told = [device.told(max_s + 30.0) for device in pair.devices]
    return float(sum(part["count"] for part in told) / max(part["seconds"] for part in told))


def _blocks(depth: int, pairs: Mapping[str, Pair], absent: Mapping[str, str], turns: int, max_s: float) -> Blocks:
    blocks = Blocks({name: pair for name, pair in pairs.items() if name not in absent}, dict(absent))
    for name in in_turn(list(blocks.of), turns):
        if name in blocks.of:
            with blocks.trying(name) as done:
                done.append(_block(pairs[name], depth, max_s))
    return blocks


def _row(gathered: Gathered) -> dict[str, Any]:
    compare = {
        kind: compared(gathered.of[ours], gathered.of[theirs])
        for kind, (ours, theirs) in PAIRS.items()
        if ours in gathered.of and theirs in gathered.of
    }
    return {
        "peers": {
            name: {"per_s": round(statistics.median(done)), "block_per_s": [round(rate) for rate in done]}
            for name, done in gathered.of.items()
        },
        "absent": gathered.absent,
        "ratios": {kind: told["ratio"] for kind, told in compare.items()},
        "compared": compare,
    }


def measure(scale: Scale) -> dict[str, Any]:
    """Both depths over raw pyzmq and edgebus, same processes on both sides, by several sets of them."""
    gathered = {depth: Gathered() for depth in DEPTHS}
    for _ in range(scale(3, 1)):
        with opened(NAMES, links=LINKS + PROCESSES, num_devices=PROCESSES) as (pairs, absent):
            blocks = Blocks(pairs, absent)
            for name, pair in pairs.items():
                with blocks.trying(name):
                    for device in pair.devices:
                        device.ask("hold", links=LINKS // PROCESSES)
            for depth in DEPTHS:
                gathered[depth].add(_blocks(depth, pairs, absent, scale(9, 2), 0.3 if scale.quick else 0.7))
    return {
        "links": LINKS,
        "processes": PROCESSES,
        **{f"depth_{depth}": _row(all_blocks) for depth, all_blocks in gathered.items()},
    }


def figures(results: dict[str, Any]) -> dict[str, tuple[float, str, str]]:
    """Our drafts a second over raw pyzmq's, insecure, one on its way for each device."""
    ratios = results["depth_1"]["ratios"]
    if "insecure" not in ratios:
        return {}
    return {"bus.fanin64_ratio_pyzmq": (ratios["insecure"], "drafts/s ours / theirs, 64 links", "pyzmq DEALER/ROUTER")}
