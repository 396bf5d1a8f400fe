"""The figures of a fleet. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from sled.swarm.account import ON_TIME_SHARE, Record, first_token_s, kept_by, percentile, reached


@dataclass(slots=True)
class Tried:
    """What devices did and got."""

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    batches: int = 0
    streamed: int = 0
    tokens: int = 0
    dropped: int = 0  # drafted ahead, in vain
    busy: int = 0


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """The devices of one profile, or all of them.

    Attributes:
        devices: how many.
        tokens_per_s: committed, of all of them: the system's output (WSTGR in SLED, arXiv 2506.09397).
        rate_on_time: tokens per second that could have been promised to each with 95 % of the tokens on time.
        on_time: share of the tokens that kept to the promised rate.
        served: sessions that got the promised rate: 95 % of their tokens were on time.
        first_token_p50_s, first_token_p99_s: from the question to the first token.
        rounds, drafted, accepted, wasted: rounds; drafts sent, accepted, and sent in vain.
        dropped: drafted while a round was away, in vain.
        streamed: tokens that the server decoded without drafts.
        batch: rounds decided together, mean.
        busy: how often the server took no session.
    """

    devices: int
    tokens: int
    tokens_per_s: float
    rate_on_time: float
    on_time: float
    served: int
    first_token_p50_s: float
    first_token_p99_s: float
    rounds: int
    drafted: int
    accepted: int
    wasted: int
    dropped: int
    streamed: int
    batch: float
    busy: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A run.

    Attributes:
        seconds: measured, from when every device had a token (or from the first question, where some had none yet).
        promised: tokens per second.
        waiting: questions that came and found no device free.
        answers: complete ones; `different` of them were not as the first one to the same question.
        bytes_per_token: of the links, headers and payloads both ways, over all committed tokens.
        all: the whole fleet.
        profiles: by their names.
    """

    seconds: float
    promised: float
    waiting: int
    answers: int
    different: int
    bytes_per_token: float
    all: Part
    profiles: dict[str, Part]


def summarise(
    record: Record,
    *,
    promised: float,
    profiles: Sequence[str],
    tried: Mapping[str, Tried],
    num_bytes: int,
    answers: int,
    different: int,
    waiting: int = 0,
) -> Report:
    """What a record says.

    Args:
        record: of the run.
        promised: tokens per second.
        profiles: of each device, by its number.
        tried: of each profile.
        num_bytes: that the links have carried.
        answers, different: complete ones, and those that were not as the first.
        waiting: questions that no device has taken.
    """
    first: dict[int, float] = {}
    for arrival in record.arrivals:
        first.setdefault(arrival.session, arrival.at_s)
    begin = max(first.values()) if len(first) == record.sessions else 0.0
    if begin >= record.end_s:
        begin = 0.0
    whole = Tried()
    for each in tried.values():
        for name in Tried.__slots__:
            setattr(whole, name, getattr(whole, name) + getattr(each, name))
    parts = {
        name: _part(record, begin, promised, {n for n, of in enumerate(profiles) if of == name}, tried[name])
        for name in dict.fromkeys(profiles)
    }
    tokens = sum(arrival.tokens for arrival in record.arrivals)
    return Report(
        seconds=round(record.end_s - begin, 3),
        promised=promised,
        waiting=waiting,
        answers=answers,
        different=different,
        bytes_per_token=round(num_bytes / tokens, 2) if tokens else 0.0,
        all=_part(record, begin, promised, set(range(record.sessions)), whole),
        profiles=parts,
    )


def _part(record: Record, begin: float, promised: float, numbers: set[int], tried: Tried) -> Part:
    mine = Record(
        len(numbers),
        [asked for asked in record.asked if asked.session in numbers],
        [arrival for arrival in record.arrivals if arrival.session in numbers],
        record.end_s,
    )
    end, seconds = record.end_s, record.end_s - begin
    tokens = sum(arrival.tokens for arrival in mine.arrivals if begin < arrival.at_s <= end)
    rates = list(reached(mine, begin, end))
    by_session: dict[int, list[float]] = {}
    for session, rate in rates:
        by_session.setdefault(session, []).append(rate)
    waits = first_token_s(mine, begin, end) or first_token_s(mine, 0.0, end)
    rounds = max(1, tried.rounds)
    return Part(
        devices=len(numbers),
        tokens=tokens,
        tokens_per_s=round(tokens / seconds, 2) if seconds > 0 else 0.0,
        rate_on_time=round(kept_by([rate for _, rate in rates]), 2),
        on_time=round(sum(rate >= promised for _, rate in rates) / len(rates), 4) if rates else 0.0,
        served=sum(sum(r >= promised for r in own) >= ON_TIME_SHARE * len(own) for own in by_session.values()),
        first_token_p50_s=round(percentile(waits, 0.5), 4) if waits else 0.0,
        first_token_p99_s=round(percentile(waits, 0.99), 4) if waits else 0.0,
        rounds=tried.rounds,
        drafted=tried.drafted,
        accepted=tried.accepted,
        wasted=tried.drafted - tried.accepted,
        dropped=tried.dropped,
        streamed=tried.streamed,
        batch=round(tried.batches / rounds, 2),
        busy=tried.busy,
    )
