"""Whether other processes ran while something was timed: two threads on two cores stall for milliseconds if they do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_IDLE = (3, 4)  # fields of /proc/stat: idle, waiting for input or output
_COUNTED = 8  # up to stolen; guests are counted in user time already


def busy_s() -> float:
    """Processor seconds of the whole machine, those stolen from it among them."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1 : 1 + _COUNTED]]
    return _TICK_S * sum(field for index, field in enumerate(fields) if index not in _IDLE)


class Watch:
    """Processor time of others since it was made; on systems without /proc/stat always nothing."""

    def __init__(self) -> None:
        self._known = Path("/proc/stat").is_file()
        self._wall, self._own, self._busy = self._now()

    def _now(self) -> tuple[float, float, float]:
        own = os.times()
        own_s = own.user + own.system + own.children_user + own.children_system
        return time.perf_counter(), own_s, busy_s() if self._known else 0.0

    def others_share(self) -> float:
        """Cores' worth of time that others took: 1.0 is one core all the time."""
        wall, own, busy = self._now()
        if not self._known or wall <= self._wall:
            return 0.0
        return max(0.0, (busy - self._busy) - (own - self._own)) / (wall - self._wall)


def undisturbed(rounds: int, *, allowed: float = 0.15, tries: int = 4) -> Iterator[tuple[int, Callable[[], bool]]]:
    """Numbers of rounds to measure, until so many ran alone or `tries` times as many ran at all.

    Args:
        rounds: wanted.
        allowed: cores' worth of other processes' time in a round that counts.
        tries: how many times as many rounds may be spent.

    Yields:
        The round's number, and what says when it is over whether it counts. The caller forgets one that does not.
    """
    counted = 0
    for number in range(tries * rounds):
        watch, asked = Watch(), False

        def counts(watch: Watch = watch) -> bool:
            nonlocal counted, asked
            asked = True
            alone = watch.others_share() <= allowed
            counted += alone
            return alone

        yield number, counts
        assert asked, "every round is asked whether it counts"
        if counted == rounds:
            return
