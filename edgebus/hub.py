"""All links of a node behind one pure machine: frames and routes in, frames and routes out.

A route is where frames come from and go to: a socket (negative within this process) and, on a listening one, the
connection's routing id.
Here is the way of a message in and out. Links that come and go have a room below this one, hub_links.py, and what they
want to be done another below that, hub_collecting.py.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from edgebus import messages as m
from edgebus import taps
from edgebus.attached import Attached, Route
from edgebus.errors import WireError
from edgebus.hub_links import HubLinks
from edgebus.interrupts import is_of_signal
from edgebus.link_states import Surroundings
from edgebus.outcomes import Arrived, Settled
from edgebus.requests import refusal
from edgebus.streams import content_bytes
from edgebus.wire import decode, encode

Resolve = Callable[[Attached, m.Content], tuple[Any, ...] | None]
"""The arrays of a message that lie in shared memory; None if they cannot be seen."""
Number = Callable[[Attached, m.Content], tuple[m.Content, bool]]
"""The header of a message that leaves, with the leases of its shared memory as the link calls them, and whether it
may go by the near lane."""
Judge = Callable[[str | None, str, int, float], tuple[str, str] | None]
"""Says why a peer (its key) may not ask for a service with so many bytes now: code and detail, or None."""
_log = logging.getLogger("edgebus")
_WARN_EVERY_S = 60.0
_message: Callable[[tuple[Any, ...]], m.Message] = partial(tuple.__new__, m.Message)  # without a frame of Python


class Taker(Protocol):
    """Takes what comes plain and whole at once, without an event."""

    def arrived(self, attached: Attached, arrived: Arrived) -> None:
        """A request is to be executed: whoever takes it claims it (`Answerer.claim`), or it comes as an event, too."""

    def settled(self, attached: Attached, settled: Settled) -> None:
        """A request of ours has its outcome; `caller.leases_done` may have grown."""


class Hub(HubLinks):
    """Owns the links of a node and finds the right one for every message.

    Args:
        around: what the links of this node share.
        new_incarnation: gives 16 bytes, different at every call.
        judge: who may ask for what; None lets everybody.
        resolve: finds arrays in shared memory.
        number: gives leases of shared memory the numbers they are sent with.
        max_links: accepted links a key may have; None for limits.max_links_per_key.
    """

    def __init__(
        self,
        *,
        around: Surroundings,
        new_incarnation: Callable[[], bytes],
        judge: Judge | None = None,
        resolve: Resolve | None = None,
        number: Number | None = None,
        max_links: Callable[[str], int | None] = lambda key: None,
    ) -> None:
        super().__init__(around, new_incarnation, max_links)
        self.judge = judge
        self._resolve = resolve
        self._number = number
        self.taps = []
        self.taker: Taker | None = None  # of what need not wait for `events`
        self._encoded: list[tuple[Route, list[bytes]]] = []  # of what was in the outbox
        self._warned: set[Route] = set()
        self._warned_from = -math.inf
        self.malformed = 0
        self.unroutable = 0

    def receive(self, route: Route, frames: Sequence[bytes], key: str | None, *, now: float) -> None:
        """Take what came in at a route, from the peer with this authenticated key."""
        attached = self.by_route.get(route)
        if attached is not None and attached.key != key and attached.key is not None:
            attached = None
        try:
            message = decode(frames, self._limits)
        except WireError as error:
            self._refuse_malformed(route, attached, error, now)
            return
        header = message.header
        if isinstance(header, m.Hello) and (attached is None or attached.hello_id is not None):
            if header.lane:
                self._greeted_lane(route, key, header, sum(map(len, frames)), now)
                return
            attached = self._greeted(route, key, header, now)
        if attached is None:
            if not isinstance(header, m.Hello | m.Goodbye | m.Reset):
                self.outbox.append((route, None, m.Message(m.Reset())))
            return
        frames_bytes = sum(map(len, frames))
        size_bytes = _content_bytes(message) if message.frames else 0
        try:
            self._take_in(attached, route, message, now)
        except Exception as error:
            if is_of_signal(error):
                raise  # it comes again
            attached.link.give_up(message, error)
            self.touch(attached, now=now)
        attached.traffic.took(frames_bytes, size_bytes)

    def _take_in(self, attached: Attached, route: Route, message: m.Message, now: float) -> None:
        """Take a message of a link."""
        header = message.header
        if self.taps:
            taps.tell(self.taps, "in", attached, route, message, now)
        if self.judge is not None and type(header) is m.Request and attached.is_new(header):
            size = content_bytes(message.frames) if header.transfer is None else sum(header.transfer.sizes)
            if denial := self.judge(attached.key, header.service, size, now):
                attached.link.answerer.deny(header, *denial)
                self.touch(attached, now=now)
                return
        if message.frames and getattr(header, "blocks", None) is not None:
            shared = self._with_shared(attached, message)
            if shared is None:
                self.touch(attached, now=now)
                return
            message = shared
        if not self._hand_on(attached, message, now):
            attached.link.receive(message, now=now)
            self.touch(attached, now=now)

    def _hand_on(self, attached: Attached, message: m.Message, now: float) -> bool:
        """Give a plain request or answer to whoever takes them at once; False if it has to go the usual way."""
        if self.taker is None or self.busy:
            return False
        link = attached.link
        if (arrived := link.receive_plain(message, now=now)) is not None:
            self.taker.arrived(attached, arrived)
            if link.has_news:
                self.touch(attached, now=now)
            elif link.receiver.credit_at < attached.scheduled_at:
                self.schedule(attached, link.receiver.credit_at)
        elif (settled := link.receive_plain_answer(message, now=now)) is not None:
            self.taker.settled(attached, settled)
            if link.sender:
                self.touch(attached, now=now)
        else:
            return False
        return True

    def frames_to_send(self, *, now: float) -> list[tuple[Route, list[bytes]]]:
        """Encoded messages since the last call; sending may fail, links are made for that."""
        num_done = 0
        try:
            for route, attached, message in self.outbox:
                self._encode(route, attached, message, now)
                num_done += 1
        except BaseException as error:
            num_done += not is_of_signal(error)  # a fault would come again, and keep what is behind it
            raise
        finally:
            del self.outbox[:num_done]  # not all, if a signal handler has raised: the others go next time
        sending, self._encoded = self._encoded, []
        return sending

    def _encode(self, route: Route, attached: Attached | None, message: m.Message, now: float) -> None:
        try:
            near = True
            if attached is not None and self._number is not None and getattr(message.header, "blocks", None):
                header, near = self._number(attached, message.header)  # type: ignore[arg-type]
                message = _message((header, message.frames))
            if attached is not None and attached.near is not None and _goes_near(message.header, near):
                route = attached.near.route
            frames = encode(message, attached.link.version if attached is not None else 1)
        except Exception as error:  # one that does not encode must not take the others with it
            if is_of_signal(error):
                raise
            if attached is not None:
                attached.link.not_sent(message, error)
                self.touch(attached, now=now)
            return
        if attached is not None:
            traffic, content = attached.traffic, _content_bytes(message) if message.frames else 0
            if self.taps:
                taps.tell(self.taps, "out", attached, route, message, now)
            traffic.messages_sent += 1
            traffic.bytes_sent += sum(map(len, frames))
            traffic.content_bytes_sent += content
        self._encoded.append((route, frames))

    def _with_shared(self, attached: Attached, message: m.Message) -> m.Message | None:
        """A message with its arrays out of shared memory; a refusal in its place if they cannot be seen."""
        header, link = message.header, attached.link
        assert isinstance(header, m.Content)
        wanted = link.answerer.wants_content(header) if isinstance(header, m.Request) else link.caller.wants(header)
        arrays = self._resolve(attached, header) if self._resolve is not None else None
        header.blocks = None
        if arrays is not None:
            return m.Message(header, (message.frames[0], *arrays))
        detail = "its arrays lie in shared memory that cannot be seen here: ask again, sockets are used from now on"
        if not wanted:
            return m.Message(header, message.frames)
        if isinstance(header, m.Request):
            link.answerer.deny(header, "unshared", detail)
            return None
        return refusal(header.id, "unshared", detail)

    def _refuse_malformed(self, route: Route, attached: Attached | None, error: WireError, now: float) -> None:
        self.malformed += 1
        if now >= self._warned_from + _WARN_EVERY_S:
            self._warned.clear()
            self._warned_from = now
        if route not in self._warned and len(self._warned) < 4 * self._limits.max_peers:
            self._warned.add(route)
            _log.warning("malformed message from %s: %s; more within a minute are only counted", route, error)
        if attached is None:
            return
        attached.traffic.malformed += 1
        if error.request_id is None:
            return
        answer = refusal(error.request_id, "malformed", str(error))
        if error.is_answer:
            # Our own request was answered with rubbish, and would be again: end it here.
            attached.link.receive(answer, now=now)
        else:
            self.outbox.append((attached.route, attached, answer))
        self.touch(attached, now=now)


def _content_bytes(message: m.Message) -> int:
    """Bytes of payload and arrays, whether they travel or lie in shared memory."""
    blocks: Sequence[m.Block] = getattr(message.header, "blocks", None) or ()
    return content_bytes(message.frames) + sum(block.size for block in blocks)


def _goes_near(header: m.Header, may: bool) -> bool:
    """Whether a message goes by the near lane: what speaks of shared memory.

    Args:
        header: of the message.
        may: False if it is sent again, or would overtake what went by the control lane.
    """
    return may and (type(header) is m.Leases or getattr(header, "blocks", None) is not None)
