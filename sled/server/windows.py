"""How many tokens each session may draft: the hook for a policy, and the policy that needs no measurement."""

from __future__ import annotations

from typing import Protocol


class WindowPolicy(Protocol):
    """What the machine tells of its work, and asks: the window limit of a session (`sled.goodput` has a good one)."""

    def opened(self, session_id: bytes, rate: float = 0.0) -> None:
        """A session was opened; `rate` tokens per second were promised to it."""

    def round(self, session_id: bytes, drafted: int, think_s: float | None) -> None:
        """A round was taken, `think_s` after the session's last verdict (None: that says nothing of the device)."""

    def verdict(self, session_id: bytes, drafted: int, accepted: int) -> None:
        """A round was decided; a token that the server decoded by itself is one with no drafts."""

    def step(self, tokens: int, rounds: int, context: int, took_s: float) -> None:
        """A forward is done, told after its verdicts; it read `context` cached positions."""

    def limit(self, session_id: bytes, now: float) -> int:
        """The window limit to tell the session; 0: the server decodes."""

    def begins(self, now: float) -> float:
        """When the next step begins if nothing else comes; something waits to be computed. `now`: at once."""

    def closed(self, session_id: bytes) -> None:
        """The session is gone."""


class FixedWindow:
    """Everybody may always draft the same number of tokens."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def opened(self, session_id: bytes, rate: float = 0.0) -> None:
        """Nothing to remember."""

    def round(self, session_id: bytes, drafted: int, think_s: float | None) -> None:
        """Nothing to remember."""

    def verdict(self, session_id: bytes, drafted: int, accepted: int) -> None:
        """Nothing to remember."""

    def step(self, tokens: int, rounds: int, context: int, took_s: float) -> None:
        """Nothing to remember."""

    def limit(self, session_id: bytes, now: float) -> int:
        """The same for all."""
        return self._limit

    def begins(self, now: float) -> float:
        """At once."""
        return now

    def closed(self, session_id: bytes) -> None:
        """Nothing to forget."""
