"""Percentiles, ratios block by block, and the pieces that all workloads share."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.peers.processes import ChildFailed, Pair, paired
from bench.peers.registry import PEERS


@dataclass(frozen=True)
class Scale:
    """How much is measured: the whole, or a short try whose figures mean nothing."""

    quick: bool = False

    def __call__(self, full: int, quick: int) -> int:
        """The number that applies."""
        return quick if self.quick else full


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed.

    >>> percentile([4.0, 1.0, 3.0, 2.0], 0.5)
    2.0
    """
    ordered = sorted(values)
    if not ordered or not 0 < share <= 1:
        raise ValueError(f"percentile needs values and 0 < share <= 1, got {len(ordered)} values and {share}")
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def spread_us(blocks: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Percentiles in microseconds over all blocks, and the p50 of each."""
    values = [value for block in blocks for value in block]
    shares = {"p50_us": 0.5, "p90_us": 0.9, "p99_us": 0.99}
    return {
        **{name: round(percentile(values, share) * 1e6, 1) for name, share in shares.items()},
        "block_p50_us": [round(percentile(block, 0.5) * 1e6, 1) for block in blocks],
        "count": len(values),
    }


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the block-by-block ratios: blocks that ran side by side met the same noise."""
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3)


def in_turn(names: Sequence[str], repeats: int) -> Iterator[str]:
    """Every name once a repeat, every second repeat backwards, so that a drift meets all alike."""
    for pos in range(repeats):
        yield from names if pos % 2 == 0 else reversed(names)


@contextlib.contextmanager
def opened(
    names: Sequence[str], *, links: int = 1, num_devices: int = 1, cores: tuple[int, int] | None = None
) -> Iterator[tuple[dict[str, Pair], dict[str, str]]]:
    """The processes of all these peers, idle, and why others are not there.

    Args:
        names: of the registry.
        links: how many links each server has to expect.
        num_devices: device processes of each.
        cores: of servers and of devices, None for any.
    """
    pairs: dict[str, Pair] = {}
    absent: dict[str, str] = {}
    server_core, device_core = cores or (None, None)
    with contextlib.ExitStack() as stack:
        for name in names:
            if (why := PEERS[name].missing()) is not None:
                absent[name] = why
                continue
            config = PEERS[name].config(links=links, core=server_core)
            try:
                pairs[name] = stack.enter_context(paired(config, num_devices, device_core))
            except (ChildFailed, RuntimeError) as error:
                absent[name] = f"failed to start: {error}"
        yield pairs, absent


class Blocks:
    """What was measured of each peer, block by block; a peer that fails is out, with its reason."""

    def __init__(self, pairs: Mapping[str, Pair], absent: dict[str, str]) -> None:
        self.of: dict[str, list[Any]] = {name: [] for name in pairs}
        self.absent = absent
        self._pairs = pairs

    @contextlib.contextmanager
    def trying(self, name: str) -> Iterator[list[Any]]:
        """The blocks of a peer to append to; nothing is measured again of one that failed."""
        try:
            yield self.of.get(name, [])
        except ChildFailed as error:
            self.of.pop(name, None)
            self.absent[name] = f"failed: {error} (its server: {self._pairs[name].server.last_words()})"
