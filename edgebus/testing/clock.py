"""Virtual time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class FakeClock:
    """Virtual seconds, moved by the network (or a test)."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Move forward."""
        assert seconds >= 0
        self.now += seconds
