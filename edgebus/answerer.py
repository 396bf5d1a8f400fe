"""The answering half of requests, pure: each is executed at most once. Rules: docs/spec/bus-wire.md."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from edgebus.config import Limits
from edgebus.ids import IdRanges
from edgebus.keyed import KeyedAnswers
from edgebus.messages import STREAM, Cancel, Message, More, Refusal, Reply, Request, Terms
from edgebus.outcomes import Arrived, Event, Room, Superseded, Withdrawn
from edgebus.requests import refusal
from edgebus.streams import MIN_WINDOW_BYTES, Frames, OutStream, Specs, content_bytes

NOT_EXECUTED = frozenset({"busy", "closing", "expired", "stale", "unknown_service", "dropped"})
"""Refusals of the bus that are no answer to an idempotency key: the request may be executed another time."""
INTERNAL = ("internal", "it failed in the node on the way to its application: the log there has the reason")
"""Code and detail of what is refused for a fault of the bus."""
MAX_SEQUENCES = 256
"""Sequences of one peer whose newest position is remembered."""


# Named tuples without a frame of Python for each.
_arrived: Callable[[tuple[Any, ...]], Arrived] = partial(tuple.__new__, Arrived)
_message: Callable[[tuple[Any, ...]], Message] = partial(tuple.__new__, Message)


class _Entry:
    """A request that was executed or is being executed; answer is None meanwhile. Plain: see answerer.pxd."""

    def __init__(self, expires_at: float, service: str = "", size_bytes: int = 0) -> None:
        self.expires_at = expires_at
        self.service = service
        self.size_bytes = size_bytes  # of its frames, while they are kept for the handler
        self.answer: Message | None = None
        self.parts: OutStream | None = None
        self.key = b""
        self.waits_for_key = False  # another request with its key is being executed: the answer will serve both

    def kept_bytes(self) -> int:
        """Bytes that are kept to be sent again."""
        kept = content_bytes(self.answer.frames) if self.answer is not None else 0
        return kept + (self.parts.unacked_bytes if self.parts is not None else 0)


class AnswererCounts:
    """What became of arriving requests.

    received = executed + duplicates + expired + forgotten + busy + denied + stale + repeated + failed, and
    executed = answered + withdrawn + pending.
    """

    def __init__(self) -> None:
        self.received = 0
        self.executed = 0
        self.duplicates = 0
        self.expired = 0
        self.forgotten = 0
        self.busy = 0
        self.answered = 0
        self.withdrawn = 0
        self.denied = 0
        self.stale = 0
        self.repeated = 0
        self.failed = 0
        self.superseded = 0

    def recount(self) -> None:
        """An exception came in between: one that has become nothing yet comes again, or is given up."""
        refused = self.expired + self.forgotten + self.busy + self.denied + self.stale + self.failed
        self.received = self.executed + self.duplicates + self.repeated + refused


class Answerer:
    """Hands each request out once, and gives duplicates the first answer again.

    Memory is bounded: requests wait within max_pending and max_pending_bytes, answers are kept until the
    caller says it has them (settled_below) or the cache is full. Ids of what was dropped are never executed again:
    those are remembered as ranges.

    Args:
        limits: bounds.
        keyed: answers by idempotency key, shared by all links of a node.
        owner: whose keys these are: the peer's public key.
    """

    def __init__(
        self,
        limits: Limits,
        keyed: KeyedAnswers | None = None,
        owner: str | None = None,
        counts: AnswererCounts | None = None,
    ) -> None:
        self.limits = limits
        self._max_pending, self._max_pending_bytes = limits.max_pending, limits.max_pending_bytes
        self._cache_count, self._cache_bytes = limits.cache_count, limits.cache_bytes
        self.keyed = KeyedAnswers() if keyed is None else keyed
        self.owner = owner
        self.counts = AnswererCounts() if counts is None else counts
        self._entries: dict[int, _Entry] = {}
        self._answered: dict[int, int] = {}  # id -> bytes, in order of answering
        self._cached_bytes = 0
        self.pending_bytes = 0
        self.small_answers = 0  # to small requests: whoever asked is waiting for a quick word
        self.gone = IdRanges()  # ids that were answered and are not remembered
        self.sending: set[int] = set()  # answers on their way in pieces, which are not forgotten
        self.repeated: set[int] = set()  # answers among the messages to send that were sent before
        # Handed out, and a signal handler has raised at the very end of that: not again, when its turn comes once more.
        self.handed: set[int] = set()
        # Let in past the events, and not claimed yet by whoever hands it out: what comes in between leaves it here.
        self.on_hand: dict[int, Arrived] = {}
        self._executing: dict[int, bytes] = {}  # idempotency keys of what the application has
        self._newest: OrderedDict[int, tuple[int, int]] = OrderedDict()  # stream -> position, request id
        self.leases_done: list[int] = []  # of shared memory, in answers that are not sent again
        self._messages: list[Message] = []
        self._events: list[Event] = []

    @property
    def num_pending(self) -> int:
        """Requests handed out and not answered."""
        return len(self._entries) - len(self._answered)

    def receive(self, message: Message, *, now: float) -> None:
        """Take a Request, a Cancel or a More."""
        header = message.header
        if isinstance(header, Cancel):
            self._withdraw(header.id)
        elif isinstance(header, More):
            self._acknowledge(header.id, header.pos)
        else:
            assert isinstance(header, Request)
            self._receive_request(header, message.frames, now)

    def wants_content(self, header: Request) -> bool:
        """True if a request whose content is still to come would be executed, as far as can be told now."""
        return not self.knows(header.id) and header.ttl_ms > 0 and not self._is_stale(header.terms)

    def deny(self, header: Request, code: str, detail: str) -> None:
        """Refuse a request before anything else is looked at: its sender may not ask."""
        self.counts.received += 1
        self.counts.denied += 1
        self._refuse(header.id, code, detail)

    def give_up(self, request_id: int) -> None:
        """A request has failed in here before it was handed out: it is refused, and not executed any more."""
        entry = self._entries.get(request_id)
        if entry is None:
            self.never_executed(request_id)
            if not self.knows(request_id):
                self.counts.received += 1
                self.counts.failed += 1
                self.gone.add(request_id)
                self._refuse(request_id, *INTERNAL)
        elif entry.answer is None and self._is_in_here(request_id):
            self.on_hand.pop(request_id, None)
            self._events = [each for each in self._events if type(each) is not Arrived or each.id != request_id]
            self.answer(request_id, refusal(request_id, *INTERNAL))

    def claim(self, request_id: int) -> bool:
        """Whoever hands out what receive_small, receive_plain or receive_new gave says so first; False if another one
        has done it meanwhile."""
        return self.on_hand.pop(request_id, None) is not None

    def unsent(self, request_id: int) -> None:
        """What was to be sent for a request has failed in here: it is refused."""
        entry = self._entries.get(request_id)
        if entry is not None:
            message = refusal(
                request_id, "internal", "its answer cannot be sent by a fault there: the log has the reason"
            )
            if entry.answer is None:
                self.answer(request_id, message)
            else:
                self.replace(request_id, message)

    def knows(self, request_id: int) -> bool:
        """True for a request that was let in before."""
        return request_id in self._entries or request_id in self.gone

    def receive_small(self, header: Request, payload: bytes, now: float) -> Arrived | None:
        """Like receive, for a plain small request that is not known; None if the usual way has to be taken."""
        request_id, gone = header.id, self.gone
        if (
            request_id in self._entries
            or request_id in gone
            or header.settled_below > request_id
            or header.ttl_ms <= 0
            or len(self._entries) - len(self._answered) >= self._max_pending
            or self.pending_bytes + len(payload) > self._max_pending_bytes
        ):
            return None
        if header.settled_below > gone.floor:
            self._settle_below(header.settled_below)
        counts, size_bytes = self.counts, len(payload)
        expires_at = now + header.ttl_ms / 1000
        entry = _Entry(expires_at, header.service, size_bytes)
        arrived = _arrived((request_id, header.service, expires_at, (), (payload,), self, None))
        # From here on nothing is called: an exception in between would leave it counted, and not known.
        self.on_hand[request_id] = arrived
        counts.received += 1
        counts.executed += 1
        self._entries[request_id] = entry
        self.pending_bytes += size_bytes
        return arrived

    def receive_plain(self, header: Request, frames: Frames, now: float) -> Arrived | None:
        """Like receive_small, for a plain request of any content."""
        size_bytes = 0
        for frame in frames:
            size_bytes += len(frame)
        if self.knows(header.id):
            return None
        return self.receive_new(
            header.id, header.service, header.ttl_ms, header.settled_below, header.arrays, frames, size_bytes, now
        )

    def receive_new(
        self,
        request_id: int,
        service: str,
        ttl_ms: int,
        settled_below: int,
        specs: Specs,
        frames: Frames,
        size_bytes: int,
        now: float,
    ) -> Arrived | None:
        """The same of a request that is not known, and its content of so many bytes."""
        if (
            settled_below > request_id
            or ttl_ms <= 0
            or len(self._entries) - len(self._answered) >= self._max_pending
            or self.pending_bytes + size_bytes > self._max_pending_bytes
        ):
            return None
        if settled_below > self.gone.floor:
            self._settle_below(settled_below)
        expires_at = now + ttl_ms / 1000
        entry = _Entry.__new__(_Entry)
        entry.expires_at, entry.service, entry.size_bytes = expires_at, service, size_bytes
        entry.answer, entry.parts, entry.key, entry.waits_for_key = None, None, b"", False
        arrived = _arrived((request_id, service, expires_at, specs, frames, self, None))
        self.on_hand[request_id] = arrived  # nothing is called from here on, likewise
        self.counts.received += 1
        self.counts.executed += 1
        self._entries[request_id] = entry
        self.pending_bytes += size_bytes
        return arrived

    @property
    def has_news(self) -> bool:
        """True if there is something to be told or to be freed."""
        return bool(self._events or self.leases_done)

    def is_plain(self, request_id: int) -> bool:
        """True for a request that waits for its answer, without an idempotency key and no stream."""
        entry = self._entries.get(request_id)
        return entry is not None and entry.answer is None and not entry.key and entry.parts is None

    def answer_small(self, header: Reply, payload: bytes) -> None:
        """Like answer, for a plain small reply to a plain request, which has just been sent."""
        self.counts.answered += 1
        self.small_answers += 1
        entry = self._entries[header.id]
        entry.answer = _message((header, (payload,)))
        self.pending_bytes -= entry.size_bytes
        self._list(header.id, len(payload))

    def answer(self, request_id: int, message: Message) -> bool:
        """Give the answer of a request that Arrived; False if nobody waits for it any more."""
        entry = self._entries.get(request_id)
        if key := self._executing.pop(request_id, b""):
            # Also if this caller no longer waits: it was executed, and another incarnation may ask again.
            self._tell_waiting(request_id, key, message)
        if entry is None or entry.answer is not None:
            if blocks := getattr(message.header, "blocks", None):
                self.leases_done += [block.lease for block in blocks]
            return False
        small = self.limits.bulk_from_bytes
        if entry.size_bytes < small and content_bytes(message.frames) < small:
            self.small_answers += 1
        self.counts.answered += 1
        if entry.parts is not None:
            if isinstance(message.header, Reply):
                message.header.num_parts = entry.parts.next_pos
            self._events.append(Room(request_id, self))  # whoever waits to push learns that it has ended
        self._messages.append(message)
        self._keep(request_id, entry, message)
        return True

    def answer_again(self, request_id: int, message: Message) -> None:
        """Give a waiting request the answer that another one with its key got."""
        entry = self._entries.get(request_id)
        if entry is not None and entry.answer is None and entry.waits_for_key:
            again = _for_id(message, request_id)
            self._messages.append(again)
            self._keep(request_id, entry, again)

    def has_room(self, request_id: int, num_bytes: int) -> bool | None:
        """Whether a stream takes another part of this size now; None if it has ended."""
        entry = self._entries.get(request_id)
        if entry is None or entry.answer is not None or entry.parts is None:
            return None
        room = entry.parts.has_room(num_bytes)
        if not room:
            entry.parts.wants_room, entry.parts.refused_bytes = True, num_bytes
        return room

    def is_full(self, request_id: int) -> bool:
        """True while a stream has no room for the part that it had no room for last."""
        entry = self._entries.get(request_id)
        if entry is None or entry.parts is None:
            return False
        return self.has_room(request_id, entry.parts.refused_bytes) is False

    def push(self, request_id: int, specs: Specs, frames: Frames) -> int:
        """Send the next part of a stream that has_room; returns its position."""
        parts = self._entries[request_id].parts
        assert parts is not None
        message = parts.push(request_id, specs, frames)
        self._messages.append(message)
        return parts.next_pos - 1

    def wants(self, request_id: int) -> bool:
        """True while the answer is still to be given; safe to ask from any thread."""
        entry = self._entries.get(request_id)
        return entry is not None and entry.answer is None

    def has_small_answer(self, request_id: int) -> bool:
        """True for a request that was answered yes by something that does not go in pieces, or has its outcome."""
        entry = self._entries.get(request_id)
        if entry is None:
            return request_id in self.gone
        if entry.answer is None or not isinstance(entry.answer.header, Reply):
            return False
        return content_bytes(entry.answer.frames) < self.limits.bulk_from_bytes

    def never_executed(self, request_id: int) -> None:
        """A withdrawn request had not been looked at: whoever asked again with its key is told to ask once more."""
        if key := self._executing.pop(request_id, b""):
            message = refusal(request_id, "busy", "the first request with this key was given up unexecuted: ask again")
            self._tell_waiting(request_id, key, message)

    def replace(self, request_id: int, message: Message) -> None:
        """An answer cannot be sent: another one takes its place, small."""
        entry = self._entries.get(request_id)
        if entry is not None and entry.answer is not None:
            before = self._answered.pop(request_id, 0)
            self._cached_bytes -= before
            entry.answer = message
            self._answered[request_id] = size = entry.kept_bytes()
            self._cached_bytes += size
            self._messages.append(message)

    def supersede(self, request_id: int) -> None:
        """A waiting request was taken out of the inbox for a newer one of its sequence."""
        self.counts.superseded += 1
        self.answer(request_id, refusal(request_id, "stale", "a request at a higher position has come"))

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
        return Answerer(self.limits, self.keyed, self.owner, self.counts)

    def busy_until(self) -> float:
        """Until when the caller may still resend something that is remembered here."""
        return max((entry.expires_at for entry in self._entries.values()), default=-math.inf)

    def headers_to_send(self) -> list[Message]:
        """Messages since the last call."""
        messages, self._messages = self._messages, []
        return messages

    def events(self) -> list[Event]:
        """Requests to execute or to drop since the last call."""
        if self.on_hand:  # something was raised before they were handed out
            self._events += [arrived for arrived in self.on_hand.values() if self.wants(arrived.id)]
            self.on_hand = {}
        events, self._events = self._events, []
        return events

    # -- inside -------------------------------------------------------------------------------------

    def _is_in_here(self, request_id: int) -> bool:
        """True for a request that was let in and that nobody outside has been given."""
        return request_id in self.on_hand or any(
            type(each) is Arrived and each.id == request_id for each in self._events
        )

    def _receive_request(self, header: Request, frames: Frames, now: float) -> None:
        self.counts.received += 1
        try:
            self._let_in(header, frames, now)
        except BaseException:
            self.counts.recount()
            raise

    def _let_in(self, header: Request, frames: Frames, now: float) -> None:
        counts = self.counts
        if header.settled_below > self.gone.floor:
            self._settle_below(header.settled_below)
        request_id, terms = header.id, header.terms
        entry = self._entries.get(request_id)
        if entry is not None:
            counts.duplicates += 1
            self._send_again(request_id, entry, terms, now)
            return
        size_bytes = content_bytes(frames)
        if fault := self._fault(header, terms, size_bytes):
            self._refuse(request_id, *fault)
            return
        expires_at = now + header.ttl_ms / 1000
        entry = _Entry(expires_at, header.service, size_bytes)
        if terms is not None and not self._accept_terms(request_id, entry, terms, now):
            return
        counts.executed += 1
        # Both or none of them, whatever a signal handler raises: what is known and not handed out is never executed.
        self._events.append(_arrived((request_id, header.service, expires_at, header.arrays, frames, self, terms)))
        self._entries[request_id] = entry
        self.pending_bytes += size_bytes

    def _fault(  # noqa: PLR0911 - one for each fault
        self, header: Request, terms: Terms | None, size_bytes: int
    ) -> tuple[str, str] | None:
        """Why a new request is not executed: code and detail. Counts it."""
        counts, limits = self.counts, self.limits
        if header.id in self.gone:
            counts.forgotten += 1
            return "forgotten", f"request {header.id} is no longer remembered: answered before, or too late to tell"
        if header.ttl_ms <= 0:
            counts.expired += 1
            return "expired", "arrived after its deadline"
        if terms is not None and self._is_stale(terms):
            counts.stale += 1
            newest = self._newest[terms.stream][0]
            return "stale", f"position {terms.pos} of stream {terms.stream}, {newest} was here already"
        if size_bytes > limits.max_pending_bytes:
            counts.busy += 1
            return "too_large", f"{size_bytes} B in one request, max_pending_bytes is {limits.max_pending_bytes}"
        if self.num_pending >= limits.max_pending:
            counts.busy += 1
            return "busy", f"{self.num_pending} requests of this peer are waiting"
        if self.pending_bytes + size_bytes > limits.max_pending_bytes:
            counts.busy += 1
            return "busy", f"{self.pending_bytes} B of this peer are waiting, max {limits.max_pending_bytes}"
        return None

    def _is_stale(self, terms: Terms | None) -> bool:
        return terms is not None and terms.stream in self._newest and terms.pos < self._newest[terms.stream][0]

    def _accept_terms(self, request_id: int, entry: _Entry, terms: Terms, now: float) -> bool:
        """Prepare what is special about a request; False if it is not to be executed."""
        if terms.key:
            entry.key = terms.key
            known = self.keyed.ask(self.owner, terms.key, (self, request_id), now=now, expires_at=entry.expires_at)
            if known is not None:
                self.counts.repeated += 1
                self._entries[request_id] = entry
                self.pending_bytes += entry.size_bytes
                if isinstance(known, Message):
                    again = _for_id(known, request_id)
                    self._messages.append(again)
                    self._keep(request_id, entry, again)
                else:
                    entry.waits_for_key = True
                return False
            self._executing[request_id] = terms.key
        if terms.stream >= 0:
            before = self._newest.pop(terms.stream, None)
            self._newest[terms.stream] = (terms.pos, request_id)
            if before is not None and (older := self._entries.get(before[1])) is not None and older.answer is None:
                self._events.append(Superseded(before[1], older.service, self))
            if len(self._newest) > MAX_SEQUENCES:
                self._newest.popitem(last=False)
        if terms.kind == STREAM:
            # All streams of a link together keep about max_pending_bytes, however many and whatever they ask for.
            used = sum(each.parts.window_bytes for each in self._entries.values() if each.parts is not None)
            most = max(MIN_WINDOW_BYTES, (self.limits.max_pending_bytes - used) // 2)
            entry.parts = OutStream(min(max(1, terms.window_bytes), most), terms.from_pos)
        return True

    def _send_again(self, request_id: int, entry: _Entry, terms: Terms | None, now: float) -> None:
        parts = entry.parts
        # An honest caller asks again after a resend interval; one that asks in a row gets its parts once.
        if parts is not None and terms is not None and now >= parts.resent_at + self.limits.resend_s / 4:
            parts.resent_at = now
            # What has arrived is not sent again, but is not acknowledged either: it may lie there unread.
            self._messages += [part for pos, part in parts.unacked.items() if pos >= terms.from_pos]
        if entry.answer is not None:
            self._messages.append(entry.answer)
            self.repeated.add(request_id)

    def _acknowledge(self, request_id: int, pos: int) -> None:
        entry = self._entries.get(request_id)
        if entry is None or entry.parts is None:
            return
        before = entry.parts.unacked_bytes
        room = entry.parts.acknowledge(min(pos, entry.parts.next_pos))
        if entry.answer is not None:
            freed = before - entry.parts.unacked_bytes
            self._answered[request_id] -= freed
            self._cached_bytes -= freed
        elif room:
            self._events.append(Room(request_id, self))

    def _tell_waiting(self, request_id: int, key: bytes, message: Message) -> None:
        header = message.header
        keep = not (isinstance(header, Refusal) and header.code in NOT_EXECUTED)
        for other, other_id in self.keyed.answered(self.owner, key, message, keep=keep):
            if other is not self or other_id != request_id:
                other.answer_again(other_id, message)
                if other is not self:
                    self.keyed.told.append(other)

    def _refuse(self, request_id: int, code: str, detail: str) -> None:
        self._messages.append(refusal(request_id, code, detail))

    def _withdraw(self, request_id: int) -> None:
        entry = self._entries.get(request_id)
        if entry is None or entry.answer is not None:
            return
        answer = refusal(request_id, "cancelled", "cancelled by the caller")
        self._events.append(Withdrawn(request_id, entry.service, self))  # before there is an answer
        if entry.parts is not None:
            self._events.append(Room(request_id, self))
        if not entry.waits_for_key:
            self.counts.withdrawn += 1
        self._keep(request_id, entry, answer)

    def _keep(self, request_id: int, entry: _Entry, message: Message) -> None:
        entry.answer = message
        self.pending_bytes -= entry.size_bytes
        self._list(request_id, entry.kept_bytes())

    def _list(self, request_id: int, size: int) -> None:
        self._answered[request_id] = size
        self._cached_bytes += size
        self.trim()

    def trim(self) -> None:
        """Forget the oldest answers that are over the bounds of the cache, but none that is still being sent."""
        if len(self._answered) <= self._cache_count and self._cached_bytes <= self._cache_bytes:
            return
        newest = next(reversed(self._answered))
        count, size, over = len(self._answered), self._cached_bytes, []
        for request_id, kept_bytes in self._answered.items():  # not all of them: mostly the first is the one to go
            if count <= self._cache_count and size <= self._cache_bytes:
                break
            if request_id != newest and request_id not in self.sending:
                over.append(request_id)
                count, size = count - 1, size - kept_bytes
        for request_id in over:
            self.gone.add(request_id)
            self._forget(request_id)

    def _settle_below(self, settled_below: int) -> None:
        self.gone.raise_floor(settled_below)
        # Requests and answers come about in the order of ids, so the oldest few are looked at, not all.
        while self._answered and (oldest := next(iter(self._answered))) < settled_below:
            self._forget(oldest)
        while self._entries and (oldest := next(iter(self._entries))) < settled_below:
            self._withdraw(oldest)  # its caller has an outcome, and the word of it was lost
            self._forget(oldest)

    def _forget(self, request_id: int) -> None:
        # An exception of a signal handler may have come before it was listed: it must not come back with every request.
        self._cached_bytes -= self._answered.pop(request_id, 0)
        entry = self._entries.pop(request_id)
        header = None if entry.answer is None else entry.answer.header
        if type(header) is Reply and header.blocks:
            self.leases_done += [block.lease for block in header.blocks]


def _for_id(message: Message, request_id: int) -> Message:
    """The same answer for another request."""
    header = message.header
    if isinstance(header, Reply):
        return Message(Reply(request_id, header.arrays), message.frames)
    code, detail = getattr(header, "code", ""), getattr(header, "detail", "")
    return refusal(request_id, code, detail, message.frames[0] if message.frames else b"")
