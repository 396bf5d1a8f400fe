"""Are promises kept over the real bus: bytes to the byte, accuracy on images that nobody has seen, payload saved?

`python -m bench.macro.promise`, about 6 minutes on two idle cores once the nets are there (another 10 to train and
calibrate them). `qpart serve` runs in a process of its own over tcp with CURVE; devices ask for plans with random
accuracies, rates, memories, numbers of inferences and caches, run their heads on numpy, and send what crosses the cut.

Per net there are six more requests. The paper's is of a board (10^8 multiply-accumulates per second) behind 100 kbit/s
that keeps its images to itself and announces 1,000 inferences; another is of a microcontroller (5 x 10^6 per second) at
1 Mbit/s that asks for one, so that the cut is near the input and activations weigh. Each asks once that 1 % of the
predictions change at most, and once for as many changes as cost 1 % of the accuracy at most, which calibration with
labels knows (the level whose verified patterns lose less, each by a one-sided bound that covers 95 % whatever the drop
is), and once for as many as cost 1 % on the images that calibration saw, without such a bound; no held-out image has a
say in either. The payload is what the link counted for the head and for one image,
against the very same head in float32: weights, biases and one image's activations at 4 bytes a number, no framing.
The first two plans are carried out once more over a real link of 100 kbit/s, for the bytes.
Results go to bench/results/promise.json.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import msgspec
import numpy as np

from bench import record, report
from bench.macro._partition_world import HeldOut, Net, Site, nets, say, site
from bench.nets.recipes import RECIPES, TITLES
from edgebus import shm
from edgebus.testing import Proxy
from qpart import Channel, Device, DeviceProfile, Request
from qpart.artefact import Artefact
from qpart.errors import Infeasible
from qpart.noise import upper_bound
from qpart.patterns import Pattern

COMMAND = "python -m bench.macro.promise"
PLANS, IMAGES, BATCH = 40, 2000, 250
CACHES = 4
SLOW_IMAGES, SLOW_DELAY_S, SLOW_BYTES_PER_S, BURST_BYTES = 250, 0.005, 12_500.0, 256
MOST_DROP = 0.01
PAPER = Request(
    accuracy=MOST_DROP,
    device=DeviceProfile(macs_per_s=1e8, joules_per_mac=1e-9, memory_bytes=1 << 22),
    channel=Channel(up_bits_per_s=1e5, down_bits_per_s=1e5, round_trip_s=0.05),
    inferences=1000,
    raw_input_stays=True,
)
MICROCONTROLLER = Request(
    accuracy=MOST_DROP,
    device=DeviceProfile(macs_per_s=5e6, joules_per_mac=1e-9, memory_bytes=1 << 22),
    channel=Channel(up_bits_per_s=1e6, down_bits_per_s=1e6, round_trip_s=0.01),
    raw_input_stays=True,
)


def random_request(random: np.random.Generator) -> Request:
    """Anything that a device may ask."""
    return Request(
        accuracy=float(10 ** random.uniform(-2.6, -1)),
        device=DeviceProfile(
            macs_per_s=float(10 ** random.uniform(6, 10)),
            joules_per_mac=1e-10,
            memory_bytes=int(10 ** random.uniform(5, 8)),
        ),
        channel=Channel(
            up_bits_per_s=float(10 ** random.uniform(4, 8)), down_bits_per_s=float(10 ** random.uniform(4, 8))
        ),
        inferences=int(10 ** random.uniform(0, 6)),
        raw_input_stays=bool(random.random() < 0.7),
    )


def carried_out(device: Device, request: Request, held: HeldOut, count: int) -> dict[str, Any]:
    """One plan, from its request to the predictions for so many images."""
    planned = device.prepare(request)
    loaded = device.traffic.download_bytes
    logits = [device.infer(held.pixels[start : min(start + BATCH, count)]) for start in range(0, count, BATCH)]
    traffic, pattern = device.traffic, planned.plan.pattern
    kinds = ("download", "up", "answer")
    planned_bytes = {kind: getattr(traffic, f"planned_{kind}_bytes") for kind in kinds}
    sent_bytes = {kind: getattr(traffic, f"{kind}_bytes") for kind in kinds}
    return {
        "accuracy": request.accuracy,
        "cut": pattern.cut,
        "weight_bits": pattern.weight_bits,
        "live_bits": pattern.live_bits,
        "from_cache_bytes": pattern.segment_bytes - loaded,
        "loaded_bytes": loaded,
        "planned_minus_sent_bytes": sum(abs(planned_bytes[kind] - sent_bytes[kind]) for kind in kinds),
        "resends": traffic.resends + traffic.asked_again,
        "images": count,
        **held.judged(np.concatenate(logits).argmax(axis=1)),
    }


def served(where: Site, net: Net, held: HeldOut, plans: int, seed: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Random requests of devices with caches in different states; how many were refused as infeasible."""
    random, rows, refused = np.random.default_rng(seed), [], 0
    count = min(IMAGES, len(held.pixels))
    while len(rows) < plans and refused < 5 * plans:
        cache = f"{net.name}-{random.integers(CACHES)}-{len(rows) // 12}"
        with where.device(net.name, cache) as device:
            try:
                rows.append(
                    {
                        "net": net.name,
                        **carried_out(device, random_request(random), held, count),
                    }
                )
            except Infeasible:
                refused += 1
    return rows, refused


