"""The answering half of requests, pure: each is executed at most once. Rules: docs/spec/bus-wire.md."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from edgebus.config import Limits
from edgebus.messages import Cancel, Message, Request
from edgebus.requests import Arrived, Event, Withdrawn, refusal


@dataclass(slots=True)
class _Entry:
    """A request that was executed or is being executed; answer is None meanwhile."""

    expires_at: float
    service: str = ""
    size_bytes: int = 0  # of its frames, while they are kept for the handler
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


@dataclass(eq=False)
class Answerer:
    """Hands each request out once, and gives duplicates the first answer again.

    Memory is bounded: requests wait within max_pending and max_pending_bytes, answers are kept until the
    caller says it has them (settled_below) or the cache is full. Ids at or below what was dropped are never
    executed again, which is what the floor is for.
    """

    limits: Limits
    counts: AnswererCounts = field(default_factory=AnswererCounts)
    _entries: dict[int, _Entry] = field(default_factory=dict)
    _answered: dict[int, int] = field(default_factory=dict)  # id -> bytes, in order of answering
    _cached_bytes: int = 0
    pending_bytes: int = 0
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
        size_bytes = sum(map(len, message.frames))
        entry = self._entries.get(header.id)
        if entry is not None:
            self.counts.duplicates += 1
            if entry.answer is not None:
                self._messages.append(entry.answer)
        elif header.id < self._floor:
            self.counts.forgotten += 1
            self._refuse(
                header.id,
                "forgotten",
                f"ids below {self._floor} are no longer remembered: answered before, or too late to tell",
            )
        elif header.ttl_ms <= 0:
            self.counts.expired += 1
            self._refuse(header.id, "expired", "arrived after its deadline")
        elif fault := self._no_room(size_bytes):
            self.counts.busy += 1
            self._refuse(header.id, *fault)
        else:
            self.counts.executed += 1
            expires_at = now + header.ttl_ms / 1000
            self._entries[header.id] = _Entry(expires_at, header.service, size_bytes)
            self.pending_bytes += size_bytes
            arrived = Arrived(header.id, header.service, expires_at, header.arrays, message.frames, self)
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
                self._events.append(Withdrawn(request_id, entry.service, self))

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

    def _no_room(self, size_bytes: int) -> tuple[str, str] | None:
        limits = self.limits
        if size_bytes > limits.max_pending_bytes:
            return "too_large", f"{size_bytes} B in one request, max_pending_bytes is {limits.max_pending_bytes}"
        if self.num_pending >= limits.max_pending:
            return "busy", f"{self.num_pending} requests of this peer are waiting"
        if self.pending_bytes + size_bytes > limits.max_pending_bytes:
            return "busy", f"{self.pending_bytes} B of this peer are waiting, max {limits.max_pending_bytes}"
        return None

    def _withdraw(self, request_id: int) -> None:
        entry = self._entries.get(request_id)
        if entry is not None and entry.answer is None:
            self.counts.withdrawn += 1
            self._keep(request_id, entry, refusal(request_id, "cancelled", "cancelled by the caller"))
            self._events.append(Withdrawn(request_id, entry.service, self))

    def _keep(self, request_id: int, entry: _Entry, message: Message) -> None:
        entry.answer = message
        self.pending_bytes -= entry.size_bytes
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
