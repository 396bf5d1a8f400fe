"""One direction of a proxied connection, pure: bytes go in at one time and may come out at another."""

from __future__ import annotations

import math
from collections import deque

BURST_S = 0.02


class Bucket:
    """A token bucket: lets bytes pass at a rate, those of an idle `burst_s` at once.

    Args:
        bytes_per_s: None lets everything pass.
        burst_s: short where small messages are to take their time too.

    >>> bucket = Bucket(1000.0, now=0.0)
    >>> bucket.allows(now=0.0), bucket.allows(now=0.01), bucket.allows(now=9.0)
    (0, 10, 20)
    """

    def __init__(self, bytes_per_s: float | None, *, now: float, burst_s: float = BURST_S) -> None:
        if bytes_per_s is not None and not 0 < bytes_per_s < math.inf:
            raise ValueError(f"bytes_per_s must be above 0, or None for no bound, got {bytes_per_s!r}")
        self.bytes_per_s = bytes_per_s
        self._burst = max(1.0, (bytes_per_s or 0.0) * burst_s)
        self._tokens = 0.0
        self._at = now

    def allows(self, *, now: float) -> int | None:
        """How many bytes may pass now; None if there is no bound."""
        if self.bytes_per_s is None:
            return None
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self.bytes_per_s)
        self._at = now
        return int(self._tokens)

    def take(self, num_bytes: int) -> None:
        """They passed."""
        if self.bytes_per_s is not None:
            self._tokens -= num_bytes

    def allows_at(self, num_bytes: int, *, now: float) -> float:
        """When so many may pass, or as many as ever may at once."""
        if self.bytes_per_s is None:
            return now
        self.allows(now=now)
        # A thousandth of a byte more: rounding must not leave it a hair short.
        missing = min(num_bytes, int(self._burst)) + 1e-3 - self._tokens
        return now + max(0.0, missing) / self.bytes_per_s


class Pipe:
    """Bytes of one direction, kept in order until they are due.

    Args:
        bucket: shared by all connections, as one cable is.
        limit_bytes: most that it holds.

    Attributes:
        delay_s: how long bytes that come in now are kept.
        is_stalled: nothing comes out.
        ended: "eof" or "reset" once nothing more goes in; it comes out after the bytes.
        size: bytes it holds.
    """

    def __init__(self, bucket: Bucket, limit_bytes: int) -> None:
        self.bucket = bucket
        self.delay_s = 0.0
        self.is_stalled = False
        self.ended = ""
        self.size = 0
        self._limit_bytes = limit_bytes
        self._chunks: deque[tuple[float, memoryview]] = deque()
        self._ends_at = math.inf

    @property
    def room(self) -> int:
        """Bytes it takes now."""
        return 0 if self.ended else self._limit_bytes - self.size

    def put(self, data: bytes, *, now: float) -> None:
        """Take bytes, at most `room`."""
        assert 0 < len(data) <= self.room
        self._chunks.append((now + self.delay_s, memoryview(data)))
        self.size += len(data)

    def end(self, how: str, *, now: float) -> None:
        """Nothing more will go in; a reset overrules an eof that is not out yet."""
        if not self.ended:
            self._ends_at = now + self.delay_s
        self.ended = how

    def ready(self, *, now: float) -> memoryview:
        """Bytes that may come out now, possibly none."""
        if self.is_stalled or not self._chunks or self._chunks[0][0] > now:
            return memoryview(b"")
        return self._chunks[0][1][: self.bucket.allows(now=now)]

    def took(self, num_bytes: int) -> None:
        """So many of the ready bytes are out."""
        due_at, chunk = self._chunks.popleft()
        if num_bytes < len(chunk):
            self._chunks.appendleft((due_at, chunk[num_bytes:]))
        self.size -= num_bytes
        self.bucket.take(num_bytes)

    def discard(self) -> None:
        """Nobody is there to take what it holds."""
        self._chunks.clear()
        self.size = 0

    def is_over(self, *, now: float) -> bool:
        """Its end may come out."""
        return bool(self.ended) and not self.is_stalled and not self._chunks and now >= self._ends_at

    def next_at(self, *, now: float) -> float:
        """When something may come out, inf if that does not depend on time."""
        if self.is_stalled:
            return math.inf
        if not self._chunks:
            return self._ends_at if self.ended and now < self._ends_at else math.inf
        due_at, chunk = self._chunks[0]
        return due_at if due_at > now else self.bucket.allows_at(len(chunk), now=now)
