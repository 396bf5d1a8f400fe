"""Tensors of 1 and 16 MiB streamed to the server, four on their way, each acknowledged after it was read."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from bench.peers.processes import Pair
from bench.peers.registry import PEERS
from bench.peers.stats import Blocks, Gathered, Scale, compared, in_turn, opened

SIZES = {"1MiB": 1 << 20, "16MiB": 16 << 20}
MAX_S = 3.0
RATIOS = {
    "insecure": ("edgebus", "pyzmq"),
    "curve": ("edgebus_curve", "pyzmq_curve"),
    "shm": ("edgebus_shm", "pyzmq"),
}


def _block(pair: Pair, num_bytes: int, count: int) -> tuple[float, float]:
    """Bytes a second, and CPU seconds of all its processes for a byte."""
    before = pair.cpu_s()
    streamed = pair.device.ask("stream", num_bytes=num_bytes, count=count, max_s=MAX_S)
    carried = streamed["count"] * num_bytes
    return carried / streamed["seconds"], (pair.cpu_s() - before) / carried


def _row(blocks: list[tuple[float, float]]) -> dict[str, Any]:
    return {
        "gb_per_s": round(statistics.median(rate for rate, _ in blocks) / 1e9, 3),
        "cpu_ms_per_gb": round(statistics.median(cpu for _, cpu in blocks) * 1e12, 0),
        "block_gb_per_s": [round(rate / 1e9, 3) for rate, _ in blocks],
    }


def measure(scale: Scale) -> dict[str, Any]:
    """Each size over every peer that carries tensors; those whose ratios count again, by processes of their own."""
    names = [name for name, entry in PEERS.items() if entry.bulk]
    close = [name for name in names if any(name in pair for pair in RATIOS.values())]
    gathered = {size: Gathered() for size in SIZES}
    # A block lasts a tenth of a second and the two cores have several ways to share four threads: the median of 21
    # ratios by one pair of processes could be told no better than 0.76 to 1.10.
    for chosen, turns in [(names, scale(5, 2)), *[(close, scale(14, 1))] * scale(4, 0)]:
        with opened(chosen) as (pairs, absent):
            for size, num_bytes in SIZES.items():
                gathered[size].add(_blocks(pairs, absent, num_bytes, turns, scale))
    results: dict[str, Any] = {}
    for size, all_blocks in gathered.items():
        rows = {name: _row(done) for name, done in all_blocks.of.items()}
        results[size] = {"peers": rows, "absent": all_blocks.absent, **_ratios(rows)}
    return results


def _blocks(pairs: Mapping[str, Pair], absent: Mapping[str, str], num_bytes: int, turns: int, scale: Scale) -> Blocks:
    blocks = Blocks(pairs, dict(absent))
    for name in list(blocks.of):
        with blocks.trying(name):
            pairs[name].device.ask("stream", num_bytes=num_bytes, count=8, max_s=MAX_S)
    for name in in_turn(list(blocks.of), turns):
        if name in blocks.of:
            with blocks.trying(name) as done:
                done.append(_block(pairs[name], num_bytes, scale(512 << 20, 64 << 20) // num_bytes))
    return blocks


def _ratios(rows: dict[str, Any]) -> dict[str, Any]:
    both = {
        kind: compared(rows[ours]["block_gb_per_s"], rows[theirs]["block_gb_per_s"])
        for kind, (ours, theirs) in RATIOS.items()
        if ours in rows and theirs in rows
    }
    return {"ratios": {kind: told["ratio"] for kind, told in both.items()}, "compared": both}


def figures(results: dict[str, Any]) -> dict[str, tuple[float, str, str]]:
    """Our throughput over raw pyzmq's, both insecure over loopback tcp, the worse of both sizes."""
    ratios = [results[size]["ratios"].get("insecure") for size in SIZES]
    if None in ratios:
        return {}
    return {"bus.bulk_ratio_pyzmq": (min(ratios), "bytes/s ours / theirs, worse of 1 and 16 MiB", "pyzmq copy=False")}
