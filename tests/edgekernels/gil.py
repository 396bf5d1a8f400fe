"""Whether a call lets other threads run."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable


def counted_beside(call: Callable[[], object]) -> int:
    """How far a thread that only counts gets while another one is inside a call; 0 if the call keeps the GIL."""
    inside, done, counted = threading.Event(), threading.Event(), 0

    def work() -> None:
        inside.set()
        call()
        done.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(100.0)  # nobody is made to yield: the counter runs only if the call lets go
    thread = threading.Thread(target=work)
    try:
        thread.start()
        inside.wait(10)
        while not done.is_set() and counted < 1_000_000:
            counted += 1
    finally:
        sys.setswitchinterval(interval)
        thread.join(60)
    return counted


def lets_others_run(call: Callable[[], object], attempts: int = 20) -> bool:
    """Whether the counter got on beside one of some calls: with other work on the machine it may miss a few."""
    return any(counted_beside(call) > 100 for _ in range(attempts))
