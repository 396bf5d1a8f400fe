"""A queue in which nobody waits for somebody else's flood: whoever has been given least is next.

Pure. Every owner has a line of its own and a mark, the virtual time at which it is next served; being served moves the
mark by the cost of what was served. An owner that comes anew begins at the present, so nobody saves up.

Source: Goyal, Vin, Cheng, Start-Time Fair Queueing, SIGCOMM 1996.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_IDLE = 1024
"""Owners remembered that wait for nothing."""
_LOOK_AT = 64


class FairQueue(Generic[T]):
    """Jobs by owner.

    Args:
        max_waiting: most jobs at once; one owner holds at most half of the places, rounded up.

    >>> queue = FairQueue[str](8)
    >>> [queue.add("flood", job, 1.0) for job in "abc"], queue.add("other", "x", 1.0)
    ([True, True, True], True)
    >>> [queue.pop() for _ in range(4)]
    ['a', 'x', 'b', 'c']
    """

    def __init__(self, max_waiting: int) -> None:
        self.max_waiting, self.max_each = max_waiting, (max_waiting + 1) // 2
        self._lines: dict[str, deque[tuple[T, float]]] = {}
        self._marks: dict[str, float] = {}  # also of owners that wait for nothing now, as long as they are ahead
        self._now = 0.0
        self._count = 0
        self._look_at = _LOOK_AT  # so many idle owners are looked through: seldom, so that it costs nothing

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        return (job for line in self._lines.values() for job, _ in line)

    def held_by(self, owner: str) -> int:
        """Jobs of this owner that wait."""
        return len(self._lines.get(owner, ()))

    def add(self, owner: str, job: T, cost: float) -> bool:
        """Take a job; False if there is no place, of all or of this owner."""
        if self._count >= self.max_waiting or self.held_by(owner) >= self.max_each:
            return False
        if owner not in self._lines:
            self._lines[owner] = deque()
            self._marks[owner] = max(self._marks.get(owner, 0.0), self._now)
        self._lines[owner].append((job, cost))
        self._count += 1
        return True

    def pop(self, fits: Callable[[T], bool] = lambda job: True) -> T | None:
        """The next job that fits: of the owner that has been given least, its oldest; None if there is none."""
        for owner in sorted(self._lines, key=self._marks.__getitem__):
            line = self._lines[owner]
            for i, (job, cost) in enumerate(line):
                if fits(job):
                    del line[i]
                    self._now = max(self._now, self._marks[owner])
                    self._marks[owner] += cost
                    self._left(owner)
                    return job
        return None

    def charge(self, owner: str, cost: float) -> None:
        """Have an owner pay for what turned out to cost more than was said."""
        if cost > 0:
            self._marks[owner] = max(self._marks.get(owner, 0.0), self._now) + cost

    def remove(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Take out every unwanted job; they cost their owners nothing."""
        removed = []
        for owner in list(self._lines):
            line = self._lines[owner]
            gone = [job for job, _ in line if unwanted(job)]
            if gone:
                removed += gone
                kept = deque(item for item in line if not any(item[0] is job for job in gone))
                self._lines[owner] = kept
                self._count -= len(gone) - 1
                self._left(owner)
        return removed

    def _left(self, owner: str) -> None:
        """One job less, and what follows from that."""
        self._count -= 1
        if not self._lines[owner]:
            del self._lines[owner]
        if len(self._marks) - len(self._lines) > self._look_at:
            self._forget()

    def _forget(self) -> None:
        """Owners that wait for nothing and are not ahead of others are as good as new ones."""
        idle = {each: mark for each, mark in self._marks.items() if each not in self._lines}
        ahead = {each for each, mark in idle.items() if mark > self._now}
        if len(ahead) > MAX_IDLE:  # so many at once is an attack, or peace
            ahead = set()
        for each in idle.keys() - ahead:
            del self._marks[each]
        self._look_at = max(_LOOK_AT, 2 * len(ahead))
