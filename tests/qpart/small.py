"""A small residual net on easy clusters, calibrated once: real margins, milliseconds to run."""

from __future__ import annotations

from functools import cache

import numpy as np

from qpart.artefact import Artefact
from qpart.network import Network, Node, Parameters
from qpart.ops import Add, Conv2d, GlobalMean, Linear, Relu

CLASSES, SHAPE = 4, (1, 6, 6)


def network() -> Network:
    """Stem, one residual block whose cuts have two live values, mean, classifier."""
    conv = Conv2d((3, 3), (1, 1), (1, 1), 4, 4)
    return Network(
        SHAPE,
        (
            Node(Conv2d((3, 3), (1, 1), (1, 1), 1, 4), (0,), "stem"),
            Node(Relu(), (1,), "stem.relu"),
            Node(conv, (2,), "block.conv"),
            Node(Add(), (3, 2), "block.add"),
            Node(GlobalMean(), (4,), "mean"),
            Node(Linear(4, CLASSES), (5,), "fc"),
        ),
    )


def parameters(seed: int = 3) -> dict[int, Parameters]:
    """Random features and a classifier fitted to them by least squares, so that margins mean something."""
    random = np.random.default_rng(seed)
    found = {}
    for i in (0, 2):
        shape = network().nodes[i].op.weight_shape
        assert shape is not None
        found[i] = Parameters(random.normal(0, 0.5, shape).astype(np.float32), np.zeros(4, np.float32))
    images, labels = examples(400, seed=1)
    features = _features(images, found)
    wanted = np.eye(CLASSES)[labels] * 4
    solution = np.linalg.lstsq(np.c_[features, np.ones(len(features))], wanted, rcond=None)[0].astype(np.float32)
    found[5] = Parameters(np.ascontiguousarray(solution[:-1].T), solution[-1].copy())
    return found


def examples(count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (count, 1, 6, 6) uint8 and their classes: stripes of four kinds with noise."""
    random = np.random.default_rng(seed)
    labels = random.integers(CLASSES, size=count)
    rows, columns = np.mgrid[0:6, 0:6]
    kinds = np.stack([rows % 2, columns % 2, (rows + columns) % 2, rows < 3]).astype(float)
    pixels = kinds[labels] * 180 + random.normal(30, 18, (count, 6, 6))
    return np.clip(pixels, 0, 255).astype(np.uint8)[:, None], labels


def _features(images: np.ndarray, found: dict[int, Parameters]) -> np.ndarray:
    from qpart.executors.with_numpy import NumpyExecutor

    return NumpyExecutor(network().nodes, found.__getitem__).run({0: images.astype(np.float32) / 255}, 0, 5, [5])[5]


@cache
def artefact() -> Artefact:
    """Calibrated; not yet written to a file."""
    from qpart.calibrate import calibrate

    images, _ = examples(400, seed=2)
    return calibrate(network(), parameters(), images, name="stripes", num_patterns=60, levels=(0.01, 0.05, 0.2))
