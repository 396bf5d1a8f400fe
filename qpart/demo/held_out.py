"""Held-out images and what the nets say to them in full precision and in simulation."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgebus.payloads import decode
from qpart.artefact import Artefact
from qpart.executors.simulator import Simulator
from qpart.head import Head
from qpart.inputs import as_float
from qpart.messages import Chosen, Infer, Segment
from qpart.network import INPUT
from qpart.patterns import Pattern
from qpart.quantiser import Floats
from qpart.run.served import ServedModel


class HeldOut:
    """One net on held-out images.

    Args:
        served: the net as a server has it.
        images: (n, 1, height, width) uint8.
        labels: (n,).
    """

    def __init__(self, served: ServedModel, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> None:
        self._served, self.images, self.labels = served, images, labels
        self._simulator = Simulator(self.artefact.network, self.artefact.parameters, self.artefact.ranges)

    @property
    def artefact(self) -> Artefact:
        return self._served.artefact

    @cached_property
    def inputs(self) -> Floats:
        """Images as the net takes them."""
        return as_float(self.images, self.artefact.network.input_shape)

    @cached_property
    def full(self) -> Floats:
        """Logits in full precision."""
        last = self.artefact.network.num_nodes
        return self._simulator.executor.run_arrays({INPUT: self.inputs}, 0, last, [last])[last]

    def accuracy(self, logits: Floats) -> float:
        """Share of the first images that these logits (m, classes) answer rightly."""
        return float((logits.argmax(axis=1) == self.labels[: len(logits)]).mean())

    def simulated(self, pattern: Pattern) -> Floats:
        """Logits of a pattern, all on torch in large batches."""
        return self._simulator.logits(pattern.cut, pattern.weight_bits, pattern.live_bits, self.inputs)

    def replayed(self, pattern: Pattern, count: int) -> Floats:
        """Logits of a pattern image by image, head and tail as device and server run them, without a bus."""
        served, model_id = self._served, self.artefact.model_id
        raw = served.segment(Chosen(model_id, pattern.cut, pattern.weight_bits, pattern.live_bits))
        segment = decode(Segment, raw)
        head = Head(segment, served.published.pieces(segment))
        asked, answers = Infer(model_id, pattern.cut, pattern.live_bits), []
        for k in range(count):
            one = self.inputs[k : k + 1]
            answers.append(head.answer(one) if head.is_whole else served.tail.answer(asked, head.run(one)))
        return np.concatenate(answers)


def load_images(nets: Path) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The held-out images and their labels."""
    return np.load(nets / "test_images.npy"), np.load(nets / "test_labels.npy")
