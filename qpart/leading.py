"""The best patterns of the cuts that may be the cheapest, for a cache that was not shown before.

Pure: numpy, and compiled code (`qpart/_search.pyx`). A plan needs one cut. Its specification is what all fronts say
(`qpart.solve.Solver.best_of_each`), which is also what answers where there is no compiler.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from qpart.cuts import Pairs
from qpart.fronts import Chain, Floats, Ints
from qpart.tables import WIDTHS, Tables, increments

try:
    from qpart import _search
except ImportError:  # no compiler was there
    _search = None  # type: ignore[assignment]

_MOST_BYTES = 1 << 52
"""Of all tensors: float64 counts them exactly."""
_LEAST_WEIGHT = 1e-200
"""Below it products have few digits."""
_TO_BITS = bytes(WIDTHS).ljust(256)


class Leader(NamedTuple):
    """The cheapest pattern of a cut, whatever its memory; see `qpart.patterns.Pattern`.

    Attributes:
        fits: into the memory that was given; where it does not, another pattern is to be found.
        psi: summed noise.
        weight_bits, live_bits: a byte for each width.
    """

    cut: int
    fits: bool
    psi: float
    download_bytes: int
    segment_bytes: int
    device_bytes: int
    up_bytes: int
    weight_bits: bytes
    live_bits: bytes


class Leading:
    """Looks for the cheapest cuts of one network.

    Args:
        tables: of the network.
        chain: the fronts without a cache.
        pairs: of the tables.
    """

    def __init__(self, tables: Tables, chain: Chain, pairs: Pairs) -> None:
        nodes = tables.network.parametric
        manifest = np.array(tables.manifest_bytes, np.int64)
        besides = manifest + 4 * np.array(tables.device_items, np.int64)
        held = np.array([tables.weight_bytes[node] for node in nodes], np.int64).reshape(-1, len(WIDTHS))
        self._pairs, self._manifest, self._besides = pairs, manifest.tolist(), besides.tolist()
        self._psi, self._up = pairs.psi.tolist(), pairs.up.tolist()
        self._search = None
        if _search is None or int(held.max(axis=1, initial=0).sum()) > _MOST_BYTES:
            return
        by_node = tables.piece_bytes or {node: increments(tables.weight_bytes[node]) for node in nodes}
        pieces = np.array([by_node[node] for node in nodes], np.int64).reshape(-1, len(WIDTHS))
        row = np.full(tables.network.num_nodes, -1)
        row[list(nodes)] = range(len(nodes))
        cuts = len(tables.manifest_bytes)
        first = np.append(pairs.first, len(pairs.psi)).astype(np.int64)
        corners = [first[cut] + hull(pairs.psi[first[cut] : first[cut + 1]], pairs.up[first[cut] : first[cut + 1]])
                   for cut in range(cuts)]  # fmt: skip
        self._search = _search.Search(
            np.array([tables.weight_psi[node] for node in nodes], np.float64).reshape(-1, len(WIDTHS)), held, pieces,
            row, np.array([tables.num_weights(cut) for cut in range(cuts)], np.int64), first, pairs.psi, pairs.up,
            manifest, besides, np.cumsum([0, *map(len, corners)], dtype=np.int64), np.concatenate(corners),
            chain.num_bytes, chain.psi, chain.starts,
        )  # fmt: skip

    def found(
        self,
        budgets: Floats,
        base: Floats,
        down_weight: float,
        up_weight: float,
        memory_bytes: int,
        cached: Collection[tuple[int, int]],
    ) -> list[Leader] | None:
        """See `qpart.solve.Solver.leading`."""
        if self._search is None or not min(down_weight, up_weight) > _LEAST_WEIGHT:
            return None
        found = self._search.run(cached, budgets, base, down_weight, up_weight, memory_bytes)
        if found is None:
            return None
        return [
            Leader(
                cut, fits, psi + self._psi[pair], loaded + self._manifest[cut], held + self._manifest[cut],
                held + self._besides[cut], self._up[pair], widths.translate(_TO_BITS), self._pairs.live_bits[pair],
            )
            for cut, pair, loaded, held, psi, widths, fits in found
        ]  # fmt: skip


def hull(psi: Floats, num_bytes: Ints) -> Ints:
    """Positions of the corners of a front's convex hull: bytes ascend, noise descends.

    >>> hull(np.array([9.0, 8.0, 2.0, 1.0]), np.array([1, 2, 3, 9])).tolist()
    [0, 2, 3]
    """
    corners: list[int] = []
    for k, (noise, size) in enumerate(zip(psi.tolist(), num_bytes.tolist(), strict=True)):
        while len(corners) > 1:
            a, b = corners[-2], corners[-1]
            if (num_bytes[b] - num_bytes[a]) * (psi[b] - noise) < (size - num_bytes[b]) * (psi[a] - psi[b]):
                break
            corners.pop()
        corners.append(k)
    return np.array(corners, np.int64)
