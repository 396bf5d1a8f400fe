"""Figures of one generation as users read them."""

from __future__ import annotations

import msgspec

from sled.device import Counts


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """What one answer took.

    Bytes are frames on the link (header, payload), without what CURVE, ZMTP and TCP add; the vocabulary, fetched once
    per target and kept on disk, is counted apart.
    `mean_accepted_length` is committed tokens per round, the target's own token counted.
    """

    rounds: int
    drafted: int
    accepted: int
    acceptance_rate: float
    mean_accepted_length: float
    mean_verify_batch: float
    bytes_sent: int
    bytes_received: int
    bytes_per_token: float
    vocabulary_bytes: int
    first_token_s: float
    wall_s: float
    tokens_per_s: float


def summarise(
    counts: Counts,
    *,
    bytes_sent: int,
    bytes_received: int,
    vocabulary_bytes: int,
    first_token_s: float,
    wall_s: float,
) -> Stats:
    """The figures of a finished (or broken off) generation; ratios of nothing are 0."""

    def ratio(part: float, whole: float) -> float:
        return round(part / whole, 4) if whole else 0.0

    return Stats(
        rounds=counts.rounds,
        drafted=counts.drafted,
        accepted=counts.accepted,
        acceptance_rate=ratio(counts.accepted, counts.drafted),
        mean_accepted_length=ratio(counts.tokens, counts.rounds),
        mean_verify_batch=ratio(counts.batches, counts.rounds),
        bytes_sent=bytes_sent,
        bytes_received=bytes_received,
        bytes_per_token=ratio(bytes_sent + bytes_received, counts.tokens),
        vocabulary_bytes=vocabulary_bytes,
        first_token_s=round(first_token_s, 4),
        wall_s=round(wall_s, 4),
        tokens_per_s=ratio(counts.tokens, wall_s),
    )
