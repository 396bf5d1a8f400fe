"""How many tokens each session may draft: the hook for a policy, and the policy that needs no measurement."""

from __future__ import annotations

from typing import Protocol

from sled.messages import FORWARD_SIZES
from sled.step_cost import StepCost

TELLING_SIZES = (1, 5)  # tokens of forwards that must have been timed before devices are told anything


class WindowPolicy(Protocol):
    """What the machine tells of its work, and asks: the window limit of a session (`sled.goodput` has a good one).

    Attributes:
        cost: what forwards take, as far as the policy has learned.
    """

    cost: StepCost

    def opened(self, session_id: bytes, rate: float = 0.0, owner: str = "") -> None:
        """A session was opened, or taken up again.

        Args:
            session_id: of the session.
            rate: tokens per second its user was promised; 0 promises nothing.
            owner: the device's key, whose next session may be like those before; empty where that is not known.
        """

    def round(self, session_id: bytes, drafted: int, think_s: float | None) -> None:
        """A round was taken (not a retry of it).

        Args:
            session_id: of the session.
            drafted: its drafts, 0 and more.
            think_s: seconds since the session's last verdict was given out; None where there was none, or where it was
                not this session's device that took the time (a stream was paused, say).
        """

    def verdict(self, session_id: bytes, drafted: int, accepted: int) -> None:
        """A round was decided; a token that the server decoded by itself is one with no drafts."""

    def step(self, tokens: int, rounds: int, context: int, took_s: float) -> None:
        """A forward is done; told after the verdicts that came out of it, prefill and decode included.

        Args:
            tokens: computed in it, drafts and prefill included.
            rounds: rounds verified and streams decoded in it.
            context: positions of keys and values that it read, summed over its chunks (their `past`).
            took_s: from its start until its decisions were there.
        """

    def limit(self, session_id: bytes, now: float) -> int:
        """The window limit to tell with a verdict (after `verdict`), or when a session opens; 0: the server decodes."""

    def begins(self, now: float) -> float:
        """When the next step begins if nothing else comes; something waits to be computed. `now`: at once."""

    def closed(self, session_id: bytes) -> None:
        """The session is gone; unknown ids are ignored."""


class FixedWindow:
    """Everybody may always draft the same number of tokens."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.cost = StepCost()

    def opened(self, session_id: bytes, rate: float = 0.0, owner: str = "") -> None:
        """Nothing to remember."""

    def round(self, session_id: bytes, drafted: int, think_s: float | None) -> None:
        """Nothing to remember."""

    def verdict(self, session_id: bytes, drafted: int, accepted: int) -> None:
        """Nothing to remember."""

    def step(self, tokens: int, rounds: int, context: int, took_s: float) -> None:
        """It decides nothing here, and devices are told."""
        self.cost.observe(tokens, rounds, context, took_s)

    def measured(self, tokens: int, rounds: int, took_s: float) -> None:
        """A step was computed to find out what it takes, before there were sessions."""
        self.cost.observe(tokens, rounds, 0, took_s)

    def limit(self, session_id: bytes, now: float) -> int:
        """The same for all."""
        return self._limit

    def begins(self, now: float) -> float:
        """At once."""
        return now

    def closed(self, session_id: bytes) -> None:
        """Nothing to forget."""


def forward_s(cost: StepCost, context: int, others: int) -> list[float]:
    """What to tell a device: seconds of forwards of `FORWARD_SIZES` of its tokens; empty before such were timed.

    Args:
        cost: what forwards take.
        context: positions of its text.
        others: sessions in the same forwards, each with one token and as long a text.
    """
    if not all(cost.seen(size, 1, times=1) for size in TELLING_SIZES):
        return []
    rounds = 1 + others
    return [cost.predict(size + others, rounds, context * rounds) for size in FORWARD_SIZES]
