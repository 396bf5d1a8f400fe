"""Large contents under byte credit, pure: the sending end of one link; bulk_receiver.py is the other one.

Contents go one after the other, whole in one message or announced by their header and followed by chunks; the receiver
credits what it has room for, so that memory is bounded at both ends and a slow reader slows its sender instead of
losing anything. docs/spec/bus-bulk.md.
"""

from __future__ import annotations

import math
from collections import OrderedDict

from edgebus.messages import Chunk, Content, Credit, Drop, Message, Request, Transfer
from edgebus.streams import content_bytes

CREDIT_EVERY_BYTES = 32 * 1024
"""At the latest, or after a quarter of the window: less than a polite sender's window without its largest piece, or
it would wait for credit while the receiver waits for more."""
MAX_PARTIAL = 256
"""Transfers of one peer under way at once; an honest one has a single one, or two lanes' worth."""
MAX_CHUNKS_AHEAD = 512
"""Chunks sent and not credited: more would only be asked for by a peer that takes very small frames to keep us busy."""
Name = tuple[type, int, int]


def name_of(header: Content) -> Name:
    """What tells one content from another on a link."""
    return type(header), header.id, getattr(header, "pos", 0)


def credit_step(window_bytes: int) -> int:
    """After how many bytes the receiver gives credit, under this window."""
    return max(1, min(CREDIT_EVERY_BYTES, window_bytes // 4))


class _Outgoing:
    """A content on its way out. Plain, so that it can be compiled (bulk.pxd)."""

    def __init__(
        self,
        number: int,
        name: Name,
        message: Message,
        total: int,
        *,
        lane: int = -1,
        asks: bool = False,
        follows: bool = False,
    ) -> None:
        self.number, self.name, self.message, self.total = number, name, message, total
        self.lane = lane
        self.asks = asks  # it may be there already: wait for a word before the first chunk
        self.follows = follows  # by the control lane only, behind what went there
        self.sent = 0
        self.credited = 0
        self.announced = False  # since the last reason to do it again
        self.heard_of = False  # announced at all: the receiver may hold a piece of it
        self.went_whole = False  # in one message with its header
        self.asked: list[int] = []  # what had been sent of it whenever it was announced again, until that is answered


class BulkSender:
    """Contents on their way out, first come first served.

    Args:
        max_queue_bytes: contents waiting at once.
        retry_s: no word from the receiver for so long: announce again, doubling up to eight times this.
    """

    def __init__(self, max_queue_bytes: int, retry_s: float) -> None:
        self._max_queue_bytes = max_queue_bytes
        self._retry_s = retry_s
        self._queue: OrderedDict[int, _Outgoing] = OrderedDict()
        self._by_name: dict[Name, _Outgoing] = {}
        self._arrived: OrderedDict[int, None] = OrderedDict()  # requests
        self._next_number = 0
        self._retry_at = math.inf
        self._backoff = 1
        self._asking = False
        self._at: _Outgoing | None = None  # what pump is at
        self.queued_bytes = 0
        self.unsent_bytes = 0  # of what is queued
        self.in_flight_bytes = 0
        self.credited_bytes = 0  # of all transfers ever: how fast this grows is the rate of the lane
        self.rewinds = 0

    def __bool__(self) -> bool:
        return bool(self._queue)

    def offer(self, message: Message, *, asks: bool = False, follows: bool = False) -> bool:
        """Take a message whose content goes as chunks; False if the queue is full. A known one is on its way.

        Args:
            message: a request, reply or part.
            asks: its content has arrived before: it is announced, and sent only if the receiver says so.
            follows: it went whole by the control lane: what asks for it goes there, so as not to overtake it.
        """
        header = message.header
        assert isinstance(header, Content)
        name = name_of(header)
        if name in self._by_name:
            return True
        total = content_bytes(message.frames)
        if self._queue and self.queued_bytes + total > self._max_queue_bytes:
            return False
        header.transfer = Transfer(self._next_number, tuple(map(len, message.frames)))
        header.inline = None
        outgoing = _Outgoing(self._next_number, name, message, total, asks=asks, follows=follows)
        self._next_number += 1
        self._add(outgoing)
        return True

    def has_room_for_whole(self, total: int, chunk_bytes: int, window_bytes: int) -> bool:
        """True if a content may go whole at once: nothing is before it, and the window has room. Args: as pump."""
        if (
            self.unsent_bytes
            or self._asking
            or not 0 < total <= min(chunk_bytes, window_bytes - credit_step(window_bytes))
        ):
            return False
        return not self.in_flight_bytes or (
            self.in_flight_bytes + total <= window_bytes and self.queued_bytes + total <= self._max_queue_bytes
        )

    def next_transfer(self, sizes: tuple[int, ...]) -> Transfer:
        """A number for a content that goes whole at once."""
        number = self._next_number
        self._next_number += 1
        return Transfer(number, sizes)

    def sent_whole(self, message: Message, total: int, lane: int, now: float) -> None:
        """A content has gone in one message with its header, for which there was room; its transfer is a new one."""
        header = message.header
        assert isinstance(header, Content)
        assert header.transfer is not None
        outgoing = _Outgoing(header.transfer.id, name_of(header), message, total, lane=lane)
        outgoing.announced = outgoing.heard_of = outgoing.went_whole = True
        self._add(outgoing)
        self._set_sent(outgoing, total)
        self._retry_at = now + self._retry_s * self._backoff

    @property
    def largest_bytes(self) -> int:
        """Of the largest content that is still being sent."""
        return max((outgoing.total for outgoing in self._queue.values()), default=0)

    def knows(self, number: int) -> bool:
        """True for a content that is still being sent."""
        return number in self._queue

    def sends(self, request_id: int) -> bool:
        """True while the content of a request is being sent."""
        return (Request, request_id, 0) in self._by_name

    def withdraw(self, name: Name) -> Message | None:
        """Stop sending a content; returns what tells the receiver, if it has heard of it."""
        outgoing = self._by_name.get(name)
        if outgoing is None:
            return None
        drop = Message(Drop(outgoing.number)) if outgoing.heard_of else None
        self._finish(outgoing)  # last: what a signal handler interrupts is asked for once more
        return drop

    def give_up(self, number: int | None = None) -> tuple[Message, Message | None] | None:
        """By a fault of ours a content cannot be sent: it is sent no more.

        Args:
            number: of its transfer; None for the one at which pump has failed, or the first if it was at none.

        Returns: its message, and what tells the receiver if it has heard of it; None if there is none.
        """
        at, self._at = self._at, None
        if number is not None:
            at = self._queue.get(number)
        elif at is None or at.number not in self._queue:
            at = next(iter(self._queue.values()), None)
        if at is None:
            return None
        drop = self.withdraw(at.name)
        self._recount()  # pump may have been between two of its counters
        return at.message, drop

    def withdraw_answers(self, request_id: int) -> list[Message]:
        """Stop sending the answer and the parts for a request; returns what tells the receiver."""
        names = [name for name in self._by_name if name[0] is not Request and name[1] == request_id]
        return [drop for name in names if (drop := self.withdraw(name)) is not None]

    def has_arrived(self, header: object) -> bool:
        """True for a request whose content this peer has had, as far as is remembered."""
        return isinstance(header, Request) and header.id in self._arrived

    def forget_arrived(self) -> None:
        """Another life of the peer: it has nothing of what was sent."""
        self._arrived.clear()
        for outgoing in self._queue.values():
            outgoing.heard_of = False
            self._start_over(outgoing)

    def clear(self) -> None:
        """Send nothing in pieces any more: the peer does not know how to take them."""
        for outgoing in list(self._queue.values()):
            self._finish(outgoing)

    def forget_answers(self) -> None:
        """The peer that asked is gone: only our own requests are still to be sent."""
        for name in [name for name in self._by_name if name[0] is not Request]:
            self.withdraw(name)

    def lane_lost(self, lane: int | None = None) -> None:
        """What went by this lane (None: by any) may be lost: announce it again, on whatever lane there is."""
        for outgoing in self._queue.values():
            if lane is None or outgoing.lane == lane:
                self._announce_again(outgoing)
        self._backoff = 1
        self._retry_at = math.inf

    def receive(self, credit: Credit, *, now: float) -> Name | None:
        """Take the receiver's word; returns the content that has arrived whole."""
        outgoing = self._queue.get(credit.transfer)
        if outgoing is None or credit.received > outgoing.total:
            return None
        self._backoff = 1
        self._retry_at = now + self._retry_s
        outgoing.asks = False
        if credit.received == 0 and not credit.rewind and outgoing.went_whole:
            self._start_over(outgoing)  # what came with the header got lost: it was asked about, and is news over there
            return None
        if credit.rewind:
            # The answer to the first announcement that was made again: on a slow link all that went before it was
            # still coming, and perhaps more of them were made meanwhile, each to be answered in its turn.
            if outgoing.asked and credit.received >= outgoing.asked[0]:
                del outgoing.asked[0]
                return None  # and it is no credit: there may be no room for what has come
            outgoing.asked.clear()
            self.rewinds += 1
            if credit.received == 0 and outgoing.sent:  # before a first chunk it only answers an announcement
                self._start_over(outgoing)  # it has nothing of it (any more)
            self._set_sent(outgoing, max(credit.received, outgoing.credited))
            return None
        gained = credit.received - outgoing.credited
        if gained > 0:
            outgoing.credited = credit.received
            self.credited_bytes += gained
            self.in_flight_bytes -= gained
            self._set_sent(outgoing, max(outgoing.sent, outgoing.credited))
        if outgoing.credited == outgoing.total:
            self._arrive(outgoing)
            return outgoing.name
        return None

    def answered(self, request_id: int, now: float) -> bool:
        """A request was answered yes: if all of its content was sent, then it has arrived, whatever was credited."""
        outgoing = self._by_name.get((Request, request_id, 0))
        if outgoing is None or outgoing.sent < outgoing.total:
            return False
        self._backoff = 1
        self._retry_at = now + self._retry_s
        self.credited_bytes += outgoing.total - outgoing.credited
        self._arrive(outgoing)
        return True

    def pump(
        self,
        lane: int,
        *,
        chunk_bytes: int,
        window_bytes: int,
        now: float,
        whole: bool = False,
        out: list[tuple[int, Message]] | None = None,
    ) -> list[tuple[int, Message]]:
        """Announcements and chunks that may go now, each with its lane.

        Args:
            lane: for contents that have not begun.
            chunk_bytes: largest piece.
            window_bytes: most bytes sent and not credited.
            whole: a content no larger than a piece may go with its header; its credit may take a while.
            out: what they are added to: if a signal handler raises, those that count as sent are in there.
        """
        out = [] if out is None else out
        self._at, before = None, len(out)
        chunk_bytes = max(1, min(chunk_bytes, window_bytes - credit_step(window_bytes)))
        window_bytes = min(window_bytes, MAX_CHUNKS_AHEAD * chunk_bytes)
        if self._asking:
            for outgoing in self._queue.values():
                self._at = outgoing
                if not outgoing.announced and outgoing.sent > outgoing.credited:
                    self._announce(outgoing, lane, out)
            self._asking = False
        for outgoing in self._queue.values():
            self._at = outgoing
            if whole and 0 < outgoing.total <= chunk_bytes and not (outgoing.sent or outgoing.asks):
                if self.in_flight_bytes and self.in_flight_bytes + outgoing.total > window_bytes:
                    break
                outgoing.announced = outgoing.heard_of = outgoing.went_whole = True
                outgoing.lane = lane
                out.append((lane, outgoing.message))
                self._set_sent(outgoing, outgoing.total)
                continue
            if not outgoing.announced:
                self._announce(outgoing, lane, out)
            if outgoing.asks:
                continue
            while outgoing.sent < outgoing.total:
                chunk = self._next_chunk(outgoing, chunk_bytes)
                if self.in_flight_bytes and self.in_flight_bytes + len(chunk.frames[0]) > window_bytes:
                    break
                out.append((outgoing.lane, chunk))
                self._set_sent(outgoing, outgoing.sent + len(chunk.frames[0]))
            if outgoing.sent < outgoing.total:
                break
        self._at = None
        if len(out) > before or (self._queue and self._retry_at == math.inf):
            self._retry_at = now + self._retry_s * self._backoff
        return out

    def next_timer(self) -> float:
        """When to announce the first content again, inf if nothing is on its way."""
        return self._retry_at if self._queue else math.inf

    def handle_timer(self, *, now: float) -> None:
        """No word for long: ask the receiver how far it is, by announcing again what is on its way, and the oldest.

        What is lost of any of them takes room in the window, for which the oldest may be waiting.
        """
        if self._queue and now >= self._retry_at:
            self._recount()
            next(iter(self._queue.values())).announced = False
            for outgoing in self._queue.values():
                if outgoing.sent > outgoing.credited:
                    outgoing.announced, self._asking = False, True
            self._backoff = min(8, 2 * self._backoff)
            self._retry_at = now + self._retry_s * self._backoff

    def _announce(self, outgoing: _Outgoing, lane: int, out: list[tuple[int, Message]]) -> None:
        announcement = Message(outgoing.message.header)
        outgoing.lane = 0 if outgoing.follows else lane
        if outgoing.sent:
            outgoing.asked.append(outgoing.sent)
        out.append((outgoing.lane, announcement))
        outgoing.announced = outgoing.heard_of = True  # last: what a signal handler interrupts is announced next time

    def _next_chunk(self, outgoing: _Outgoing, chunk_bytes: int) -> Message:
        begin = outgoing.sent
        for frame in outgoing.message.frames:
            if begin < len(frame):
                end = min(len(frame), begin + chunk_bytes)
                piece = frame if end - begin == len(frame) else memoryview(frame)[begin:end]
                return Message(Chunk(outgoing.number, outgoing.sent), (piece,))  # type: ignore[arg-type]
            begin -= len(frame)
        raise AssertionError("sent is below total")

    def _arrive(self, outgoing: _Outgoing) -> None:
        self._finish(outgoing)
        if outgoing.name[0] is Request:
            self._arrived[outgoing.name[1]] = None
            if len(self._arrived) > MAX_PARTIAL:
                self._arrived.popitem(last=False)

    def _announce_again(self, outgoing: _Outgoing) -> None:
        outgoing.announced = False
        outgoing.asked.clear()
        self._set_sent(outgoing, outgoing.credited)

    def _start_over(self, outgoing: _Outgoing) -> None:
        self.in_flight_bytes += outgoing.credited
        outgoing.credited = 0
        outgoing.went_whole = False
        self._announce_again(outgoing)

    def _add(self, outgoing: _Outgoing) -> None:
        self._queue[outgoing.number] = self._by_name[outgoing.name] = outgoing
        self.queued_bytes += outgoing.total
        self.unsent_bytes += outgoing.total

    def _set_sent(self, outgoing: _Outgoing, sent: int) -> None:
        self.in_flight_bytes += sent - outgoing.sent
        self.unsent_bytes -= sent - outgoing.sent
        outgoing.sent = sent

    def _finish(self, outgoing: _Outgoing) -> None:
        del self._queue[outgoing.number], self._by_name[outgoing.name]
        self.queued_bytes -= outgoing.total
        self.unsent_bytes -= outgoing.total - outgoing.sent
        self.in_flight_bytes -= outgoing.sent - outgoing.credited
        if not self._queue:
            self._recount()

    def _recount(self) -> None:
        """An exception of a signal handler may have come between two counters: a window must not stay smaller."""
        queue = self._queue.values()
        self.queued_bytes = sum([each.total for each in queue])
        self.unsent_bytes = sum([each.total - each.sent for each in queue])
        self.in_flight_bytes = sum([each.sent - each.credited for each in queue])
