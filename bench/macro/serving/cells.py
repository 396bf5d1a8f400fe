"""What is measured: systems, numbers of sessions, their prompts, and how long one turn takes.

Closed loop: every session asks, reads its answer to the end, and asks the next prompt, none of which comes twice. First
answers are cut short by different lengths, so that from then on sessions begin and end at different times, as they do
under steady load, and not all in the same forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.macro.prompts import PROMPTS

MAX_TOKENS = 64
NUM_PROMPTS = 160
# What the distilled drafter smollm2-12m reaches per position at temperature 0 on these kinds of prompts.
ACCEPTANCE = 0.724
SEED = 6


@dataclass(frozen=True, slots=True)
class Turn:
    """One measurement: so many sessions, measured for `window_s` once all have a token, ended after `limit_s`."""

    sessions: int
    window_s: float
    limit_s: float


TURNS = {
    turn.sessions: turn for turn in (Turn(1, 4.0, 15.0), Turn(4, 5.0, 20.0), Turn(16, 6.0, 30.0), Turn(64, 10.0, 50.0))
}


@dataclass(frozen=True, slots=True)
class System:
    """A contender: the server it needs, and what its load is told."""

    backend: str
    title: str
    options: dict[str, Any]


SYSTEMS = {
    "sled-w0": System("sled", "sled, window 0", {"window": 0}),
    "sled-w4": System("sled", "sled, window 4", {"window": 4}),
    "sled-auto": System("sled", "sled, window 4 or what the server allows", {"window": 4, "obey": True}),
    "sled-torch": System("sled-torch", "sled, window 0, its target in torch", {"window": 0}),
    "llamacpp": System("llamacpp", "llama.cpp server, Q4_1", {}),
    "llamacpp-f32": System("llamacpp-f32", "llama.cpp server, F32", {}),
    "transformers": System("transformers", "transformers, continuous batching", {}),
}


def prompts() -> list[str]:
    """Texts that all differ after the model's system prompt: an answer is computed, never found in a cache."""
    return [f"Question {number}. {PROMPTS[number % len(PROMPTS)]}" for number in range(NUM_PROMPTS)]


def asks(session: int, sessions: int, num_prompts: int, max_tokens: int = MAX_TOKENS) -> Iterator[tuple[int, int]]:
    """What a session asks, one after the other: number of the prompt and tokens wanted.

    >>> asked = asks(0, 2, 5, 64)
    >>> next(asked), next(asked), next(asked)
    ((0, 32), (2, 64), (4, 64))
    """
    prompt, wanted = session, -(-max_tokens * (session + 1) // sessions)
    while True:
        yield prompt % num_prompts, wanted
        prompt, wanted = prompt + sessions, max_tokens


def answers_needed(turn: Turn) -> int:
    """How many different answers a load must know to draft for a turn without meeting one twice in most of it."""
    return min(NUM_PROMPTS, 2 * turn.sessions + 16)
