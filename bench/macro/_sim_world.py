"""One simulated answer: the device's and the servers' real loops on a virtual network, and all that may go wrong.

Everything comes from one seed: prompt, sampling, drafter, windows, faults of the network, deaths of servers and of the
device itself, which then goes on from its saved state. What its user sees is held against the undisturbed answer, token
by token and position by position, while it comes.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import edgebus
from bench.macro._sim_plan import SERVERS, TARGET, Plan, plan
from edgebus.testing import SimLink, SimNetwork, SimNode, at
from sled.drafters import Drafter
from sled.drafters.guard import Guard
from sled.drafters.ngram import NgramDrafter
from sled.events import Finished, Retracted, Unverified
from sled.pace import Learned
from sled.run.answering import Stream
from sled.run.around import Around
from sled.run.device import Device
from sled.run.server import TargetServer
from sled.run.servers import Servers
from sled.server import FixedWindow, WindowPolicy
from sled.testing import ToyDrafter, ToyTarget
from sled.types import Sampling, Token

FORWARD_S = 0.03
LIMIT_S = 3600.0
FILE = Path("answer.state")
MAX_LIVES = 60
FOR_EVER = 10**9


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
        return SimpleNamespace(round_trip_s=self._link.attached.link.round_trip_s)

    def send_request(self, service: str, payload: bytes, timeout_s: float) -> SimPending:
        """See edgebus.Link."""
        self._device.check()
        return SimPending(self._device, self._link.send_request(service, payload, timeout_s=timeout_s))

    def send(self, service: str, payload: bytes, timeout_s: float) -> None:
        """See edgebus.Link."""
        self.send_request(service, payload, timeout_s)

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
        drafter = Slow(self, _drafter(plan, chance), plan.draft_s)
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


class Slow:
    """A drafter that takes its time.

    Args:
        device: whose time.
        drafter: drafts.
        draft_s: for each token.
    """

    def __init__(self, device: SimDevice, drafter: Drafter | None, draft_s: float) -> None:
        self._device, self._drafter, self._draft_s = device, drafter, draft_s
        self.name = "none" if drafter is None else drafter.name

    def start(self, sampling: Sampling, num_prompt: int) -> None:
        """See Drafter."""
        if self._drafter is not None:
            self._drafter.start(sampling, num_prompt)

    def draft(self, text: Sequence[int], limit: int) -> Iterator[Any]:
        """See Drafter."""
        if self._drafter is not None:
            for one in self._drafter.draft(text, limit):
                if self._draft_s:
                    self._device.let_pass(self._draft_s, lambda: False)
                yield one


class Junk:
    """Random tokens."""

    name = "junk"

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def start(self, sampling: Sampling, num_prompt: int) -> None:
        """Nothing to remember."""

    def draft(self, text: Sequence[int], limit: int) -> list[int]:
        """Noise, 0 among it."""
        return [self._chance.randrange(TARGET.shape.vocab_size) for _ in range(limit)]


def _drafter(plan: Plan, chance: random.Random) -> Drafter | None:
    match plan.drafter:
        case "good":
            return ToyDrafter(TARGET, error=0.1, seed=plan.seed)
        case "poor":
            return ToyDrafter(TARGET, error=0.6, seed=plan.seed)
        case "junk":
            return Junk(chance)
        case "ngram":
            return NgramDrafter()
    return None


# -- the user


@dataclass
class User:
    """Reads events and holds them against the undisturbed answer at once.

    Attributes:
        committed: tokens of the answer so far.
        unverified: what is shown behind them.
    """

    plan: Plan
    right: list[int]
    committed: list[int] = field(default_factory=list)
    unverified: list[int] = field(default_factory=list)
    told: Counter[str] = field(default_factory=Counter)
    finished: Finished | None = None
    broke_off: bool = False

    def resumes(self, length: int) -> None:
        """A new process begins with so many tokens."""
        if length > len(self.committed) or (self.broke_off and length != len(self.committed)):
            raise Wrong(f"the saved answer has {length} tokens, {len(self.committed)} were told")
        self.broke_off = False
        del self.committed[length:]
        self.unverified.clear()

    def reads(self, stream: Stream, at_most: int) -> None:
        """All events of a stream, or so many, and then breaks it off."""
        for number, event in enumerate(stream.events(), 1):
            self.told[type(event).__name__] += 1
            match event:
                case Token():
                    self._token(event)
                case Unverified():
                    self._shown(event)
                case Retracted():
                    self._retracted(event)
                case Finished():
                    self.finished = event
            if number >= at_most:
                self.broke_off = True
                break

    def _token(self, token: Token) -> None:
        pos = token.pos - len(self.plan.prompt)
        if pos != len(self.committed):
            raise Wrong(f"token for position {pos}, {len(self.committed)} is next: lost or repeated")
        if pos >= len(self.right) or token.id != self.right[pos]:
            raise Wrong(f"token {token.id} at {pos}, right is {self.right[pos : pos + 1]}")
        if self.unverified and self.unverified.pop(0) != token.id:
            raise Wrong(f"token {token.id} at {pos} contradicts what is shown and was not retracted")
        self.committed.append(token.id)

    def _shown(self, shown: Unverified) -> None:
        pos = shown.pos - len(self.plan.prompt)
        if pos != len(self.committed) + len(self.unverified):
            raise Wrong(f"unverified token for position {pos}, shown are {len(self.committed)} and {self.unverified}")
        self.unverified.append(shown.id)

    def _retracted(self, retracted: Retracted) -> None:
        keep = retracted.from_pos - len(self.plan.prompt) - len(self.committed)
        if not 0 <= keep < len(self.unverified):
            raise Wrong(f"retracted from {retracted.from_pos}, shown are {len(self.committed)} and {self.unverified}")
        del self.unverified[keep:]


def run(seed: int, make: Callable[..., TargetServer] = TargetServer) -> dict[str, int]:
    """One answer to its end; returns what happened on the way.

    Args:
        seed: of everything.
        make: the server; tests give it a wrong one.

    Raises:
        Wrong: a committed token is not the undisturbed answer's, is lost, or is repeated.
    """
    asked = plan(seed)
    with SimNetwork(seed, script=asked.script, **asked.network) as net:
        chance, disk = random.Random(-seed - 1), dict[Path, bytes]()
        node = net.node("device")
        servers = [SimServer(net, name, policy, make) for name, policy in zip(SERVERS, asked.policies, strict=False)]
        user = User(asked, asked.right)
        device: SimDevice | None = None
        for life in range(MAX_LIVES):
            if not node.is_up:
                net.restart(node)
            if device is None or device.dead:
                device = SimDevice(net, node, servers, asked, disk, chance)
            if life < len(asked.device_dies_at):
                net.call_later(asked.device_dies_at[life], lambda device=device: _die(net, device))  # type: ignore[misc]
            breaks_off = asked.breaks_off_after[life] if life < len(asked.breaks_off_after) else FOR_EVER
            if _live(device, user, breaks_off):
                break
            net.run_until(lambda: False, 1.0)
        else:
            raise Wrong(
                f"no end after {MAX_LIVES} tries: {len(user.committed)} tokens of {len(user.right)}, {user.told}"
            )
        if user.committed != user.right or user.unverified:
            raise Wrong(f"ended with {user.committed} and {user.unverified} unverified, right is {user.right}")
        return {**user.told, "lives": life + 1, **_troubles(asked, net.clock())}


def _troubles(asked: Plan, ended_at: float) -> Counter[str]:
    """What went wrong before the answer had ended; each fault counts once."""
    network = asked.network
    met = Counter({"with loss": network["loss"] > 0, "with duplicates": network["duplicate"] > 0})
    met["with reordering"] = network["reorder"]
    for step in asked.script.steps:
        began_at = step.at_s if isinstance(step, at) else step.from_s
        met[f"in time: {type(step.fault).__name__}"] += began_at <= ended_at
    return met


def _die(net: SimNetwork, device: SimDevice) -> None:
    if not device.dead and device.node.life == device._life:
        device.dead = True
        net.crash(device.node)


def _live(device: SimDevice, user: User, breaks_off: int) -> bool:
    """One process of the device; True if the answer has ended."""
    asked = user.plan
    try:
        stream: Stream
        if FILE in device.disk:
            stream = device.resume(FILE, window=asked.window)
            user.resumes(len(stream._machine.answer))
        else:
            user.resumes(0)
            stream = device.generate(
                asked.prompt,
                max_tokens=asked.num_tokens,
                sampling=asked.sampling,
                window=asked.window,
                stop=asked.stop,
                save_to=FILE if asked.saved else None,
            )
        try:
            user.reads(stream, breaks_off)
        finally:
            user.told["taken over"] += stream.moves
        if user.broke_off:
            stream.close()
            return False
        answer = stream.answer()
        if answer.tokens != user.committed or answer.unverified != user.unverified:
            raise Wrong(f"answer() says {answer.tokens}, told were {user.committed}")
        return answer.finish_reason != ""
    except Crashed:
        user.told["crashed"] += 1
        return False
    except edgebus.EdgebusError as error:
        user.told[f"gave up: {type(error).__name__}"] += 1
        return False
    finally:
        device._streaming = False
