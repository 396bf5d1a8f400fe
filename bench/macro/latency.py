"""How long an answer takes over links of 0.1 to 100 Mbit/s, cold and warm, against every other way to get it.

`python -m bench.macro.latency`, about 7 minutes on two idle cores once the nets are there. `qpart serve` runs in a
process of its own over tcp with CURVE, behind the in-tree proxy (5 ms each way, the rate both ways). The device is this
machine's numpy executor on one core, 50 times slower: what its nodes take here counts so often, in the profile that it
asks with and in all times below. It announces 1,000 inferences.

- qpart is **measured**: cold is from asking for the plan with an empty cache to the first answer, warm the median of
  answers after that. The server has verified this plan before; what that takes once, without the slow link, is
  `first_plan_s`.
- The other ways are **replayed**: exactly their bytes travel, as requests and answers of the same bus through the same
  proxy; the server computes the tail of their cut when they arrive, in full precision, so that a server that was idle
  is as slow for them as it is for qpart; heads take the measured seconds of each node. Downloads longer than a second
  are not waited for: their bytes are divided by the rate.
- Energy and price are **modelled** for all alike: power of a Raspberry Pi 5, a server at 1 unit of money per hour.

Results go to bench/results/latency.json.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

import edgebus
from bench import record, report
from bench.macro._partition_world import OUT, Net, Site, nets, say, site
from bench.nets.recipes import RECIPES
from edgebus import shm
from edgebus.testing import Proxy
from qpart import Channel, DeviceProfile, Request
from qpart.baselines import BASELINES, Answer, Case, all_server_pixels, exact
from qpart.errors import Infeasible
from qpart.plan import cost_row, plan
from qpart.profile import ServerProfile
from qpart.run.models import make_executor
from qpart.solve import Solver

COMMAND = "python -m bench.macro.latency"
RATES = (0.1, 1.0, 10.0, 100.0)
DELAY_S = 0.005
ACCURACY, INFERENCES, MEMORY_BYTES = 0.01, 1000, 64 << 20
BOARD, PRICE_PER_S = "rpi5", 1 / 3600
WARM, REPLAYS, PLANS, LONGEST_S = 15, 15, 200, 1.0
SLOWER = 50
BURST_BYTES, LEAST_BURST_S = 256, 2e-4
MOVE = "bench.move"
CASES = ((False, INFERENCES), (True, INFERENCES), (False, 1))
"""Whether the raw input has to stay, and for how many inferences is planned."""
SHOWN = (
    ("mean", "mean_s", f"mean of {INFERENCES:,} answers, loading included", CASES[0]),
    ("mean", "mean_s", f"mean of {INFERENCES:,} answers, loading included", CASES[1]),
    ("cold", "cold_s", "first answer of many, empty cache", CASES[0]),
    ("cold", "cold_s", "first answer of many, empty cache", CASES[1]),
    ("warm", "warm_s", "answers after the first", CASES[0]),
    ("warm", "warm_s", "answers after the first", CASES[1]),
    ("once", "cold_s", "the only answer, empty cache", CASES[2]),
)


@dataclass(frozen=True)
class Machine:
    """Measured seconds of every node, and what is charged for them."""

    device: DeviceProfile
    server: ServerProfile

    def request(self, mbit_s: float, *, stays: bool, inferences: int = INFERENCES) -> Request:
        """What the device asks over a link."""
        radio = {"tx_watts": 1.0, "rx_watts": 0.28}
        channel = Channel(up_bits_per_s=mbit_s * 1e6, down_bits_per_s=mbit_s * 1e6, round_trip_s=2 * DELAY_S, **radio)
        return Request(
            accuracy=ACCURACY, device=self.device, channel=channel, inferences=inferences, raw_input_stays=stays
        )


def machine(net: Net) -> Machine:
    """`qpart profile` of this machine, as device and as server."""
    found = {}
    for kind, flags in (("device", ["--device", BOARD]), ("server", ["--server"])):
        command = [sys.executable, "-m", "qpart.cli", "profile", str(net.path), "--json", *flags]
        found[kind] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)[kind]
    keys = {key: found["device"][key] for key in ("watts", "joules_per_mac") if key in found["device"]}
    layer_s = [SLOWER * seconds for seconds in found["device"]["layer_s"]]
    speed = found["device"]["macs_per_s"] / SLOWER
    device = DeviceProfile(**keys, macs_per_s=speed, memory_bytes=MEMORY_BYTES, layer_s=tuple(layer_s))
    server = ServerProfile(
        macs_per_s=found["server"]["macs_per_s"], price_per_s=PRICE_PER_S, layer_s=tuple(found["server"]["layer_s"])
    )
    return Machine(device, server)


class Moved(msgspec.Struct, array_like=True, frozen=True):
    """What others' plans ask of a server.

    Attributes:
        answer_bytes: to be sent back.
        net, cut: whose tail is computed before; "" for none.
    """

    answer_bytes: int
    net: str = ""
    cut: int = 0


class PlainTail:
    """The tail of a net, on activations of the right shapes that are there already."""

    def __init__(self, net: Net) -> None:
        self._network, self._executor = net.artefact.network, make_executor(net.artefact)

    def run(self, cut: int) -> None:
        """Compute it, as `qpart serve` does."""
        network, last = self._network, self._network.num_nodes
        if cut < last:
            live = {value: np.full((1, *network.shapes[value]), 0.5, np.float32) for value in network.live[cut]}
            self._executor.run_arrays(live, cut, last, [last])


@contextmanager
def mover(where: Site, tails: Mapping[str, PlainTail]) -> Iterator[str]:
    """A node that computes a tail and answers with as many bytes as it is asked for; yields its endpoint."""
    keys = edgebus.load_keys(where.keys.of("server"))
    allow = edgebus.AllowList(where.keys.of("server") / "allowed_keys")
    with edgebus.Node(name="mover", keys=keys, allow=allow) as node:
        inbox, stopping = node.serve(MOVE), threading.Event()
        endpoint = node.bind("tcp://127.0.0.1:0")

        def loop() -> None:
            while not stopping.is_set():
                request = inbox.get(timeout_s=0.1)
                if request is not None:
                    moved = msgspec.msgpack.decode(request.payload, type=Moved)
                    if moved.net:
                        tails[moved.net].run(moved.cut)
                    request.reply(b"", [np.zeros(moved.answer_bytes, np.uint8)])

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield endpoint
        finally:
            stopping.set()
            thread.join()


class Replay:
    """Moves the bytes of others' plans over a link."""

    def __init__(self, where: Site, endpoint: str) -> None:
        own, key = edgebus.load_keys(where.keys.of("device")), edgebus.read_public_key(where.keys.server_key)
        self._node = edgebus.Node(name="replay", keys=own)
        self._link = self._node.connect(endpoint, server_key=key, timeout_s=30.0)

    def close(self) -> None:
        """Close the link."""
        self._node.close()

    def seconds(self, up_bytes: int, asked: Moved) -> float:
        """So many bytes there, and what is asked for back."""
        began = time.perf_counter()
        up = [np.zeros(max(0, up_bytes), np.uint8)]
        self._link.request(MOVE, msgspec.msgpack.encode(asked), up, timeout_s=120.0)
        return time.perf_counter() - began


