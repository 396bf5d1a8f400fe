"""A server thread on loopback with CURVE, and devices for it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import edgebus
from qpart.artefact import Artefact, save
from qpart.profile import Channel, DeviceProfile, Request, ServerProfile
from qpart.run.cache import PieceCache
from qpart.run.device import Device
from qpart.run.served import ServedModel
from tests.qpart import small

FAST = DeviceProfile(macs_per_s=1e9, joules_per_mac=1e-10, memory_bytes=1 << 20)
SLOW_CHANNEL = Channel(up_bits_per_s=1e4, down_bits_per_s=1e6)
MANY = Request(accuracy=0.05, device=FAST, channel=SLOW_CHANNEL, inferences=100_000)
PRIVATE = Request(
    accuracy=0.2, device=FAST, channel=Channel(up_bits_per_s=1e7, down_bits_per_s=1e7), raw_input_stays=True
)
LAZY = Request(
    accuracy=0.05,
    device=DeviceProfile(macs_per_s=1e3, joules_per_mac=0, memory_bytes=1 << 20),
    channel=Channel(up_bits_per_s=1e9, down_bits_per_s=1e9),
)


class Served:
    """A server thread on loopback with CURVE, and key directories."""

    def __init__(self, directory) -> None:
        self.directory = directory
        for name in ("server", "device"):
            edgebus.generate_keys(directory / name)
        self.allow_file = directory / "server" / "allowed_keys"
        edgebus.add_to_allow_list(self.allow_file, directory / "device" / "node.key")
        self.artefact = save(small.artefact(), directory / "small.qpart")

    def simulated(self, pattern, inputs) -> np.ndarray:
        """What head and tail of a pattern answer on one machine."""
        from qpart.executors.simulator import Simulator

        a = self.artefact
        bits = pattern.cut, pattern.weight_bits, pattern.live_bits
        return Simulator(a.network, a.parameters, a.ranges).logits(*bits, inputs)

    def model(self, artefact: Artefact | None = None) -> ServedModel:
        from qpart.calibrate import measure
        from qpart.executors.simulator import Simulator
        from qpart.executors.with_torch import TorchExecutor

        a = artefact or self.artefact
        simulator = Simulator(a.network, a.parameters, a.ranges)
        run = measure(simulator, a.float_inputs(), a.logits, a.margin)
        return ServedModel(a, TorchExecutor(a.network.nodes, a.parameters), run, ServerProfile(macs_per_s=1e10))

    @contextmanager
    def serving(self, endpoint="tcp://127.0.0.1:0", models=None, *, name="server", **options) -> Iterator[str]:
        from qpart.messages import SERVICES
        from qpart.run.published import serve_pieces
        from qpart.run.server import PlanServer

        keys = edgebus.load_keys(self.directory / name)
        with edgebus.Node(name=name, keys=keys, allow=edgebus.AllowList.from_file(self.allow_file)) as node:
            models = models or [self.model()]
            for model in models:  # made before they are asked for: it takes long on a busy machine
                for blob_id in model.published.blob_ids():
                    model.published.manifest(blob_id)
            self.server = server = PlanServer(node.serve(*SERVICES), models, **options)
            real = node.bind(endpoint)
            thread = threading.Thread(target=server.run)
            with serve_pieces(node, [model.published for model in models]):
                thread.start()
                try:
                    yield real
                finally:
                    server.stop()
                    thread.join(30)

    def device(self, endpoint, cache="cache", **more) -> Device:
        return Device(
            endpoint,
            keys=self.directory / "device",
            cache=PieceCache(self.directory / cache),
            **{"timeout_s": 30.0, "server_key": self.directory / "server" / "node.key", **more},
        )


def close_to(found, expected) -> bool:
    return np.allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def in_haste(device: Device, timeout_s: float) -> None:
    """A short timeout from now on: what was before, plan and pieces, may take its time on a busy machine."""
    device._line.timeout_s = timeout_s


def wait_until(condition, within_s=30.0):
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until
        threading.Event().wait(0.01)


def _serve_until_told(directory: Path, name: str) -> None:
    """A process that is only a server: says where, and ends with its input."""
    from qpart.artefact import load

    served = Served.__new__(Served)
    served.directory, served.allow_file = directory, directory / "server" / "allowed_keys"
    served.artefact = load(directory / "small.qpart")
    with served.serving(name=name) as endpoint:
        print(endpoint, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    _serve_until_told(Path(sys.argv[1]), sys.argv[2])
