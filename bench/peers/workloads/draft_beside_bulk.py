"""Round trip of a draft while another thread of the same device streams 16 MiB tensors over the same link."""

from __future__ import annotations

from typing import Any

from bench.peers.stats import Blocks, Scale, in_turn, opened, ratio, spread_us

NUM_BYTES = 16 << 20
MAX_S = 3.0
# row: (peer, how its device is asked)
ROWS: dict[str, tuple[str, dict[str, int]]] = {
    "edgebus": ("edgebus", {}),
    "edgebus_curve": ("edgebus_curve", {}),
    "edgebus_shm": ("edgebus_shm", {}),
    "pyzmq_two_sockets": ("pyzmq", {"sockets": 2}),
    "pyzmq_one_socket": ("pyzmq", {"sockets": 1}),
}


def _row(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    idle, beside = (spread_us([block[kind] for block in blocks]) for kind in ("idle", "beside"))
    return {
        "idle": idle,
        "beside": beside,
        "over_idle": ratio(beside["block_p50_us"], idle["block_p50_us"]),
        "gb_per_s_meanwhile": round(
            sum(block["count"] for block in blocks) * NUM_BYTES / sum(block["seconds"] for block in blocks) / 1e9, 3
        ),
    }


def measure(scale: Scale) -> dict[str, Any]:
    """Idle and beside the stream in turn, row by row."""
    with opened(list(dict.fromkeys(peer for peer, _ in ROWS.values()))) as (pairs, absent):
        rows = {name: row for name, row in ROWS.items() if row[0] in pairs}
        blocks = Blocks({name: pairs[peer] for name, (peer, _) in rows.items()}, absent)
        for name, (peer, how) in rows.items():
            with blocks.trying(name):
                pairs[peer].device.ask("rounds", count=scale(500, 50), max_s=MAX_S)
                pairs[peer].device.ask("beside", count=20, num_bytes=NUM_BYTES, max_s=MAX_S, **how)
        for name in in_turn(list(rows), scale(5, 2)):
            if name in blocks.of:
                device, how = pairs[rows[name][0]].device, rows[name][1]
                with blocks.trying(name) as done:
                    idle = device.ask("rounds", count=scale(500, 100), max_s=MAX_S)
                    beside = device.ask("beside", count=scale(500, 50), num_bytes=NUM_BYTES, max_s=MAX_S, **how)
                    done.append({"idle": idle, "beside": beside.pop("rounds"), **beside})
    return {"peers": {name: _row(done) for name, done in blocks.of.items()}, "absent": blocks.absent}


def figures(results: dict[str, Any]) -> dict[str, tuple[float, str, str]]:
    """Our p50 beside a stream over our idle p50, insecure over loopback tcp."""
    if "edgebus" not in results["peers"]:
        return {}
    ours = results["peers"]["edgebus"]["over_idle"]
    return {"bus.draft_beside_bulk_ratio": (ours, "p50 beside a 16 MiB stream / idle p50", "edgebus, idle")}
