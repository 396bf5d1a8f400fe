"""Sets of ids that come about in order, pure: as ranges, so that a thousand ids in a row cost as much as one."""

from __future__ import annotations

from bisect import bisect_right

MAX_RANGES = 4096


class IdRanges:
    """Ids that were seen; those below the floor count as seen.

    Bounded: with more than MAX_RANGES gaps the oldest gap is closed, which is to err on the side of having seen an id.

    >>> ids = IdRanges()
    >>> for number in (0, 1, 5, 4): ids.add(number)
    >>> [number for number in range(7) if number in ids], len(ids)
    ([0, 1, 4, 5], 2)
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []  # exclusive
        self.floor = 0

    def __len__(self) -> int:
        return len(self._starts)

    def __contains__(self, number: int) -> bool:
        if number < self.floor:
            return True
        if not self._starts:
            return False
        index = bisect_right(self._starts, number) - 1
        return index >= 0 and number < self._ends[index]

    def add(self, number: int) -> None:
        """See an id."""
        starts, ends = self._starts, self._ends
        index = bisect_right(starts, number) - 1
        if index >= 0 and number < ends[index]:
            return
        joins_before = index >= 0 and ends[index] == number
        joins_after = index + 1 < len(starts) and starts[index + 1] == number + 1
        if joins_before and joins_after:
            ends[index] = ends.pop(index + 1)
            del starts[index + 1]
        elif joins_before:
            ends[index] = number + 1
        elif joins_after:
            starts[index + 1] = number
        else:
            starts.insert(index + 1, number)
            ends.insert(index + 1, number + 1)
            if len(starts) > MAX_RANGES:
                self.raise_floor(ends[0])

    def raise_floor(self, floor: int) -> None:
        """All ids below count as seen."""
        self.floor = max(self.floor, floor)
        while self._starts and self._ends[0] <= self.floor:
            del self._starts[0], self._ends[0]
