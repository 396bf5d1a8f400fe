"""What one simulated answer is asked for, and what goes wrong with it, all from its seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgebus.testing import Script, at, between
from edgebus.testing import faults as f
from sled.loss import OnLoss
from sled.testing import ToyTarget
from sled.types import Sampling
from sled.window import Window

TARGET = ToyTarget()
SERVERS = ("s0", "s1")


@dataclass(frozen=True)
class Plan:
    """One answer and its troubles, as a seed makes them."""

    seed: int
    prompt: list[int]
    sampling: Sampling
    num_tokens: int
    stop: tuple[str, ...]
    window: Window
    on_loss: OnLoss
    wait_s: float
    release_after_s: float
    drafter: str
    draft_s: float
    policies: tuple[str, ...]
    saved: bool
    device_dies_at: tuple[float, ...]
    breaks_off_after: tuple[int, ...]
    network: dict[str, Any]
    script: Script

    @property
    def right(self) -> list[int]:
        """The undisturbed answer."""
        return undisturbed(self.prompt, self.sampling, self.num_tokens, self.stop)


def plan(seed: int) -> Plan:
    """Everything random about one answer."""
    chance = random.Random(seed)
    vocab = TARGET.shape.vocab_size
    several = chance.random() < 0.65
    names = SERVERS if several else SERVERS[:1]
    on_loss: OnLoss = chance.choice(("fail", "wait", "release", "release"))
    return Plan(
        seed=seed,
        prompt=[chance.randrange(1, vocab) for _ in range(chance.randint(2, 10))],
        sampling=_sampling(chance),
        num_tokens=chance.randint(6, 36),
        stop=tuple(
            f"{chance.randrange(1, vocab)}><{chance.randrange(1, 10)}" for _ in range(chance.choice((0, 0, 2, 8)))
        ),
        window=chance.choice((Window.auto(), Window(chance.randint(0, 8)), Window(chance.randint(1, 16), 0.5))),
        on_loss=on_loss,
        wait_s=chance.choice((5.0, 60.0)) if on_loss == "release" else float("inf"),
        release_after_s=chance.choice((0.0, 0.3, 1.0, 3.0)),
        drafter=chance.choice(("good", "good", "poor", "junk", "ngram", "none")),
        draft_s=chance.choice((0.0, 0.004, 0.02)),
        policies=tuple(chance.choice(("4", "8", "0", "turns")) for _ in names),
        saved=(saved := chance.random() < 0.5),
        device_dies_at=tuple(chance.uniform(0.1, 1.5) for _ in range(chance.randint(1, 3)))
        if saved and chance.random() < 0.7
        else (),
        breaks_off_after=tuple(chance.randint(1, 60) for _ in range(2)) if saved and chance.random() < 0.3 else (),
        network={
            "loss": chance.choice((0.0, 0.05, 0.2)),
            "duplicate": chance.choice((0.0, 0.1, 0.3)),
            "delay_s": (0.001, chance.choice((0.01, 0.05, 0.3))),
            "reorder": chance.random() < 0.5,
        },
        script=Script(*_troubles(chance, names)),
    )


def _sampling(chance: random.Random) -> Sampling:
    if chance.random() < 0.25:
        return Sampling()
    return Sampling(
        temperature=chance.uniform(0.3, 1.3),
        top_k=chance.choice((0, 5, 30)),
        top_p=chance.choice((1.0, 0.9)),
        seed=chance.getrandbits(64),
        presence_penalty=chance.choice((0.0, 0.0, 1.0)),
    )


def _troubles(chance: random.Random, names: Sequence[str]) -> list[Any]:
    steps: list[Any] = []
    for name in names:
        if chance.random() < 0.4:
            skew, drift = chance.uniform(-1000.0, 1000.0), chance.choice((1.0, 0.9, 1.2))
            steps.append(at(0.0, f.clock(name, skew_s=skew, drift=drift)))
    for _ in range(chance.choice((0, 1, 2, 3))):
        when = chance.uniform(0.05, chance.choice((0.8, 1.6, 4.0)))
        for_s = chance.choice((0.2, 1.0, 3.0, 8.0))
        kind = chance.choice(("crash", "crash", "power", "freeze", "cut", "half", "reset", "jump"))
        hit = list(names) if chance.random() < 0.4 else [chance.choice(names)]
        for name in hit:
            steps.append(_trouble(chance, kind, name, when, for_s))
    return steps


def _trouble(chance: random.Random, kind: str, name: str, when: float, for_s: float) -> Any:
    match kind:
        case "crash" | "power":
            return at(when, f.crash(name, for_s, told=kind == "crash"))
        case "freeze":
            return at(when, f.freeze(name, for_s))
        case "cut":
            return between(when, when + for_s, f.partition("device", name))
        case "half":
            ends = ("device", name) if chance.random() < 0.5 else (name, "device")
            return between(when, when + for_s, f.half_open(*ends))
        case "reset":
            return at(when, f.reset("device", name))
        case _:
            return at(when, f.clock(name, jump_s=chance.uniform(-2.0, 5.0)))


def undisturbed(prompt: list[int], sampling: Sampling, num_tokens: int, stop: Sequence[str]) -> list[int]:
    """The answer by decoding one token after the other, up to a stop text."""
    tokens = TARGET.plain_answer(prompt, sampling, num_tokens)
    said = ""
    for count, token in enumerate(tokens, 1):
        said += TARGET.vocabulary.pieces[token].decode()
        if any(text in said for text in stop):
            return tokens[:count]
    return tokens
