"""Large contents on their way in, pure: taken whole or put together from chunks, and credited.

Rules: docs/spec/bus-bulk.md.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from edgebus.bulk import MAX_PARTIAL, Name, credit_step, name_of
from edgebus.messages import Chunk, Content, Credit, Message, Request
from edgebus.streams import Frames

CREDIT_LATER_S = 0.005
"""What came in one message is credited within this time, or with a quarter of the window: its sender has sent it all,
and mostly hears that it has arrived by its answer. A credit of its own would wake a thread at both ends."""

CREDIT_EVERY_S = 0.25
"""On a slow link a credit step takes long: its sender hears of what has arrived, and that we are there, so often."""


class _Incoming:
    """A content on its way in. Plain, so that it can be compiled (bulk_receiver.pxd)."""

    def __init__(self, header: Content, name: Name, sizes: tuple[int, ...], total: int) -> None:
        self.header, self.name, self.sizes, self.total = header, name, sizes, total
        self.frames: list[Any] = []  # whole ones
        self.filling: npt.NDArray[np.uint8] | None = None  # the frame that comes in pieces
        self.filled = 0  # bytes of that frame
        self.received = 0
        self.credited = 0
        self.credited_at: float | None = None  # or when its first chunk came
        self.admitted = False
        self.rewinding = False
        self.came_at: float | None = None  # if it came whole, in one message
        self.stale = False  # of before the last greeting: its sender announces it again, or has given it up


class _Later:
    """A content that has arrived in one message, and whose credit waits."""

    def __init__(self, name: Name, total: int, due_at: float) -> None:
        self.name, self.total, self.due_at = name, total, due_at


_message: Callable[[tuple[Any, ...]], Message] = partial(tuple.__new__, Message)
"""Without a frame of Python: there a signal handler might raise, and what is said once would be lost."""


def _credit(number: int, received: int, rewind: bool = False) -> Message:
    return _message((Credit(number, received, rewind), ()))


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
        self._later: dict[int, _Later] = {}  # of transfers
        self._later_of: dict[Name, int] = {}  # their numbers
        self._later_bytes = 0
        self.credit_at = math.inf  # when what is credited later is due
        self.copied_bytes = 0
        self.overruns = 0

    def __bool__(self) -> bool:
        return bool(self._partial)

    @property
    def held_bytes(self) -> int:
        """Bytes received of contents that are not whole yet."""
        return sum(each.received for each in self._partial.values())

    @property
    def waiting(self) -> bool:
        """True while a content waits for room."""
        for each in self._partial.values():  # noqa: SIM110 - asked for every piece, and mostly there is one
            if not each.admitted:
                return True
        return False

    def announce(self, header: Content) -> Message | None:
        """A content begins, or its sender asks how far we are. Returns a message that has no bytes to wait for."""
        assert header.transfer is not None
        number, sizes = header.transfer.id, header.transfer.sizes
        self._forget_stale(number)
        self._forget_later(number)  # numbers start anew after a restart of the sender; or it asks, and is told below
        known = self._partial.get(number)
        if known is not None:
            if known.name == name_of(header) and known.sizes == sizes:
                known.stale = False
                self._messages.append(_credit(number, known.received, True))
                if known.credited:
                    self._messages.append(_credit(number, known.credited))
                return None
            del self._partial[number]  # numbers start anew after a restart of the sender
        incoming = self._begin(header)
        self._messages.append(_credit(number, 0))  # it is wanted
        return self._complete(number, incoming)

    def receive_whole(self, header: Content, frames: Frames, waiting_bytes: int, *, now: float) -> Message | None:
        """A content that came with its header; returns the message if there is room for it now.

        Args:
            header: with its transfer.
            frames: all of them.
            waiting_bytes: as for `admit`, which gives room later.
            now: monotonic seconds.
        """
        assert header.transfer is not None
        number = header.transfer.id
        if self._partial:
            self._forget_stale(number)
            self._partial.pop(number, None)
        incoming = self._begin(header)
        incoming.frames = list(frames)
        incoming.received = incoming.total
        incoming.came_at = now
        # What waits is given room first, so only where nothing does.
        if len(self._partial) == 1 and (not waiting_bytes or waiting_bytes + incoming.total <= self._max_bytes):
            incoming.admitted = True
            return self._complete(number, incoming)
        if self._uncredited() > self._window_bytes + max(map(len, frames)):
            self._overrun(number)
        return None

    def took_whole(self, header: Content, now: float) -> None:
        """A content that came with its header was handed on, nothing else being under way: only its credit is owed."""
        assert header.transfer is not None
        number = header.transfer.id
        self._asked.pop(number, None)
        self._credit_later(number, name_of(header), sum(header.transfer.sizes), now)
        header.transfer = None

    def answered(self, request_id: int) -> None:
        """A small answer to a request has been sent: it stands for the credit of the content."""
        number = self._later_of.get((Request, request_id, 0))
        if number is not None:
            self._forget_later(number)
            if not self._later:
                self.credit_at = math.inf

    def refuse(self, header: Content) -> None:
        """Its content is not wanted: let the sender believe that it has arrived."""
        assert header.transfer is not None
        self._partial.pop(header.transfer.id, None)
        self._forget_later(header.transfer.id)
        self._messages.append(_credit(header.transfer.id, sum(header.transfer.sizes)))

    def receive(self, chunk: Chunk, frame: Any, *, now: float) -> Message | None:
        """Take a chunk; returns the message once its content is whole."""
        incoming = self._partial.get(chunk.transfer)
        if incoming is None:
            if chunk.transfer not in self._asked:
                self._asked[chunk.transfer] = None
                if len(self._asked) > MAX_PARTIAL:
                    self._asked.popitem(last=False)
                self._messages.append(_credit(chunk.transfer, 0, True))
            return None
        size = len(frame)
        if chunk.offset != incoming.received:
            # An overlap is what was sent again; behind a gap everything comes again.
            if chunk.offset > incoming.received and not incoming.rewinding:
                incoming.rewinding = True
                self._messages.append(_credit(chunk.transfer, incoming.received, True))
            return None
        index = len(incoming.frames)
        if index >= len(incoming.sizes) or not 0 < size <= incoming.sizes[index] - incoming.filled:
            self._overrun(chunk.transfer)
            return None
        incoming.rewinding = False
        self._fill(incoming, incoming.sizes[index], frame, size)
        incoming.received += size
        if incoming.credited_at is None:
            incoming.credited_at = now
        if not incoming.admitted and self._uncredited() > self._window_bytes + size:
            self._overrun(chunk.transfer)
            return None
        return self._complete(chunk.transfer, incoming, now)

    def drop(self, number: int) -> None:
        """The rest of a content will not come, or nobody waits for its credit."""
        self._forget_later(number)
        self._partial.pop(number, None)
        self._asked.pop(number, None)

    def clear(self) -> None:
        """Forget everything: the sender is gone."""
        self._partial.clear()
        self._later.clear()
        self._later_of.clear()
        self._later_bytes = 0
        self.credit_at = math.inf

    def greeted(self) -> None:
        """The sender has greeted (again): what it still wants to send it announces again, in order."""
        for each in self._partial.values():
            each.stale = True

    def admit(self, waiting_bytes: int) -> None:
        """Give credit for what there is room for, in the order in which they go out over there: by number.

        One that comes late, by another lane or after a loss, is given the room of those that go after it: they have to
        wait for it over there, and it would wait for them here.

        Args:
            waiting_bytes: contents delivered and not yet worked off by the application.
        """
        used = waiting_bytes + sum(each.total for each in self._partial.values() if each.admitted)
        for number in sorted(self._partial):
            incoming = self._partial.get(number)
            if incoming is None:
                continue  # it has made room
            if not incoming.admitted:
                if used and used + incoming.total > self._max_bytes:
                    used -= self._make_room(number, used + incoming.total - self._max_bytes, used)
                if used and used + incoming.total > self._max_bytes:
                    return
                incoming.admitted = True
                used += incoming.total
            whole = self._complete(number, incoming)
            if whole is not None:
                self._whole.append(whole)

    def _make_room(self, number: int, wanted_bytes: int, used_bytes: int) -> int:
        """Have contents that go out after this one wait again, the last first; returns how many bytes that gives.

        Nothing if it would not be enough. What was credited of one is counted nowhere while it waits: such a one
        begins again, and so does one with which more than a window would wait here.
        """
        later = [each for each in sorted(self._partial, reverse=True) if each > number and self._partial[each].admitted]
        if sum(self._partial[each].total for each in later) < min(wanted_bytes, used_bytes):
            return 0
        given = 0
        for each in later:
            if given >= min(wanted_bytes, used_bytes):
                break
            incoming = self._partial[each]
            given += incoming.total
            incoming.admitted = False
            if incoming.credited or self._uncredited() > self._window_bytes:
                del self._partial[each]
                self._messages.append(_credit(each, 0, True))
        return given

    def take_admitted(self) -> list[Message]:
        """Messages that were whole and have been admitted, since the last call."""
        whole, self._whole = self._whole, []
        return whole

    def headers_to_send(self) -> list[Message]:
        """Credit since the last call."""
        messages, self._messages = self._messages, []
        return messages

    def credit_due(self, now: float, is_known: Callable[[Name], bool]) -> None:
        """Credit what came whole, if it is time.

        Args:
            now: monotonic seconds.
            is_known: whether the sender has heard of the arrival of a content by something else.
        """
        if now < self.credit_at:
            return
        # The oldest come first. Those that are not due are mostly answered before they are.
        everything = self.credit_at == -math.inf
        self.credit_at = math.inf
        for number, later in list(self._later.items()):
            if later.due_at > now and not everything:
                self.credit_at = later.due_at
                return
            if not is_known(later.name):
                self._messages.append(_credit(number, later.total))
            self._forget_later(number)

    def _begin(self, header: Content) -> _Incoming:
        """Make room for one more transfer."""
        assert header.transfer is not None
        number, sizes, name = header.transfer.id, header.transfer.sizes, name_of(header)
        self._asked.pop(number, None)
        for earlier in [earlier for earlier, each in self._partial.items() if each.name == name]:
            del self._partial[earlier]  # one content is under way once
        if len(self._partial) >= MAX_PARTIAL:
            self._partial.popitem(last=False)
            self.overruns += 1
        incoming = self._partial[number] = _Incoming(header, name, sizes, sum(sizes))
        return incoming

    def _forget_stale(self, number: int) -> None:
        for earlier in [earlier for earlier, each in self._partial.items() if each.stale and earlier < number]:
            del self._partial[earlier]  # announced in order, so it was given up while there was no connection

    def _forget_later(self, number: int) -> None:
        if (later := self._later.pop(number, None)) is not None:
            self._later_bytes -= later.total
            if self._later_of.get(later.name) == number:
                del self._later_of[later.name]

    def _credit_later(self, number: int, name: Name, total: int, came_at: float) -> None:
        self._forget_later(number)
        later = self._later[number] = _Later(name, total, came_at + CREDIT_LATER_S)
        self._later_of[name] = number
        self._later_bytes += total
        self.credit_at = min(self.credit_at, later.due_at)
        if 4 * self._later_bytes >= self._window_bytes or len(self._later) >= MAX_PARTIAL:
            self.credit_at = -math.inf  # now

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

    def _complete(self, number: int, incoming: _Incoming, now: float = -math.inf) -> Message | None:
        while len(incoming.frames) < len(incoming.sizes) and not incoming.sizes[len(incoming.frames)]:
            incoming.frames.append(b"")
        if incoming.received < incoming.total or not incoming.admitted:
            if incoming.admitted:
                self._give_credit(number, incoming, now)
            return None
        del self._partial[number]
        if incoming.came_at is None:
            self._messages.append(_credit(number, incoming.total))
        else:
            self._credit_later(number, incoming.name, incoming.total, incoming.came_at)
        incoming.header.transfer = None
        frames: Frames = tuple(incoming.frames)
        return _message((incoming.header, (bytes(frames[0]), *frames[1:])))

    def _give_credit(self, number: int, incoming: _Incoming, now: float) -> None:
        late = incoming.credited_at is not None and now >= incoming.credited_at + CREDIT_EVERY_S
        if incoming.received - incoming.credited >= self._credit_step or late:
            incoming.credited = incoming.received
            incoming.credited_at = max(now, incoming.credited_at or now)
            self._messages.append(_credit(number, incoming.received))

    def _uncredited(self) -> int:
        return sum(each.received - each.credited for each in self._partial.values() if not each.admitted)

    def _overrun(self, number: int) -> None:
        self.overruns += 1
        header = self._partial.pop(number).header
        assert header.transfer is not None
        self._messages.append(_credit(number, sum(header.transfer.sizes)))
