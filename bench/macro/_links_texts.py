"""Links, and what drafters say of each position of a text, for the simulated windows. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

Draw: TypeAlias = Callable[[], tuple[float, bool, bool]]
Start: TypeAlias = Callable[[random.Random], Draw]


@dataclass(frozen=True)
class Link:
    """A link: seconds there and back, bytes per second each way, and seconds between cuts and of each."""

    name: str
    round_s: float
    bytes_per_s: float
    cut_every_s: float = math.inf
    cut_s: float = 0.0


LINKS = (
    Link("lan", 0.001, 125e6),
    Link("wifi", 0.005, 5e6),
    Link("lte", 0.040, 1.25e6),
    Link("bad", 0.150, 0.125e6, cut_every_s=8.0, cut_s=0.4),
)


@dataclass(frozen=True)
class Drafter:
    """A drafter as the world sees it.

    Args:
        name: for the table.
        draft_s: seconds per token.
        read_s: seconds for each token of the text that it has not read, beside the last one.
        draw: of a random source, one position: (confidence, is right, has anything to say).
    """

    name: str
    draft_s: float
    draw: Start
    read_s: float = 0.0


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def confident(ease: float, spread: float, stated: float, memory: float = 0.5) -> Start:
    """A model: what is easy comes in stretches; it states its confidence with its own scale `stated` (1 is honest)."""

    def start(source: random.Random) -> Draw:
        latent = 0.0

        def draw() -> tuple[float, bool, bool]:
            nonlocal latent
            latent = memory * latent + math.sqrt(1 - memory**2) * source.gauss(0.0, 1.0)
            logit = ease + spread * latent
            return _sigmoid(stated * logit + source.gauss(0.0, 0.5)), source.random() < _sigmoid(logit), True

        return draw

    return start


def copying(chance: float, begins: float, ends: float, dry: float) -> Start:
    """Prompt lookup: certain of everything, right in bursts; outside of them often silent."""

    def start(source: random.Random) -> Draw:
        is_copying = False

        def draw() -> tuple[float, bool, bool]:
            nonlocal is_copying
            is_copying = source.random() >= ends if is_copying else source.random() < begins
            if is_copying:
                return 1.0, source.random() < 0.97, True
            return 1.0, source.random() < chance, source.random() >= dry

        return draw

    return start


def certain(chance: float) -> Start:
    """A user's own drafter that gives bare tokens."""

    def start(source: random.Random) -> Draw:
        return lambda: (1.0, source.random() < chance, True)

    return start


def boasting(chance: float) -> Start:
    """Junk: hardly ever right, and sure of itself."""

    def start(source: random.Random) -> Draw:
        return lambda: (0.6 + 0.4 * source.random(), source.random() < chance, True)

    return start


# Acceptance and times as measured with SmolLM2-135M (sled.md, 7): .72 and .77 of drafts that follow right ones.
DRAFTERS = (
    Drafter("distilled", 0.002, confident(1.6, 2.2, 1.3)),
    Drafter("distilled, easy text", 0.002, confident(3.6, 2.2, 1.1)),
    Drafter("distilled, slow", 0.006, confident(1.6, 2.2, 1.3)),
    Drafter("n-gram", 0.00005, copying(0.12, 0.03, 0.06, 0.5)),
    Drafter("low-bit", 0.020, confident(2.0, 2.2, 0.7)),
    Drafter("junk", 0.003, boasting(0.05)),
    Drafter("junk, slow", 0.020, boasting(0.05)),
    Drafter("bare tokens", 0.004, certain(0.65)),
)


@dataclass
class Text:
    """What a drafter will say at each position behind the right text, and whether it is right."""

    confidence: list[float]
    right: list[bool]
    speaks: list[bool]

    @classmethod
    def of(cls, drafter: Drafter, length: int, seed: int) -> Text:
        """Drawn by a seed."""
        draw = drafter.draw(random.Random(f"{drafter.name} {seed}"))
        drawn = [draw() for _ in range(length)]
        return cls(*(list(column) for column in zip(*drawn, strict=True)))
