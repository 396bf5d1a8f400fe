"""The calling half of requests, pure: every request gets exactly one outcome. The other half is answerer.py.

Rules and table: docs/spec/bus-wire.md.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from edgebus.config import Limits
from edgebus.messages import ArraySpec, Cancel, Message, Refusal, Reply, Request

if TYPE_CHECKING:
    from edgebus.answerer import Answerer

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
    """Event of the answerer: execute this, once. The answer goes to that very answerer.

    A link that was greeted by another incarnation has another answerer, whose ids start anew.
    """

    id: int
    service: str
    expires_at: float
    specs: Specs
    frames: Frames
    answerer: Answerer


class Withdrawn(NamedTuple):
    """Event of the answerer: nobody waits for this answer any more, or it was given for the handler."""

    id: int
    service: str
    answerer: Answerer


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
        if up and not self._up:
            self.handle_timer(now=now)  # while still down: what is due is sent once, below
        self._up = up
        if up:
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
            detail = "the peer was not there all that time, so it was never sent"
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


def refusal(request_id: int, code: str, detail: str, info: bytes = b"") -> Message:
    """A refusal that fits its header and encodes, whatever the handler wrote.

    >>> refusal(1, "odd", "file \\udce9").header.detail
    'file ?'
    """
    return Message(Refusal(request_id, _sendable(code[:64]), _sendable(detail[:1024])), (info,))


def _sendable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
