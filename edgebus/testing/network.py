"""The virtual network: nodes, links and faults on one virtual clock, from one seed."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from edgebus.answerer import Answerer
from edgebus.arrays import Array, pack_arrays
from edgebus.calls import Pending
from edgebus.config import Limits
from edgebus.hub import Attached, Hub, Route
from edgebus.inbox import Request
from edgebus.messages import Message
from edgebus.requests import Arrived, Settled, refusal
from edgebus.stats import LinkStats, link_stats
from edgebus.testing.clock import FakeClock

Handler = Callable[[Request], None]
Delivery = tuple[float, str, str, str]
_MAX_STEPS = 1_000_000


class SimNode:
    """A node of the virtual network; made by SimNetwork.node."""

    def __init__(self, net: SimNetwork, name: str, handler: Handler | None, limits: Limits) -> None:
        self.name = name
        self.handler = handler
        self._net = net
        self._limits = limits
        self.hub = self._new_hub()

    def _new_hub(self) -> Hub:
        return Hub(name=self.name, limits=self._limits, new_incarnation=self._net.new_incarnation)

    def restart(self) -> None:
        """Lose all memory, as after a crash."""
        self.hub = self._new_hub()

    def deliver(self, attached: Attached, arrived: Arrived) -> None:
        """Hand a request to the handler."""
        if self.handler is None:
            self._answer(
                attached, arrived.answerer, arrived.id, refusal(arrived.id, "unknown_service", "nothing is served here")
            )
        else:
            self.handler(Request(attached, arrived, self._answer, self._net.clock))

    def _answer(self, attached: Attached, answerer: Answerer, request_id: int, message: Message) -> None:
        answerer.answer(request_id, message)
        self.hub.touch(attached, now=self._net.clock.now)
        self._net.call_later(0.0, lambda: None)  # a turn, so that it is sent


class SimLink:
    """A dialled link of the virtual network; made by SimNetwork.connect."""

    def __init__(self, net: SimNetwork, attached: Attached, dialler: SimNode) -> None:
        self._net = net
        self._dialler = dialler
        self.attached = attached

    def send_request(
        self, service: str, payload: bytes = b"", arrays: Sequence[Array] = (), timeout_s: float = 10.0
    ) -> Pending:
        """As edgebus.Link.send_request; run the network until `pending.done()`, then take its result()."""
        specs, array_frames = pack_arrays(arrays)
        now = self._net.clock.now
        pending = Pending(service, timeout_s, now + timeout_s, self._cancel)
        pending.request_id = self.attached.link.caller.start(
            service, specs, (payload, *array_frames), deadline_at=pending.deadline_at, ref=pending, now=now
        )
        self._dialler.hub.touch(self.attached, now=now)
        return pending

    def stats(self) -> LinkStats:
        """Counters of this link."""
        return link_stats(self.attached)

    def _cancel(self, pending: Pending) -> None:
        assert pending.request_id is not None
        self.attached.link.caller.cancel(pending.request_id)
        self._dialler.hub.touch(self.attached, now=self._net.clock.now)


@dataclass
class _Wire:
    """One connection; a reconnect makes another one, which is why old messages cannot come by it."""

    dialler: SimNode
    listener: SimNode
    dialler_route: Route
    listener_route: Route
    open: bool = True
    last_at: dict[str, float] = field(default_factory=dict)


class SimNetwork:
    """Nodes, links and faults on one virtual clock.

    Args:
        seed: of everything random.
        loss: probability that a message vanishes.
        duplicate: probability that it comes twice.
        delay_s: least and greatest delay in seconds.
        reorder: False keeps the order of messages, as tcp does.

    As a context manager it names the seed in every exception that leaves it.
    """

    def __init__(
        self,
        seed: int,
        *,
        loss: float = 0.0,
        duplicate: float = 0.0,
        delay_s: tuple[float, float] = (0.001, 0.05),
        reorder: bool = True,
    ) -> None:
        self.seed = seed
        self.clock = FakeClock()
        self.trace: list[Delivery] = []
        self._loss, self._duplicate, self._delay_s, self._reorder = loss, duplicate, delay_s, reorder
        self._random = random.Random(seed)  # noqa: S311 - to be repeatable is the point
        self._nodes: list[SimNode] = []
        self._wires: list[_Wire] = []
        self._cut: set[frozenset[str]] = set()
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def __enter__(self) -> SimNetwork:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(f"replay with SimNetwork(seed={self.seed}), virtual time {self.clock.now:.3f} s")

    def new_incarnation(self) -> bytes:
        """16 bytes from the seed."""
        return self._random.randbytes(16)

    def node(self, name: str, handler: Handler | None = None, limits: Limits | None = None) -> SimNode:
        """Add a node; its handler gets every request and may answer later (call_later)."""
        node = SimNode(self, name, handler, limits or Limits())
        self._nodes.append(node)
        return node

    def connect(self, dialler: SimNode, listener: SimNode) -> SimLink:
        """Dial; requests may be sent at once, they wait for the link."""
        route = (1 + next(self._order), b"")
        attached = dialler.hub.dial(route, now=self.clock.now)
        self._reconnect(dialler, listener, route)
        return SimLink(self, attached, dialler)

    def partition(self, a: SimNode, b: SimNode) -> None:
        """Cut the cable: messages vanish, nobody is told."""
        self._cut.add(frozenset((a.name, b.name)))

    def heal(self, a: SimNode, b: SimNode) -> None:
        """Mend the cable."""
        self._cut.discard(frozenset((a.name, b.name)))

    def restart(self, node: SimNode) -> None:
        """Crash a listening node and start it again without memory; dialled links reconnect."""
        if any(wire.dialler is node for wire in self._wires):
            raise ValueError(f"{node.name} dials: its own requests would be lost with it, restart listeners only")
        node.restart()
        for wire in [wire for wire in self._wires if wire.listener is node and wire.open]:
            wire.open = False
            wire.dialler.hub.disconnected(wire.dialler_route, now=self.clock.now)
            self._reconnect(wire.dialler, node, wire.dialler_route)

    def call_later(self, delay_s: float, function: Callable[[], None]) -> None:
        """Run a function after some virtual seconds."""
        heapq.heappush(self._agenda, (self.clock.now + delay_s, next(self._order), function))

    def run(self, duration_s: float) -> None:
        """Let virtual time pass."""
        self.run_until(lambda: False, duration_s)

    def run_until(self, condition: Callable[[], bool], limit_s: float) -> bool:
        """Let virtual time pass until the condition holds; False if it does not within limit_s."""
        end_at = self.clock.now + limit_s
        for _ in range(_MAX_STEPS):
            self._pump()
            if condition():
                return True
            agenda_at = self._agenda[0][0] if self._agenda else end_at
            at = min([agenda_at, *(node.hub.next_timer() for node in self._nodes)])
            if at >= end_at:
                self.clock.now = end_at
                return False
            self.clock.now = max(self.clock.now, at)
            while self._agenda and self._agenda[0][0] <= self.clock.now:
                heapq.heappop(self._agenda)[2]()
            for node in self._nodes:
                node.hub.handle_timer(now=self.clock.now)
        raise RuntimeError(f"{_MAX_STEPS} steps without an end: the machines are chattering")

    def _pump(self) -> None:
        """Let every node say and do what it has to, until all are still."""
        busy = True
        while busy:
            busy = False
            for node in self._nodes:
                events, sending = node.hub.events(), node.hub.frames_to_send()
                busy = busy or bool(events or sending)
                for attached, event in events:
                    if isinstance(event, Arrived):
                        node.deliver(attached, event)
                    elif isinstance(event, Settled):
                        assert isinstance(event.ref, Pending)
                        event.ref.settle(event)
                for route, frames in sending:
                    self._transmit(node, route, frames)

    def _reconnect(self, dialler: SimNode, listener: SimNode, route: Route) -> None:
        wire = _Wire(dialler, listener, route, (0, next(self._order).to_bytes(8, "big")))
        self._wires.append(wire)
        self.call_later(self._delay(), lambda: dialler.hub.connected(route, now=self.clock.now))

    def _transmit(self, node: SimNode, route: Route, frames: list[bytes]) -> None:
        for wire in self._wires:
            if wire.open and wire.dialler is node and wire.dialler_route == route:
                self._send_over(wire, node, wire.listener, wire.listener_route, frames)
            elif wire.open and wire.listener is node and wire.listener_route == route:
                self._send_over(wire, node, wire.dialler, wire.dialler_route, frames)

    def _send_over(self, wire: _Wire, source: SimNode, target: SimNode, route: Route, frames: list[bytes]) -> None:
        if self._random.random() < self._loss:
            return
        for _ in range(2 if self._random.random() < self._duplicate else 1):
            at = self.clock.now + self._delay()
            if not self._reorder:
                at = wire.last_at[target.name] = max(at, wire.last_at.get(target.name, 0.0))
            arrive = self._arrival(wire, source, target, route, frames)
            heapq.heappush(self._agenda, (at, next(self._order), arrive))

    def _arrival(
        self, wire: _Wire, source: SimNode, target: SimNode, route: Route, frames: list[bytes]
    ) -> Callable[[], None]:
        def arrive() -> None:
            if not wire.open or frozenset((source.name, target.name)) in self._cut:
                return
            digest = hashlib.blake2b(b"|".join(frames), digest_size=8).hexdigest()
            self.trace.append((self.clock.now, source.name, target.name, digest))
            target.hub.receive(route, frames, None, now=self.clock.now)

        return arrive

    def _delay(self) -> float:
        return self._random.uniform(*self._delay_s)
