"""What a server counts, as plain numbers, and the report made of them: for `sled.stats`, for people, for Prometheus.

Pure: no sockets, clock or threads. The table of names is in docs/guide/server.md.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

from edgebus.daemon.histograms import COUNTS, SECONDS, Histogram, HistogramReport, histogram_lines
from edgebus.daemon.metrics import Sample, family
from edgebus.payloads import Payload
from sled.acceptance import Decision, RoundRows
from sled.messages import MAX_WINDOW

STEP_BOUNDS_S, COUNT_BOUNDS = SECONDS, COUNTS
LIMIT_BOUNDS = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0)
GOODPUT_OVER_S = 10.0

_Name = Annotated[str, Meta(max_length=128)]
_Numbers = Annotated[dict[_Name, float], Meta(max_length=128)]
_Counts = Annotated[list[int], Meta(max_length=MAX_WINDOW)]


class ServerReport(Payload, frozen=True, array_like=True):
    """A server at one moment, the answer to `sled.stats`; names are those of the metrics without `sled_` and units.

    Attributes:
        target: name of the model.
        dtype: its arithmetic.
        phase: serving, draining or closing.
        uptime_s: seconds since the start.
        gauges: what is now.
        counters: what has been since the start.
        refusals: requests refused, by code.
        drafted_at: rounds that drafted a token at position 1, 2, ... of their window.
        accepted_at: rounds whose token there was accepted.
        histograms: by name.
        engine: what computes, native or torch; empty of a server from before there was a choice.
    """

    target: _Name
    dtype: _Name
    phase: _Name
    uptime_s: float
    gauges: _Numbers
    counters: _Numbers
    refusals: _Numbers
    drafted_at: _Counts
    accepted_at: _Counts
    histograms: Annotated[dict[_Name, HistogramReport], Meta(max_length=32)]
    engine: _Name = ""


@dataclass(slots=True)
class Board:
    """Everything that is counted by the server's shell; the machine has totals of its own.

    Source: acceptance by position is what window policies need, arXiv 2406.14066.
    """

    counters: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    drafted_at: list[int] = field(default_factory=lambda: [0] * MAX_WINDOW)
    accepted_at: list[int] = field(default_factory=lambda: [0] * MAX_WINDOW)
    step_s: Histogram = field(default_factory=lambda: Histogram(STEP_BOUNDS_S))
    step_tokens: Histogram = field(default_factory=lambda: Histogram(COUNT_BOUNDS))
    step_rounds: Histogram = field(default_factory=lambda: Histogram(COUNT_BOUNDS))
    queue_s: Histogram = field(default_factory=lambda: Histogram(STEP_BOUNDS_S))
    window_limit: Histogram = field(default_factory=lambda: Histogram(LIMIT_BOUNDS))
    _committed: deque[tuple[float, int]] = field(default_factory=deque)

    def step(self, tokens: int, rounds: Sequence[RoundRows], decisions: Sequence[Decision], took_s: float) -> None:
        """A forward is done.

        Args:
            tokens: computed in it, prefill and drafts included.
            rounds: that it decided.
            decisions: one for each of them.
            took_s: from its start until its decisions were there.
        """
        self.counters["steps"] += 1
        self.counters["tokens"] += tokens
        self.step_s.observe(took_s)
        self.step_tokens.observe(tokens)
        self.step_rounds.observe(len(rounds))
        for rows, decision in zip(rounds, decisions, strict=True):
            if not decision.finite:
                self.counters["not_finite"] += 1
                continue
            drafted, accepted = len(rows.draft), decision.accepted
            self.counters["rounds"] += 1
            self.counters["drafted"] += drafted
            self.counters["accepted"] += accepted
            self.counters["wasted"] += drafted - accepted
            for position in range(min(drafted, MAX_WINDOW)):
                self.drafted_at[position] += 1
                self.accepted_at[position] += position < accepted

    def committed(self, tokens: int, *, now: float) -> None:
        """So many tokens were committed, whoever is told of them."""
        self.counters["committed"] += tokens
        self._forget_before(now - GOODPUT_OVER_S)
        self._committed.append((now, tokens))

    def verdict(self, window_limit: int, queued_s: float) -> None:
        """A verdict was given out: the limit it told, and how long its round had waited to begin."""
        self.window_limit.observe(window_limit)
        self.queue_s.observe(queued_s)

    def refused(self, code: str) -> None:
        """A request was refused."""
        self.refusals[code] += 1

    def goodput(self, *, now: float) -> float:
        """Tokens committed per second over the last 10 s."""
        self._forget_before(now - GOODPUT_OVER_S)
        return sum(tokens for _, tokens in self._committed) / GOODPUT_OVER_S

    def histograms(self) -> dict[str, HistogramReport]:
        """All of them by name."""
        found = {
            "step_seconds": self.step_s,
            "step_tokens": self.step_tokens,
            "step_rounds": self.step_rounds,
            "queue_seconds": self.queue_s,
            "window_limit": self.window_limit,
        }
        return {name: each.report() for name, each in found.items()}

    def _forget_before(self, moment: float) -> None:
        while self._committed and self._committed[0][0] <= moment:
            self._committed.popleft()


HELP = {
    "sessions": "Sessions held.",
    "waiting_rounds": "Rounds that wait for a step.",
    "streams": "Decode streams that run.",
    "queue_age_seconds": "Age of the oldest round that waits.",
    "kv_bytes_used": "Bytes of keys and values that are not free: held, or kept for texts that begin likewise.",
    "kv_bytes_shared": "Bytes of keys and values that several sessions read.",
    "kv_bytes_cached": "Bytes of keys and values that no session holds, kept for texts that begin likewise.",
    "kv_bytes_budget": "Bytes of keys and values there may be.",
    "queued_tokens": "Tokens that wait to be computed.",
    "promised_rate": "Tokens per second promised to the sessions held.",
    "goodput": "Tokens committed per second, over the last 10 s.",
    "window_limit_mean": "Mean window limit of the sessions held.",
    "preparing": "Requests being tokenised or compiled.",
    "steps": "Forwards computed.",
    "tokens": "Tokens computed, prefill and drafts included.",
    "rounds": "Rounds decided, tokens of decode streams included.",
    "drafted": "Drafts verified.",
    "accepted": "Drafts accepted.",
    "wasted": "Drafts verified in vain.",
    "committed": "Tokens committed.",
    "opened": "Sessions opened.",
    "evictions": "Times the keys and values of a session were dropped for room.",
    "prefill": "Tokens of prompts computed.",
    "cut_drafts": "Drafts not verified, since too many of their device's had been rejected.",
    "prefix_tokens": "Tokens that needed no prefill, since their pages were there.",
    "failed_steps": "Forwards that failed.",
    "out_of_memory": "Forwards that the target had no memory for.",
    "not_finite": "Rounds whose logits were not numbers.",
    "step_seconds": "Time of a forward with its decisions.",
    "step_tokens": "Tokens in a forward.",
    "step_rounds": "Rounds in a forward.",
    "queue_seconds": "Time a round waited until its forward began.",
    "window_limit": "Window limits told with verdicts.",
}


def render(report: ServerReport, *, name: str, version: str) -> str:
    """A report as Prometheus reads it (text format 0.0.4).

    Args:
        report: of the server now.
        name: what the node calls itself.
        version: of the package.
    """
    about = {"name": name, "version": version, "target": report.target, "dtype": report.dtype}
    about["engine"] = report.engine
    lines = family("sled_info", "gauge", "Which server this is.", [(about, 1)])
    lines += family("sled_uptime_seconds", "gauge", "Seconds since the start.", [({}, report.uptime_s)])
    phases = [({"phase": each}, float(each == report.phase)) for each in ("serving", "draining", "closing")]
    lines += family("sled_phase", "gauge", "Whether the server takes sessions.", phases)
    for key, value in report.gauges.items():
        lines += family(f"sled_{key}", "gauge", _help(key), [({}, value)])
    for key, value in report.counters.items():
        lines += family(f"sled_{key}_total", "counter", _help(key), [({}, value)])
    codes: list[Sample] = [({"code": code}, value) for code, value in sorted(report.refusals.items())]
    lines += family("sled_refusals_total", "counter", "Requests refused.", codes)
    for key, counts in (("drafted_at", report.drafted_at), ("accepted_at", report.accepted_at)):
        samples: list[Sample] = [({"position": str(i + 1)}, value) for i, value in enumerate(counts)]
        lines += family(f"sled_{key}_total", "counter", f"Drafts {key[:-3]} at a position of the window.", samples)
    for key, histogram in report.histograms.items():
        lines += histogram_lines(f"sled_{key}", _help(key), histogram)
    return "\n".join(lines) + "\n"


def _help(key: str) -> str:
    return HELP.get(key, f"{key.replace('_', ' ').capitalize()}.")


def trimmed(counts: Sequence[int]) -> list[int]:
    """Counts by position without the zeros at the end.

    >>> trimmed([3, 0, 1, 0, 0])
    [3, 0, 1]
    """
    end = len(counts)
    while end and not counts[end - 1]:
        end -= 1
    return list(counts[:end])


def mean_accepted(report: ServerReport) -> float:
    """Tokens committed per round, the target's own counted; 0 before the first."""
    rounds = report.counters.get("rounds", 0.0)
    return (report.counters.get("accepted", 0.0) + rounds) / rounds if rounds else 0.0


def rates(now: ServerReport, before: ServerReport, span_s: float) -> Mapping[str, float]:
    """Counters per second between two reports of the same life of a server; empty if it started anew."""
    if span_s <= 0 or now.uptime_s < before.uptime_s:
        return {}
    return {key: (value - before.counters.get(key, 0.0)) / span_s for key, value in now.counters.items()}
