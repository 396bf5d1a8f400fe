"""Executors: run a stretch of a network's nodes. numpy here for devices without torch, torch where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from qpart.network import Node

Tensor = TypeVar("Tensor")


class Executor(Protocol):
    """What heads and tails ask of an executor."""

    def run_arrays(
        self, values: Mapping[int, NDArray[np.float32]], first: int, last: int, wanted: Collection[int]
    ) -> dict[int, NDArray[np.float32]]:
        """Run nodes[first:last].

        Args:
            values: what these nodes take from outside, by value id, each (batch, *shape); float32.
            first, last: the stretch.
            wanted: value ids to return; given ones are allowed.
        """


def walk(
    nodes: tuple[Node, ...],
    compute: Callable[[int, list[Tensor]], Tensor],
    values: Mapping[int, Tensor],
    first: int,
    last: int,
    wanted: Collection[int],
) -> dict[int, Tensor]:
    """Compute nodes[first:last] in order and drop every value after its last use.

    Args:
        compute: the output of the node with this index, from its inputs.

    Raises:
        ValueError: the stretch is outside of the network, or a value that is needed or wanted is not there.
    """
    if not 0 <= first <= last <= len(nodes):
        raise ValueError(f"nodes {first} to {last} asked of a network of {len(nodes)}")
    last_use = {value: i for i in range(first, last) for value in nodes[i].inputs}
    kept = {value: tensor for value, tensor in values.items() if value in last_use or value in wanted}
    for i in range(first, last):
        kept[i + 1] = compute(i, [_get(kept, value) for value in nodes[i].inputs])
        for value in {*nodes[i].inputs, i + 1}:
            if last_use.get(value, i) <= i and value not in wanted:
                del kept[value]
    return {value: _get(kept, value) for value in wanted}


def _get(values: Mapping[int, Tensor], value: int) -> Tensor:
    if value not in values:
        raise ValueError(f"value {value} was neither given nor computed; there are {sorted(values)}")
    return values[value]
