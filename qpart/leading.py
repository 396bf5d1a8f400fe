"""The best patterns of the cuts that may be the cheapest, for a cache that was not shown before.

Pure: numpy, and compiled code (`qpart/_search.pyx`). A plan needs one cut. Its specification is what all fronts say
(`qpart.solve.Solver.best_of_each`), which is also what answers where there is no compiler.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from qpart.cuts import Joined, Pairs
from qpart.fronts import Chain, Floats, Ints
from qpart.tables import WIDTHS, Tables, increments

try:
    from qpart import _search
except ImportError:  # no compiler was there
    _search = None  # type: ignore[assignment]

_MOST_BYTES = 1 << 52
"""Of all tensors: float64 counts them exactly."""
_LEAST_WEIGHT, _MOST_NOISE = 1e-200, 1e100
"""Beyond these products are no numbers any more, or have few digits."""
_TO_BITS = bytes(WIDTHS).ljust(256)


class Leader(NamedTuple):
    """The cheapest pattern of a cut, whatever its memory; see `qpart.solve.Pattern`.

    Attributes:
        fits: into the memory that was given; where it does not, another pattern is to be found.
        weight_bits, live_bits: a byte for each width.
    """

    cut: int
    fits: bool
    download_bytes: int
    device_bytes: int
    up_bytes: int
    weight_bits: bytes
    live_bits: bytes


class Leading:
    """Looks for the cheapest cuts of one network.

    Args:
        tables: of the network.
        chain: the fronts without a cache.
        joined: the same.
        pairs: of the tables.
    """

    def __init__(self, tables: Tables, chain: Chain, joined: Joined, pairs: Pairs) -> None:
        nodes = tables.network.parametric
        self._chain, self._joined, self._pairs = chain, joined, pairs
        self._manifest = np.array(tables.manifest_bytes, np.int64)
        self._besides = self._manifest + 4 * np.array(tables.device_items, np.int64)
        self._held = np.array([tables.weight_bytes[node] for node in nodes], np.int64).reshape(-1, len(WIDTHS))
        pieces = tables.piece_bytes or {node: increments(tables.weight_bytes[node]) for node in nodes}
        self._pieces = np.array([pieces[node] for node in nodes], np.int64).reshape(-1, len(WIDTHS))
        self._place = {(node, bits): k for k, (node, bits) in enumerate((i, bits) for i in nodes for bits in WIDTHS)}
        self._search = None
        if _search is None or int(self._held.max(axis=1, initial=0).sum()) > _MOST_BYTES:
            return
        cuts = len(tables.manifest_bytes)
        first = np.append(pairs.first, len(pairs.psi)).astype(np.int64)
        prefix = np.array([tables.num_weights(cut) for cut in range(cuts)], np.int64)
        most = np.append(0, np.cumsum(self._held.max(axis=1, initial=0)))[prefix]  # of any pattern
        self._most_held, self._most_loaded = int((self._besides + most).max()), self._manifest + most
        self._most_up = pairs.up[first[1:] - 1]
        self._least_psi = chain.psi[chain.starts[prefix + 1] - 1] + pairs.psi[first[1:] - 1]
        corners = [first[cut] + hull(pairs.psi[first[cut] : first[cut + 1]], pairs.up[first[cut] : first[cut + 1]])
                   for cut in range(cuts)]  # fmt: skip
        self._search = _search.Search(
            np.array([tables.weight_psi[node] for node in nodes], np.float64).reshape(-1, len(WIDTHS)), self._held,
            prefix, first, pairs.psi, pairs.up,
            self._manifest, self._besides, np.cumsum([0, *map(len, corners)], dtype=np.int64), np.concatenate(corners),
        )  # fmt: skip

    def loads(self, cached: Collection[tuple[int, int]]) -> Ints:
        """(tensors, widths) bytes to load where the device has these pieces; `Tables.load_bytes` of all layers."""
        place, had = self._place, np.zeros(self._pieces.size, np.int64)
        known = [place[piece] for piece in cached if piece in place]
        had[known] = self._pieces.ravel()[known]
        had = had.reshape(self._pieces.shape)
        saved = np.cumsum(had, axis=1)
        saved[:, -1] = had[:, -1]
        found: Ints = self._held - saved
        return found

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
        if self._search is None or not (min(down_weight, up_weight) > _LEAST_WEIGHT and (budgets < _MOST_NOISE).all()):
            return None
        rate, up = up_weight / down_weight, self._pairs.up
        if memory_bytes >= self._most_held:  # whatever keeps to the budget will do, and bounds are found on the way
            exists, upper = self._least_psi <= budgets, self._most_loaded + rate * self._most_up
        else:
            plain = self._joined.cheapest(self._joined.positions(budgets), down_weight, up_weight, memory_bytes)
            loaded_at_most = self._chain.num_bytes[plain.point] + self._manifest  # what is held
            exists, upper = plain.exists, loaded_at_most + rate * up[plain.pair]
        upper[~(exists & np.isfinite(base))] = np.inf
        found = self._search.run(self.loads(cached), budgets, base, upper, down_weight, up_weight, memory_bytes)
        if found is None:
            return None
        return [
            Leader(
                cut, fits, loaded + int(self._manifest[cut]), held + int(self._besides[cut]), int(up[pair]),
                widths.translate(_TO_BITS), self._pairs.live_bits[pair],
            )
            for cut, pair, loaded, held, widths, fits in found
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
