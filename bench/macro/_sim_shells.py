"""The device's and the servers' real loops on a virtual network: stand-ins for what lies between them and the bus."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import edgebus
from bench.macro._sim_drafters import Slow, drafter_of
from bench.macro._sim_plan import TARGET, Plan
from edgebus.testing import SimLink, SimNetwork, SimNode
from sled.drafters.guard import Guard
from sled.learned import Learned
from sled.run.around import Around
from sled.run.device import Device
from sled.run.server import TargetServer
from sled.run.servers import Servers
from sled.server import FixedWindow, WindowPolicy
from sled.testing import ToyTarget

FORWARD_S = 0.03


class Wrong(AssertionError):
    """An answer is not what it must be."""


class Crashed(BaseException):
    """The device's process is gone: no `except` of its own may see it."""


# -- servers


class InTurns(FixedWindow):
    """The server decodes for a while, then devices draft for a while."""

    def __init__(self) -> None:
        super().__init__(4)
        self._told = 0

    def limit(self, session_id: bytes, now: float) -> int:
        """See WindowPolicy."""
        self._told += 1
        return 4 if self._told // 5 % 2 else 0


class SimServer:
    """The server's real loop, driven by the virtual clock; a new one after every death."""

    def __init__(self, net: SimNetwork, name: str, policy: str, make: Callable[..., TargetServer]) -> None:
        self._net, self._policy, self._make = net, policy, make
        self.node = net.node(name, self._handle, on_restart=self._start)
        self._start()

    def _start(self) -> None:
        policy: WindowPolicy = InTurns() if self._policy == "turns" else FixedWindow(int(self._policy))
        clock = self.node.clock if hasattr(self, "node") else self._net.clock
        target = ToyTarget()
        target._rows = TARGET._rows  # they depend on nothing that happens
        self._server = self._make(None, target, clock=clock, policy=policy)
        self._stepping = False

    def _handle(self, request: Any) -> None:
        self._server.handle(request)
        if not self._stepping:
            self._stepping = True
            self._later()

    def _later(self) -> None:
        server = self._server
        self.node.call_later(FORWARD_S, lambda: self._step(server))

    def _step(self, server: TargetServer) -> None:
        if server is self._server:
            self._stepping = server.step()
            if self._stepping:
                self._later()


# -- the device


class SimPending:
    """A request whose waiting lets virtual time pass."""

    def __init__(self, device: SimDevice, pending: Any) -> None:
        self._device, self._pending = device, pending

    def wait(self, timeout_s: float) -> bool:
        """See edgebus.Pending."""
        self._device.let_pass(timeout_s, self._pending.done)
        return self.done()

    def done(self) -> bool:
        """See edgebus.Pending."""
        self._device.check()
        return bool(self._pending.done())

    @property
    def outcome(self) -> str | None:
        """See edgebus.Pending."""
        outcome: str | None = self._pending.outcome
        return outcome

    def result(self) -> Any:
        """See edgebus.Pending."""
        self._device.check()
        assert self._pending.done()
        return self._pending.result()

    def cancel(self) -> None:
        """See edgebus.Pending."""
        self._device.check()
        self._pending.cancel()


class SimFace:
    """A link as the device's shell uses it."""

    def __init__(self, device: SimDevice, link: SimLink, endpoint: str) -> None:
        self._device, self._link, self.endpoint = device, link, endpoint

    @property
    def health(self) -> Any:
        """See edgebus.Link."""
        return self._link.attached.link.health(self._device.node.now)

    def stats(self) -> Any:
        """Of edgebus.Link's, what an answer asks for."""
        return SimpleNamespace(round_trip_s=self._link.attached.link.liveness.round_trip_s)

    def send_request(self, service: str, payload: bytes, timeout_s: float) -> SimPending:
        """See edgebus.Link."""
        self._device.check()
        return SimPending(self._device, self._link.send_request(service, payload, timeout_s=timeout_s))

    def send(self, service: str, payload: bytes, timeout_s: float) -> SimPending:
        """See edgebus.Link."""
        return self.send_request(service, payload, timeout_s)

    def request(self, service: str, payload: bytes, timeout_s: float) -> Any:
        """See edgebus.Link."""
        pending = self.send_request(service, payload, timeout_s)
        pending.wait(timeout_s + 1.0)
        return pending.result() if pending.done() else None

    def stream(self, service: str, payload: bytes, window_bytes: int) -> SimStream:
        """See edgebus.Link."""
        self._device.check()
        return SimStream(self._device, self._link.stream(service, payload, window_bytes=window_bytes))


