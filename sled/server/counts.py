"""What the server did and how it stands, for whoever watches it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Totals(msgspec.Struct):
    """Counted since the server started.

    `drafts_of_length[k]` is the number of verified rounds with k drafts, `accepted_of_length[k]` of those with k
    accepted: position i was tried in the sum of the first over k > i and accepted in that of the second over k > i.
    """

    sessions: int = 0
    rounds: int = 0
    decoded: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    cut_drafts: int = 0
    steps: int = 0
    step_tokens: int = 0
    step_s: float = 0.0
    prefill_tokens: int = 0
    found_tokens: int = 0
    evictions: int = 0
    failed_rounds: int = 0
    failed_steps: dict[str, int] = msgspec.field(default_factory=dict)
    drafts_of_length: list[int] = msgspec.field(default_factory=list)
    accepted_of_length: list[int] = msgspec.field(default_factory=list)

    def count_round(self, drafted: int, accepted: int, tokens: int) -> None:
        """A round was decided."""
        self.tokens += tokens
        if drafted:
            self.drafted += drafted
            self.accepted += accepted
        self.drafts_of_length[drafted] += 1
        self.accepted_of_length[accepted] += 1

    def acceptance(self) -> Sequence[float]:
        """Share of drafts accepted at each position, 0 where there were none."""
        shares, tried, accepted = [], sum(self.drafts_of_length), sum(self.accepted_of_length)
        for length in range(len(self.drafts_of_length) - 1):
            tried -= self.drafts_of_length[length]
            accepted -= self.accepted_of_length[length]
            shares.append(accepted / tried if tried else 0.0)
        return shares


class Gauges(msgspec.Struct, frozen=True, kw_only=True):
    """How the server stands now; `pages_held` are in use, `pages_cached` nobody's but still to be found."""

    sessions: int
    waiting_rounds: int
    streams: int
    queued_tokens: int
    queue_age_s: float
    pages_held: int
    pages_shared: int
    pages_cached: int
    pages_free: int
    kv_bytes: int
    promised_rate: float
    mean_window_limit: float
    step_s: float
    draining: bool
