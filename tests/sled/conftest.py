"""A toy target served over a real socket, and devices that ask it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import edgebus
from sled.run.device import Device
from sled.run.server import TargetServer
from sled.server import ServerLimits
from sled.testing import ToyTarget, serving


class Served:
    """A server thread on loopback with CURVE, and its key directories."""

    def __init__(self, directory) -> None:
        self.directory = directory
        for name in ("server", "other", "device"):
            edgebus.generate_keys(directory / name)
        self.allow_file = directory / "server" / "allowed_keys"
        edgebus.add_to_allow_list(self.allow_file, directory / "device" / "node.key")
        self.target = ToyTarget()
        self.servers: dict[str, TargetServer] = {}
        self.nodes: dict[str, edgebus.Node] = {}

    @contextmanager
    def serving(
        self, endpoint="tcp://127.0.0.1:0", target=None, limits: ServerLimits | None = None, *, name="server", **more
    ) -> Iterator[str]:
        keys = edgebus.load_keys(self.directory / name)
        with edgebus.Node(name=name, keys=keys, allow=edgebus.AllowList.from_file(self.allow_file)) as node:
            real = node.bind(endpoint)
            with serving(node, target or self.target, limits, **more) as self.server:
                self.servers[name], self.nodes[name] = self.server, node
                yield real

    def device(self, endpoint, drafter="none", timeout_s=10.0, **more) -> Device:
        names = ["server"] if isinstance(endpoint, str) else ["server", "other"]
        return Device(
            endpoint,
            server_key=[self.directory / name / "node.key" for name in names],
            keys=self.directory / "device",
            drafter=drafter,
            timeout_s=timeout_s,
            cache_dir=self.directory / "cache",
            **more,
        )


@pytest.fixture
def served(tmp_path) -> Served:
    return Served(tmp_path)
