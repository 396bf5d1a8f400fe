"""An answer and its figures as users read them."""

from __future__ import annotations

import msgspec

from sled.device import Counts
from sled.types import FinishReason, Logprob


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """What one answer took.

    Bytes are frames on the link (header, payload), without what CURVE, ZMTP and TCP add; the vocabulary, fetched once
    per target and kept on disk, is counted apart.
    `mean_verify_batch` is over the rounds that a forward decided, not those that were told again.
    `mean_accepted_length` is committed tokens per round, the target's own token counted. `hoped_rounds` were sent
    before the verdict they hang on, `dead_rounds` of them in vain; those are in no other figure.
    """

    rounds: int
    drafted: int
    accepted: int
    acceptance_rate: float
    mean_accepted_length: float
    mean_verify_batch: float
    hoped_rounds: int
    dead_rounds: int
    bytes_sent: int
    bytes_received: int
    bytes_per_token: float
    vocabulary_bytes: int
    first_token_s: float
    wall_s: float
    tokens_per_s: float


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A finished generation.

    When `finish_reason` is "stop", `tokens` end with the stop token or with the token that completed a stop text or a
    form; `text` ends before it. `logprobs` has one for each token if they were asked for.

    When `finish_reason` is empty, no server was there for long enough, and the answer ends with what nobody has
    verified: `unverified` are those tokens, which are not in `tokens`, and `unverified_text` what they say.
    """

    text: str
    tokens: list[int]
    prompt_tokens: list[int]
    finish_reason: FinishReason
    stats: Stats
    logprobs: list[Logprob] = []
    unverified: list[int] = []
    unverified_text: str = ""


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
        mean_verify_batch=ratio(counts.batches, counts.rounds - counts.told_again),
        hoped_rounds=counts.hoped_rounds,
        dead_rounds=counts.dead_rounds,
        bytes_sent=bytes_sent,
        bytes_received=bytes_received,
        bytes_per_token=ratio(bytes_sent + bytes_received, counts.tokens),
        vocabulary_bytes=vocabulary_bytes,
        first_token_s=round(first_token_s, 4),
        wall_s=round(wall_s, 4),
        tokens_per_s=ratio(counts.tokens, wall_s),
    )
