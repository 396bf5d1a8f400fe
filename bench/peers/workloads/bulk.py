"""Tensors of 1 and 16 MiB streamed to the server, four on their way, each acknowledged after it was read."""

from __future__ import annotations

import statistics
from typing import Any

from bench.peers.processes import Pair
from bench.peers.registry import PEERS
from bench.peers.stats import Blocks, Scale, in_turn, opened, ratio

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
    """Each size over every peer that carries tensors."""
    results: dict[str, Any] = {}
    with opened([name for name, entry in PEERS.items() if entry.bulk]) as (pairs, absent):
        for size, num_bytes in SIZES.items():
            blocks = Blocks({name: pair for name, pair in pairs.items() if name not in absent}, absent)
            for name in list(blocks.of):
                with blocks.trying(name):
                    pairs[name].device.ask("stream", num_bytes=num_bytes, count=8, max_s=MAX_S)
            count = scale(512 << 20, 64 << 20) // num_bytes
            # A block lasts a tenth of a second: the median of five ratios still moves by a fifth from run to run.
            close = [name for name in blocks.of if any(name in pair for pair in RATIOS.values())]
            for name in (*in_turn(list(blocks.of), scale(5, 2)), *in_turn(close, scale(16, 0))):
                if name in blocks.of:
                    with blocks.trying(name) as done:
                        done.append(_block(pairs[name], num_bytes, count))
            rows = {name: _row(done) for name, done in blocks.of.items()}
            results[size] = {"peers": rows, "ratios": _ratios(rows)}
    return {**results, "absent": absent}


def _ratios(rows: dict[str, Any]) -> dict[str, float]:
    return {
        kind: ratio(rows[ours]["block_gb_per_s"], rows[theirs]["block_gb_per_s"])
        for kind, (ours, theirs) in RATIOS.items()
        if ours in rows and theirs in rows
    }


def figures(results: dict[str, Any]) -> dict[str, tuple[float, str, str]]:
    """Our throughput over raw pyzmq's, both insecure over loopback tcp, the worse of both sizes."""
    ratios = [results[size]["ratios"].get("insecure") for size in SIZES]
    if None in ratios:
        return {}
    return {"bus.bulk_ratio_pyzmq": (min(ratios), "bytes/s ours / theirs, worse of 1 and 16 MiB", "pyzmq copy=False")}
