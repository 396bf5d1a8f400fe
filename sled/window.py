"""How many tokens a device drafts in one round.

Pure: no sockets, clock or randomness.
"""

from __future__ import annotations

from dataclasses import dataclass

from sled.errors import ParameterError
from sled.messages import MAX_WINDOW

DEFAULT_SIZE = 8


@dataclass(frozen=True, slots=True)
class Window:
    """Draft at most `size` tokens, and stop early at the first whose confidence is under `confidence`.

    Confidence is the drafter's own probability of the token it drafted. `confidence=0` is a fixed window;
    a threshold is dynamic drafting (SLED, arXiv 2506.09397, "while c >= c_threshold draft one more"). With `is_auto`
    what pays is measured while drafting (docs/spec/sled-windows.md), and `size` is only a bound.

    Raises:
        ParameterError: `size` outside 0 .. 64 or `confidence` outside 0 .. 1.
    """

    size: int = DEFAULT_SIZE
    confidence: float = 0.0
    is_auto: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.size <= MAX_WINDOW:
            raise ParameterError(f"window is {self.size}, give 0 (no drafting) to {MAX_WINDOW}, or auto")
        if not 0.0 <= self.confidence <= 1.0:
            raise ParameterError(f"confidence is {self.confidence}, give a probability from 0 (off) to 1")

    @classmethod
    def auto(cls) -> Window:
        """As many drafts as pay, by what was measured of drafter, link and server."""
        return cls(MAX_WINDOW, is_auto=True)

    def wants(self, confidence: float) -> bool:
        """Whether a drafted token of this confidence is worth sending."""
        return confidence >= self.confidence

    def limit(self, *, server_limit: int, remaining: int) -> int:
        """Tokens to draft this round: the last of `remaining` wanted tokens is always the target's own."""
        return max(0, min(self.size, server_limit, remaining - 1))
