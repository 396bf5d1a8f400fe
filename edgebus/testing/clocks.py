"""Virtual time: the network's clock, and the clock of each node, which may be wrong."""

from __future__ import annotations

import math
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


class NodeClock:
    """What one node takes for the time: the network's clock, skewed, drifting or jumping.

    It stands for a monotonic clock, whose zero is another one on every machine; that is the skew.

    Args:
        base: the true clock.

    >>> base = FakeClock(); clock = NodeClock(base)
    >>> clock.change(skew_s=100.0, drift=1.5); base.advance(10.0); clock.now
    115.0
    >>> clock.change(jump_s=-5.0); clock.now
    110.0
    """

    def __init__(self, base: FakeClock) -> None:
        self._base = base
        self._drift = 1.0
        self._changed_at = 0.0  # true time of the last change
        self._read_then = 0.0  # and what this clock said

    @property
    def now(self) -> float:
        """What this clock says."""
        return self._read(self._base.now)

    def __call__(self) -> float:
        return self.now

    def change(self, *, skew_s: float | None = None, drift: float | None = None, jump_s: float = 0.0) -> None:
        """Set it wrong from now on.

        Args:
            skew_s: how far it is ahead of the true clock from now on; None leaves it where it is.
            drift: its seconds per true second; None leaves it.
            jump_s: how far it jumps ahead (or back).
        """
        reading = self.now if skew_s is None else self._base.now + skew_s
        self._read_then, self._changed_at = reading + jump_s, self._base.now
        if drift is not None:
            self._drift = drift

    def true_time(self, reading: float) -> float:
        """First true time at which this clock says at least `reading`; inf stays inf."""
        if math.isinf(reading):
            return reading
        at = self._changed_at + (reading - self._read_then) / self._drift
        # Rounding must not leave it a hair too early: the timer would not be due, for ever.
        step = math.ulp(max(abs(at), abs(reading)))
        while self._read(at) < reading:
            at, step = at + step, 2 * step
        return at

    def _read(self, at: float) -> float:
        return self._read_then + (at - self._changed_at) * self._drift
