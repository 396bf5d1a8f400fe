"""A calibrated model with its inputs and labels as files, as the command line takes them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.qpart import small


class Files(NamedTuple):
    """A calibrated model, inputs it has not seen, their labels, and all of it once more under another name."""

    artefact: Path
    other: Path
    inputs: Path
    labels: Path


def write_files(directory: Path) -> Files:
    """Write them."""
    from dataclasses import replace

    from qpart.artefact import save

    found = Files(*(directory / name for name in ("stripes.qpart", "other.qpart", "inputs.npy", "labels.npy")))
    save(small.artefact(), found.artefact)
    save(replace(small.artefact(), name="other"), found.other)
    images, labels = small.examples(200, seed=5)
    np.save(found.inputs, images)
    np.save(found.labels, labels)
    return found


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Files:
    pytest.importorskip("torch")
    return write_files(tmp_path_factory.mktemp("qpart"))


@pytest.fixture
def served(tmp_path):
    """A model to serve, and keys for a server and a device."""
    pytest.importorskip("torch")
    from tests.qpart.serving import Served

    return Served(tmp_path)


@pytest.fixture
def inputs():
    """Twelve inputs that calibration has not seen."""
    from qpart.inputs import as_float

    return as_float(small.examples(12, seed=8)[0], small.SHAPE)
