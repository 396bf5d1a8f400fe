"""One simulated answer: the device's and the servers' real loops on a virtual network, and all that may go wrong.

Everything comes from one seed: prompt, sampling, drafter, windows, faults of the network, deaths of servers and of the
device itself, which then goes on from its saved state. What its user sees is held against the undisturbed answer, token
by token and position by position, while it comes.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import edgebus
from bench.macro._sim_plan import SERVERS, Plan, plan
from bench.macro._sim_shells import Crashed, SimDevice, SimServer, Wrong
from edgebus.testing import SimNetwork, at
from sled.events import Finished, Retracted, Unverified
from sled.run.answering import Stream
from sled.run.server import TargetServer
from sled.types import Token

FILE = Path("answer.state")
MAX_LIVES = 60
FOR_EVER = 10**9


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
