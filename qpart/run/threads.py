"""How many CPU threads the forwards of a model take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

GAIN = 1.25  # what all threads must bring against one
_RUNS = 5


def worthwhile_threads(forward: Callable[[], object], most: int) -> int:
    """One, unless `most` are faster by GAIN.

    The threads of a layer wait for the last of them. Where another process has a core, that is a time slice of the
    scheduler for each layer: a small network that takes half a millisecond with one thread then takes two hundred with
    two. Compared are the shortest of several runs, so that a busy moment counts little; a machine that is busy
    throughout gets one thread.

    Args:
        forward: the work whose time counts; called in this thread.
        most: as many as may be taken.
    """
    if most <= 1:
        return 1
    return most if _shortest_s(forward, 1) > GAIN * _shortest_s(forward, most) else 1


@contextmanager
def threads_of(number: int) -> Iterator[None]:
    """In here torch computes with so many; then with as many as before.

    Every Python thread has a number of its own; when it first computes it takes over what was last set anywhere.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _shortest_s(forward: Callable[[], object], threads: int) -> float:
    shortest = float("inf")
    with threads_of(threads):
        for _ in range(1 + _RUNS):  # the first is slow anyway: memory, choice of algorithms
            start = time.perf_counter()
            forward()
            shortest = min(shortest, time.perf_counter() - start)
    return shortest
