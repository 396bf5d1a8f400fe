"""The segments of one owner: where in them something is free, and how much memory they may have."""

from __future__ import annotations

from edgebus.shm.ranges import FreeRanges
from edgebus.shm.segments import COMMIT_BYTES, HEADER_BYTES, Segment


class Budget:
    """Memory that all arenas of a pool have taken from the system, of at most `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0


class Arena:
    """Segments that one peer alone will map: no peer can read what another one gets (not thread-safe).

    Memory is committed when it is first needed and used again and again, the lowest first.

    Args:
        budget: shared with other arenas.
        segment_bytes: address space of a segment; of a larger one a multiple.
        max_bytes: memory for this arena.
    """

    def __init__(self, budget: Budget, segment_bytes: int, max_bytes: int) -> None:
        self._budget = budget
        self._segment_bytes = segment_bytes
        self._max_bytes = max_bytes
        self._free: dict[Segment, FreeRanges] = {}

    @property
    def num_segments(self) -> int:
        """Segments now."""
        return len(self._free)

    def take(self, size: int) -> tuple[Segment, int] | None:
        """Where so many bytes were free: in memory we have, else in more of a segment, else in a new one."""
        for segment, free in self._free.items():
            offset = free.take(size, segment.committed)
            if offset is not None:
                return segment, offset
        for segment, free in self._free.items():
            offset = free.take(size, segment.info.size)
            if offset is not None:
                return self._committed(segment, free, offset, size)
        return self._take_of_new(size)

    def give(self, segment: Segment, offset: int, size: int) -> None:
        """What was taken is free again."""
        free = self._free[segment]
        free.give(offset, size)

    def trim(self) -> None:
        """Give the memory after the last block of each segment back to the system."""
        for segment, free in self._free.items():
            for start, end in free:
                if end == segment.info.size:
                    self._discard(segment, start, segment.committed)

    def abandon(self) -> list[Segment]:
        """Keep only the memory of blocks, and take no more; the segments are the caller's to close."""
        for segment, free in self._free.items():
            for start, end in free:
                self._discard(segment, start, min(end, segment.committed))
            segment.unmap()
        segments = list(self._free)
        self._free.clear()
        return segments

    def _take_of_new(self, size: int) -> tuple[Segment, int] | None:
        """In a new segment; those that have no blocks were too small and go."""
        for segment in [segment for segment, free in self._free.items() if list(free) == [_all(segment)]]:
            self._discard(segment, HEADER_BYTES, segment.committed)
            self._budget.used_bytes -= segment.committed
            del self._free[segment]
            segment.close()
        if not self._fits(_round_up(HEADER_BYTES + size, COMMIT_BYTES)):
            return None
        try:
            segment = Segment(_round_up(HEADER_BYTES + size, self._segment_bytes))
        except (OSError, OverflowError):
            return None
        self._budget.used_bytes += segment.committed
        self._free[segment] = free = FreeRanges(*_all(segment))
        offset = free.take(size, segment.info.size)
        assert offset is not None
        return self._committed(segment, free, offset, size)

    def _committed(self, segment: Segment, free: FreeRanges, offset: int, size: int) -> tuple[Segment, int] | None:
        """What was taken of a segment, with memory under it; given back if there is none."""
        has_memory = False
        try:
            has_memory = self._commit(segment, offset + size)
        finally:  # a signal handler may have raised meanwhile
            if not has_memory:
                free.give(offset, size)
        return (segment, offset) if has_memory else None

    def _commit(self, segment: Segment, end: int) -> bool:
        """Have memory below `end`; False if that is over a bound or the system has none."""
        missing = segment.missing(end)
        if not self._fits(missing):
            return False
        try:
            segment.commit(end)
        except OSError:
            return False
        self._budget.used_bytes += missing
        return True

    def _fits(self, size: int) -> bool:
        mine = sum(segment.committed for segment in self._free)
        return mine + size <= self._max_bytes and self._budget.used_bytes + size <= self._budget.max_bytes

    def _discard(self, segment: Segment, start: int, end: int) -> None:
        given = segment.discard(start, end)
        segment.committed -= given
        self._budget.used_bytes -= given


def _all(segment: Segment) -> tuple[int, int]:
    return HEADER_BYTES, segment.info.size


def _round_up(size: int, step: int) -> int:
    return -(-size // step) * step
