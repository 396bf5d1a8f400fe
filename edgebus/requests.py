"""Requests as two pure machines: the caller gives every request exactly one outcome, the answerer executes
every request at most once. Rules and table: docs/spec/bus-wire.md.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from edgebus.config import Limits
from edgebus.messages import ArraySpec, Cancel, Message, Refusal, Reply, Request

Specs = tuple[ArraySpec, ...]
Frames = tuple[bytes, ...]


class Outcome(StrEnum):
    """How a request ended, seen from the caller."""

    ANSWERED = "answered"
    REFUSED = "refused"
    EXPIRED = "expired"
    UNKNOWN = "unknown"
    CANCELLED = "cancelled"


class Settled(NamedTuple):
    """Event of the caller: the one outcome of the request known as `ref`."""

    ref: object
    outcome: Outcome
    code: str = ""
    detail: str = ""
    specs: Specs = ()
    frames: Frames = ()


class Arrived(NamedTuple):
    """Event of the answerer: execute this, once."""

    id: int
    service: str
    expires_at: float
    specs: Specs
    frames: Frames


class Withdrawn(NamedTuple):
    """Event of the answerer: nobody waits for this answer any more."""

    id: int


Event = Settled | Arrived | Withdrawn


@dataclass(slots=True)
class _Outstanding:
    id: int
    service: str
    specs: Specs
    frames: Frames
    deadline_at: float
    ref: object
    attempts: int = 0
    backoff: int = 1  # factor of the next resend interval; starts anew when the link comes up
    resend_at: float = math.inf


class Caller:
    """Keeps requests until each has its outcome; resends with back-off while the link is up."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._outstanding: dict[int, _Outstanding] = {}  # ids grow, so the first key is the oldest
        self._timers: list[tuple[float, int]] = []
        self._next_id = 0
        self._up = False
        self._messages: list[Message] = []
        self._events: list[Event] = []
        self.outcomes: Counter[str] = Counter()
        self.started = 0
        self.retries = 0
        self.late_answers = 0

    @property
    def num_outstanding(self) -> int:
        """Requests without an outcome yet."""
        return len(self._outstanding)

    def start(self, service: str, specs: Specs, frames: Frames, *, deadline_at: float, ref: object, now: float) -> int:
        """Accept a request; its outcome comes as Settled(ref, ...) by deadline_at. Returns its id."""
        entry = _Outstanding(self._next_id, service, specs, frames, deadline_at, ref)
        self._next_id += 1
        self.started += 1
        self._outstanding[entry.id] = entry
        self._schedule(deadline_at, entry.id)
        if deadline_at <= now:
            self.handle_timer(now=now)
        elif self._up:
            self._send(entry, now)
        return entry.id

    def cancel(self, request_id: int) -> None:
        """Give a request up; nothing happens if it has its outcome already."""
        entry = self._outstanding.get(request_id)
        if entry is None:
            return
        if entry.attempts and self._up:
            self._messages.append(Message(Cancel(request_id)))
        self._settle(entry, Outcome.CANCELLED)

    def receive(self, message: Message) -> None:
        """Take a Reply or Refusal."""
        header = message.header
        assert isinstance(header, (Reply, Refusal))
        entry = self._outstanding.get(header.id)
        if entry is None:
            self.late_answers += 1
        elif isinstance(header, Reply):
            self._settle(entry, Outcome.ANSWERED, specs=header.arrays, frames=message.frames)
        else:
            outcome = Outcome.EXPIRED if header.code == "expired" else Outcome.REFUSED
            self._settle(entry, outcome, code=header.code, detail=header.detail, frames=message.frames)

    def set_up(self, up: bool, *, now: float) -> None:
        """Follow the link: when it comes up everything outstanding is sent (again)."""
        self._up = up
        if up:
            self.handle_timer(now=now)
            for entry in list(self._outstanding.values()):
                entry.backoff = 1
                self._send(entry, now)

    def fail(self, code: str, detail: str) -> None:
        """End all requests: the link will not come back."""
        for entry in list(self._outstanding.values()):
            outcome = Outcome.UNKNOWN if entry.attempts else Outcome.REFUSED
            self._settle(entry, outcome, code=code, detail=detail)

    def close(self) -> None:
        """End all requests: this side closes."""
        for request_id in list(self._outstanding):
            self.cancel(request_id)

    def next_timer(self) -> float:
        """Earliest time handle_timer has something to do, inf if never."""
        while self._timers and not self._is_live(*self._timers[0]):
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else math.inf

    def handle_timer(self, *, now: float) -> None:
        """Expire what is over its deadline, resend what is due."""
        while self.next_timer() <= now:
            _, request_id = heapq.heappop(self._timers)
            entry = self._outstanding[request_id]
            if entry.deadline_at <= now:
                self._expire(entry)
            elif self._up:
                self._send(entry, now)

    def headers_to_send(self) -> list[Message]:
        """Messages since the last call."""
        messages, self._messages = self._messages, []
        return messages

    def events(self) -> list[Event]:
        """Outcomes since the last call."""
        events, self._events = self._events, []
        return events

    def _schedule(self, at: float, request_id: int) -> None:
        if len(self._timers) > 64 + 4 * len(self._outstanding):
            # Requests mostly settle long before their timers: do not let the dead ones pile up.
            self._timers = [timer for timer in self._timers if self._is_live(*timer)]
            heapq.heapify(self._timers)
        heapq.heappush(self._timers, (at, request_id))

    def _is_live(self, at: float, request_id: int) -> bool:
        entry = self._outstanding.get(request_id)
        return entry is not None and at in (entry.deadline_at, entry.resend_at)

    def _send(self, entry: _Outstanding, now: float) -> None:
        # Rounded up: a request that has any time left must not look expired.
        ttl_ms = math.ceil((entry.deadline_at - now) * 1000)
        header = Request(entry.id, entry.service, ttl_ms, next(iter(self._outstanding)), entry.specs)
        self._messages.append(Message(header, entry.frames))
        self.retries += entry.attempts > 0
        entry.resend_at = now + self._limits.resend_s * entry.backoff
        entry.backoff = min(8, 2 * entry.backoff)
        entry.attempts += 1
        self._schedule(entry.resend_at, entry.id)

    def _expire(self, entry: _Outstanding) -> None:
        if entry.attempts == 0:
            detail = "the link never came up, so it was never sent"
            self._settle(entry, Outcome.EXPIRED, detail=detail)
        elif self._up:
            self._settle(entry, Outcome.EXPIRED, detail=f"sent {entry.attempts} times, no answer")
        else:
            detail = f"sent {entry.attempts} times, then the link went down"
            self._settle(entry, Outcome.UNKNOWN, code="link_lost", detail=detail)

    def _settle(
        self,
        entry: _Outstanding,
        outcome: Outcome,
        *,
        code: str = "",
        detail: str = "",
        specs: Specs = (),
        frames: Frames = (),
    ) -> None:
        del self._outstanding[entry.id]
        self.outcomes[outcome] += 1
        self._events.append(Settled(entry.ref, outcome, code, detail, specs, frames))


