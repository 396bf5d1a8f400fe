"""A board in the receiver's shared memory: what it no longer uses stands there at once, without a message."""

from __future__ import annotations

import platform

import numpy as np

from edgebus.shm.segments import HEADER_BYTES, Segment, SegmentInfo

PLACES = 1024
"""Of the last so many numbers a board tells; older ones are left to reports."""
BOARD_BYTES = 8 * PLACES
ORDERED = platform.machine() in ("x86_64", "AMD64")
"""Whether every other core sees this one's last read of a block before what it writes on the board afterwards."""


class Board:
    """The receiver's end: a segment of its own that the sender maps for reading.

    Place n % PLACES holds n + 1 once lease number n has been given back. A write is one aligned word, which the garbage
    collector may do on any thread, in the middle of anything.

    Raises:
        OSError: no memory or no descriptor.
    """

    def __init__(self) -> None:
        self._segment = Segment(HEADER_BYTES + BOARD_BYTES)
        self._segment.commit(HEADER_BYTES + BOARD_BYTES)
        assert self._segment.memory is not None
        self._words = self._segment.memory[HEADER_BYTES:].view(np.uint64).data

    @property
    def info(self) -> SegmentInfo:
        """Where it can be seen, from HEADER_BYTES on."""
        return self._segment.info

    def give_back(self, number: int) -> None:
        """A lease is not used here any more, nor will it be."""
        self._words[number % PLACES] = number + 1

    def tells(self, number: int) -> bool:
        """Whether this lease stands here as given back."""
        return bool(self._words[number % PLACES] == number + 1)

    def close(self) -> None:
        """Nobody can open it any more; what is still written goes nowhere that matters."""
        self._segment.close()