def replayed(answer: Answer, net: Net, at: Machine, replay: Replay, mbit_s: float) -> dict[str, float]:
    """Cold and warm seconds of somebody else's plan."""
    row, tables = answer.row, net.artefact.tables
    warm_s = sum(at.device.layer_s[: row.cut])
    if row.cut < net.artefact.network.num_nodes:
        asked = Moved(max(0, tables.answer_bytes[row.cut]), net.name, row.cut)
        warm_s += statistics.median(replay.seconds(row.up_bytes, asked) for _ in range(REPLAYS))
    load_s = 8 * row.download_bytes / (mbit_s * 1e6)
    if load_s < LONGEST_S:
        load_s = replay.seconds(0, Moved(max(0, row.download_bytes)))
    return {"cold_s": load_s + warm_s, "warm_s": warm_s}


def measured(
    where: Site, net: Net, at: Machine, endpoint: str, request: Request, pixels: np.ndarray, tag: str
) -> dict[str, Any]:
    """qpart itself: from an empty cache, after that, and from a full cache; slow computing is added."""
    near, far = f"{net.name}-{tag}-near", f"{net.name}-{tag}"
    found: dict[str, Any] = {}
    for name, cache, at_end in (("first", near, None), ("cold", far, endpoint), ("cached", far, endpoint)):
        with where.device(net.name, cache, endpoint=at_end, timeout_s=300.0) as device:
            began = time.perf_counter()
            pattern = device.prepare(request).plan.pattern
            found[f"{name}_plan_s"] = time.perf_counter() - began
            more_s = (1 - 1 / SLOWER) * sum(at.device.layer_s[: pattern.cut])
            device.infer(pixels[:1])
            found[f"{name}_s"] = time.perf_counter() - began + more_s
            times = []
            for k in range(WARM if name == "cold" else 0):
                start = time.perf_counter()
                device.infer(pixels[k : k + 1])
                times.append(time.perf_counter() - start)
            if times:
                found["warm_s"] = statistics.median(times) + more_s
    return {
        **found, "cut": pattern.cut, "download_bytes": pattern.segment_bytes, "up_bytes": pattern.up_bytes,
        "weight_bits": pattern.weight_bits, "live_bits": pattern.live_bits, "pattern": pattern,
    }  # fmt: skip


