"""Networks and random tables for the planner's tests, and the answers by trying everything."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np

from qpart.network import Network, Node
from qpart.ops import Add, Conv2d, GlobalMean, Linear, Relu, Reshape
from qpart.patterns import Pattern, evaluate
from qpart.profile import Channel, DeviceProfile, Request, ServerProfile, Weights
from qpart.tables import WIDTHS, BudgetMap, Tables

SERVER = ServerProfile(macs_per_s=1e12, price_per_s=1.0)


def dense(*sizes: int, flatten: bool = True) -> Network:
    """Reshape, then Linear and Relu by turns; the last Linear has no Relu."""
    nodes = [Node(Reshape((sizes[0],)), (0,), "flatten")] if flatten else []
    for k, (before, after) in enumerate(itertools.pairwise(sizes), 1):
        nodes.append(Node(Linear(before, after), (len(nodes),), f"fc{k}"))
        if k < len(sizes) - 1:
            nodes.append(Node(Relu(), (len(nodes),), f"relu{k}"))
    return Network((1, sizes[0]) if flatten else (sizes[0],), tuple(nodes))


def residual(channels: int = 4, blocks: int = 1) -> Network:
    """Conv, relu, blocks of conv relu conv add relu, mean, linear: two values cross the cuts inside a block."""
    conv = Conv2d((3, 3), (1, 1), (1, 1), channels, channels)
    nodes = [Node(Conv2d((3, 3), (1, 1), (1, 1), 1, channels), (0,), "stem"), Node(Relu(), (1,), "stem relu")]
    for b in range(blocks):
        x = len(nodes)
        nodes += [Node(conv, (x,), f"b{b}a"), Node(Relu(), (x + 1,), f"b{b}r"), Node(conv, (x + 2,), f"b{b}b")]
        nodes += [Node(Add(), (x, x + 3), f"b{b}add"), Node(Relu(), (x + 4,), f"b{b}out")]
    nodes += [Node(GlobalMean(), (len(nodes),), "mean"), Node(Linear(channels, 10), (len(nodes) + 1,), "fc")]
    return Network((1, 8, 8), tuple(nodes))


def random_tables(network: Network, seed: int, *, widths: int = 8, law: bool = False, whole: bool = False) -> Tables:
    """Tables with noisy, non-monotone psi and bytes that are neither monotone nor linear in bits.

    Args:
        network: to make them for.
        seed: of everything.
        widths: only the first so many widths are of use; the others cost a fortune and make no difference.
        law: psi follows s e^(-alpha b) closely, and bytes the bits.
        whole: psi are whole numbers, so sums are exact in any order.
    """
    rng = np.random.default_rng(seed)
    bits = np.array([*WIDTHS[:-1], 12.0])

    def psi() -> tuple[float, ...]:
        row = rng.lognormal(0, 1.5) * np.exp(-rng.uniform(1.2, 1.5) * bits) * rng.lognormal(0, 0.05 if law else 1.0, 8)
        if not law and rng.random() < 0.2:
            row[rng.integers(8)] = 0.0
        if whole:
            row = np.ceil(1e5 * row)
        row[widths:] = row[0] + 1
        return tuple(row.tolist())

    def num_bytes(items: int) -> tuple[int, ...]:
        row = [-(-items * b // 8) + 24 + (0 if law else int(rng.integers(0, 40))) for b in WIDTHS]
        return tuple(n if i < widths else 10**6 for i, n in enumerate(row))

    cuts = network.num_nodes + 1
    items = {i: int(np.prod(network.nodes[i].op.weight_shape)) for i in network.parametric}

    def pieces(row: tuple[int, ...]) -> tuple[int, ...]:
        """What each width adds, less an address or two; some widths add nothing."""
        sure = [min(row[i:-1]) for i in range(7)]
        added = [sure[0], *(b - a for a, b in itertools.pairwise(sure)), row[-1]]
        return tuple(max(0, n - 4 * (i % 3)) for i, n in enumerate(added))

    weight_bytes = {i: num_bytes(n) for i, n in items.items()}
    levels = (0.002, 0.005, 0.01, 0.02, 0.05)
    scale = 1e5 if whole else 1.0
    return Tables(
        network=network,
        weight_psi={i: psi() for i in network.parametric},
        weight_bytes=weight_bytes,
        piece_bytes={i: pieces(row) for i, row in weight_bytes.items()},
        live_psi=tuple({v: psi() for v in live} for live in network.live),
        live_bytes=tuple({v: num_bytes(network.items(v)) for v in live} for live in network.live),
        manifest_bytes=(0, *(20 + 30 * c for c in range(1, cuts))),
        infer_bytes=(*(40 for _ in range(cuts - 1)), 0),
        answer_bytes=(*(60 for _ in range(cuts - 1)), 0),
        device_items=tuple(max(network.items(v) for v in range(c + 1)) for c in range(cuts)),
        budget=BudgetMap(tuple(scale * p for p in (0.001, 0.01, 0.1, 1.0, 3.0)), (0.001, 0.004, 0.015, 0.03, 0.2)),
        levels=levels,
    )


def every_pattern(tables: Tables, cut: int, *, widths: int = 8, cached=frozenset()):
    """All patterns of a cut."""
    num_weights, num_live = tables.num_weights(cut), len(tables.network.live[cut])
    for bits in itertools.product(WIDTHS[:widths], repeat=num_weights + num_live):
        yield evaluate(tables, cut, bits[:num_weights], bits[num_weights:], cached=cached)


def by_trying(patterns: list[Pattern], budget, *, down_weight=1.0, up_weight=1.0, memory_bytes=None) -> float | None:
    """The least cost among patterns that meet the budget and fit."""
    costs = [
        down_weight * p.download_bytes + up_weight * p.up_bytes
        for p in patterns
        if p.psi <= budget and (memory_bytes is None or p.device_bytes <= memory_bytes)
    ]
    return min(costs, default=None)


class ByTrying:
    """Whether a request can be served, by running through every pattern and by the definition of a budget."""

    def __init__(self, tables: Tables, *, widths: int) -> None:
        self.tables = tables
        cuts = range(tables.network.num_nodes + 1)
        rows = [[(p.psi, p.device_bytes) for p in every_pattern(tables, cut, widths=widths)] for cut in cuts]
        self.patterns = [np.array(row) for row in rows]

    def served(
        self, accuracy: float, memory_bytes: float, stays: bool, shrink: Mapping[tuple[int, int], float]
    ) -> bool:
        """Whether any cut has a pattern that fits and that some budget allows."""
        budget, reached = self.tables.budget.budget, [i for i, one in enumerate(self.tables.levels) if one <= accuracy]
        for cut, patterns in enumerate(self.patterns):
            if stays and self.tables.network.shows_input(cut):
                continue
            if reached:
                most = max(budget(self.tables.levels[i]) * shrink.get((cut, i), 1.0) for i in reached)
            else:
                most = budget(accuracy) * shrink[(cut, -1) if (cut, -1) in shrink else (cut, 0)]
            if np.any((patterns[:, 0] <= most) & (patterns[:, 1] <= memory_bytes)):
                return True
        return False

    def best_accuracies(self) -> list[float]:
        """Where most is allowed: at the levels, and right below the first one."""
        return [math.nextafter(self.tables.levels[0] if self.tables.levels else 1.0, 0.0), *self.tables.levels]


def request(accuracy: float = 0.01, *, up=1e6, down=1e7, memory_bytes=1 << 30, time=1.0, energy=0.1, **more) -> Request:
    """A request of a middling device."""
    return Request(
        accuracy=accuracy,
        device=DeviceProfile(macs_per_s=1e7, joules_per_mac=1e-9, memory_bytes=memory_bytes),
        channel=Channel(up_bits_per_s=up, down_bits_per_s=down, round_trip_s=0.001, tx_watts=0.5, rx_watts=0.2),
        weights=Weights(time=time, energy=energy, price=0.1),
        **more,
    )


def tiny(**changes) -> Tables:
    """Reshape and one layer of 8 MACs; psi is 2 at 2 bits, 1 at 3, 0.5 from 4 up."""
    network = Network((2, 2), (Node(Reshape((4,)), (0,), "flat"), Node(Linear(4, 2), (1,), "fc")))
    psi, sizes = (2.0, 1.0, *(0.5,) * 6), (10, 15, 20, 25, 30, 35, 40, 80)
    values = {
        "network": network,
        "weight_psi": {1: psi},
        "weight_bytes": {1: sizes},
        "live_psi": ({0: psi}, {1: psi}, {}),
        "live_bytes": ({0: sizes}, {1: sizes}, {}),
        "manifest_bytes": (0, 5, 10),
        "infer_bytes": (5, 5, 0),
        "answer_bytes": (10, 10, 0),
        "device_items": (4, 4, 16),
        "budget": BudgetMap((0.25, 1.0, 4.0), (0.01, 0.02, 0.08)),
        "levels": (0.02, 0.05),
    }
    return Tables(**(values | changes))


def tiny_request(accuracy=0.02, memory_bytes=1000, **more) -> Request:
    return Request(
        accuracy=accuracy,
        device=DeviceProfile(macs_per_s=4.0, joules_per_mac=0.5, memory_bytes=memory_bytes),
        channel=Channel(up_bits_per_s=80.0, down_bits_per_s=40.0, round_trip_s=0.5, tx_watts=2.0, rx_watts=1.0),
        weights=Weights(time=1.0, energy=0.5, price=0.1),
        **more,
    )


TINY_SERVER = ServerProfile(macs_per_s=8.0, price_per_s=5.0)
