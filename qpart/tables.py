"""What calibration measured of a network, as the planner reads it: noise and bytes of every tensor at every width.

Pure: numbers only. Everything is per sample; a cut c in 0 .. L means that the device runs nodes[:c].
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from math import inf, isfinite, nextafter, sqrt
from typing import Annotated

import msgspec

from qpart.network import MAX_NODES, Network

MAX_LEVELS = 64
WIDTHS = (2, 3, 4, 5, 6, 7, 8, 16)
"""Bit widths a tensor may have; 16 is float16."""

BitList = Annotated[tuple[Annotated[int, msgspec.Meta(ge=2, le=16)], ...], msgspec.Meta(max_length=MAX_NODES)]


class BudgetMap(msgspec.Struct, frozen=True):
    """How much noise an accuracy drop allows, and the reverse.

    Attributes:
        psi: summed noise at the knots, strictly ascending, above 0.
        accuracy: upper 95 % bound of the accuracy drop (share of changed predictions) at each knot, non-decreasing.

    Raises:
        ValueError: the knots are not of that kind.
    """

    psi: tuple[float, ...]
    accuracy: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.psi or len(self.psi) != len(self.accuracy):
            raise ValueError(f"a budget map needs as many psi ({len(self.psi)}) as accuracies ({len(self.accuracy)})")
        for name, knots in (("psi", self.psi), ("accuracy", self.accuracy)):
            if not all(isfinite(knot) and knot > 0 for knot in knots):
                raise ValueError(f"{name} of a budget map must be finite and above 0, got {knots}")
        if any(b <= a for a, b in pairwise(self.psi)):
            raise ValueError(f"psi of a budget map must ascend strictly, got {self.psi}")
        if any(b < a for a, b in pairwise(self.accuracy)):
            raise ValueError(f"accuracy of a budget map must not descend, got {self.accuracy}")

    def budget(self, accuracy: float) -> float:
        """Largest summed noise whose bound of the accuracy drop is at most `accuracy`.

        Linear between knots and never above the last one. Below the first knot it falls with the square of the
        accuracy, since for small noise the share of flips grows with the noise's amplitude, the root of psi.

        >>> [BudgetMap((1.0, 3.0), (0.25, 0.5)).budget(a) for a in (0.125, 0.25, 0.375, 0.9)]
        [0.25, 1.0, 2.0, 3.0]

        Raises:
            ValueError: the accuracy is negative or not a number.
        """
        if not accuracy >= 0:
            raise ValueError(f"accuracy drop is {accuracy}, give 0 or more")
        i = bisect_right(self.accuracy, accuracy) - 1
        if i < 0:
            return self.psi[0] * (accuracy / self.accuracy[0]) ** 2
        if i == len(self.psi) - 1:
            return self.psi[-1]
        share = (accuracy - self.accuracy[i]) / (self.accuracy[i + 1] - self.accuracy[i])
        return min(self.psi[i] + (self.psi[i + 1] - self.psi[i]) * share, self.psi[i + 1])

    def accuracy_of(self, psi: float) -> float:
        """Smallest accuracy drop, to a rounding error, whose budget covers this noise; infinite above the last knot.

        What it returns does cover it: budget(accuracy_of(psi)) >= psi.

        Raises:
            ValueError: psi is negative or not a number.
        """
        if not psi >= 0:
            raise ValueError(f"psi is {psi}, give 0 or more")
        if psi > self.psi[-1]:
            return inf
        i = bisect_left(self.psi, psi)
        high = self.accuracy[i]
        if i == 0:
            accuracy = high * sqrt(psi / self.psi[0])
        else:
            low = self.accuracy[i - 1]
            accuracy = low + (high - low) * (psi - self.psi[i - 1]) / (self.psi[i] - self.psi[i - 1])
        step = nextafter(accuracy, inf) - accuracy
        while accuracy < high and self.budget(accuracy) < psi:  # ends: budget(high) >= psi, and the step doubles
            accuracy, step = accuracy + step, 2 * step
        return min(accuracy, high)


class Tables(msgspec.Struct, frozen=True, kw_only=True):
    """Noise and true bytes of every tensor of a network, by width, and the fixed bytes of every cut.

    Attributes:
        network: what is divided.
        weight_psi: by index of a node with weights: its noise at each of `WIDTHS`; measured, so it may rise with bits.
        weight_bytes: likewise, bytes of everything that ships for this width: pieces, their addresses, framing.
        piece_bytes: likewise, bytes of the one piece that takes the width below to this one, which are saved where it
            is cached; 0 where there is no such piece. The piece of 16 bits stands alone. Left out, weight_bytes are
            taken for pieces without addresses.
        live_psi: for every cut 0 .. L, by value id in network.live[cut]: noise at each width.
        live_bytes: likewise, bytes of the value in one inference request.
        manifest_bytes: per cut, the segment's description, down once; its ranges travel at cut 0 too.
        infer_bytes: per cut, what one inference request has besides its values, up; 0 at cut L.
        answer_bytes: per cut, one answer, down; 0 at cut L.
        device_items: per cut, most float32 numbers the device holds at once besides the packed segment.
        budget: noise allowed for an accuracy drop.
        levels: accuracy drops for which patterns were verified, ascending.

    Raises:
        ValueError: lengths or keys do not fit the network, or a number is out of range.
    """

    network: Network
    weight_psi: dict[int, tuple[float, ...]]
    weight_bytes: dict[int, tuple[int, ...]]
    live_psi: tuple[dict[int, tuple[float, ...]], ...]
    live_bytes: tuple[dict[int, tuple[int, ...]], ...]
    manifest_bytes: tuple[int, ...]
    infer_bytes: tuple[int, ...]
    answer_bytes: tuple[int, ...]
    device_items: tuple[int, ...]
    budget: BudgetMap
    levels: tuple[float, ...]
    piece_bytes: dict[int, tuple[int, ...]] = {}

    def __post_init__(self) -> None:
        _check_tensors("weight", self.weight_psi, self.weight_bytes, self.network.parametric)
        if self.piece_bytes:
            _check_pieces(self.piece_bytes, self.weight_bytes)
        num_cuts = self.network.num_nodes + 1
        for name in ("live_psi", "live_bytes", "manifest_bytes", "infer_bytes", "answer_bytes", "device_items"):
            if len(getattr(self, name)) != num_cuts:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries, the network has {num_cuts} cuts")
        for cut, live in enumerate(self.network.live):
            _check_tensors(f"cut {cut} live", self.live_psi[cut], self.live_bytes[cut], live)
        for name in ("manifest_bytes", "infer_bytes", "answer_bytes", "device_items"):
            if min(getattr(self, name)) < 0:
                raise ValueError(f"{name} has a negative entry: {getattr(self, name)}")
        if self.infer_bytes[-1] or self.answer_bytes[-1]:
            raise ValueError("nothing is asked at the last cut, its infer_bytes and answer_bytes must be 0")
        if len(self.levels) > MAX_LEVELS:
            raise ValueError(f"{len(self.levels)} levels are given; at most {MAX_LEVELS}")
        if any(b <= a for a, b in pairwise(self.levels)) or not all(0 < level < 1 for level in self.levels):
            raise ValueError(f"levels must ascend strictly between 0 and 1, got {self.levels}")

    def load_bytes(self, cached: Collection[tuple[int, int]]) -> dict[int, tuple[int, ...]]:
        """Bytes to load for a layer at each width, of the layers of which the device has any of these pieces."""
        loads = {}
        for node in {node for node, _ in cached} & set(self.weight_bytes):
            whole = self.weight_bytes[node]
            row = self.piece_bytes[node] if self.piece_bytes else increments(whole)
            had = [size if (node, bits) in cached else 0 for bits, size in zip(WIDTHS, row, strict=True)]
            saved = (*accumulate(had[:-1]), had[-1])
            loads[node] = tuple(size - less for size, less in zip(whole, saved, strict=True))
        return loads

    def num_weights(self, cut: int) -> int:
        """How many tensors with weights the device holds at a cut: the first ones of network.parametric."""
        return bisect_left(self.network.parametric, cut)


def increments(row: Sequence[int]) -> tuple[int, ...]:
    """What each width has more than the one below; of rows that fall, as much as is sure to be needed."""
    sure = [min(row[i:-1]) for i in range(len(row) - 1)]
    return (sure[0], *(b - a for a, b in pairwise(sure)), row[-1])


def _check_pieces(pieces: Mapping[int, Sequence[int]], num_bytes: Mapping[int, Sequence[int]]) -> None:
    if set(pieces) != set(num_bytes):
        raise ValueError(f"piece_bytes are for {sorted(pieces)}, not for {sorted(num_bytes)}")
    for node, row in pieces.items():
        if len(row) != len(WIDTHS) or min(row) < 0:
            raise ValueError(f"piece bytes of {node} must be {len(WIDTHS)} counts from 0 up, got {row}")
        if any(a > b for a, b in zip((*accumulate(row[:-1]), row[-1]), num_bytes[node], strict=True)):
            raise ValueError(f"pieces of {node} have {row} bytes, together more than {num_bytes[node]}")


def _check_tensors(
    label: str, psi: Mapping[int, Sequence[float]], num_bytes: Mapping[int, Sequence[int]], expected: Iterable[int]
) -> None:
    if set(psi) != set(expected) or set(num_bytes) != set(expected):
        raise ValueError(f"{label} tables are for {sorted(psi)} and {sorted(num_bytes)}, not for {sorted(expected)}")
    for key, row in psi.items():
        if len(row) != len(WIDTHS) or not all(isfinite(x) and x >= 0 for x in row):
            raise ValueError(f"{label} psi of {key} must be {len(WIDTHS)} finite numbers from 0 up, got {row}")
    for key, sizes in num_bytes.items():
        if len(sizes) != len(WIDTHS) or not all(0 < x < 1 << 40 for x in sizes):
            raise ValueError(f"{label} bytes of {key} must be {len(WIDTHS)} counts from 1 to 2**40, got {sizes}")
