"""The virtual network: nodes, links and faults on one virtual clock, from one seed."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from operator import index
from types import TracebackType

from edgebus.config import Limits
from edgebus.testing import faults as f
from edgebus.testing.cables import Cables
from edgebus.testing.clocks import FakeClock
from edgebus.testing.links import SimLink
from edgebus.testing.nodes import Handler, SimNode
from edgebus.testing.replay import Delivery, describe, remember
from edgebus.testing.script import Script, Step, between
from edgebus.testing.wires import Wires

_MAX_STEPS = 1_000_000
_NUM_LAST = 10


class SimNetwork:
    """Nodes, links and faults on one virtual clock.

    Args:
        seed: of everything random, a whole number.
        loss: probability that a message vanishes.
        duplicate: probability that it comes twice.
        delay_s: least and greatest delay in seconds.
        reorder: False keeps the order of messages, as tcp does.
        script: faults that happen by themselves, at their times.

    As a context manager it says in every exception that leaves it how to replay it, and what came last.

    Attributes:
        clock: the true time.
        trace: every message delivered: (time, source, target, digest of its frames).
        counts: of messages: sent, lost, duplicated, corrupted, held_back, cut_off, delivered.
    """

    def __init__(
        self,
        seed: int,
        *,
        loss: float = 0.0,
        duplicate: float = 0.0,
        delay_s: tuple[float, float] = (0.001, 0.05),
        reorder: bool = True,
        script: Script | None = None,
    ) -> None:
        try:
            self.seed = index(seed)
        except TypeError:  # None would have the system choose, and nothing would replay
            raise TypeError(f"seed must be a whole number, got {seed!r}: a run is replayed by it") from None
        self.clock = FakeClock()
        self.trace: list[Delivery] = []
        self.script = script or Script()
        self._made_with = f"loss={loss}, duplicate={duplicate}, delay_s={delay_s}, reorder={reorder}"
        self._random = random.Random(self.seed)  # noqa: S311 - to be repeatable is the point
        self._cables = Cables(self._random, delay_s)
        self._cables.add(f.loss(loss))
        self._cables.add(f.duplicate(duplicate))
        self._nodes: dict[str, SimNode] = {}
        self._links: list[SimLink] = []
        self._wires = Wires(self, self._cables, keeps_order=not reorder)
        self._frozen_until: dict[str, float] = {}
        self._agenda: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._routes = itertools.count(1)
        self._last: deque[tuple[float, str, str, bytes]] = deque(maxlen=_NUM_LAST)
        for step in self.script.steps:
            self._plan(step)
        remember(self)

    def __enter__(self) -> SimNetwork:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(self.describe())

    def describe(self) -> str:
        """How to replay it, where it stands, and the last deliveries."""
        script = f", script={self.script!r}" if self.script.steps else ""
        head = f"replay with SimNetwork(seed={self.seed}, {self._made_with}{script})"
        count = f"virtual time {self.clock.now:.3f} s, {len(self.trace)} deliveries, the last of them:"
        lines = [f"{at:10.3f} s  {source} -> {target}  {describe(header)}" for at, source, target, header in self._last]
        return "\n".join([head, count, *lines])

    @property
    def counts(self) -> Counter[str]:
        """What became of messages so far."""
        return self._cables.counts

    def new_incarnation(self) -> bytes:
        """16 bytes from the seed."""
        return self._random.randbytes(16)

    def node(
        self,
        name: str,
        handler: Handler | None = None,
        limits: Limits | None = None,
        on_restart: Callable[[], None] | None = None,
        versions: tuple[int, int] | None = None,
    ) -> SimNode:
        """Add a node.

        Args:
            name: another one for every node.
            handler: gets every request and may answer later (`SimNode.call_later`).
            limits: its bounds.
            on_restart: called when it is back after a crash: the application forgets what it had in memory.
            versions: lowest and highest version of the protocol that it speaks; all there are by default.
        """
        if name in self._nodes:
            raise ValueError(f"there is a node {name!r} already: faults go by names, give each its own")
        node = self._nodes[name] = SimNode(self, name, handler, limits or Limits(), on_restart, versions)
        for step in self.script.steps:
            if (clock := _first_clock(step)) and clock.node == name:
                self.apply(clock)
        return node

    def connect(self, dialler: SimNode, listener: SimNode) -> SimLink:
        """Dial; requests may be sent at once, they wait for the link."""
        link = SimLink(self, dialler, listener, (next(self._routes), b""))
        self._links.append(link)
        self._wires.dial(link)
        return link

    # -- faults -------------------------------------------------------------------------------------

    def apply(self, fault: f.Fault) -> None:
        """Let a fault happen now; one of a cable is in force until it is healed."""
        match fault:
            case f.CableFault():
                self._cables.add(fault)
            case f.heal():
                self._cables.heal(fault.a, fault.b)
            case f.reset():
                self._wires.reset(fault.a, fault.b)
            case f.crash():
                self.crash(self.find(fault.node), fault.down_s, told=fault.told)
            case f.restart():
                self.restart(self.find(fault.node))
            case f.freeze():
                self.freeze(self.find(fault.node), fault.for_s)
            case f.clock():
                clock = self.find(fault.node).clock
                clock.change(skew_s=fault.skew_s, drift=fault.drift, jump_s=fault.jump_s)

    def find(self, name: str) -> SimNode:
        """A node by its name."""
        if name not in self._nodes:
            raise ValueError(f"no node {name!r} for this fault, there are: {', '.join(self._nodes) or 'none'}")
        return self._nodes[name]

    def partition(self, a: SimNode, b: SimNode) -> None:
        """Cut the cable: messages vanish, nobody is told."""
        self.apply(f.partition(a.name, b.name))

    def heal(self, a: SimNode, b: SimNode) -> None:
        """Mend the cable."""
        self.apply(f.heal(a.name, b.name))

    def crash(self, node: SimNode, down_s: float | None = None, *, told: bool = True) -> None:
        """Take a node away with all it remembers; for `down_s` seconds, or until restart().

        Args:
            node: it may be away already, which `down_s` then does not change.
            down_s: None until restart().
            told: False is a power cut: who dialled it is told when it is back.
        """
        if not node.is_up:
            return
        node.crash()
        self._wires.crashed(node, told=told)
        if down_s is not None:
            life = node.life
            self.call_later(down_s, lambda: None if node.life != life or node.is_up else self._start(node))

    def restart(self, node: SimNode) -> None:
        """Start a node without memory, after a crash if it is up; links are dialled again."""
        self.crash(node)
        self._start(node)

    def freeze(self, node: SimNode, for_s: float) -> None:
        """Stop a node for some seconds, as SIGSTOP does; its clock goes on."""
        if not node.is_up:
            return
        life, until = node.life, self.clock.now + for_s
        self._frozen_until[node.name] = max(until, self._frozen_until.get(node.name, 0.0))
        node.freeze()

        def thaw() -> None:
            if node.life == life and node.is_up and self.clock.now >= self._frozen_until[node.name]:
                node.thaw()

        self.call_at(until, thaw)

    # -- time ---------------------------------------------------------------------------------------

    def call_later(self, delay_s: float, function: Callable[[], object]) -> None:
        """Run a function after some virtual seconds, whatever nodes are up."""
        self.call_at(self.clock.now + delay_s, function)

    def call_at(self, at: float, function: Callable[[], object]) -> None:
        """Run a function at a virtual time."""
        heapq.heappush(self._agenda, (at, next(self._order), function))

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
            at = min([agenda_at, *(node.next_wake_at() for node in self._nodes.values() if node.runs)])
            if at >= end_at:
                self.clock.now = end_at
                return False
            self.clock.now = max(self.clock.now, at)
            while self._agenda and self._agenda[0][0] <= self.clock.now:
                heapq.heappop(self._agenda)[2]()
            for node in self._nodes.values():
                if node.runs:
                    node.hub.handle_timer(now=node.now)
        raise RuntimeError(f"{_MAX_STEPS} steps without an end: the machines are chattering")

    def _pump(self) -> None:
        """Let every node say and do what it has to, until all are still."""
        busy = True
        while busy:
            busy = False
            for node in [node for node in self._nodes.values() if node.runs]:
                was_busy, sending = node.turn()
                busy = busy or was_busy
                for route, frames in sending:
                    self._wires.send(node, route, frames)

    def delivered(self, source: SimNode, target: SimNode, frames: Sequence[bytes]) -> None:
        """Note a delivery."""
        digest = hashlib.blake2b(b"|".join(frames), digest_size=8).hexdigest()
        self.trace.append((self.clock.now, source.name, target.name, digest))
        self._last.append((self.clock.now, source.name, target.name, bytes(frames[0])))
        self.counts["delivered"] += 1

    # -- inside -------------------------------------------------------------------------------------

    def _plan(self, step: Step) -> None:
        if isinstance(step, between):
            self.call_at(step.from_s, lambda: self._cables.add(step.fault))
            self.call_at(step.to_s, lambda: self._cables.remove(step.fault))
        elif not _first_clock(step):
            self.call_at(step.at_s, lambda: self.apply(step.fault))

    def _start(self, node: SimNode) -> None:
        node.start()
        self._wires.started(node)
        for link in self._links:
            if link.dialler is node:
                link.dial_again()
                self._wires.dial(link)


def _first_clock(step: Step) -> f.clock | None:
    """The clock that is wrong from the beginning, and so before its node does anything."""
    if isinstance(step, between) or step.at_s > 0 or not isinstance(step.fault, f.clock):
        return None
    return step.fault
