"""How large pieces of a large content may be, pure: small messages beside them are not to wait."""

from __future__ import annotations

import math


class Pace:
    """How large chunks may be and how much may be on its way, so that small messages beside them stay quick.

    While the control lane is used the bulk lane keeps its queue to what drains in a moment at the rate it has shown;
    when nobody is disturbed it goes in the largest pieces.

    Args:
        max_chunk_bytes: largest piece.
        window_bytes: the receiver's credit.
    """

    BUSY_S = 0.25  # a small message makes the lane polite for so long
    DRAIN_S = 0.00015  # what may stand before a small message, seconds

    def __init__(self, max_chunk_bytes: int, window_bytes: int) -> None:
        self._max_chunk_bytes, self.window_bytes = max_chunk_bytes, window_bytes
        self._rate = 1e9  # bytes per second, measured below
        self._marked_at = -math.inf
        self._marked_bytes = 0
        self._small_at = -math.inf

    @property
    def rate(self) -> float:
        """Bytes per second that the lane has shown."""
        return self._rate

    def small(self, *, now: float) -> None:
        """A small message went by while contents were on their way."""
        self._small_at = now

    def credited(self, total_bytes: int, *, now: float, in_flight: bool) -> None:
        """So many bytes have been credited in all."""
        elapsed_s = now - self._marked_at
        if elapsed_s > 1.0 or not in_flight:
            self._marked_at, self._marked_bytes = now, total_bytes
        elif elapsed_s > 0.002:
            rate = (total_bytes - self._marked_bytes) / elapsed_s
            self._rate += 0.25 * (max(1e4, rate) - self._rate)
            self._marked_at, self._marked_bytes = now, total_bytes

    def chunk_and_window(self, *, now: float) -> tuple[int, int]:
        """Bytes of a chunk, and bytes that may be on their way."""
        if now - self._small_at > self.BUSY_S:
            return self._max_chunk_bytes, self.window_bytes
        chunk = int(min(max(self._rate * self.DRAIN_S / 2, 16 * 1024), 256 * 1024, self._max_chunk_bytes))
        return chunk, min(self.window_bytes, 4 * chunk)