class SimStream:
    """A stream whose waiting lets virtual time pass."""

    def __init__(self, device: SimDevice, stream: edgebus.Stream) -> None:
        self._device, self._stream = device, stream

    def __enter__(self) -> SimStream:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._device.dead:
            self._stream.cancel()

    @property
    def ended(self) -> bool:
        """See edgebus.Stream."""
        return self._stream.ended

    def get(self, timeout_s: float) -> Any:
        """See edgebus.Stream."""
        self._device.check()
        part = self._stream.get(timeout_s)
        self._device.check()
        return part

    def result(self) -> Any:
        """See edgebus.Stream."""
        return self._stream.result()


class SimPool:
    """Chooses among links that live, as edgebus.Pool does."""

    def __init__(self, device: SimDevice, faces: Sequence[SimFace]) -> None:
        self._device, self._faces = device, faces

    def link(self, timeout_s: float, *, but: Callable[[Any], bool] = lambda link: False) -> SimFace:
        """See edgebus.Pool."""

        def usable() -> list[SimFace]:
            return [face for face in self._faces if face.health in ("up", "busy") and not but(face)]

        self._device.let_pass(timeout_s, lambda: bool(usable()))
        self._device.check()
        if not usable():
            raise edgebus.PeerUnreachable(f"no server lived within {timeout_s:.3g} s")
        return self._device.chance.choice(usable())


class SimServers(Servers):
    """The real choice of servers over simulated links."""

    def __init__(self, device: SimDevice, faces: Sequence[SimFace]) -> None:
        self._device, self._faces = device, list(faces)
        node: Any = self
        where = [(face.endpoint, None) for face in faces]
        super().__init__(node, where, service="sled", directory=False, timeout_s=60.0, clock=device.node.clock)

    def connect(self, endpoint: str, server_key: str | None, timeout_s: float) -> Any:
        """As a node would."""
        return next(face for face in self._faces if face.endpoint == endpoint)

    def traffic(self) -> tuple[int, int]:
        """Nobody asks."""
        return 0, 0

    def _make_pool(self) -> Any:
        return SimPool(self._device, self._faces)


class SimDevice(Device):
    """The device's real shell, with its links, clock, chance and disk simulated.

    Args:
        net: the network.
        node: where it runs.
        servers: whom it knows.
        plan: its answer.
        disk: files, which outlive it.
        chance: of everything it draws.
    """

    def __init__(
        self,
        net: SimNetwork,
        node: SimNode,
        servers: Sequence[SimServer],
        plan: Plan,
        disk: dict[Path, bytes],
        chance: random.Random,
    ) -> None:
        self.net, self.node, self.disk, self.chance, self.dead = net, node, disk, chance, False
        self._life = node.life
        self._timeout_s, self._learned = 20.0, Learned()
        self._on_loss, self._wait_s, self._release_after_s = plan.on_loss, plan.wait_s, plan.release_after_s
        self._around = Around(
            node.clock, self._sleep, lambda: chance.randbytes(8), chance, 0.1, write=self._write, read=self._read
        )
        self.closed, self._streaming, self._vocabulary_bytes = False, False, 0
        self.target = TARGET.described
        self._pieces = TARGET.vocabulary.pieces
        drafter = Slow(self.let_pass, drafter_of(plan, chance), plan.draft_s)
        self._drafter = Guard(drafter, vocab_size=TARGET.shape.vocab_size)
        faces = [SimFace(self, net.connect(node, server.node), server.node.name) for server in servers]
        self._servers = SimServers(self, faces)

    def check(self) -> None:
        """Whether it is still alive."""
        if self.dead or self.node.life != self._life:
            raise Crashed

    def let_pass(self, timeout_s: float, condition: Callable[[], bool]) -> None:
        """Let virtual time pass until something has happened."""
        self.check()
        self.net.run_until(condition, timeout_s)
        self.check()

    def _sleep(self, seconds: float) -> None:
        self.let_pass(max(seconds, 0.001), lambda: False)

    def _write(self, path: Path, content: bytes) -> None:
        self.check()
        self.disk[path] = content

    def _read(self, path: Path, most: int) -> bytes:
        return self.disk[path][:most]
