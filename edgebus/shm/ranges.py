"""Free parts of a stretch of bytes: lowest fitting first, neighbours merged when given back."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator


class FreeRanges:
    """What is free in [start, end).

    The lowest place that fits is taken, so that the same pages are used again and again: they are in memory already.
    As many ranges as there are gaps between blocks; the search is linear, the pool bounds the number of blocks.
    """

    def __init__(self, start: int, end: int) -> None:
        self._starts = [start]
        self._ends = [end]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(start, end) of every free range, from the lowest."""
        return iter(list(zip(self._starts, self._ends, strict=True)))

    def take(self, size: int, below: int) -> int | None:
        """Where `size` bytes that end at or before `below` are free, now taken; None if nowhere."""
        for index, start in enumerate(self._starts):
            if start + size > below:
                return None
            if start + size <= self._ends[index]:
                if start + size == self._ends[index]:
                    del self._starts[index], self._ends[index]
                else:
                    self._starts[index] = start + size
                return start
        return None

    def give(self, start: int, size: int) -> None:
        """Free [start, start + size), which was taken (in one piece or in several)."""
        end = start + size
        index = bisect_left(self._starts, start)
        assert index == 0 or self._ends[index - 1] <= start, "given back twice"
        assert index == len(self._starts) or end <= self._starts[index], "given back twice"
        joins_left = index > 0 and self._ends[index - 1] == start
        joins_right = index < len(self._starts) and self._starts[index] == end
        if joins_left and joins_right:
            self._ends[index - 1] = self._ends.pop(index)
            del self._starts[index]
        elif joins_left:
            self._ends[index - 1] = end
        elif joins_right:
            self._starts[index] = start
        else:
            self._starts.insert(index, start)
            self._ends.insert(index, end)
