"""Small values shared by device and server."""

from __future__ import annotations

from typing import Literal

import msgspec

FinishReason = Literal["", "stop", "length"]

MAX_SEED = 2**64 - 1


class Sampling(msgspec.Struct, frozen=True, array_like=True):
    """How the answer is sampled from the target; with the prompt it determines the answer.

    Args:
        temperature: 0 is greedy; 0.001 to 100 divides the logits.
        top_k: keep this many of the likeliest tokens, 0 keeps all.
        top_p: keep the smallest set of likeliest tokens whose mass reaches this, in (0, 1].
        seed: the noise is a function of (seed, position, token id); 0 .. 2**64 - 1.

    Raises:
        ValueError: a value is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature == 0.0 or 0.001 <= self.temperature <= 100.0):
            raise ValueError(f"temperature is {self.temperature}, give 0 (greedy), or 0.001 to 100")
        if not 0 <= self.top_k < 2**31:
            raise ValueError(f"top_k is {self.top_k}, give 0 (off) or a positive count")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p is {self.top_p}, give a mass above 0 and at most 1 (off)")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed is {self.seed}, give 0 to 2**64 - 1")


class Chunk(msgspec.Struct, frozen=True):
    """Tokens of one session that the target computes in one forward.

    `tokens` stand at positions `past` .. `past + len(tokens)` of the session; the target returns logits for the
    last `num_logits` of them (0 for a piece of prefill).
    """

    session: bytes
    tokens: tuple[int, ...]
    past: int
    num_logits: int


class Token(msgspec.Struct, frozen=True):
    """A committed token as the device's user sees it.

    `drafted` says that the device proposed it and the target agreed; otherwise it is the target's own.
    """

    id: int
    pos: int
    drafted: bool
    text: str
