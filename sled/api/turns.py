"""Whose turn it is: requests take turns, one answer at a time, so that one with many answers holds nobody up.

Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Turns(Generic[_T]):
    """A bounded queue of requests, each of one or more jobs.

    Args:
        limit: requests that may wait.

    >>> turns = Turns(2)
    >>> turns.add(["a1", "a2", "a3"]), turns.add(["b1"]), turns.add(["c1"])
    (True, True, False)
    >>> [turns.take() for _ in range(5)]
    ['a1', 'b1', 'a2', 'a3', None]
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[deque[_T]] = deque()

    def __len__(self) -> int:
        """Requests that wait, or have jobs that do."""
        return len(self._waiting)

    def add(self, jobs: Sequence[_T], *, now: bool = False) -> bool:
        """Queue a request's jobs; False if too many wait (with `now` somebody is free to take it at once)."""
        if len(self._waiting) >= self._limit and not now:
            return False
        self._waiting.append(deque(jobs))
        return True

    def take(self) -> _T | None:
        """The next job, or None."""
        if not self._waiting:
            return None
        jobs = self._waiting.popleft()
        job = jobs.popleft()
        if jobs:
            self._waiting.append(jobs)
        return job

    def drop(self, unwanted: Callable[[_T], bool]) -> None:
        """Take out jobs that nobody waits for any more."""
        kept = (deque(job for job in jobs if not unwanted(job)) for jobs in self._waiting)
        self._waiting = deque(jobs for jobs in kept if jobs)

    def clear(self) -> list[_T]:
        """Take out everything."""
        jobs = [job for each in self._waiting for job in each]
        self._waiting.clear()
        return jobs
