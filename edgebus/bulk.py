"""Large contents as chunks under byte credit, pure: the sending and the receiving end of one link.

Contents go one after the other, each announced by its own header; the receiver credits what it has room for, so that
memory is bounded at both ends and a slow reader slows its sender instead of losing anything. docs/spec/bus-bulk.md.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgebus.messages import Chunk, Content, Credit, Drop, Message, Request, Transfer
from edgebus.streams import Frames, content_bytes

CREDIT_EVERY_BYTES = 32 * 1024
"""At the latest, or after a quarter of the window: less than a polite sender's window without its largest piece, or
it would wait for credit while the receiver waits for more."""
MAX_PARTIAL = 256
"""Transfers of one peer under way at once; an honest one has a single one, or two lanes' worth."""
MAX_CHUNKS_AHEAD = 512
"""Chunks sent and not credited: more would only be asked for by a peer that takes very small frames to keep us busy."""
_Name = tuple[type, int, int]


def name_of(header: Content) -> _Name:
    """What tells one content from another on a link."""
    return type(header), header.id, getattr(header, "pos", 0)


def credit_step(window_bytes: int) -> int:
    """After how many bytes the receiver gives credit, under this window."""
    return max(1, min(CREDIT_EVERY_BYTES, window_bytes // 4))


@dataclass(slots=True, eq=False)
class _Outgoing:
    number: int
    name: _Name
    message: Message
    total: int
    lane: int = -1
    sent: int = 0
    credited: int = 0
    announced: bool = False  # since the last reason to do it again
    heard_of: bool = False  # announced at all: the receiver may hold a piece of it
    asks: bool = False  # it may be there already: wait for a word before the first chunk


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
        self._by_name: dict[_Name, _Outgoing] = {}
        self._arrived: OrderedDict[int, None] = OrderedDict()  # requests
        self._next_number = 0
        self._retry_at = math.inf
        self._backoff = 1
        self.queued_bytes = 0
        self.in_flight_bytes = 0
        self.credited_bytes = 0  # of all transfers ever: how fast this grows is the rate of the lane
        self.rewinds = 0

    def __bool__(self) -> bool:
        return bool(self._queue)

    def offer(self, message: Message, *, asks: bool = False) -> bool:
        """Take a message whose content goes as chunks; False if the queue is full. A known one is on its way.

        Args:
            message: a request, reply or part.
            asks: its content has arrived before: it is announced, and sent only if the receiver says so.
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
        outgoing = _Outgoing(self._next_number, name, message, total, asks=asks)
        self._next_number += 1
        self._queue[outgoing.number] = self._by_name[name] = outgoing
        self.queued_bytes += total
        return True

    def knows(self, number: int) -> bool:
        """True for a content that is still being sent."""
        return number in self._queue

    def withdraw(self, name: _Name) -> Message | None:
        """Stop sending a content; returns what tells the receiver, if it has heard of it."""
        outgoing = self._by_name.get(name)
        if outgoing is None:
            return None
        self._finish(outgoing)
        return Message(Drop(outgoing.number)) if outgoing.heard_of else None

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

    def receive(self, credit: Credit, *, now: float) -> _Name | None:
        """Take the receiver's word; returns the content that has arrived whole."""
        outgoing = self._queue.get(credit.transfer)
        if outgoing is None or credit.received > outgoing.total:
            return None
        self._backoff = 1
        self._retry_at = now + self._retry_s
        outgoing.asks = False
        if credit.rewind:
            self.rewinds += 1
            if credit.received == 0:
                self._start_over(outgoing)  # it has nothing of it (any more)
            self._set_sent(outgoing, max(credit.received, outgoing.credited))
            return None
        gained = credit.received - outgoing.credited
        if gained > 0:
            outgoing.credited = credit.received
            self.credited_bytes += gained
            outgoing.sent = max(outgoing.sent, outgoing.credited)
            self._count()
        if outgoing.credited == outgoing.total:
            self._finish(outgoing)
            if outgoing.name[0] is Request:
                self._arrived[outgoing.name[1]] = None
                if len(self._arrived) > MAX_PARTIAL:
                    self._arrived.popitem(last=False)
            return outgoing.name
        return None

    def pump(self, lane: int, *, chunk_bytes: int, window_bytes: int, now: float) -> list[tuple[int, Message]]:
        """Announcements and chunks that may go now, each with its lane.

        Args:
            lane: for contents that have not begun.
            chunk_bytes: largest piece.
            window_bytes: most bytes sent and not credited.
        """
        out: list[tuple[int, Message]] = []
        chunk_bytes = max(1, min(chunk_bytes, window_bytes - credit_step(window_bytes)))
        window_bytes = min(window_bytes, MAX_CHUNKS_AHEAD * chunk_bytes)
        for outgoing in self._queue.values():
            if not outgoing.announced:
                outgoing.announced = outgoing.heard_of = True
                outgoing.lane = lane
                out.append((lane, Message(outgoing.message.header)))
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
        if out or (self._queue and self._retry_at == math.inf):
            self._retry_at = now + self._retry_s * self._backoff
        return out

    def next_timer(self) -> float:
        """When to announce the first content again, inf if nothing is on its way."""
        return self._retry_at if self._queue else math.inf

    def handle_timer(self, *, now: float) -> None:
        """No word for long: ask the receiver how far it is by announcing the oldest content again."""
        if self._queue and now >= self._retry_at:
            next(iter(self._queue.values())).announced = False
            self._backoff = min(8, 2 * self._backoff)
            self._retry_at = now + self._retry_s * self._backoff

    def _next_chunk(self, outgoing: _Outgoing, chunk_bytes: int) -> Message:
        begin = outgoing.sent
        for frame in outgoing.message.frames:
            if begin < len(frame):
                end = min(len(frame), begin + chunk_bytes)
                piece = frame if end - begin == len(frame) else memoryview(frame)[begin:end]
                return Message(Chunk(outgoing.number, outgoing.sent), (piece,))  # type: ignore[arg-type]
            begin -= len(frame)
        raise AssertionError("sent is below total")

    def _announce_again(self, outgoing: _Outgoing) -> None:
        outgoing.announced = False
        self._set_sent(outgoing, outgoing.credited)

    def _start_over(self, outgoing: _Outgoing) -> None:
        self.in_flight_bytes += outgoing.credited
        outgoing.credited = 0
        self._announce_again(outgoing)

    def _set_sent(self, outgoing: _Outgoing, sent: int) -> None:
        self.in_flight_bytes += sent - outgoing.sent
        outgoing.sent = sent

    def _count(self) -> None:
        self.in_flight_bytes = sum(each.sent - each.credited for each in self._queue.values())

    def _finish(self, outgoing: _Outgoing) -> None:
        del self._queue[outgoing.number], self._by_name[outgoing.name]
        self.queued_bytes -= outgoing.total
        self._count()


@dataclass(slots=True, eq=False)
class _Incoming:
    header: Content
    name: _Name
    sizes: tuple[int, ...]
    total: int
    frames: list[Any] = field(default_factory=list)  # whole ones
    filling: npt.NDArray[np.uint8] | None = None  # the frame that comes in pieces
    filled: int = 0  # bytes of that frame
    received: int = 0
    credited: int = 0
    admitted: bool = False
    rewinding: bool = False
    stale: bool = False  # of before the last greeting: its sender announces it again, or has given it up


class BulkReceiver:
    """Contents on their way in, put together from chunks.

    Args:
        max_bytes: contents admitted at once, and what waits in the application. One that is larger is for whoever owns
            this to refuse.
        window_bytes: what the sender was told it may send without credit; more ends the transfer.
    """

    def __init__(self, max_bytes: int, window_bytes: int) -> None:
        self._max_bytes, self._window_bytes = max_bytes, window_bytes
        self._credit_step = credit_step(window_bytes)
        self._partial: OrderedDict[int, _Incoming] = OrderedDict()
        self._asked: OrderedDict[int, None] = OrderedDict()  # unknown transfers we asked to announce again
        self._messages: list[Message] = []
        self._whole: list[Message] = []
        self.copied_bytes = 0
        self.overruns = 0

    @property
    def held_bytes(self) -> int:
        """Bytes received of contents that are not whole yet."""
        return sum(each.received for each in self._partial.values())

    @property
    def waiting(self) -> bool:
        """True while a content waits for room."""
        return any(not each.admitted for each in self._partial.values())

    def announce(self, header: Content) -> Message | None:
        """A content begins, or its sender asks how far we are. Returns a message that has no bytes to wait for."""
        assert header.transfer is not None
        number, sizes = header.transfer.id, header.transfer.sizes
        for earlier in [earlier for earlier, each in self._partial.items() if each.stale and earlier < number]:
            del self._partial[earlier]  # announced in order, so it was given up while there was no connection
        known = self._partial.get(number)
        if known is not None:
            if known.name == name_of(header) and known.sizes == sizes:
                known.stale = False
                self._messages.append(Message(Credit(number, known.received, True)))
                if known.credited:
                    self._messages.append(Message(Credit(number, known.credited)))
                return None
            del self._partial[number]  # numbers start anew after a restart of the sender
        self._asked.pop(number, None)
        name = name_of(header)
        for earlier in [earlier for earlier, each in self._partial.items() if each.name == name]:
            del self._partial[earlier]  # one content is under way once
        if len(self._partial) >= MAX_PARTIAL:
            self._partial.popitem(last=False)
            self.overruns += 1
        incoming = self._partial[number] = _Incoming(header, name, sizes, sum(sizes))
        self._messages.append(Message(Credit(number, 0)))  # it is wanted
        return self._complete(number, incoming)

    def refuse(self, header: Content) -> None:
        """Its content is not wanted: let the sender believe that it has arrived."""
        assert header.transfer is not None
        self._partial.pop(header.transfer.id, None)
        self._messages.append(Message(Credit(header.transfer.id, sum(header.transfer.sizes))))

    def receive(self, chunk: Chunk, frame: Any) -> Message | None:
        """Take a chunk; returns the message once its content is whole."""
        incoming = self._partial.get(chunk.transfer)
        if incoming is None:
            if chunk.transfer not in self._asked:
                self._asked[chunk.transfer] = None
                if len(self._asked) > MAX_PARTIAL:
                    self._asked.popitem(last=False)
                self._messages.append(Message(Credit(chunk.transfer, 0, True)))
            return None
        size = len(frame)
        if chunk.offset != incoming.received:
            # An overlap is what was sent again; behind a gap everything comes again.
            if chunk.offset > incoming.received and not incoming.rewinding:
                incoming.rewinding = True
                self._messages.append(Message(Credit(chunk.transfer, incoming.received, True)))
            return None
        index = len(incoming.frames)
        if index >= len(incoming.sizes) or not 0 < size <= incoming.sizes[index] - incoming.filled:
            self._overrun(chunk.transfer)
            return None
        incoming.rewinding = False
        self._fill(incoming, incoming.sizes[index], frame, size)
        incoming.received += size
        if not incoming.admitted and self._uncredited() > self._window_bytes + size:
            self._overrun(chunk.transfer)
            return None
        return self._complete(chunk.transfer, incoming)

    def drop(self, number: int) -> None:
        """The rest of a content will not come."""
        self._partial.pop(number, None)
        self._asked.pop(number, None)

    def clear(self) -> None:
        """Forget everything: the sender is gone."""
        self._partial.clear()

    def greeted(self) -> None:
        """The sender has greeted (again): what it still wants to send it announces again, in order."""
        for each in self._partial.values():
            each.stale = True

    def admit(self, waiting_bytes: int) -> None:
        """Give credit for what there is room for, oldest first.

        Args:
            waiting_bytes: contents delivered and not yet worked off by the application.
        """
        used = waiting_bytes + sum(each.total for each in self._partial.values() if each.admitted)
        for number, incoming in list(self._partial.items()):
            if not incoming.admitted:
                if used and used + incoming.total > self._max_bytes:
                    return
                incoming.admitted = True
                used += incoming.total
            whole = self._complete(number, incoming)
            if whole is not None:
                self._whole.append(whole)

    def take_admitted(self) -> list[Message]:
        """Messages that were whole and have been admitted, since the last call."""
        whole, self._whole = self._whole, []
        return whole

    def headers_to_send(self) -> list[Message]:
        """Credit since the last call."""
        messages, self._messages = self._messages, []
        return messages

    def _fill(self, incoming: _Incoming, frame_bytes: int, frame: Any, size: int) -> None:
        if size == frame_bytes:
            incoming.frames.append(frame)  # whole in one chunk: no copy
            return
        if incoming.filling is None:
            incoming.filling = np.empty(frame_bytes, np.uint8)
        incoming.filling[incoming.filled : incoming.filled + size] = np.frombuffer(frame, np.uint8)
        self.copied_bytes += size
        incoming.filled += size
        if incoming.filled == frame_bytes:
            incoming.frames.append(incoming.filling.data)
            incoming.filling, incoming.filled = None, 0

    def _complete(self, number: int, incoming: _Incoming) -> Message | None:
        while len(incoming.frames) < len(incoming.sizes) and not incoming.sizes[len(incoming.frames)]:
            incoming.frames.append(b"")
        if incoming.received < incoming.total or not incoming.admitted:
            if incoming.admitted:
                self._give_credit(number, incoming)
            return None
        del self._partial[number]
        self._messages.append(Message(Credit(number, incoming.total)))
        incoming.header.transfer = None
        frames: Frames = tuple(incoming.frames)
        return Message(incoming.header, (bytes(frames[0]), *frames[1:]))

    def _give_credit(self, number: int, incoming: _Incoming) -> None:
        if incoming.received - incoming.credited >= self._credit_step:
            incoming.credited = incoming.received
            self._messages.append(Message(Credit(number, incoming.received)))

    def _uncredited(self) -> int:
        return sum(each.received - each.credited for each in self._partial.values() if not each.admitted)

    def _overrun(self, number: int) -> None:
        self.overruns += 1
        header = self._partial.pop(number).header
        assert header.transfer is not None
        self._messages.append(Message(Credit(number, sum(header.transfer.sizes))))
