"""How large pieces are: beside small messages, on slow links, and on links that change."""

from __future__ import annotations

import pytest

from edgebus.pace import START_BYTES, Pace

KIB, MIB = 1 << 10, 1 << 20


def proven(pace, at=-1.0):
    """A link that has been shown to be fast: credit for 64 MiB that came at once."""
    pace.sent(0, now=at)
    pace.sent(64 * MIB, now=at)
    pace.credited(64 * MIB, now=at, in_flight=False)
    return pace


def test_pace_worked_by_hand():
    """Alone: the largest pieces. At 1 GB/s beside small messages: 0.075 ms are 75,000 B, one of them on the way."""
    pace = proven(Pace(max_chunk_bytes=4 * MIB, window_bytes=32 * MIB))
    assert pace.chunk_and_window(now=0.0) == (4 * MIB, 32 * MIB)
    pace.small(now=1.0)
    assert pace.chunk_and_window(now=1.0) == (75_000, 75_000 + 32 * KIB)
    assert pace.chunk_and_window(now=1.0 + Pace.BUSY_S) == (75_000, 75_000 + 32 * KIB)
    assert pace.chunk_and_window(now=1.01 + Pace.BUSY_S) == (4 * MIB, 32 * MIB), "it grows again"


@pytest.mark.parametrize(
    ("rate", "low", "high"), [(1e6, 64 * KIB, 64 * KIB), (1.6e9, 100_000, 140_000), (1e11, 256 * KIB, 256 * KIB)]
)
def test_pace_follows_the_rate_of_the_lane(rate, low, high):
    pace = proven(Pace(max_chunk_bytes=4 * MIB, window_bytes=32 * MIB))
    for step in range(200):
        pace.credited(64 * MIB + int(rate * 0.005 * step), now=0.005 * step, in_flight=True)
    pace.small(now=1.0)
    chunk_bytes, window_bytes = pace.chunk_and_window(now=1.0)
    assert low <= chunk_bytes <= high
    assert chunk_bytes <= window_bytes < 2 * chunk_bytes, "one at a time"
    assert pace.rate == pytest.approx(rate, rel=0.05)


def test_pace_does_not_count_idle_time_as_slowness():
    pace = Pace(max_chunk_bytes=4 * MIB, window_bytes=32 * MIB)
    pace.credited(MIB, now=0.0, in_flight=True)
    pace.credited(2 * MIB, now=0.001, in_flight=False)
    pace.credited(3 * MIB, now=30.0, in_flight=True)
    assert pace.rate == 1e9


class Cable:
    """Bytes leave one after the other at a rate, and credit for each piece comes back a round trip later."""

    def __init__(self, rate, round_trip_s):
        self.rate, self.round_trip_s = rate, round_trip_s
        self.now = self.free_at = 0.0
        self.sent_bytes = self.credited_bytes = 0
        self.coming = []
        self.longest_s = 0.0  # that one piece took

    def run(self, pace, total_bytes):
        """Send so many bytes; how long it took."""
        began, total_bytes = self.now, self.sent_bytes + total_bytes
        while self.credited_bytes < total_bytes:
            chunk, window = pace.chunk_and_window(now=self.now)
            while self.sent_bytes < total_bytes and self.sent_bytes - self.credited_bytes + chunk <= window:
                size = min(chunk, total_bytes - self.sent_bytes)
                self.free_at = max(self.free_at, self.now) + size / self.rate
                self.longest_s = max(self.longest_s, size / self.rate)
                self.sent_bytes += size
                self.coming.append((self.free_at + self.round_trip_s, self.sent_bytes))
            pace.sent(self.sent_bytes, now=self.now)
            self.now, self.credited_bytes = self.coming.pop(0)
            pace.credited(self.credited_bytes, now=self.now, in_flight=self.sent_bytes > self.credited_bytes)
        return self.now - began


@pytest.mark.parametrize("rate", [4e3, 12_500, 125_000, 1.25e6, 12.5e6, 5e7])
@pytest.mark.parametrize("round_trip_s", [0.0002, 0.04, 0.3, 0.6])
def test_no_piece_takes_so_long_that_the_peer_would_be_thought_gone(rate, round_trip_s):
    pace, cable = Pace(max_chunk_bytes=16 * MIB, window_bytes=32 * MIB), Cable(rate, round_trip_s)
    total_bytes = int(max(64 * KIB, 10 * rate))
    took_s = cable.run(pace, total_bytes)
    assert cable.longest_s <= 2.1, "half of Limits.silence_s"
    # The window is a round trip's worth within a few round trips.
    assert took_s <= 1.05 * total_bytes / min(rate, 32 * MIB / round_trip_s) + 12 * round_trip_s


def test_a_link_that_becomes_slow_gets_small_pieces_again_and_one_that_becomes_fast_large_ones():
    pace, cable = Pace(max_chunk_bytes=MIB, window_bytes=32 * MIB), Cable(12.5e6, 0.005)
    cable.run(pace, 20 * MIB)
    assert pace.chunk_and_window(now=cable.now)[0] >= 256 * KIB
    cable.rate = 125_000
    cable.run(pace, 8 * MIB)
    cable.longest_s = 0.0
    cable.run(pace, MIB)
    assert cable.longest_s < 1.0
    cable.rate = 12.5e6
    cable.run(pace, 20 * MIB)
    assert pace.chunk_and_window(now=cable.now)[0] >= 256 * KIB


def test_a_connection_that_was_lost_begins_anew():
    pace = proven(Pace(max_chunk_bytes=4 * MIB, window_bytes=32 * MIB))
    pace.lost()
    assert pace.chunk_and_window(now=0.0) == (START_BYTES, 40 * KIB)


def test_what_is_sent_again_is_not_timed_from_its_first_time():
    pace = Pace(max_chunk_bytes=4 * MIB, window_bytes=32 * MIB)
    pace.sent(60_000, now=0.0)
    pace.sent(0, now=9.0)  # a rewind: nothing of it counts as sent
    pace.sent(60_000, now=9.0)
    pace.credited(60_000, now=9.01, in_flight=False)
    assert pace.proven_bytes == START_BYTES + 60_000
