"""Percentiles, ratios block by block, and the pieces that all workloads share."""

from __future__ import annotations

import contextlib
import math
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


def interval(ours: Sequence[float], theirs: Sequence[float], confidence: float = 0.9) -> tuple[float, float]:
    """Between which two ratios of single blocks the true median lies, as far as its rank can tell.

    Args:
        ours: of each block.
        theirs: likewise.
        confidence: of independent blocks, whatever their distribution (David and Nagaraja, Order Statistics, 7.1).
    """
    ordered = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    num, below, left_out = len(ordered), 0, 0.0
    while below < (num - 1) // 2 and left_out + math.comb(num, below) / 2**num <= (1 - confidence) / 2:
        left_out += math.comb(num, below) / 2**num
        below += 1
    at = max(0, below - 1)
    return round(ordered[at], 3), round(ordered[num - 1 - at], 3)


def compared(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """The ratio, and how far it can be told: `ratio` and `interval`."""
    return {"ratio": ratio(ours, theirs), "interval_90": interval(ours, theirs), "num_blocks": len(ours)}


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


class Gathered:
    """What was measured by several openings of the same peers, all blocks of each; who failed once is out.

    How fast a process is may be decided when it starts: where its memory lies, which core its threads begin on.
    """

    def __init__(self) -> None:
        self.of: dict[str, list[Any]] = {}
        self.absent: dict[str, str] = {}

    def add(self, blocks: Blocks) -> None:
        """Put what another opening measured behind what is known."""
        self.absent |= blocks.absent
        for name, done in blocks.of.items():
            self.of.setdefault(name, []).extend(done)
        for name in self.absent:
            self.of.pop(name, None)
