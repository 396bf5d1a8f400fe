"""All links of a node behind one pure machine: frames and routes in, frames and routes out.

A route is where frames come from and go to: a socket (negative within this process) and, on a listening one, the
connection's routing id.
Links outlive routes: a dialler that reconnects is recognised by (its key, its incarnation).
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

from edgebus import messages as m
from edgebus.attached import Attached, HubFront, Route, Traffic
from edgebus.errors import ConfigError, WireError
from edgebus.interrupts import is_of_signal
from edgebus.link import LinkMachine
from edgebus.link_states import Event, Gone, Surroundings
from edgebus.outcomes import Arrived, Settled
from edgebus.requests import refusal
from edgebus.stats import LinkStats, link_stats
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
_FAULT_S = 1.0
"""A link whose timers fail by a fault of ours is looked at again after so long."""

__all__ = ["Attached", "Hub", "Judge", "Route", "TapEvent", "Traffic"]


class TapEvent(NamedTuple):
    """A message as it went by.

    Attributes:
        at: monotonic seconds.
        direction: seen from this node.
        peer_id, peer_key, peer_name: the other end.
        lane: "control" or "bulk".
        header: decoded; not to be changed.
        sizes: bytes of the content frames.
        frames: the content itself; not to be kept longer than needed, nor changed.
    """

    at: float
    direction: Literal["in", "out"]
    peer_id: str
    peer_key: str | None
    peer_name: str
    lane: Literal["control", "bulk"]
    header: m.Header
    sizes: tuple[int, ...]
    frames: tuple[Any, ...]


_message: Callable[[tuple[Any, ...]], m.Message] = partial(tuple.__new__, m.Message)  # without a frame of Python


class Taker(Protocol):
    """Takes what comes plain and whole at once, without an event."""

    def arrived(self, attached: Attached, arrived: Arrived) -> None:
        """A request is to be executed."""

    def settled(self, attached: Attached, settled: Settled) -> None:
        """A request of ours has its outcome; `caller.leases_done` may have grown."""


class Hub(HubFront):
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
        self._around = around
        self._limits = around.limits
        self._new_incarnation = new_incarnation
        self.judge = judge
        self._resolve = resolve
        self._number = number
        self._max_links = max_links
        self.taps = []
        self.by_route = {}
        self.taker: Taker | None = None  # of what need not wait for `events`
        self._accepted: dict[tuple[str | None, bytes], Attached] = {}
        self._timers: list[tuple[float, int, Attached]] = []
        self._order = itertools.count()  # ties in the heap
        self.outbox = []
        self._encoded: list[tuple[Route, list[bytes]]] = []  # of what was in there
        self.news = []
        self._warned: set[Route] = set()
        self._warned_from = -math.inf
        self.first_timer_at = math.inf
        self.malformed = 0
        self.unroutable = 0
        self.gone = LinkStats()  # of links that were dropped

    @property
    def links(self) -> list[Attached]:
        """Every link known, in no order."""
        return list({id(item): item for item in (*self.by_route.values(), *self._accepted.values())}.values())

    # -- dialled links ------------------------------------------------------------------------------

    def dial(self, route: Route, *, now: float) -> Attached:
        """Add a link that this node opens; `connected` follows when its transport is there."""
        self.make_room_to_dial(now=now)
        return self._new_link(route, None, None, now=now)

    def make_room_to_dial(self, *, now: float) -> None:
        """Make sure that there is room for one more link.

        Raises:
            ConfigError: max_peers links are in use.
        """
        if not self._make_room(None, now):
            raise ConfigError(
                f"{len(self.links)} links are open, max_peers is {self._limits.max_peers}: close one, or raise it"
            )

    def connected(self, route: Route, *, now: float) -> None:
        """The transport of a dialled link is there (again)."""
        if attached := self.by_route.get(route):
            attached.link.connected(now=now)
            self.touch(attached, now=now)

    def disconnected(self, route: Route, *, now: float) -> None:
        """The transport at this route is gone."""
        attached = self.by_route.get(route)
        if attached is None:
            return
        if route == attached.bulk_route:
            attached.link.lane_lost()
            if attached.hello_id is not None:  # a listener's routes end with their connection
                del self.by_route[route]
                attached.bulk_route = None
        else:
            attached.link.disconnected(now=now)
        self.touch(attached, now=now)

    def add_lane(self, attached: Attached, route: Route) -> None:
        """A dialled link has a second transport, for bulk; `lane_connected` follows when it is there."""
        attached.bulk_route = route
        self.by_route[route] = attached

    def drop_lane(self, attached: Attached, route: Route) -> None:
        """That transport will not come."""
        if self.by_route.get(route) is attached:
            del self.by_route[route]
        if attached.bulk_route == route:
            attached.bulk_route = None

    def lane_connected(self, attached: Attached, *, now: float) -> None:
        """The bulk transport of a dialled link is there (again)."""
        attached.link.lane_connected()
        self.touch(attached, now=now)

    def move(self, attached: Attached, route: Route) -> None:
        """A dialled link goes on over another transport; `connected` follows when it is there."""
        self._leave_routes(attached)
        attached.link.lane_lost()
        attached.route, attached.bulk_route = route, None
        attached.link.is_local = route[0] < 0
        self.by_route[route] = attached

    def fail(self, route: Route, code: str, detail: str, *, now: float) -> None:
        """The transport of a dialled link will never come."""
        if attached := self.by_route.get(route):
            attached.link.fail(code, detail, now=now)
            self.touch(attached, now=now)

    def drop(self, attached: Attached) -> None:
        """Forget a link that is closed."""
        if math.isnan(attached.scheduled_at):
            return
        self.gone += link_stats(attached)
        self._leave_routes(attached)
        if attached.hello_id is not None:
            self._accepted.pop((attached.key, attached.hello_id), None)
        attached.scheduled_at = math.nan  # no timer compares equal to it: they are all stale

    def close(self, *, now: float) -> None:
        """Say goodbye on every link."""
        for attached in self.links:
            attached.link.close(now=now)
            self.touch(attached, now=now)

    # -- the five verbs -----------------------------------------------------------------------------

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
            self._tap("in", attached, route, message, now)
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

    def schedule(self, attached: Attached, at: float) -> None:
        """Have a link's timers looked at by then."""
        self.first_timer_at = min(self.first_timer_at, at)
        attached.scheduled_at = at
        if len(self._timers) > 64 + 4 * (len(self.by_route) + len(self._accepted)):
            # Stale ones keep links that were dropped: greetings in a row would pile them up for forget_s.
            self._timers = [item for item in self._timers if item[0] == item[2].scheduled_at]
            heapq.heapify(self._timers)
        heapq.heappush(self._timers, (at, next(self._order), attached))

    @property
    def busy(self) -> bool:
        """True if there is something to send or to tell."""
        return bool(self.outbox or self.news)

    def next_timer(self) -> float:
        """Earliest time handle_timer has something to do, inf if never."""
        while self._timers and self._timers[0][0] != self._timers[0][2].scheduled_at:
            heapq.heappop(self._timers)
        self.first_timer_at = self._timers[0][0] if self._timers else math.inf
        return self.first_timer_at

    def handle_timer(self, *, now: float) -> None:
        """Let every link whose time has come do what is due."""
        while self.next_timer() <= now:
            attached = heapq.heappop(self._timers)[2]
            attached.scheduled_at = math.inf
            if (at := attached.link.next_timer()) > now:  # what it was for is done
                if at < math.inf:
                    self.schedule(attached, at)
                continue
            self.schedule(attached, now)  # until it is done, whatever a signal handler raises
            try:
                attached.link.handle_timer(now=now)
                attached.scheduled_at = math.inf
                self.touch(attached, now=now)
            except Exception as error:
                if is_of_signal(error):
                    raise
                _log.exception("edgebus: internal error in the timers of a link")
                attached.scheduled_at = math.inf
                self.schedule(attached, now + _FAULT_S)  # the others have theirs

    def look_again(self, *, now: float) -> None:
        """A signal handler has raised in the middle of something: see to what was left of it, on every link."""
        for attached in self.links:
            try:
                self.touch(attached, now=now)
            except Exception as error:
                if is_of_signal(error):
                    raise
                _log.exception("edgebus: internal error in a link")

    def frames_to_send(self, *, now: float) -> list[tuple[Route, list[bytes]]]:
        """Encoded messages since the last call; sending may fail, links are made for that."""
        num_done = 0
        try:
            for route, attached, message in self.outbox:
                self._encode(route, attached, message, now)
                num_done += 1
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
                self._tap("out", attached, route, message, now)
            traffic.messages_sent += 1
            traffic.bytes_sent += sum(map(len, frames))
            traffic.content_bytes_sent += content
        self._encoded.append((route, frames))

    def events(self) -> list[tuple[Attached, Event]]:
        """Events of all links since the last call."""
        events, self.news = self.news, []
        return events

    def put_back(self, events: Iterable[tuple[Attached, Event]]) -> None:
        """Events that could not be handled come first next time."""
        self.news[:0] = events

    def touch(self, attached: Attached, *, now: float) -> None:
        """Collect what a link has to say; to be called after every direct use of one."""
        link = attached.link
        route = attached.route
        self.outbox += [(route, attached, message) for message in link.headers_to_send()]
        if link.has_bulk:
            by_lane = (route, attached.bulk_route or route)
            self.outbox += [(by_lane[lane], attached, message) for lane, message in link.bulk_to_send(now=now)]
        if self._around.keyed.told:
            told, self._around.keyed.told = set(self._around.keyed.told), []
            for other in self.links:
                if other.link.answerer in told:
                    self.touch(other, now=now)
        events = link.events()
        if events:
            self.news += [(attached, event) for event in events]
            if any(isinstance(event, Gone) for event in events):
                self.drop(attached)
                return
        at = link.next_timer()
        if at < attached.scheduled_at:
            self.schedule(attached, at)

    # -- inside -------------------------------------------------------------------------------------

    def _new_link(self, route: Route, key: str | None, hello_id: bytes | None, *, now: float) -> Attached:
        incarnation = self._new_incarnation()
        link = LinkMachine(dialled=hello_id is None, incarnation=incarnation, around=self._around, now=now, owner=key)
        attached = Attached(link, route, key, peer_id(key, hello_id or incarnation), hello_id, Traffic())
        self.by_route[route] = attached
        link.is_local = route[0] < 0
        return attached

    def _greeted(self, route: Route, key: str | None, hello: m.Hello, now: float) -> Attached | None:
        """Find or make the link a hello belongs to, and move it to the route the hello came by."""
        low, high = self._around.versions
        if hello.version_min > high or hello.version_max < low:
            detail = (
                f"this node speaks {low}..{high}, "
                f"the peer {hello.version_min}..{hello.version_max}: upgrade the older one"
            )
            self.outbox.append((route, None, m.Message(m.Goodbye("version", detail))))
            return None
        attached = self._accepted.get((key, hello.incarnation))
        previous = self.by_route.get(route)
        if attached is None:
            if not self._make_room(key, now):
                limits = self._limits
                detail = f"all in use: max_peers is {limits.max_peers}, max_links_per_key {limits.max_links_per_key}"
                self.outbox.append((route, None, m.Message(m.Goodbye("busy", detail))))
                return None
            attached = self._new_link(route, key, hello.incarnation, now=now)
            self._accepted[key, hello.incarnation] = attached
        elif attached.route != route:
            if self.by_route.get(attached.route) is attached:  # another link may have taken it over
                del self.by_route[attached.route]
            attached.route = route
            attached.link.is_local = route[0] < 0
        if previous is not None and previous is not attached:
            previous.link.disconnected(now=now)
            self.touch(previous, now=now)
        self.by_route[route] = attached
        return attached

    def _greeted_lane(self, route: Route, key: str | None, hello: m.Hello, frames_bytes: int, now: float) -> None:
        """The second connection of a peer that has greeted: it is tried again until its link is known."""
        attached = self._accepted.get((key, hello.incarnation))
        if attached is None or self.by_route.get(route, attached) is not attached or route == attached.route:
            return
        if attached.bulk_route is not None:
            self.by_route.pop(attached.bulk_route, None)
        attached.bulk_route = route
        self.by_route[route] = attached
        attached.link.lane_opened()
        self.touch(attached, now=now)
        attached.traffic.took(frames_bytes, 0)

    def _leave_routes(self, attached: Attached) -> None:
        for route in (attached.route, attached.bulk_route):
            if route is not None and self.by_route.get(route) is attached:  # another link may have taken it over
                del self.by_route[route]

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

    def cut(self, attached: Attached, code: str, detail: str, *, now: float) -> None:
        """End an accepted link: its key may not stay."""
        attached.link.close(now=now, code=code, detail=detail)
        self.touch(attached, now=now)

    def _tap(
        self, direction: Literal["in", "out"], attached: Attached, route: Route, message: m.Message, now: float
    ) -> None:
        lane: Literal["control", "bulk"] = "bulk" if route == attached.bulk_route else "control"
        sizes = tuple(map(len, message.frames))
        who = (attached.peer_id, attached.key, attached.link.peer_name)
        event = TapEvent(now, direction, *who, lane, message.header, sizes, message.frames)
        for tap in list(self.taps):
            try:
                tap(event)
            except Exception:  # a fault of a listener must not cost the message
                _log.exception("edgebus: a tap failed and was removed")
                self.taps.remove(tap)

    def _make_room(self, key: str | None, now: float) -> bool:
        """Room for one more link of a key; its own oldest spare link goes first, then anybody's."""
        own = [attached for attached in self._accepted.values() if key is not None and attached.key == key]
        most = self._limits.max_links_per_key if key is None else self._max_links(key) or self._limits.max_links_per_key
        if len(own) >= most:
            return self._evict(own, now)
        if len(self.links) < self._limits.max_peers:
            return True
        return self._evict(own, now) or self._evict(list(self._accepted.values()), now)

    def _evict(self, candidates: list[Attached], now: float) -> bool:
        spare = [attached for attached in candidates if attached.link.spare_from() <= now]
        if not spare:
            return False
        oldest = min(spare, key=lambda attached: attached.link.heard_at)
        oldest.link.close(now=now)
        self.touch(oldest, now=now)
        self.drop(oldest)
        self.news.append((oldest, Gone()))  # shared memory and whoever else keeps something of it
        return True

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


def peer_id(key: str | None, incarnation: bytes) -> str:
    """A name for a link that nobody without the key can take: 32 hex digits."""
    return hashlib.blake2b(f"{key}|".encode() + incarnation, digest_size=16).hexdigest()


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
