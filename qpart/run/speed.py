"""How long each node of a network takes on the machine that this runs on."""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from qpart.executors import Executor
from qpart.network import INPUT, Network
from qpart.profile import ServerProfile

_WARM_UP, _RUNS = 2, 9
_AT_LEAST = 3


class Speed(NamedTuple):
    """Seconds of every node and of a whole run, one sample at a time: medians.

    Attributes:
        layer_s: (nodes,) they add up to `whole_s`: what calls of single nodes cost more than a run is shared out.
        whole_s: of a run of all nodes.
        macs_per_s: multiply-accumulates per second of such a run.
    """

    layer_s: tuple[float, ...]
    whole_s: float
    macs_per_s: float


def measure(
    network: Network, executor: Executor, sample: npt.NDArray[np.float32], *, runs: int = _RUNS, at_most_s: float = 30.0
) -> Speed:
    """Run a network node by node and as a whole.

    Args:
        network: the nodes that the executor has.
        executor: to be measured.
        sample: one input (1, *input_shape).
        runs: whose median is taken, after two to warm up.
        at_most_s: a slow machine runs fewer, three at least.
    """
    last = network.num_nodes
    whole, layers = list[float](), list[list[float]]()
    until = time.perf_counter() + at_most_s
    for count in range(_WARM_UP + runs):
        start = time.perf_counter()
        executor.run_arrays({INPUT: sample}, 0, last, [last])
        whole.append(time.perf_counter() - start)
        layers.append(_one_by_one(network, executor, sample))
        if count + 1 >= _AT_LEAST and time.perf_counter() > until:
            break
    first = min(_WARM_UP, len(whole) - 1)
    whole_s = statistics.median(whole[first:])
    medians = np.median(np.array(layers[first:]), axis=0)
    total = float(medians.sum())
    layer_s = medians * (whole_s / total) if total > 0 else medians
    return Speed(tuple(layer_s.tolist()), whole_s, max(1.0, sum(network.macs) / max(whole_s, 1e-9)))


def server_profile(
    network: Network, executor: Executor, sample: npt.NDArray[np.float32], *, price_per_s: float = 0.0
) -> ServerProfile:
    """The profile of a server that runs this executor: measured node by node.

    Raises:
        RequestError: the price is out of range.
    """
    speed = measure(network, executor, sample)
    return ServerProfile(macs_per_s=speed.macs_per_s, price_per_s=price_per_s, layer_s=speed.layer_s)


def _one_by_one(network: Network, executor: Executor, sample: npt.NDArray[np.float32]) -> list[float]:
    """Seconds of every node in one pass; values are dropped after their last use, as in a run."""
    last_use = {value: i for i, node in enumerate(network.nodes) for value in node.inputs}
    values, times_s = {INPUT: sample}, []
    for i, node in enumerate(network.nodes):
        given = {value: values[value] for value in node.inputs}
        start = time.perf_counter()
        made = executor.run_arrays(given, i, i + 1, [i + 1])
        times_s.append(time.perf_counter() - start)
        values |= made
        for value in {*node.inputs}:
            if last_use[value] == i:
                del values[value]
    return times_s
