"""The calling half of requests, pure: every request gets exactly one outcome. The other half is answerer.py.

Rules and table: docs/spec/bus-wire.md.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from edgebus.config import Limits
from edgebus.counting import times
from edgebus.messages import (
    ONE_WAY,
    STREAM,
    Block,
    Cancel,
    Content,
    Message,
    More,
    Part,
    Refusal,
    Reply,
    Request,
    Terms,
)
from edgebus.outcomes import Event, Outcome, PartArrived, Settled
from edgebus.pace import LEAST_BYTES
from edgebus.streams import Frames, InStream, Specs, content_bytes

if TYPE_CHECKING:
    pass

_MAX_TTL_MS = 86_400_000
_INF = math.inf
_MAX_LATE_CANCELS = 1024
_settled: Callable[[tuple[Any, ...]], Settled] = partial(tuple.__new__, Settled)  # without a frame of Python


class _Outstanding:
    """A request without an outcome. Plain, so that it can be compiled (requests.pxd)."""

    def __init__(
        self, request_id: int, header: Request, frames: Frames, size_bytes: int, deadline_at: float, ref: object
    ) -> None:
        self.id = request_id
        self.header = header
        self.frames = frames
        self.size_bytes = size_bytes
        self.deadline_at = deadline_at
        self.ref = ref
        self.stream: InStream | None = None
        self.final: Settled | None = None  # the answer of a stream, while parts before it are missing
        self.attempts = 0
        self.backoff = 1  # factor of the next resend interval; starts anew when the link comes up
        self.due_at = _INF  # next resend or the deadline
        self.progressed = False  # parts of the stream came since the last look


class Caller:
    """Keeps requests until each has its outcome; resends with back-off and jitter while the link is up.

    Args:
        limits: bounds; requests without an outcome take at most `max_outstanding_bytes`.
        jitter: gives factors around 1 for resend intervals.
    """

    def __init__(self, limits: Limits, jitter: Callable[[], float] = lambda: 1.0) -> None:
        self._limits = limits
        self.max_bytes = limits.max_outstanding_bytes
        self.bulk_from_bytes, self._resend_s = limits.bulk_from_bytes, limits.resend_s
        self._jitter = jitter
        self.outstanding: dict[int, _Outstanding] = {}  # ids grow, so the first key is the oldest
        self._timers: list[tuple[float, int]] = []
        self._next_id = 0
        self._up = False
        self._patient_until = -math.inf
        self._messages: list[Message] = []
        self._events: list[Event] = []
        self.ended: list[int] = []  # large requests that have their outcome: their content need not go any further
        self._late_cancels: list[int] = []  # given up while the link was down
        self.leases_done: list[int] = []  # of shared memory, in requests that have their outcome
        self.leases_unsent: list[int] = []  # those that the peer has never heard of
        self.note = ""  # what is known of the peer, for whoever waits in vain
        self.outstanding_bytes = 0
        self.num_answered = 0
        self._not_answered: Counter[str] = Counter()
        self.started = 0
        self.retries = 0
        self.late_answers = 0

    @property
    def outcomes(self) -> Counter[str]:
        """How many requests ended in which way."""
        return self._not_answered + Counter({"answered": self.num_answered})

    @property
    def num_outstanding(self) -> int:
        """Requests without an outcome yet."""
        return len(self.outstanding)

    def one_way(self) -> list[str]:
        """The services of one-way messages without an outcome yet."""
        headers = [entry.header for entry in list(self.outstanding.values())]
        return [header.service for header in headers if header.terms is not None and header.terms.kind == ONE_WAY]

    def room_fault(self, size_bytes: int) -> str | None:
        """Say why a request of this size cannot be accepted now, or None; with `drop_oldest` it makes room."""
        limit = self._limits.max_outstanding_bytes
        if self.outstanding_bytes + size_bytes <= limit:
            return None
        if self._limits.on_full == "drop_oldest" and size_bytes <= limit:
            for entry in list(self.outstanding.values()):
                if not entry.attempts:
                    detail = f"dropped for a newer one: {self.outstanding_bytes} B were waiting, max {limit}"
                    self._settle(entry, Outcome.REFUSED, code="queue_full", detail=detail)
                if self.outstanding_bytes + size_bytes <= limit:
                    return None
        return f"{self.outstanding_bytes} B are waiting for an outcome, {size_bytes} B more are over {limit}"

    def start(
        self,
        service: str,
        specs: Specs,
        frames: Frames,
        *,
        deadline_at: float,
        ref: object,
        now: float,
        terms: Terms | None = None,
        blocks: tuple[Block, ...] | None = None,
    ) -> int:
        """Accept a request; its outcome comes as Settled(ref, ...) by deadline_at. Returns its id."""
        request_id = self._next_id
        self._next_id += 1
        self.started += 1
        header = Request(request_id, service, 0, 0, specs, None, terms, None, blocks)
        size_bytes = content_bytes(frames)
        entry = _Outstanding(request_id, header, frames, size_bytes, deadline_at, ref)
        if terms is not None and terms.kind == STREAM:
            entry.stream = InStream(terms.window_bytes, terms.from_pos)
        self._schedule(
            entry, deadline_at
        )  # first: it ends then, whatever exception of a signal handler comes in between
        self.outstanding[request_id] = entry
        self.outstanding_bytes += size_bytes
        if deadline_at <= now:
            self._expire(entry)
        elif self._up:
            self._send(entry, now)
        return request_id

    def small_header(self, service: str, payload: bytes, deadline_at: float, now: float) -> Request:
        """The header of a plain request with a small payload, to be sent at once and then started."""
        request_id = self.claim_id()
        return Request(request_id, service, ttl_of(deadline_at - now), self.oldest_or(request_id), (), payload)

    def claim_id(self) -> int:
        """The id of a request that is about to be sent: what an interrupt leaves unstarted is never asked again."""
        request_id = self._next_id
        self._next_id = request_id + 1
        return request_id

    def oldest_or(self, request_id: int) -> int:
        """The oldest request without an outcome; this one if there is none."""
        for oldest in self.outstanding:
            return oldest
        return request_id

    def start_sent(
        self, header: Request, frames: Frames, size_bytes: int, deadline_at: float, ref: object, now: float
    ) -> None:
        """Like start, for a plain request on a link that is up, which has just been sent with a small_header."""
        outstanding, timers = self.outstanding, self._timers
        request_id = header.id
        due_at = min(now + self._resend_s, deadline_at)
        entry = _Outstanding(request_id, header, frames, size_bytes, deadline_at, ref)
        entry.attempts, entry.backoff, entry.due_at = 1, 2, due_at
        # Mostly those before it have their answers: their timers go at once, while there are few.
        while timers and timers[0][1] not in outstanding:
            first = timers[0]
            if len(timers) > 1:
                heapq.heappop(timers)
            else:
                timers.remove(first)  # it alone: a signal handler may have started a request since a moment ago
        if not timers:
            timers.append((due_at, request_id))
        elif len(timers) > 64 + 4 * len(outstanding):
            self._schedule(entry, due_at)
        else:
            heapq.heappush(timers, (due_at, request_id))
        # Last: what an interrupt leaves unstarted takes no room, and what is started has its timer.
        outstanding[request_id] = entry
        self.started += 1
        self.outstanding_bytes += size_bytes

    def awaits_small(self, reply: Reply) -> object | None:
        """Whose request a plain small reply answers, None if it has to go the usual way."""
        entry = self.outstanding.get(reply.id)
        return None if entry is None or entry.stream is not None else entry.ref

    def answered_small(self, request_id: int) -> None:
        """Like receive, for a plain small reply that awaits_small told whose it is."""
        entry = self.outstanding.pop(request_id)
        self._give_room(entry)
        self.num_answered += 1
        if entry.header.blocks is not None:
            self.leases_done += [block.lease for block in entry.header.blocks]

    @property
    def first_due_at(self) -> float:
        """A time at or before the first timer."""
        return self._timers[0][0] if self._timers else math.inf

    def cancel(self, request_id: int) -> None:
        """Give a request up; nothing happens if it has its outcome already."""
        entry = self.outstanding.get(request_id)
        if entry is None:
            return
        message = Message(Cancel(request_id))
        self._settle(entry, Outcome.CANCELLED)
        # Last: withdrawn there and not settled here, by an exception of a signal handler, it would wait for a resend.
        if entry.attempts and self._up:
            self._messages.append(message)
        elif entry.attempts and len(self._late_cancels) < _MAX_LATE_CANCELS:
            self._late_cancels.append(request_id)

    def give_up(self, request_id: int, detail: str) -> None:
        """A request cannot be sent, or what came for it cannot be taken in: it ends, by a fault of ours."""
        entry = self.outstanding.get(request_id)
        if entry is not None:
            if entry.stream is not None and entry.attempts and self._up:
                self._messages.append(Message(Cancel(request_id)))
            self._settle(entry, Outcome.REFUSED, code="internal", detail=detail)

    def has(self, blocks: tuple[Block, ...]) -> bool:
        """True if a request with these very blocks has been started and has no outcome."""
        return any(entry.header.blocks is blocks for entry in list(self.outstanding.values()))

    def repeats(self, request_id: int) -> bool:
        """True for a request that was sent before since the link came up."""
        entry = self.outstanding.get(request_id)
        return entry is not None and entry.backoff > 2

    def is_small(self, request_id: int) -> bool:
        """True for a request that went by the control lane: its answer should not wait behind large contents."""
        entry = self.outstanding.get(request_id)
        return entry is not None and entry.size_bytes < self._limits.bulk_from_bytes

    def wants(self, header: Content) -> bool:
        """True if the content of this Reply or Part is needed here."""
        entry = self.outstanding.get(header.id)
        if entry is None or isinstance(header, Reply):
            return entry is not None and entry.final is None
        return entry.stream is not None and isinstance(header, Part) and header.pos >= entry.stream.next_pos

    def receive(self, message: Message) -> None:
        """Take a Reply, a Refusal or a Part."""
        header = message.header
        assert isinstance(header, Reply | Refusal | Part)
        entry = self.outstanding.get(header.id)
        if entry is None:
            self.late_answers += 1
        elif isinstance(header, Reply):
            settled = _settled((entry.ref, Outcome.ANSWERED, "", "", header.arrays, message.frames))
            if entry.stream is None:
                self._finish(entry, settled)
            else:
                entry.stream.end_pos, entry.final = header.num_parts, settled
                self._finish_stream(entry)
        elif isinstance(header, Part):
            self._receive_part(entry, header, message.frames)
        elif header.code == "unshared" and entry.header.blocks is None:
            self.late_answers += 1  # its content is on its way by now
        else:
            outcome = Outcome.EXPIRED if header.code == "expired" else Outcome.REFUSED
            self._settle(entry, outcome, code=header.code, detail=header.detail, frames=message.frames)

    def receive_plain(self, header: Reply, frames: Frames) -> Settled | None:
        """Like receive, for the answer of a request that is no stream, whose outcome is returned; None for all else."""
        entry = self.outstanding.get(header.id)
        if entry is None or entry.stream is not None:
            return None
        settled = _settled((entry.ref, Outcome.ANSWERED, "", "", header.arrays, frames))
        self._finish(entry, settled)
        self._events.pop()
        return settled

    def consume(self, request_id: int, pos: int) -> None:
        """The application took all parts of a stream below pos."""
        entry = self.outstanding.get(request_id)
        if entry is not None and entry.stream is not None:
            acknowledged = entry.stream.consume(pos)
            if acknowledged is not None and self._up:
                self._messages.append(Message(More(request_id, acknowledged)))

    def set_up(self, up: bool, *, now: float) -> None:
        """Follow the link: when it comes up everything outstanding is sent (again)."""
        if up and not self._up:
            self.handle_timer(now=now)  # while still down: what is due is sent once, below
        self._up = up
        self._patient_until = -math.inf
        if up:
            self._messages += [Message(Cancel(request_id)) for request_id in self._late_cancels]
            self._late_cancels.clear()
            for entry in list(self.outstanding.values()):
                entry.backoff = 1
                self._send(entry, now)

    def unshare(self, request_id: int, recover: Callable[[Sequence[Block]], Frames | None]) -> bool:
        """Have a request go by sockets whose arrays lie in shared memory; False if it has none, or they are gone."""
        entry = self.outstanding.get(request_id)
        if entry is None or not entry.header.blocks or (frames := recover(entry.header.blocks)) is None:
            return False
        self.leases_done += [block.lease for block in entry.header.blocks]
        # Another header: a message with the one that has blocks may be on its way out.
        entry.header = msgspec.structs.replace(entry.header, blocks=None)
        entry.frames += frames
        entry.size_bytes += content_bytes(frames)
        self.outstanding_bytes += content_bytes(frames)
        return True

    def send_again(self, request_id: int, *, now: float) -> None:
        """Send a request now, whenever it was due."""
        if self._up and (entry := self.outstanding.get(request_id)) is not None:
            self._send(entry, now)

    def peer_restarted(self, recover: Callable[[Sequence[Block]], Frames | None] = lambda blocks: None) -> None:
        """The peer has lost its memory: streams go on with what it pushes in this life, shared memory is not seen."""
        for entry in self.outstanding.values():
            self.unshare(entry.id, recover)
            if entry.stream is not None:
                entry.stream.start_over()
                entry.final = None

    def be_patient(self, until: float) -> None:
        """The peer said that it is busy until then: do not send anything again before."""
        self._patient_until = until

    def fail_streams(self, code: str, detail: str) -> None:
        """End all streams: the peer has none."""
        for entry in list(self.outstanding.values()):
            if entry.stream is not None:
                self._settle(entry, Outcome.REFUSED, code=code, detail=detail)

    def fail(self, code: str, detail: str) -> None:
        """End all requests: the link will not come back."""
        for entry in list(self.outstanding.values()):
            outcome = Outcome.UNKNOWN if entry.attempts else Outcome.REFUSED
            self._settle(entry, outcome, code=code, detail=detail)

    def close(self) -> None:
        """End all requests: this side closes."""
        for request_id in list(self.outstanding):
            self.cancel(request_id)

    def next_timer(self) -> float:
        """Earliest time handle_timer has something to do, inf if never."""
        timers = self._timers
        while timers and not self._is_live(*timers[0]):
            heapq.heappop(timers)
        return timers[0][0] if timers else math.inf

    def handle_timer(self, *, now: float) -> None:
        """Expire what is over its deadline, resend what is due."""
        while self.next_timer() <= now:
            at, request_id = heapq.heappop(self._timers)
            entry = self.outstanding[request_id]
            try:
                self._due(entry, now)
            finally:
                if self._is_live(at, request_id):  # a signal handler has raised: without a timer it would never end
                    heapq.heappush(self._timers, (at, request_id))

    def _due(self, entry: _Outstanding, now: float) -> None:
        if entry.deadline_at <= now:
            self._expire(entry)
        elif not self._up:
            self._schedule(entry, entry.deadline_at)
        elif self._patient_until > now:
            self._schedule(entry, min(self._patient_until, entry.deadline_at))
        elif entry.progressed:
            self._schedule(entry, min(now + self._limits.resend_s * self._jitter(), entry.deadline_at))
            entry.progressed = False  # it is being worked on
        else:
            self._send(entry, now)

    def headers_to_send(self) -> list[Message]:
        """Messages since the last call."""
        messages, self._messages = self._messages, []
        return messages

    def events(self) -> list[Event]:
        """Outcomes since the last call."""
        events, self._events = self._events, []
        return events

    def _schedule(self, entry: _Outstanding, at: float) -> None:
        entry.due_at = at
        if len(self._timers) > 64 + 4 * len(self.outstanding):
            # Requests mostly settle long before their timers: do not let the dead ones pile up.
            self._timers = [timer for timer in self._timers if self._is_live(*timer)]
            heapq.heapify(self._timers)
        heapq.heappush(self._timers, (at, entry.id))

    def _is_live(self, at: float, request_id: int) -> bool:
        entry = self.outstanding.get(request_id)
        return entry is not None and at == entry.due_at

    def _send(self, entry: _Outstanding, now: float) -> None:
        header = entry.header
        # Rounded up: a request that has any time left must not look expired.
        header.ttl_ms = min(_MAX_TTL_MS, math.ceil((entry.deadline_at - now) * 1000))
        header.settled_below = next(iter(self.outstanding))
        if entry.stream is not None and header.terms is not None:
            header.terms = msgspec.structs.replace(header.terms, from_pos=entry.stream.next_pos)
        self._messages.append(Message(header, entry.frames))
        if entry.stream is not None and entry.attempts:
            self._messages.append(Message(More(entry.id, entry.stream.acknowledge())))  # the last one may be lost
        self.retries += entry.attempts > 0
        resend_at = now + self._limits.resend_s * entry.backoff * self._jitter()
        entry.backoff = min(8, 2 * entry.backoff)
        entry.attempts += 1
        self._schedule(entry, min(resend_at, entry.deadline_at))

    def _receive_part(self, entry: _Outstanding, part: Part, frames: Frames) -> None:
        if entry.stream is None:
            self.late_answers += 1
            return
        ready = entry.stream.receive(part.pos, part.arrays, frames)
        if ready:
            entry.backoff, entry.progressed = 1, True
        self._events += [PartArrived(entry.ref, arrival) for arrival in ready]
        self._finish_stream(entry)

    def _finish_stream(self, entry: _Outstanding) -> None:
        assert entry.stream is not None
        if entry.final is not None and entry.stream.complete:
            self._finish(entry, entry.final)

    def _expire(self, entry: _Outstanding) -> None:
        if entry.attempts == 0:
            absent = "the peer was not there all that time, so it was never sent"
            detail = "its time was over before it could be sent" if self._up else absent
            self._settle(entry, Outcome.EXPIRED, detail=detail)
        elif self._up:
            self._settle(entry, Outcome.EXPIRED, detail=f"sent {times(entry.attempts)}, no answer{self.note}")
        else:
            detail = f"sent {times(entry.attempts)}, then the link went down"
            self._settle(entry, Outcome.UNKNOWN, code="link_lost", detail=detail)

    def _give_room(self, entry: _Outstanding) -> None:
        # From nothing it is counted anew: an exception of a signal handler may have come between two counters.
        self.outstanding_bytes = self.outstanding_bytes - entry.size_bytes if self.outstanding else 0

    def _settle(
        self, entry: _Outstanding, outcome: Outcome, *, code: str = "", detail: str = "", frames: Frames = ()
    ) -> None:
        self._finish(entry, Settled(entry.ref, outcome, code, detail, (), frames))

    def _finish(self, entry: _Outstanding, settled: Settled) -> None:
        self._events.append(settled)  # first: whatever exception of a signal handler comes, it has its outcome
        del self.outstanding[entry.id]
        self._give_room(entry)
        if entry.size_bytes > LEAST_BYTES:  # it may be on its way in pieces
            self.ended.append(entry.id)
        if entry.header.blocks:
            leases = [block.lease for block in entry.header.blocks]
            self.leases_done += leases
            if not entry.attempts:
                self.leases_unsent += leases
        if settled.outcome is Outcome.ANSWERED:
            self.num_answered += 1
        else:
            self._not_answered[settled.outcome] += 1


def ttl_of(left_s: float) -> int:
    """Milliseconds of a plain request that has so many seconds left, rounded up."""
    left_ms = left_s * 1000 - 1e-6
    if not 0 < left_ms < _MAX_TTL_MS:  # nan has no time left
        return _MAX_TTL_MS if left_ms > 0 else 0
    ttl_ms = int(left_ms)
    if ttl_ms < left_ms:
        ttl_ms += 1
    return min(_MAX_TTL_MS, ttl_ms)


def refusal(request_id: int, code: str, detail: str, info: bytes = b"") -> Message:
    """A refusal that fits its header and encodes, whatever the handler wrote.

    >>> refusal(1, "odd", "file \\udce9").header.detail
    'file ?'
    """
    return Message(Refusal(request_id, _sendable(code[:64]), _sendable(detail[:1024])), (info,))


def _sendable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