def rows_of(
    where: Site, net: Net, at: Machine, mbit_s: float, moved_at: str, pixels: np.ndarray
) -> list[dict[str, Any]]:
    """Every way at one rate."""
    tables, solver, rows = net.artefact.tables, Solver(net.artefact.tables), []
    compressed = png_bytes(pixels)
    rate = mbit_s * 1e6 / 8
    burst_s = max(LEAST_BURST_S, BURST_BYTES / rate)  # small messages are to take their time
    with Proxy(where.endpoint, burst_s=burst_s) as proxy, Proxy(moved_at, burst_s=burst_s) as other:
        for each in (proxy, other):
            each.delay_s, each.bytes_per_s = DELAY_S, rate
        replay = Replay(where, other.endpoint)
        try:
            for stays, inferences in CASES:
                request = at.request(mbit_s, stays=stays, inferences=inferences)
                case = Case(solver, request, at.server, net.artefact.shrink)
                found = measured(where, net, at, proxy.endpoint, request, pixels, f"{mbit_s}-{stays}-{inferences}")
                pattern = found.pop("pattern")
                cost = cost_row(tables, pattern, request, at.server)
                model = exact(case)
                rows.append(
                    {
                        "way": "qpart", "how": "measured", **found, "energy_j": cost.energy_j, "price": cost.price,
                        "modelled_warm_s": cost.device_time_s + cost.channel_time_s + cost.server_time_s,
                        "modelled_cut": None if model is None else model.row.cut,
                    }
                )  # fmt: skip
                ways = {name: decide(case) for name, decide in BASELINES.items()}
                if compressed is not None:
                    ways["all_server_png"] = all_server_pixels(case, input_bytes=compressed)
                for name, answer in ways.items():
                    if answer is not None:
                        seconds = replayed(answer, net, at, replay, mbit_s)
                        rows.append(_row(name, answer, seconds))
                for row in rows:
                    row.setdefault("raw_input_stays", stays)
                    row.setdefault("inferences", inferences)
        finally:
            replay.close()
    for row in rows:
        row["mean_s"] = row["warm_s"] + (row["cold_s"] - row["warm_s"]) / row["inferences"]
    return [{"net": net.name, "mbit_s": mbit_s, **row} for row in rows]


def _row(name: str, answer: Answer, seconds: dict[str, float]) -> dict[str, Any]:
    row = answer.row
    return {
        "way": name, "how": "replayed", "holds": answer.holds, **seconds, "cut": row.cut,
        "download_bytes": row.download_bytes, "up_bytes": row.up_bytes, "energy_j": row.energy_j, "price": row.price,
    }  # fmt: skip


def _line(row: dict[str, Any]) -> str:
    private = " private" if row["raw_input_stays"] else " once" if row["inferences"] == 1 else ""
    breaks = "" if row.get("holds", True) else " (breaks the accuracy)"
    times = f"cold {row['cold_s']:.3f} s, warm {1e3 * row['warm_s']:.1f} ms, mean {1e3 * row['mean_s']:.1f}"
    return f"{row['net']} {row['mbit_s']:g} Mbit/s{private} {row['way']}: cut {row['cut']}, {times}{breaks}"


