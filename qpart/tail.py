"""The tail of a network on a server: what arrived, checked, dequantised, and run in full precision.

Requests of many devices run in one forward. Their widths may differ, since what is dequantised is float32; so may
their cuts: what was cut early is computed up to the next cut, where what was cut there joins it.

Rows of a batch do not mix, but a matrix product of more rows may sum in another order: answers of one request alone
and in a batch differ by at most `BATCH_TOLERANCE` of the largest logit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qpart.artefact import Artefact
from qpart.errors import ShapeMismatch
from qpart.executors import Executor
from qpart.messages import Infer
from qpart.quantiser import HALF, Floats, activation_bytes, dequantise_activation
from qpart.tables import WIDTHS

MAX_ITEMS = 1 << 24
"""Numbers one request may make the server dequantise."""
BATCH_TOLERANCE = 1e-5
"""Of the largest logit."""


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """A checked request, still packed.

    Attributes:
        cut: where the device stopped.
        live_bits, arrays: of every live value.
        samples: in the batch of this request.
    """

    cut: int
    live_bits: tuple[int, ...]
    arrays: tuple[npt.NDArray[Any], ...]
    samples: int


class Tail:
    """Answers requests for one model; keeps nothing between them.

    Args:
        artefact: the model.
        executor: of the whole network in full precision.
    """

    def __init__(self, artefact: Artefact, executor: Executor) -> None:
        self._artefact, self._executor = artefact, executor
        network = artefact.network
        self.widest = max(network.items(value) for value in range(network.num_nodes + 1))
        self._costs = [float(sum(network.macs[cut:])) for cut in range(network.num_nodes + 1)]

    def cost(self, work: Work) -> float:
        """Multiply-accumulates of a request; at least 1."""
        return max(1.0, self._costs[work.cut] * work.samples)

    def answer(self, infer: Infer, arrays: Sequence[npt.NDArray[Any]]) -> Floats:
        """Logits (batch, classes) for what arrived, alone.

        Raises:
            ShapeMismatch: see `check`.
        """
        return self.answers([self.check(infer, arrays)])[0]

    def check(self, infer: Infer, arrays: Sequence[npt.NDArray[Any]]) -> Work:
        """Hold a request against the model, before it takes anybody's time.

        Raises:
            ShapeMismatch: cut, widths and arrays do not fit the model or each other, or numbers are not finite.
        """
        network, cut, last = self._artefact.network, infer.cut, self._artefact.network.num_nodes
        if cut >= last:
            raise ShapeMismatch(f"cut {cut} leaves nothing to run; the model has {last} nodes")
        live = network.live[cut]
        if not len(live) == len(infer.live_bits) == len(arrays):
            raise ShapeMismatch(
                f"{len(arrays)} arrays and {len(infer.live_bits)} widths arrived, {len(live)} values cross cut {cut}"
            )
        batch = len(arrays[0]) if arrays[0].ndim else 0
        if not batch:
            raise ShapeMismatch("a batch of 0 arrived; send one sample or more")
        for value, bits, array in zip(live, infer.live_bits, arrays, strict=True):
            self._check(value, bits, array, batch)
        return Work(cut, tuple(infer.live_bits), tuple(arrays), batch)

    def answers(self, works: Sequence[Work]) -> list[Floats]:
        """Logits (batch, classes) of every request, from one pass through the network."""
        network, last = self._artefact.network, self._artefact.network.num_nodes
        order = sorted(range(len(works)), key=lambda i: works[i].cut)
        cuts = sorted({work.cut for work in works})
        values: dict[int, Floats] = {}
        for cut, until in zip(cuts, [*cuts[1:], last], strict=True):
            joining = [works[i] for i in order if works[i].cut == cut]
            given = {
                value: self._stacked(values.get(value), position, value, joining)
                for position, value in enumerate(network.live[cut])
            }
            values = self._executor.run_arrays(given, cut, until, network.live[until] or [last])
        logits = values[last]
        ends = np.cumsum([works[i].samples for i in order])
        found = dict(zip(order, np.split(logits, ends[:-1]), strict=True))
        return [found[i] for i in range(len(works))]

    def _stacked(self, before: Floats | None, position: int, value: int, joining: Sequence[Work]) -> Floats:
        """A live value of what came here already and of what joins here, (samples, *shape)."""
        ranges, shape = self._artefact.ranges[value], self._artefact.network.shapes[value]
        parts = [before] if before is not None else []
        for work in joining:
            bits = work.live_bits[position]
            parts.append(dequantise_activation(work.arrays[position], bits, ranges[WIDTHS.index(bits)], shape))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _check(self, value: int, bits: int, array: npt.NDArray[Any], batch: int) -> None:
        network = self._artefact.network
        label, items = network.name_of(value), network.items(value)
        if bits not in WIDTHS:
            raise ShapeMismatch(f"{label} comes at {bits} bits, known are {WIDTHS}")
        dtype, columns = ("float16", items) if bits == HALF else ("uint8", activation_bytes(items, bits))
        if array.dtype != dtype or array.shape != (batch, columns):
            raise ShapeMismatch(f"{label} arrived as {array.dtype} {array.shape}, not {dtype} ({batch}, {columns})")
        if batch * self.widest > MAX_ITEMS:
            raise ShapeMismatch(
                f"a batch of {batch} is too large here; send at most {MAX_ITEMS // self.widest} at once"
            )
        if bits == HALF and not np.isfinite(array).all():
            raise ShapeMismatch(f"{label} holds numbers that are not finite")