def drop_bound(num_changed: int, num_dropped: int, total: int) -> float:
    """One-sided upper 95 % bound of an accuracy drop seen on paired predictions, whatever the drop is.

    What became wrong (lost) and what became right (gained) is bounded each by itself with 97.5 %, exactly, so both
    hold together with 95 % (Bonferroni). Only their difference is known, and that both are among the changed ones: it
    is the largest bound of all counts that may be.

    Args:
        num_changed: predictions that changed, also from one wrong class to another.
        num_dropped: lost less gained.
        total: all predictions.
    """
    lost = np.arange(max(num_dropped, 0), (num_changed + num_dropped) // 2 + 1)
    most_lost = upper_bound(lost, total, 0.975)
    least_gained = 1 - upper_bound(total - (lost - num_dropped), total, 0.975)
    return float((most_lost - least_gained).max())


def level_by_labels(artefact: Artefact, *, bounded: bool = True) -> float:
    """The largest level of changes whose verified patterns lose at most 1 % of the accuracy.

    Args:
        artefact: calibrated with labels, or the answer is the level that changes no more predictions than that.
        bounded: each of them by an upper 95 % bound, and not only on the calibration's images.
    """
    fitting = [min(MOST_DROP, artefact.tables.levels[-1])]
    total = min(artefact.extent.effort.verify_inputs, len(artefact.inputs))
    for level in artefact.tables.levels:
        bounds = [
            drop_bound(round(one.changed * total), round(one.drop * total), total) if bounded else one.drop
            for one in artefact.verified
            if one.changed <= level and one.drop is not None
        ]
        if bounds and max(bounds) <= MOST_DROP:
            fitting.append(level)
    return max(fitting)


def claimed(where: Site, net: Net, held: HeldOut, request: Request, cache: str) -> dict[str, Any]:
    """Payload of head and one image from an empty cache, and what it costs on all held-out images."""
    with where.device(net.name, cache) as device:
        row = carried_out(device, request, held, len(held.pixels))
        assert device.planned is not None
        pattern = device.planned.plan.pattern
    with where.device(net.name, cache) as device:
        device.prepare(request)
        device.infer(held.pixels[:1])
        up_bytes = device.traffic.up_bytes
    whole, payload = float32_bytes(net.artefact, pattern), row["loaded_bytes"] + up_bytes
    return {
        "net": net.name,
        **row,
        "promised_drop": MOST_DROP,
        "nodes": net.artefact.network.num_nodes,
        "one_image_up_bytes": up_bytes,
        "payload_bytes": payload,
        "float32_bytes": whole,
        "reduction": 1 - payload / whole,
        "float32_accuracy": held.accuracy,
    }


def float32_bytes(artefact: Artefact, pattern: Pattern) -> int:
    """The same head in float32, with one image's activations; not a byte of framing."""
    network = artefact.network
    heads = [artefact.parameters[node] for node in network.parametric if node < pattern.cut]
    numbers = sum(p.weight.size + (0 if p.bias is None else p.bias.size) for p in heads)
    return 4 * (numbers + sum(network.items(value) for value in network.live[pattern.cut]))


class Kind(NamedTuple):
    """One of the requests that each net is asked for.

    Attributes:
        request: with the share of predictions that may change.
        level: gives another share for an artefact; None leaves it.
        words: of what may change.
    """

    request: Request
    level: Callable[[Artefact], float] | None
    words: str


_FEW = "1 % of the predictions may change"
_SURE = "1 % of the accuracy by calibration with labels"
_SEEN = "as many may change as cost 1 % of the accuracy on the calibration's images"
_seen = partial(level_by_labels, bounded=False)
KINDS = {
    "": Kind(PAPER, None, _FEW),
    "_labels": Kind(PAPER, level_by_labels, _SURE),
    "_seen": Kind(PAPER, _seen, _SEEN),
    "_split": Kind(MICROCONTROLLER, None, f"a cut near the input, {_FEW}"),
    "_split_labels": Kind(MICROCONTROLLER, level_by_labels, f"a cut near the input, {_SURE}"),
    "_split_seen": Kind(MICROCONTROLLER, _seen, f"a cut near the input, {_SEEN}"),
}
"""By the ending of the figure's name."""


def over_a_slow_link(where: Site, net: Net, held: HeldOut) -> list[dict[str, Any]]:
    """The plans of both kinds over a link of 100 kbit/s each way, with a few images; their bytes count."""
    rows, apart = [], mock.patch.object(shm, "available", return_value=False)  # nothing may pass beside the link
    with apart, Proxy(where.endpoint, burst_s=BURST_BYTES / SLOW_BYTES_PER_S) as link:
        link.delay_s, link.bytes_per_s = SLOW_DELAY_S, SLOW_BYTES_PER_S
        for end in ("", "_split"):
            cache = f"{net.name}-slow{end}"
            with where.device(net.name, cache, endpoint=link.endpoint, timeout_s=300.0) as device:
                began = time.monotonic()
                row = carried_out(device, KINDS[end].request, held, SLOW_IMAGES)
                rows.append({"net": net.name, **row, "seconds": round(time.monotonic() - began, 2)})
    return rows


def figures(
    rows: list[dict[str, Any]],
    claims: dict[str, list[dict[str, Any]]],
    slow: list[dict[str, Any]],
    stamped: dict[str, Any],
) -> dict[str, Any]:
    """Headline figures.

    Args:
        rows: plans of random requests.
        claims: by the ending of `KINDS`, one for each net.
        slow: plans over a slow link, with too few images to judge their accuracy.
        stamped: the stamp of the run.
    """

    def figure(value: float, unit: str, peer: str) -> record.Figure:
        return record.figure(value, unit, peer, COMMAND, stamped)

    def least(several: list[dict[str, Any]], asked: str) -> record.Figure:
        one = min(several, key=lambda row: row["reduction"])
        whole = sum(row["cut"] == row["nodes"] for row in several)
        unit = f"share of the bytes of head and one image, least of {len(several)} nets ({TITLES[one['net']]}), {asked}"
        unit += f"; {whole} of the plans are whole nets" if whole else ""
        return figure(round(one["reduction"], 4), unit, "the same head and activations in float32")

    asked = [row for several in claims.values() for row in several]
    every = [*rows, *asked]
    most = max(asked, key=lambda row: row["drop"])
    return {
        **{f"qpart.payload_reduction_min{end}": least(claims[end], kind.words) for end, kind in KINDS.items()},
        "qpart.accuracy_drop_max": figure(
            round(most["drop"], 4),
            f"share of {most['images']:,} held-out images, most of {len(asked)} plans of {len(claims[''])} nets "
            f"({TITLES[most['net']]})",
            "the same net in float32",
        ),
        "qpart.promises_broken": figure(
            sum(row["drop"] > row.get("promised_drop", row["accuracy"]) for row in every),
            "plans whose accuracy on held-out images dropped by more than was asked for",
            "0",
        ),
        "qpart.changed_over_promise": figure(
            sum(row["changed"] > row["accuracy"] for row in every),
            "plans that changed a larger share of predictions than was asked for: stricter than the accuracy",
            "0",
        ),
        "qpart.plans_served": figure(len(every), "plans carried out over tcp with CURVE", ""),
        "qpart.planned_minus_sent_bytes": figure(
            sum(row["planned_minus_sent_bytes"] for row in [*every, *slow]),
            f"bytes, sum over plans and {len(slow)} more at 100 kbit/s, differences of download, requests and answers",
            "bytes counted by the link",
        ),
    }


def main() -> None:
    """Measure, record, render."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--net", choices=list(RECIPES), action="append", help="these only")
    parser.add_argument("--plans", type=int, default=PLANS, help="random requests of each net")
    parser.add_argument("--images", type=int, default=10_000, help="held-out images of the paper's claim")
    parser.add_argument("--dry", action="store_true", help="record nothing")
    args = parser.parse_args()
    stamped = record.stamp()
    found = nets(args.net or tuple(RECIPES))
    rows, refused = [], Counter[str]()
    claims: dict[str, list[dict[str, Any]]] = {end: [] for end in KINDS}
    slow: list[dict[str, Any]] = []
    with site(found) as where:
        for net in found.values():
            held = HeldOut(net, args.images)
            for end, kind in KINDS.items():
                accuracy = kind.level(net.artefact) if kind.level else kind.request.accuracy
                asked = msgspec.structs.replace(kind.request, accuracy=accuracy)
                claim = claimed(where, net, held, asked, f"{net.name}-claim{end}")
                claims[end].append(claim)
                say(
                    f"{net.name}: {claim['accuracy']:.2%} may change, cut {claim['cut']} of {claim['nodes']}: "
                    f"{claim['payload_bytes']:,} bytes and not {claim['float32_bytes']:,}, {claim['reduction']:.1%} "
                    f"less, accuracy drop {claim['drop']:.2%}"
                )
            slow += over_a_slow_link(where, net, held)
            for row in slow[-2:]:
                apart = f"{row['planned_minus_sent_bytes']} bytes beside the plan, {row['resends']} sent again"
                say(f"{net.name} at 100 kbit/s: {row['loaded_bytes']:,} bytes loaded, {apart}, {row['seconds']} s")
            more, refused[net.name] = served(where, net, held, args.plans)
            rows += more
            broken = sum(row["drop"] > row["accuracy"] for row in more)
            say(f"{net.name}: {len(more)} plans served, {refused[net.name]} infeasible, {broken} promises broken")
    headline = figures(rows, claims, slow, stamped)
    for name, figure in headline.items():
        say(f"{name}: {figure['value']} {figure['unit']}")
    if args.dry:
        return
    calibration = {net.name: {"float_accuracy": net.accuracy, "seconds": net.calibration_s} for net in found.values()}
    data = {"nets": calibration, "claims": claims, "infeasible": dict(refused), "slow": slow, "rows": rows}
    record.write("promise", data, headline, stamped)
    report.render()


if __name__ == "__main__":
    main()