def png_bytes(pixels: np.ndarray) -> float | None:
    """Mean bytes of these images (n, 1, height, width) as PNG; None without Pillow."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        return None
    sizes = []
    for image in pixels[:200, 0]:
        content = io.BytesIO()
        Image.fromarray(image).save(content, "PNG", optimize=True)
        sizes.append(len(content.getvalue()))
    return float(np.mean(sizes))


def planning_ms(net: Net, at: Machine) -> dict[str, float]:
    """Milliseconds of one plan in the server: random requests, no cache."""
    solver, random, times = Solver(net.artefact.tables), np.random.default_rng(0), []
    for _ in range(PLANS):
        request = at.request(float(10 ** random.uniform(-1, 2)), stays=bool(random.integers(2)))
        start = time.perf_counter()
        try:
            plan(solver, request, at.server, shrink=net.artefact.shrink)
        except Infeasible:
            continue
        times.append(1e3 * (time.perf_counter() - start))
    return {"median": float(np.median(times)), "p99": float(np.quantile(times, 0.99))}


def figures(rows: list[dict[str, Any]], per_net: dict[str, Any], stamped: dict[str, Any]) -> dict[str, Any]:
    """Headline figures: how much sooner qpart answers than the best of the others that keep to the accuracy."""

    def ratios(key: str, case: tuple[bool, int]) -> list[float]:
        found = []
        for net, rate in {(row["net"], row["mbit_s"]) for row in rows}:
            of = [r for r in rows if (r["net"], r["mbit_s"]) == (net, rate)]
            here = [r for r in of if (r["raw_input_stays"], r["inferences"]) == case]
            own = next(r[key] for r in here if r["way"] == "qpart")
            others = [r[key] for r in here if r["way"] != "qpart" and r["holds"]]
            found.append(min(others, default=own) / own)
        return found

    made = {}
    for short, key, words, case in SHOWN:
        found = ratios(key, case)
        made[f"qpart.latency.{short}_over_best_other{'_private' if case[0] else ''}"] = record.figure(
            round(statistics.geometric_mean(found), 3),
            f"times qpart's seconds ({words}), geometric mean of {len(found)} nets and rates; least {min(found):.2f}",
            "the best of all other ways that keep to the accuracy, at each net and rate",
            COMMAND,
            stamped,
        )
    for net, found in per_net.items():
        made[f"qpart.calibration.{net}_s"] = record.figure(
            found["calibration_s"], "seconds of `qpart calibrate`, 2,000 images", "", COMMAND, stamped
        )
    return made


def main() -> None:
    """Measure, record, render."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--net", choices=list(RECIPES), action="append", help="these only")
    parser.add_argument("--rate", type=float, action="append", help="Mbit/s, these only")
    parser.add_argument("--dry", action="store_true", help="record nothing")
    args = parser.parse_args()
    shm.available = lambda: False  # the peers pretend to be far apart: nothing may pass beside the proxy
    stamped, found = record.stamp(), nets(args.net or tuple(RECIPES))
    pixels = np.load(OUT / "test_images.npy")[:1000]
    rows, per_net, tails = [], {}, {name: PlainTail(net) for name, net in found.items()}
    with site(found, "--price-per-s", PRICE_PER_S) as where, mover(where, tails) as moved_at:
        for net in found.values():
            at = machine(net)
            per_net[net.name] = {
                "calibration_s": net.calibration_s, "planning_ms": planning_ms(net, at),
                "device_s": sum(at.device.layer_s), "server_s": sum(at.server.layer_s),
            }  # fmt: skip
            for rate in args.rate or RATES:
                rows += rows_of(where, net, at, rate, moved_at, pixels)
                for row in rows:
                    if row["mbit_s"] == rate and row["net"] == net.name:
                        say(_line(row))
    headline = figures(rows, per_net, stamped)
    for name, figure in headline.items():
        say(f"{name}: {figure['value']} {figure['unit']}")
    if not args.dry:
        record.write("latency", {"nets": per_net, "rows": rows}, headline, stamped)
        report.render()


if __name__ == "__main__":
    main()
