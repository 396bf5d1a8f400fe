"""The tail of a network on a server: what arrived, checked, dequantised, and run in full precision."""

from __future__ import annotations

from collections.abc import Sequence
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


class Tail:
    """Answers requests for one model; keeps nothing between them.

    Args:
        artefact: the model.
        executor: of the whole network in full precision.
    """

    def __init__(self, artefact: Artefact, executor: Executor) -> None:
        self._artefact, self._executor = artefact, executor

    def answer(self, infer: Infer, arrays: Sequence[npt.NDArray[Any]]) -> Floats:
        """Logits (batch, classes) for what arrived.

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
        values = {}
        for value, bits, array in zip(live, infer.live_bits, arrays, strict=True):
            self._check(value, bits, array, batch)
            found = self._artefact.ranges[value][WIDTHS.index(bits)]
            values[value] = dequantise_activation(array, bits, found, network.shapes[value])
            if bits == HALF and not np.isfinite(values[value]).all():
                raise ShapeMismatch(f"{network.name_of(value)} holds numbers that are not finite")
        return self._executor.run_arrays(values, cut, last, [last])[last]

    def _check(self, value: int, bits: int, array: npt.NDArray[Any], batch: int) -> None:
        network = self._artefact.network
        label, items = network.name_of(value), network.items(value)
        if bits not in WIDTHS:
            raise ShapeMismatch(f"{label} comes at {bits} bits, known are {WIDTHS}")
        dtype, columns = ("float16", items) if bits == HALF else ("uint8", activation_bytes(items, bits))
        if array.dtype != dtype or array.shape != (batch, columns):
            raise ShapeMismatch(f"{label} arrived as {array.dtype} {array.shape}, not {dtype} ({batch}, {columns})")
        widest = max(network.items(v) for v in range(network.num_nodes + 1))
        if batch * widest > MAX_ITEMS:
            raise ShapeMismatch(f"a batch of {batch} is too large here; send at most {MAX_ITEMS // widest} at once")
