"""How large pieces of a large content may be, pure: for small messages beside them, and for slow links."""

from __future__ import annotations

import math
from collections import deque

from edgebus.bulk import CREDIT_EVERY_BYTES

START_BYTES = 8 * 1024
"""Of a piece on a link that has shown nothing yet: at 32 kbit/s it takes 2 s, and until it is there nothing else is
heard of its sender."""
LEAST_BYTES = 4 * 1024
QUICK_S, SLOW_S = 0.25, 1.0
"""Pieces grow while credit comes within so long beyond a bare round trip, and shrink when it takes longer than that."""
ROUND_TRIP_S = 0.5
"""A round trip is not taken to be longer: pieces on a slow link take their time too."""
POLITE_LEAST_BYTES, POLITE_MOST_BYTES = 64 * 1024, 256 * 1024
"""Of the one piece beside small messages: with less the work for each piece takes longer than its bytes."""


class Pace:
    """How large chunks may be and how much may be on its way.

    A link begins with small pieces; every credit that comes soon makes them larger by what it is for, so they are the
    largest within a few round trips, as in TCP's slow start (RFC 5681, section 3.1). They stay as small as credit is
    late, so that a piece takes no longer than the peer would be thought gone. While the control lane is used one piece
    is on its way at a time, no more than drains in a moment at the rate the lane has shown: a second one would keep
    another thread busy that the small message has to pass.

    Args:
        max_chunk_bytes: largest piece.
        window_bytes: the receiver's credit.
    """

    BUSY_S = 0.25  # a small message makes the lane polite for so long
    DRAIN_S = 0.000075  # what may stand before a small message, seconds

    def __init__(self, max_chunk_bytes: int, window_bytes: int) -> None:
        self._max_chunk_bytes, self.window_bytes = max_chunk_bytes, window_bytes
        self._most_bytes = max(max_chunk_bytes, window_bytes)
        self._rate = 1e9  # bytes per second, measured below
        self._marked_at = -math.inf
        self._marked_bytes = 0
        self._small_at = -math.inf
        self._credited_bytes = 0
        self._sent: deque[tuple[int, float]] = deque()  # all bytes ever, and when the last of them went
        self._round_trip_s = ROUND_TRIP_S
        self._judged_bytes = 0
        self.proven_bytes = START_BYTES

    @property
    def rate(self) -> float:
        """Bytes per second that the lane has shown."""
        return self._rate

    def small(self, now: float) -> None:
        """A small message went by while contents were on their way."""
        self._small_at = now

    def sent(self, total_bytes: int, now: float) -> None:
        """So many bytes have gone in all, credited or not."""
        sent = self._sent
        while sent and sent[-1][0] > total_bytes:
            sent.pop()  # given up, or to be sent again
        if not sent or total_bytes > sent[-1][0]:
            sent.append((total_bytes, now))

    def lost(self) -> None:
        """The connection has gone: what comes next may be slower, or was too large for this one."""
        self._sent.clear()
        self._round_trip_s = ROUND_TRIP_S
        self.proven_bytes = START_BYTES

    def credited(self, total_bytes: int, now: float, in_flight: bool) -> None:
        """So many bytes have been credited in all."""
        gained_bytes = total_bytes - self._credited_bytes
        if gained_bytes > 0:
            self._credited_bytes = total_bytes
            self._learn(total_bytes, gained_bytes, now)
        elapsed_s = now - self._marked_at
        if elapsed_s > 1.0 or not in_flight:
            self._marked_at, self._marked_bytes = now, total_bytes
        elif elapsed_s > 0.002:
            rate = (total_bytes - self._marked_bytes) / elapsed_s
            self._rate += 0.25 * (max(1e4, rate) - self._rate)
            self._marked_at, self._marked_bytes = now, total_bytes

    def chunk_and_window(self, now: float) -> tuple[int, int]:
        """Bytes of a chunk, and bytes that may be on their way."""
        chunk, ahead = min(self._max_chunk_bytes, self.proven_bytes), 4 * self.proven_bytes
        if now - self._small_at <= self.BUSY_S:
            polite = int(min(max(self._rate * self.DRAIN_S, POLITE_LEAST_BYTES), POLITE_MOST_BYTES))
            chunk, ahead = min(chunk, polite), min(ahead, polite)
        # The receiver may give credit only every so many bytes: a window has room for them and a piece.
        return chunk, min(self.window_bytes, max(ahead, CREDIT_EVERY_BYTES + chunk))

    def _learn(self, total_bytes: int, gained_bytes: int, now: float) -> None:
        """Credit came: how long after its last byte had gone."""
        sent, sent_at = self._sent, math.nan
        while sent and sent[0][0] <= total_bytes:
            sent_at = sent.popleft()[1]
        if math.isnan(sent_at):
            if not sent:
                return  # it was sent again, or before the connection went
            sent_at = sent[0][1]  # a part of what went at once
        waited_s = now - sent_at
        self._round_trip_s = min(self._round_trip_s, waited_s)
        beyond_s = waited_s - self._round_trip_s
        if beyond_s > SLOW_S:
            if total_bytes >= self._judged_bytes:  # what was sent before the last cut says nothing of it
                self.proven_bytes = max(LEAST_BYTES, self.proven_bytes // 2)
                self._judged_bytes = sent[-1][0] if sent else 0
        elif waited_s <= self._round_trip_s + QUICK_S:
            self.proven_bytes = min(self._most_bytes, self.proven_bytes + gained_bytes)
