"""How many tails a server computes per second, for how many devices, batched and not.

`measure_tails` serves an artefact in this process over tcp and has a process of its own play the devices: each has a
link of its own and one request on its way at any time, packed beforehand. `max_batch=1` is a server without batching.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import edgebus
from edgebus.payloads import encode
from qpart.artefact import Artefact
from qpart.batching import BatchLimits
from qpart.cli.serve import SWITCH_S
from qpart.executors import Executor
from qpart.messages import INFER, SERVICES, Infer
from qpart.network import INPUT
from qpart.profile import ServerProfile
from qpart.quantiser import quantise_activation
from qpart.run.served import ServedModel
from qpart.run.server import PlanServer
from qpart.tables import WIDTHS
from qpart.tail import Tail


@dataclass(frozen=True)
class TailRate:
    """What came out: answers per second, their latencies, and requests in a forward in the mean."""

    devices: int
    max_batch: int
    join_cuts: bool
    tails_per_s: float
    median_ms: float
    p99_ms: float
    mean_batch: float


def tail_seconds(
    artefact: Artefact, cut: int, live_bits: Sequence[int], batches: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)
) -> dict[int, float]:
    """Processor time of one tail, dequantising included, in batches of so many requests: the least of five looks."""
    from qpart.executors.with_torch import TorchExecutor

    tail = Tail(artefact, executor := TorchExecutor(artefact.network.nodes, artefact.parameters))
    stored = _requests(artefact, executor, [(cut, live_bits)])
    arrays = [stored[f"0.{j}"] for j in range(len(stored) - 1)]
    work, found = tail.check(Infer(artefact.model_id, cut, tuple(live_bits)), arrays), {}
    for batch in batches:
        works, looks, times = [work] * batch, [], max(3, 60 // batch)
        tail.answers(works)
        for _ in range(5):
            began = time.thread_time()
            for _ in range(times):
                tail.answers(works)
            looks.append((time.thread_time() - began) / times / batch)
        found[batch] = min(looks)
    return found


def measure_tails(
    artefact: Artefact,
    wanted: Sequence[tuple[int, Sequence[int]]],
    *,
    devices: int,
    max_batch: int = 32,
    join_cuts: bool = True,
    seconds: float = 3.0,
    wait_s: float = 0.0,
) -> TailRate:
    """Load a server with closed-loop devices.

    Args:
        artefact: with its model_id.
        wanted: cut and live widths; the devices take them in turns.
        devices: how many.
        max_batch, join_cuts, wait_s: of the server.
        seconds: measured, after a third of that to warm up.
    """
    from qpart.executors.with_torch import TorchExecutor

    executor = TorchExecutor(artefact.network.nodes, artefact.parameters)
    model = ServedModel(artefact, executor, lambda pattern: None, ServerProfile(macs_per_s=1e10))  # type: ignore[arg-type,return-value]
    limits = BatchLimits(max_batch=max_batch, max_waiting=max(256, 4 * devices), wait_s=wait_s)
    with tempfile.TemporaryDirectory() as directory, edgebus.Node("tails", insecure=True) as node:
        server = PlanServer(node.serve(*SERVICES), [model], limits, join_cuts=join_cuts)
        endpoint = node.bind("tcp://127.0.0.1:0")
        thread = threading.Thread(target=server.run)
        before = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        thread.start()
        try:
            path = Path(directory) / "requests.npz"
            np.savez(path, **_requests(artefact, executor, wanted))
            command = [sys.executable, "-m", __name__, endpoint, path, devices, seconds]
            done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True, timeout=300)
            report = server.report()
        finally:
            server.stop()
            thread.join()
            sys.setswitchinterval(before)
    found = json.loads(done.stdout)
    batches = report.counters["batches"] or 1.0
    return TailRate(devices, max_batch, join_cuts, **found, mean_batch=report.counters["answered"] / batches)


def _requests(
    artefact: Artefact, executor: Executor, wanted: Sequence[tuple[int, Sequence[int]]]
) -> dict[str, np.ndarray]:
    """Payload and arrays of one request for each cut, by name."""
    network, inputs = artefact.network, artefact.float_inputs()[:1]
    found: dict[str, np.ndarray] = {}
    for i, (cut, bits) in enumerate(wanted):
        live = network.live[cut]
        values = executor.run_arrays({INPUT: inputs}, 0, cut, live)
        found[f"{i}.payload"] = np.frombuffer(encode(Infer(artefact.model_id, cut, tuple(bits))), np.uint8)
        for j, (value, width) in enumerate(zip(live, bits, strict=True)):
            found[f"{i}.{j}"] = quantise_activation(values[value], width, artefact.ranges[value][WIDTHS.index(width)])
    return found


def _load(endpoint: str, path: Path, devices: int, seconds: float) -> dict[str, float]:
    """Play the devices: whichever has its answer asks again."""
    stored = dict(np.load(path))
    requests: list[tuple[bytes, list[np.ndarray]]] = []
    while f"{len(requests)}.payload" in stored:
        name = str(len(requests))
        arrays: list[np.ndarray] = []
        while f"{name}.{len(arrays)}" in stored:
            arrays.append(stored[f"{name}.{len(arrays)}"])
        requests.append((stored[f"{name}.payload"].tobytes(), arrays))
    took: list[float] = []
    with edgebus.Node("devices", insecure=True) as node:
        links = [node.connect(endpoint) for _ in range(devices)]

        def ask(k: int):
            return time.perf_counter(), links[k].send_request(INFER, *requests[k % len(requests)])

        flying = {k: ask(k) for k in range(devices)}
        began, counted_from = time.perf_counter(), time.perf_counter() + seconds / 3
        until = began + seconds / 3 + seconds
        while time.perf_counter() < until:
            ready = [k for k, (_, pending) in flying.items() if pending.done()]
            if not ready:
                next(iter(flying.values()))[1].wait(0.001)
            for k in ready:
                sent_at, pending = flying[k]
                pending.result()
                now = time.perf_counter()
                if now >= counted_from:
                    took.append(now - sent_at)
                flying[k] = ask(k)
        for _, pending in flying.values():
            pending.result()
    p50, p99 = np.percentile(took, [50, 99]) * 1e3
    return {"tails_per_s": len(took) / seconds, "median_ms": float(p50), "p99_ms": float(p99)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("endpoint")
    parser.add_argument("path", type=Path)
    parser.add_argument("devices", type=int)
    parser.add_argument("seconds", type=float)
    given = parser.parse_args()
    print(json.dumps(_load(given.endpoint, given.path, given.devices, given.seconds)))


if __name__ == "__main__":
    main()


def row(rate: TailRate) -> dict[str, object]:
    """For a table of results."""
    return asdict(rate)
