"""What the benchmarks of qpart share: four trained, calibrated nets, a server with them, devices, held-out images."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import qpart
from bench.nets.recipes import RECIPES
from edgebus.cli.demo import KeyRing, server_process
from edgebus.files import write_whole
from qpart import Device
from qpart import artefact as files
from qpart.artefact import Artefact
from qpart.demo import data, processes
from qpart.demo.train import Summary, train_all
from qpart.executors.simulator import Simulator
from qpart.inputs import as_float
from qpart.run.cache import PieceCache

OUT = Path(__file__).parents[2] / "build" / "nets"
CALIBRATION = 2000
PATTERNS = {"fc": 200, "resnet": 120, "mobilenet": 80, "transformer": 80}
DEVICE = "device"
WITHIN_S = 3600.0


def say(line: str) -> None:
    """To whoever waits."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Net:
    """One of the nets.

    Attributes:
        accuracy: of float32 on all held-out images.
        calibration_s: what calibrating it took, when that was done.
    """

    name: str
    path: Path
    accuracy: float
    calibration_s: float

    @cached_property
    def artefact(self) -> Artefact:
        """Read from its file."""
        return files.load(self.path)


def nets(names: Sequence[str] = tuple(RECIPES)) -> dict[str, Net]:
    """Nets trained and calibrated, unless that was done before with the same images, settings and code."""
    summary: Summary = train_all(OUT, list(names), recipes=RECIPES, say=say)
    return {name: _calibrated(name, summary.nets[name].accuracy) for name in names}


def _calibrated(name: str, accuracy: float) -> Net:
    net, images, out = OUT / f"{name}.pt2", OUT / "calibration_images.npy", OUT / f"{name}.qpart"
    labels = OUT / "calibration_labels.npy"
    np.save(labels, data.load().train_labels[-len(np.load(images)) :])
    digest, stamp = blake2b(digest_size=16), OUT / f"{name}.calibrated.json"
    code = sorted(file for folder in qpart.__path__ for file in Path(folder).rglob("*.py"))
    own = [file for file in code if file.parent.name not in ("cli", "demo", "run", "profiles")]
    for path in (net, images, *own):
        digest.update(path.read_bytes())
    key = f"{digest.hexdigest()} {CALIBRATION} {PATTERNS[name]} with labels"
    known = json.loads(stamp.read_text()) if stamp.is_file() and out.is_file() else {}
    if known.get("key") != key:
        began = time.monotonic()
        settings = {"limit": CALIBRATION, "patterns": PATTERNS[name]}
        processes.calibrate(net, images, out, labels=labels, within_s=WITHIN_S, **settings)
        known = {"key": key, "seconds": round(time.monotonic() - began, 1)}
        write_whole(stamp, json.dumps(known).encode())
    say(f"{name}: {out}, calibrated in {known['seconds']} s")
    return Net(name, out, accuracy, known["seconds"])


class HeldOut:
    """Held-out images and what full precision says of them.

    Args:
        net: whose answers.
        count: of the images, the first ones.
    """

    def __init__(self, net: Net, count: int) -> None:
        self.pixels: npt.NDArray[np.uint8] = np.load(OUT / "test_images.npy")[:count]
        self.labels: npt.NDArray[np.int64] = np.load(OUT / "test_labels.npy")[:count]
        artefact = net.artefact
        self.simulator = Simulator(artefact.network, artefact.parameters, artefact.ranges)
        inputs, last = as_float(self.pixels, artefact.network.input_shape), artefact.network.num_nodes
        parts = (inputs[i : i + 500] for i in range(0, len(inputs), 500))
        run = self.simulator.executor.run_arrays
        self.full = np.concatenate([run({0: part}, 0, last, [last])[last].argmax(axis=1) for part in parts])
        self.accuracy = float((self.full == self.labels).mean())

    def judged(self, predictions: npt.NDArray[np.int64]) -> dict[str, float]:
        """Drop of the accuracy and share of changed predictions on the first images, as many as there are."""
        count = len(predictions)
        right, before = predictions == self.labels[:count], self.full[:count] == self.labels[:count]
        return {
            "drop": float(before.mean() - right.mean()),
            "changed": float((predictions != self.full[:count]).mean()),
        }


@dataclass(frozen=True)
class Site:
    """A server over tcp with CURVE, in a process of its own."""

    endpoint: str
    keys: KeyRing
    root: Path
    macs_per_s: dict[str, float]

    def device(self, net: str, cache: str, *, endpoint: str | None = None, **options: Any) -> Device:
        """A device whose pieces are kept in the directory of this name."""
        return Device(
            endpoint or self.endpoint,
            model=net,
            server_key=self.keys.server_key,
            keys=self.keys.of(DEVICE),
            cache=PieceCache(self.root / cache),
            **options,
        )


@contextmanager
def site(found: dict[str, Net], *options: object) -> Iterator[Site]:
    """`qpart serve` with these nets, one thread."""
    with tempfile.TemporaryDirectory(prefix="qpart-bench-") as directory:
        root = Path(directory)
        keys = KeyRing.make(root / "keys", [DEVICE])
        command = [sys.executable, "-m", "qpart.cli", "serve", *(str(net.path) for net in found.values())]
        command += ["--bind", "tcp://127.0.0.1:0", "--keys", str(keys.of("server")), "--threads", "1", "--json"]
        with server_process([*command, *map(str, options)]) as ready:
            speeds = {model["name"]: float(model["macs_per_s"]) for model in ready["models"]}
            yield Site(ready["endpoint"], keys, root, speeds)
