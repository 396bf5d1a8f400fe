"""Random networks with tables, random requests, and two oracles: trying everything, and integer programming."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from qpart import sizes
from qpart.network import Network, Node
from qpart.ops import Add, Conv2d, GlobalMean, Linear, MaxPool2d, Relu
from qpart.profile import Channel, DeviceProfile, Request, ServerProfile, Weights
from qpart.tables import WIDTHS, BudgetMap, Tables

SERVER = ServerProfile(macs_per_s=1e11, price_per_s=1e-4)
TRIED = WIDTHS[:7]
"""2 to 8 bits; 16 is made to be of no use where everything is tried."""


def dense(sizes_of: list[int]) -> Network:
    """Linear and Relu by turns."""
    nodes: list[Node] = []
    for k, (before, after) in enumerate(itertools.pairwise(sizes_of)):
        nodes.append(Node(Linear(before, after), (len(nodes),), f"fc{k}"))
        if k < len(sizes_of) - 2:
            nodes.append(Node(Relu(), (len(nodes),), f"relu{k}"))
    return Network((sizes_of[0],), tuple(nodes))


def residual(channels: int, blocks: int) -> Network:
    """Two convolutions a block and an addition: two values cross the cuts inside one."""
    conv = Conv2d((3, 3), (1, 1), (1, 1), channels, channels)
    nodes = [Node(Conv2d((3, 3), (1, 1), (1, 1), 1, channels), (0,), "stem"), Node(Relu(), (1,), "stem.relu")]
    for b in range(blocks):
        x = len(nodes)
        nodes += [Node(conv, (x,), f"b{b}a"), Node(Relu(), (x + 1,), f"b{b}r"), Node(conv, (x + 2,), f"b{b}b")]
        nodes += [Node(Add(), (x, x + 3), f"b{b}add"), Node(Relu(), (x + 4,), f"b{b}out")]
    nodes += [Node(GlobalMean(), (len(nodes),), "mean"), Node(Linear(channels, 10), (len(nodes) + 1,), "fc")]
    return Network((1, 16, 16), tuple(nodes))


def fifty_layers() -> Network:
    """ResNet-50 at 224 x 224 as to shapes: 54 layers with weights, 121 nodes, a residual addition in every block."""
    nodes = [
        Node(Conv2d((7, 7), (2, 2), (3, 3), 3, 64), (0,), "stem"),
        Node(Relu(), (1,), "stem.relu"),
        Node(MaxPool2d((3, 3), (2, 2), (1, 1)), (2,), "stem.pool"),
    ]

    def add(op: Any, inputs: tuple[int, ...], name: str) -> int:
        nodes.append(Node(op, inputs, name))
        return len(nodes)

    channels = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            stride = (2, 2) if stage and not block else (1, 1)
            x, name = len(nodes), f"{stage}.{block}"
            y = add(Relu(), (add(Conv2d((1, 1), (1, 1), (0, 0), channels, width), (x,), f"{name}.a"),), f"{name}.ar")
            y = add(Relu(), (add(Conv2d((3, 3), stride, (1, 1), width, width), (y,), f"{name}.b"),), f"{name}.br")
            y = add(Conv2d((1, 1), (1, 1), (0, 0), width, 4 * width), (y,), f"{name}.c")
            if channels != 4 * width:
                x = add(Conv2d((1, 1), stride, (0, 0), channels, 4 * width), (x,), f"{name}.short")
            add(Relu(), (add(Add(), (y, x), f"{name}.add"),), f"{name}.out")
            channels = 4 * width
    nodes += [Node(GlobalMean(), (len(nodes),), "mean"), Node(Linear(2048, 1000), (len(nodes) + 1,), "fc")]
    return Network((3, 224, 224), tuple(nodes))


def tables_for(network: Network, seed: int, *, law: bool, tried: bool = False) -> Tables:
    """Tables with the true bytes of this version, and noise that is random.

    Args:
        network: to make them for.
        seed: of the noise.
        law: noise follows s e^(-alpha b) to some 20 %; else it is off by factors, and not monotone.
        tried: 16 bits are of no use, so that 2 to 8 are all there is to try.
    """
    rng = np.random.default_rng(seed)
    bits = np.array([*WIDTHS[:-1], 12.0])

    def psi() -> tuple[float, ...]:
        scale = rng.lognormal(0, 1.5)
        row = scale * np.exp(-rng.uniform(1.2, 1.5) * bits) * rng.lognormal(0, 0.2 if law else 1.0, 8)
        if tried:
            row[-1] = row.max() + 1
        return tuple(row.tolist())

    found = sizes.all_sizes(network)._asdict()
    if tried:
        found["weight_bytes"] = {i: (*row[:-1], 10**9) for i, row in found["weight_bytes"].items()}
        found["live_bytes"] = tuple({v: (*row[:-1], 10**9) for v, row in one.items()} for one in found["live_bytes"])
    return Tables(
        network=network,
        weight_psi={i: psi() for i in network.parametric},
        live_psi=tuple({v: psi() for v in live} for live in network.live),
        budget=BudgetMap((0.001, 0.01, 0.1, 1.0, 3.0), (0.001, 0.004, 0.015, 0.03, 0.2)),
        levels=(0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1),
        **found,
    )


def random_request(rng: np.random.Generator, cached: frozenset[tuple[int, int]] = frozenset()) -> Request:
    """A device, a channel and wishes of any kind: rates over four decades, one in five with little memory."""
    tight = rng.random() < 0.2
    return Request(
        accuracy=float(10 ** rng.uniform(-2.9, -1)),
        device=DeviceProfile(
            macs_per_s=float(10 ** rng.uniform(7, 10.5)),
            joules_per_mac=float(10 ** rng.uniform(-11, -9)),
            memory_bytes=int(10 ** (rng.uniform(6, 7.5) if tight else 9)),
        ),
        channel=Channel(
            up_bits_per_s=float(10 ** rng.uniform(4, 8)), down_bits_per_s=float(10 ** rng.uniform(4, 8)),
            round_trip_s=0.01, tx_watts=1.0, rx_watts=0.3,
        ),
        weights=Weights(time=1.0, energy=float(rng.choice([0.0, 0.1, 1.0])), price=float(rng.choice([0.0, 1.0]))),
        inferences=int(10 ** rng.uniform(0, 5)),
        raw_input_stays=bool(rng.random() < 0.3),
        cached=cached,
    )  # fmt: skip


def request_at(accuracy: float, *, up_bits_per_s: float) -> Request:
    """A middling device that has all the memory it may want."""
    return Request(
        accuracy=accuracy,
        device=DeviceProfile(macs_per_s=1e9, joules_per_mac=1e-10, memory_bytes=10**9),
        channel=Channel(up_bits_per_s=up_bits_per_s, down_bits_per_s=4 * up_bits_per_s, round_trip_s=0.01),
        inferences=1000,
    )


def by_trying(
    tables: Tables,
    cut: int,
    budget: float,
    *,
    down_weight: float,
    up_weight: float,
    memory_bytes: int | None = None,
    cached: Collection[tuple[int, int]] = frozenset(),
) -> float | None:
    """The least cost over all patterns of 2 to 8 bits, summed in the order of `qpart.patterns.evaluate`.

    At most seven tensors: 7^7 patterns.
    """
    width, nodes = len(TRIED), tables.network.parametric[: tables.num_weights(cut)]
    weight_psi, held, load = np.zeros(1), np.zeros(1, np.int64), np.zeros(1, np.int64)
    for node in nodes:
        sizes_of, pieces = np.array(tables.weight_bytes[node][:width]), tables.piece_bytes[node]
        saved = [sum(pieces[i] for i in range(w + 1) if (node, WIDTHS[i]) in cached) for w in range(width)]
        weight_psi = np.add.outer(weight_psi, tables.weight_psi[node][:width]).ravel()
        held = np.add.outer(held, sizes_of).ravel()
        load = np.add.outer(load, sizes_of - saved).ravel()
    live_psi, up = np.zeros(1), np.zeros(1, np.int64)
    for value in tables.network.live[cut]:
        live_psi = np.add.outer(live_psi, tables.live_psi[cut][value][:width]).ravel()
        up = np.add.outer(up, np.array(tables.live_bytes[cut][value][:width])).ravel()
    manifest = tables.manifest_bytes[cut]
    fits = np.add.outer(weight_psi, live_psi) <= budget
    if memory_bytes is not None:
        fits &= (held + manifest + 4 * tables.device_items[cut] <= memory_bytes)[:, None]
    cost = np.add.outer(down_weight * (load + manifest), up_weight * (up + tables.infer_bytes[cut]))
    return float(cost[fits].min()) if fits.any() else None


def by_integers(tables: Tables, cut: int, budget: float, *, down_weight: float, up_weight: float) -> dict[str, float]:
    """The optimum by integer programming, one binary for each tensor and width: cost, bound and noise of its pattern.

    The solver (HiGHS) keeps constraints to 1e-7 only: the noise of its pattern may exceed the budget by so much.
    """
    nodes, live = tables.network.parametric[: tables.num_weights(cut)], tables.network.live[cut]
    rows = [(tables.weight_psi[i], tables.weight_bytes[i], down_weight) for i in nodes]
    rows += [(tables.live_psi[cut][v], tables.live_bytes[cut][v], up_weight) for v in live]
    psi = np.concatenate([row[0] for row in rows]) / budget
    cost = np.concatenate([weight * np.array(sizes_of, float) for _, sizes_of, weight in rows])
    one_each = np.kron(np.eye(len(rows)), np.ones(len(WIDTHS)))
    unit = cost.max()
    found = milp(
        cost / unit,
        integrality=np.ones(len(cost)),
        bounds=Bounds(0, (psi <= 1).astype(float)),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(psi[None, :], -np.inf, 1.0)],
        options={"mip_rel_gap": 0.0, "time_limit": 60.0},
    )
    if found.x is None:
        return {"status": float(found.status)}
    fixed = down_weight * tables.manifest_bytes[cut] + up_weight * tables.infer_bytes[cut]
    chosen = np.round(found.x)
    return {
        "status": float(found.status),
        "cost": float(cost @ chosen) + fixed,
        "bound": float(found.mip_dual_bound) * unit + fixed,
        "psi": float(psi @ chosen) * budget,
    }


def pieces_of(tables: Tables, weight_bits: tuple[int, ...]) -> frozenset[tuple[int, int]]:
    """What a device has after it was given these widths: every increment up to them, or the float16 one alone."""
    nodes = tables.network.parametric
    return frozenset(
        (node, width)
        for node, bits in zip(nodes, weight_bits, strict=False)
        for width in WIDTHS
        if width == bits or (width < bits < WIDTHS[-1])
    )
