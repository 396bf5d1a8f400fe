"""One tensor handed over on one host: copied into shared memory, announced, both ends read by the server.

The time is from before the copy until the server has read; both processes see the same monotonic clock. Beside it the
same without a copy: the tensor is made in memory on loan, and the time is from when it is full.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from bench.peers.processes import Pair
from bench.peers.stats import Blocks, Gathered, Scale, compared, in_turn, opened, spread_us

SIZES = {"1MiB": (1 << 20, 200), "16MiB": (16 << 20, 50)}
KINDS = ("one_way", "answered", "loaned")
NAMES = ("iceoryx2", "edgebus_shm", "edgebus")
MAX_S = 3.0


def measure(scale: Scale) -> dict[str, Any]:
    """Each size, one tensor at a time; edgebus with shared memory and, beside it, over tcp alone.

    Placed freely iceoryx2 has two speeds, as both its processes happen to share a core or not: so there are several
    pairs of processes, and both placements are forced as well, without tcp.
    """
    free = [(NAMES, scale(15, 2)), *[(NAMES[:2], scale(15, 1))] * scale(3, 0)]
    results = _measure(scale, free, None)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        results["core_each"] = _measure(scale, [(NAMES[:2], scale(7, 2))], (cores[0], cores[1]))
    results["one_core"] = _measure(scale, [(NAMES[:2], scale(7, 2))], (cores[0], cores[0]))
    return results


def _measure(
    scale: Scale, openings: Sequence[tuple[Sequence[str], int]], cores: tuple[int, int] | None
) -> dict[str, Any]:
    gathered = {size: Gathered() for size in SIZES}
    for names, turns in openings:
        with opened(names, cores=cores) as (pairs, absent):
            for size, (num_bytes, count) in SIZES.items():
                how = {"num_bytes": num_bytes, "count": scale(count, 10), "max_s": MAX_S}
                gathered[size].add(_blocks(pairs, absent, turns, how))
    results: dict[str, Any] = {}
    for size, all_blocks in gathered.items():
        rows = {
            name: {kind: spread_us([block[kind] for block in done]) for kind in KINDS}
            for name, done in all_blocks.of.items()
        }
        results[size] = {"peers": rows, "absent": all_blocks.absent, **_ratios(rows)}
    return results


def _blocks(pairs: Mapping[str, Pair], absent: Mapping[str, str], turns: int, how: dict[str, Any]) -> Blocks:
    blocks = Blocks(pairs, dict(absent))
    for name in list(blocks.of):
        with blocks.trying(name):
            pairs[name].device.ask("hand_over", **{**how, "count": 10})
    for name in in_turn(list(blocks.of), turns):
        if name in blocks.of:
            with blocks.trying(name) as done:
                times = pairs[name].device.ask("hand_over", **how)
                loaned = pairs[name].device.ask("hand_over", loan=True, **how)
                done.append({**times, "loaned": loaned["one_way"]})
    return blocks


def _ratios(rows: dict[str, Any]) -> dict[str, Any]:
    if not {"edgebus_shm", "iceoryx2"} <= set(rows):
        return {"ratios": {}}
    ours, theirs = rows["edgebus_shm"], rows["iceoryx2"]
    both = {kind: compared(ours[kind]["block_p50_us"], theirs[kind]["block_p50_us"]) for kind in KINDS}
    return {"ratios": {kind: told["ratio"] for kind, told in both.items()}, "compared": both}


def figures(results: dict[str, Any]) -> dict[str, tuple[float, str, str]]:
    """Our time over iceoryx2's until the server has read, placed freely, the worse of both sizes."""
    ratios = [results[size]["ratios"].get("one_way") for size in SIZES]
    if None in ratios:
        return {}
    return {"bus.shm_ratio_iceoryx2": (max(ratios), "time ours / theirs, p50, worse of 1 and 16 MiB", "iceoryx2")}