@dataclass(slots=True)
class _Entry:
    """A request that was executed or is being executed; answer is None meanwhile."""

    expires_at: float
    answer: Message | None = None


@dataclass(slots=True)
class AnswererCounts:
    """What became of arriving requests. received = executed + duplicates + expired + forgotten + busy."""

    received: int = 0
    executed: int = 0
    duplicates: int = 0
    expired: int = 0
    forgotten: int = 0
    busy: int = 0
    answered: int = 0
    withdrawn: int = 0


@dataclass
class Answerer:
    """Hands each request out once, and gives duplicates the first answer again.

    Memory is bounded: answers are kept until the caller says it has them (settled_below) or the cache is
    full. Ids at or below what was dropped are never executed again, which is what the floor is for.
    """

    limits: Limits
    counts: AnswererCounts = field(default_factory=AnswererCounts)
    _entries: dict[int, _Entry] = field(default_factory=dict)
    _answered: dict[int, int] = field(default_factory=dict)  # id -> bytes, in order of answering
    _cached_bytes: int = 0
    _floor: int = 0
    _messages: list[Message] = field(default_factory=list)
    _events: list[Event] = field(default_factory=list)

    @property
    def num_pending(self) -> int:
        """Requests handed out and not answered."""
        return len(self._entries) - len(self._answered)

    def receive(self, message: Message, *, now: float) -> None:
        """Take a Request or a Cancel."""
        header = message.header
        if isinstance(header, Cancel):
            self._withdraw(header.id)
            return
        assert isinstance(header, Request)
        self.counts.received += 1
        self._settle_below(header.settled_below)
        entry = self._entries.get(header.id)
        if entry is not None:
            self.counts.duplicates += 1
            if entry.answer is not None:
                self._messages.append(entry.answer)
        elif header.id < self._floor:
            self.counts.forgotten += 1
            self._refuse(header.id, "forgotten", "answered before, and the answer is no longer kept")
        elif header.ttl_ms <= 0:
            self.counts.expired += 1
            self._refuse(header.id, "expired", "arrived after its deadline")
        elif self.num_pending >= self.limits.max_pending:
            self.counts.busy += 1
            self._refuse(header.id, "busy", f"{self.num_pending} requests of this peer are waiting")
        else:
            self.counts.executed += 1
            expires_at = now + header.ttl_ms / 1000
            self._entries[header.id] = _Entry(expires_at)
            arrived = Arrived(header.id, header.service, expires_at, header.arrays, message.frames)
            self._events.append(arrived)

    def answer(self, request_id: int, message: Message) -> bool:
        """Give the answer of a request that Arrived; False if nobody waits for it any more."""
        entry = self._entries.get(request_id)
        if entry is None or entry.answer is not None:
            return False
        self.counts.answered += 1
        self._messages.append(message)
        self._keep(request_id, entry, message)
        return True

    def wants(self, request_id: int) -> bool:
        """True while the answer is still to be given; safe to ask from any thread."""
        entry = self._entries.get(request_id)
        return entry is not None and entry.answer is None

    def close(self) -> None:
        """Refuse what is pending: this side closes."""
        for request_id, entry in list(self._entries.items()):
            if entry.answer is None:
                self.answer(request_id, refusal(request_id, "closing", "the node is closing"))

    def withdraw_all(self) -> None:
        """The peer is gone for good."""
        for request_id in list(self._entries):
            self._withdraw(request_id)

    def successor(self) -> Answerer:
        """An empty answerer for a new incarnation of the peer; the counts go on."""
        return Answerer(self.limits, self.counts)

    def busy_until(self) -> float:
        """Until when the caller may still resend something that is remembered here."""
        return max((entry.expires_at for entry in self._entries.values()), default=-math.inf)

    def headers_to_send(self) -> list[Message]:
        """Messages since the last call."""
        messages, self._messages = self._messages, []
        return messages

    def events(self) -> list[Event]:
        """Requests to execute or to drop since the last call."""
        events, self._events = self._events, []
        return events

    def _refuse(self, request_id: int, code: str, detail: str) -> None:
        self._messages.append(refusal(request_id, code, detail))

    def _withdraw(self, request_id: int) -> None:
        entry = self._entries.get(request_id)
        if entry is not None and entry.answer is None:
            self.counts.withdrawn += 1
            self._keep(request_id, entry, refusal(request_id, "cancelled", "cancelled by the caller"))
            self._events.append(Withdrawn(request_id))

    def _keep(self, request_id: int, entry: _Entry, message: Message) -> None:
        entry.answer = message
        size = sum(map(len, message.frames))
        self._answered[request_id] = size
        self._cached_bytes += size
        while len(self._answered) > self.limits.cache_count or self._cached_bytes > self.limits.cache_bytes:
            oldest = next(iter(self._answered))
            self._floor = max(self._floor, oldest + 1)
            self._forget(oldest)

    def _settle_below(self, settled_below: int) -> None:
        if settled_below <= self._floor:
            return
        self._floor = settled_below
        # Answers come about in the order of ids, so the oldest few are looked at, not all.
        while self._answered and (oldest := next(iter(self._answered))) < settled_below:
            self._forget(oldest)

    def _forget(self, request_id: int) -> None:
        self._cached_bytes -= self._answered.pop(request_id)
        del self._entries[request_id]


def refusal(request_id: int, code: str, detail: str, info: bytes = b"") -> Message:
    """A refusal that fits its header whatever the handler wrote."""
    return Message(Refusal(request_id, code[:64], detail[:1024]), (info,))
