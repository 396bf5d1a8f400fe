"""A server's numbers for Prometheus: what its loop has told last; stuck or not ready yet is an error."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, TypeVar

R = TypeVar("R")

STUCK_S = 60.0


class Exporter(Generic[R]):
    """Keeps the latest report; `MetricsServer` asks for its text, on a thread of its own.

    Args:
        render: a report as text.
        clock: seconds.
    """

    def __init__(self, render: Callable[[R], str], clock: Callable[[], float] = time.monotonic) -> None:
        self._render, self._clock = render, clock
        self._told: tuple[R, float] | None = None

    def tell(self, report: R) -> None:
        """Take a report."""
        self._told = report, self._clock()

    def text(self) -> str:
        """What Prometheus reads.

        Raises:
            RuntimeError: there is no report yet, or none any more.
        """
        told = self._told
        if told is None:
            raise RuntimeError("the model is being loaded")
        report, told_at = told
        age_s = self._clock() - told_at
        if age_s > STUCK_S:
            raise RuntimeError(f"the server has told nothing for {age_s:.0f} s: a forward hangs")
        return self._render(report)
