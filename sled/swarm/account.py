"""From what arrived when to figures. Pure.

Throughput is counted in the window from the moment in which the last session has its first token to the end of the
turn: all sessions run in it, prompts of further answers are part of the work.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

ON_TIME_SHARE = 0.95


class Asked(msgspec.Struct, frozen=True, array_like=True):
    """A prompt was sent; `answer` counts the session's answers from 0."""

    session: int
    answer: int
    at_s: float


class Arrival(msgspec.Struct, frozen=True, array_like=True):
    """Tokens of an answer came in."""

    session: int
    answer: int
    at_s: float
    tokens: int


class Record(msgspec.Struct):
    """One turn as its load saw it; seconds since the turn began."""

    sessions: int
    asked: list[Asked]
    arrivals: list[Arrival]
    end_s: float
    notes: dict[str, Any] = {}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed.

    >>> percentile([4.0, 1.0, 3.0, 2.0], 0.5)
    2.0
    """
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def window(record: Record) -> tuple[float, float]:
    """Begin and end of what is counted.

    Raises:
        ValueError: a session had no token before the end.
    """
    first: dict[int, float] = {}
    for arrival in record.arrivals:
        first[arrival.session] = min(arrival.at_s, first.get(arrival.session, arrival.at_s))
    if len(first) < record.sessions:
        raise ValueError(f"{len(first)} of {record.sessions} sessions had a token within {record.end_s:.1f} s")
    begin = max(first.values())
    if begin >= record.end_s:
        raise ValueError(f"all sessions had a token only at the end, after {begin:.1f} s")
    return begin, record.end_s


def first_token_s(record: Record, begin: float, end: float) -> list[float]:
    """From a prompt sent in [begin, end) to its first token; where none came, what had passed at the end."""
    came: dict[tuple[int, int], float] = {}
    for arrival in record.arrivals:
        key = (arrival.session, arrival.answer)
        came[key] = min(arrival.at_s, came.get(key, arrival.at_s))
    sent = [asked for asked in record.asked if begin <= asked.at_s < end]
    return [came.get((asked.session, asked.answer), record.end_s) - asked.at_s for asked in sent]


def rate_on_time(record: Record, begin: float, end: float, share: float = ON_TIME_SHARE) -> float:
    """The highest rate in tokens per second that could have been promised to each session.

    Token number n of an answer is on time if it comes within n / rate of the first one. Of the tokens that came in
    (begin, end], those in one arrival with the first left out, `share` are on time at this rate.
    """
    return kept_by([rate for _, rate in reached(record, begin, end)], share)


def kept_by(rates: Sequence[float], share: float = ON_TIME_SHARE) -> float:
    """The highest rate that so many of these reached; 0 of none."""
    return sorted(rates)[int((1 - share) * len(rates))] if rates else 0.0


def reached(record: Record, begin: float, end: float) -> Iterator[tuple[int, float]]:
    """For each token that counts its session, and the highest rate at which it was on time."""
    first: dict[tuple[int, int], float] = {}
    seen: dict[tuple[int, int], int] = {}
    for arrival in sorted(record.arrivals, key=lambda arrival: arrival.at_s):
        key = (arrival.session, arrival.answer)
        began, before = first.setdefault(key, arrival.at_s), seen.get(key, 0)
        seen[key] = before + arrival.tokens
        if arrival.at_s > began and begin < arrival.at_s <= end:
            for number in range(before, before + arrival.tokens):
                yield arrival.session, number / (arrival.at_s - began)


def summarise(record: Record) -> dict[str, Any]:
    """The figures of one turn."""
    begin, end = window(record)
    counted = sum(arrival.tokens for arrival in record.arrivals if begin < arrival.at_s <= end)
    waits, burst = first_token_s(record, begin, end), first_token_s(record, 0.0, begin)
    rate = rate_on_time(record, begin, end)
    return {
        "sessions": record.sessions,
        "window_s": round(end - begin, 3),
        "all_running_after_s": round(begin, 3),
        "tokens": counted,
        "tokens_per_s": round(counted / (end - begin), 2),
        "prompts_in_window": len(waits),
        **_percentiles("first_token", waits),
        **_percentiles("first_token_of_burst", burst or waits),
        "rate_on_time": round(rate, 2),
        **record.notes,
    }


def _percentiles(name: str, values: Sequence[float]) -> dict[str, float]:
    shares = {"p50": 0.5, "p99": 0.99}
    return {f"{name}_{key}_s": round(percentile(values, share), 4) for key, share in shares.items() if values}
