"""How long `import edgebus` takes a fresh process, and how long it is until the first node is there."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

from bench.peers.processes import ROOT
from bench.peers.registry import installed
from bench.peers.stats import Scale

NODE = "import edgebus; edgebus.Node('a', insecure=True)"
# row: (distribution, statement)
ROWS = {
    "edgebus": ("edgebus", "import edgebus"),
    "edgebus_first_node": ("edgebus", f"{NODE}; import os; os._exit(0)"),
    "pyzmq": ("pyzmq", "import zmq"),
    "zmq_asyncio": ("pyzmq", "import zmq.asyncio"),
    "zenoh": ("eclipse-zenoh", "import zenoh"),
    "grpc": ("grpcio", "import grpc"),
    "nng": ("pynng", "import pynng"),
    "mqtt": ("paho-mqtt", "import paho.mqtt.client"),
    "nats": ("nats-py", "import nats"),
    "iceoryx2": ("iceoryx2", "import iceoryx2"),
}


def _seconds(statement: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True, cwd=ROOT, timeout=60, capture_output=True)
    return time.perf_counter() - begun


def measure(scale: Scale) -> dict[str, Any]:
    """Whole processes, each beside one that does nothing, in turn."""
    here = {name: row[1] for name, row in ROWS.items() if installed(row[0]) is not None}
    spent: dict[str, list[float]] = {name: [] for name in here}
    for pos in range(scale(15, 3) + 1):
        for name, statement in here.items():
            seconds = _seconds(statement) - _seconds("pass")
            if pos:  # the first fills the caches
                spent[name].append(seconds * 1e3)
    return {
        "peers": {
            name: {"ms": round(statistics.median(values), 1), "all_ms": [round(value, 1) for value in values]}
            for name, values in spent.items()
        },
        "absent": {name: f"not available: {row[0]} is not installed" for name, row in ROWS.items() if name not in here},
    }


def figures(results: dict[str, Any]) -> dict[str, tuple[float, str, str]]:
    """Ours, in milliseconds above an empty process."""
    return {"bus.import_ms": (results["peers"]["edgebus"]["ms"], "ms above `python -c pass`, median of 15", "python")}
