"""A whole hub under attack: strangers and authenticated peers say anything in any state; an honest one must not notice.

`attack(data)` plays a script made of fuzz input and raises if an exception escapes, a bound is passed, a counter does
not add up, or the honest peer gets anything but its due.
"""

from __future__ import annotations

import itertools
import logging

import edgebus
from edgebus import messages as m
from edgebus.attached import Attached
from edgebus.errors import AlreadyAnswered, MessageTooLarge, StreamEnded
from edgebus.hub import Hub
from edgebus.inbox import Request
from edgebus.link_states import Surroundings, wire_limits
from edgebus.outcomes import Arrived, PartArrived, Room, Settled
from edgebus.streams import content_bytes
from edgebus.wire import decode, encode
from tests.fuzz.source import Source
from tests.vectors.golden import VECTORS, frames_of

LIMITS = edgebus.Limits(
    max_frame_bytes=16_384,
    max_frames=8,
    max_peers=8,
    max_links_per_key=3,
    max_pending=6,
    max_pending_bytes=32_768,
    max_outstanding_bytes=32_768,
    bulk_from_bytes=2048,
    bulk_bytes=8192,
    cache_count=5,
    cache_bytes=16_384,
)
GOOD, DIALLED = (1, b"good"), (9, b"")
ROUTES = [((1, b"evil0"), "EVIL"), ((1, b"evil1"), "EVIL"), ((1, b"evil2"), "ALSO"), (GOOD, "EVIL"), (DIALLED, None)]
INCARNATIONS = [bytes([n]) * 16 for n in range(1, 5)]
_SAID = [[bytes.fromhex(vector["hex"]), *frames_of(vector["frames"])] for vector in VECTORS]


class _Complaints(logging.Handler):
    """Raises what the hub only logs: a message that does not encode, a tap that failed."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            raise AssertionError(record.getMessage())


class HubWorld:
    """The hub, its application, and what came of it. Also the desk of its requests."""

    def __init__(self) -> None:
        numbers = itertools.count()
        around = Surroundings(name="hub", limits=LIMITS)
        self.hub = Hub(around=around, new_incarnation=lambda: next(numbers).to_bytes(16, "big"))
        self.hub.taps.append(lambda event: None)
        self.at = 0.0
        self.requests: list[Request] = []
        self.settled: list[Settled] = []
        self.num_started = 0
        self.asked: dict[object, int] = {}  # our requests: what they are known as, and their ids
        self.said_to_good: list[m.Message] = []
        self.rooms: list[tuple[object, int]] = []
        self.offsets: dict[int, int] = {}  # of transfers: how far chunks have gone
        self.dialled = self.hub.dial(DIALLED, now=0.0)

    # -- the desk -----------------------------------------------------------------------------------

    def now(self) -> float:
        return self.at

    def answer(self, attached: Attached, answerer: object, request_id: int, message: m.Message) -> None:
        answerer.answer(request_id, message)  # type: ignore[attr-defined]
        self.hub.touch(attached, now=self.at)

    answer_later = answer

    def answer_small(self, *_: object) -> bool:
        return False

    def push(self, attached, answerer, request_id, specs, frames):  # type: ignore[no-untyped-def]
        room = answerer.has_room(request_id, content_bytes(frames))
        if not room:
            return room
        pos = answerer.push(request_id, specs, frames)
        self.hub.touch(attached, now=self.at)
        return pos

    # -- what can happen ----------------------------------------------------------------------------

    def receive(self, route: tuple[int, bytes], key: str | None, frames: list[bytes]) -> None:
        self.hub.receive(route, frames, key, now=self.at)
        self.pump()

    def say(self, route: tuple[int, bytes], key: str | None, header: m.Header, *frames: bytes) -> None:
        self.receive(route, key, encode(m.Message(header, frames)))

    def prepare(self, how: int) -> None:
        """Links that are up already, and lanes, by the bits of a number: scripts that begin here get further."""
        if how & 1:
            self.say(ROUTES[0][0], "EVIL", m.Hello(1, 2, "evil", INCARNATIONS[0], 1, wire_limits(LIMITS)))
        if how & 2:
            self.hub.connected(DIALLED, now=self.at)
            self.pump()
            self.say(DIALLED, None, m.Welcome(2, "w", bytes(16), 1, wire_limits(LIMITS)))
        if how & 4:
            self.say(ROUTES[1][0], "EVIL", m.Hello(1, 2, "evil", INCARNATIONS[0], 2, wire_limits(LIMITS), 1))

    def greet_good(self) -> None:
        self.say(GOOD, "GOOD", m.Hello(1, 2, "good", b"G" * 16, 1, wire_limits(LIMITS)))

    def pump(self) -> None:
        for attached, event in self.hub.events():
            if isinstance(event, Arrived) and len(event.frames) != 1 + len(event.specs):
                pass  # its arrays lie in shared memory, where whoever has the sockets looks
            elif isinstance(event, Arrived):
                request = Request(attached, event, self)  # type: ignore[arg-type]
                request.acknowledge()
                self.requests.append(request)
            elif isinstance(event, Settled):
                self.settled.append(event)
            elif isinstance(event, PartArrived):
                attached.link.caller.consume(self.asked[event.ref], event.arrival.pos + 1)
                self.hub.touch(attached, now=self.at)
            elif isinstance(event, Room):
                self.rooms.append((event.answerer, event.id))
        for route, frames in self.hub.frames_to_send(now=self.at):
            assert all(isinstance(frame, bytes | memoryview) for frame in frames)
            message = decode([bytes(frame) for frame in frames], edgebus.Limits())
            if route == GOOD:
                self.said_to_good.append(message)

    def advance(self, seconds: float) -> None:
        end_at = self.at + seconds
        for _ in range(500):
            at = self.hub.next_timer()
            if at > end_at:
                break
            self.at = max(self.at, at)
            self.hub.handle_timer(now=self.at)
            self.pump()
        else:
            raise AssertionError("500 timers in one step: the machines are chattering")
        self.at = end_at

    def work(self, source: Source) -> None:
        """The application does something with a request it has."""
        if not self.requests:
            return
        index = source.below(len(self.requests))
        request = self.requests[index]
        payload = bytes(source.below(4) * 3000)
        try:
            match source.below(6):
                case 0:
                    request.reply(payload)
                case 1:
                    request.refuse("no", "because", payload[:100])
                case 2 | 3 | 4 if request.is_stream:
                    request.try_push(payload)
                    return
                case _:
                    assert request.remaining_s() >= 0
                    return
        except (AlreadyAnswered, MessageTooLarge, StreamEnded):
            pass
        finally:
            self.pump()
        request.forget()
        del self.requests[index]

    def ask(self, source: Source) -> None:
        """The application asks something of a peer."""
        links = self.hub.links
        if self.num_started >= 60 or not links:
            return
        attached = links[source.below(len(links))]
        size = source.below(4) * 3000
        caller = attached.link.caller
        if caller.room_fault(size):
            return
        terms = m.Terms(m.STREAM, window_bytes=4096) if source.below(2) else None
        self.num_started += 1
        self.asked[self.num_started] = caller.start(
            "ask", (), (bytes(size),), deadline_at=self.at + 30, ref=self.num_started, now=self.at, terms=terms
        )
        if source.below(4) == 3:
            caller.cancel(source.below(20))
        self.hub.touch(attached, now=self.at)
        self.pump()

    # -- what must hold -----------------------------------------------------------------------------

    def check(self) -> None:
        links = self.hub.links
        assert len(links) <= LIMITS.max_peers
        for key in ("EVIL", "ALSO"):
            assert sum(attached.key == key for attached in links) <= LIMITS.max_links_per_key
        for attached in links:
            _check_link(attached)
        outcomes = self.hub.gone.outstanding + sum(each.link.caller.num_outstanding for each in links)
        assert len(self.settled) + outcomes >= self.num_started

    def check_good(self) -> None:
        """The honest peer's request is answered, and nothing else was said in its name."""
        self.said_to_good.clear()
        self.greet_good()
        self.say(GOOD, "GOOD", m.Request(1000, "good", 10_000, 1000), b"question")
        [asked] = [request for request in self.requests if request.peer.key == "GOOD" and request.service == "good"]
        assert asked.payload == b"question"
        asked.reply(b"answer")
        self.pump()
        assert m.Message(m.Reply(1000, (), b"answer"), (b"answer",)) in self.said_to_good


def _check_link(attached: Attached) -> None:
    link = attached.link
    answerer, caller, counts = link.answerer, link.caller, link.answerer.counts
    assert answerer.num_pending <= LIMITS.max_pending
    assert 0 <= answerer.pending_bytes <= LIMITS.max_pending_bytes
    assert len(answerer._answered) <= LIMITS.cache_count
    assert len(answerer._answered) <= 1 or answerer._cached_bytes <= LIMITS.cache_bytes
    assert answerer._cached_bytes == sum(answerer._answered.values())
    assert 0 <= caller.outstanding_bytes <= LIMITS.max_outstanding_bytes
    assert caller.started == sum(caller.outcomes.values()) + caller.num_outstanding
    assert link.receiver.held_bytes <= LIMITS.max_pending_bytes + LIMITS.bulk_bytes + LIMITS.max_frame_bytes
    assert 0 <= link.sender.in_flight_bytes <= link.sender.queued_bytes
    turned_away = counts.expired + counts.forgotten + counts.busy + counts.denied + counts.stale
    assert counts.received == counts.executed + counts.duplicates + counts.repeated + turned_away


def attack(data: bytes) -> None:
    """Play a script; see the module."""
    source, world = Source(data), HubWorld()
    complaints, log = _Complaints(), logging.getLogger("edgebus")
    level, propagate = log.level, log.propagate
    log.addHandler(complaints)
    log.setLevel(logging.ERROR)
    log.propagate = False
    try:
        world.greet_good()
        world.prepare(source.below(8))
        for _ in range(100):
            if not source:
                break
            _step(world, source)
            world.check()
        world.check_good()
        for request in world.requests:
            request.forget()
        world.requests.clear()
        world.hub.close(now=world.at)
        world.pump()
        world.check()
        assert len(world.settled) == world.num_started, "a request has no outcome, or two"
    finally:
        for request in world.requests:
            request.forget()
        log.removeHandler(complaints)
        log.setLevel(level)
        log.propagate = propagate


def _step(world: HubWorld, source: Source) -> None:
    route, key = ROUTES[source.below(len(ROUTES))]
    match source.below(12):
        case 0 | 1:
            world.receive(route, key, _mutated(source))
        case 2:
            world.receive(route, key, [source.blob() for _ in range(source.below(4))])
        case 3 | 4 | 5 | 6:
            header, frames = _message(source, world.offsets)
            world.say(route, key, header, *frames)
        case 7:
            low, high = source.below(3), source.below(4)
            limits = m.WireLimits(8192, source.below(2) * 16_000 + 1, 2 + source.below(7), source.below(2) * 8192)
            hello = m.Hello(low, high, "e", INCARNATIONS[source.below(4)], source.number(), limits, source.below(2))
            world.say(route, key, hello)
        case 8:
            world.advance((0.001, 0.5, 1.1, 5.0, 61.0)[source.below(5)])
        case 9:
            _transport(world, source, route)
        case 10:
            world.work(source)
        case _:
            world.ask(source)


def _transport(world: HubWorld, source: Source, route: tuple[int, bytes]) -> None:
    match source.below(4):
        case 0:
            world.hub.connected(DIALLED, now=world.at)
        case 1 if route != GOOD:
            world.hub.disconnected(route, now=world.at)
        case 2:
            world.hub.add_lane(world.dialled, (10, b""))
            world.hub.lane_connected(world.dialled, now=world.at)
        case _:
            greeting = world.dialled.link._greeting
            world.say(DIALLED, None, m.Welcome(1 + source.below(2), "w", bytes(16), greeting, wire_limits(LIMITS)))
    world.pump()


def _mutated(source: Source) -> list[bytes]:
    frames = list(_SAID[source.below(len(_SAID))])
    header = bytearray(frames[0])
    for _ in range(source.below(4)):
        header[source.below(min(256, len(header)))] = source.below(256)
    frames[0] = bytes(header)
    if source.below(8) == 7:
        frames.append(source.blob())
    return frames


def _message(source: Source, offsets: dict[int, int]) -> tuple[m.Header, tuple[bytes, ...]]:
    """A well-formed message about small numbers, so that it meets what others said before."""
    kind = source.below(16)
    if kind < 6:
        return _content(source, kind)
    request_id, pos = _few(source), source.number()
    if kind < 10:
        size = (0, 1, 3000, 6000)[source.below(4)]
        offset = offsets.get(request_id, 0) if source.below(4) else pos * 3000 % 2**48
        offsets[request_id] = offset + size
        return m.Chunk(request_id, offset), (bytes(size),)
    if kind < 12:
        return m.Credit(request_id, pos * 1500 % 2**48, source.below(2) == 1), ()
    if kind == 12:
        return m.Refusal(request_id, "expired" if pos % 2 else "odd", "detail"), (bytes(10),)
    others: list[m.Header] = [
        m.Cancel(request_id),
        m.More(request_id, pos),
        m.More(request_id, pos),
        m.Ping(),
        m.OpenBulk(),
        m.Reset(),
        m.Drop(request_id),
        m.Pong(min(pos, 86_400_000), min(request_id, 86_400_000)),
        m.Goodbye("closing", ""),
        m.Goodbye("version", ""),
        m.Leases(pos, (1,)),
        m.Welcome(2, "w", INCARNATIONS[pos % 4], request_id, wire_limits(LIMITS), pos % 2),
    ]
    return others[source.below(len(others))], ()


def _content(source: Source, kind: int) -> tuple[m.Header, tuple[bytes, ...]]:
    request_id, pos = _few(source), source.number()
    specs = tuple(m.ArraySpec("u1", (n * 2000,)) for n in range(source.below(4)))
    payload = bytes(source.below(3) * 3000)
    frames = (payload, *(bytes(spec.shape[0]) for spec in specs))
    transfer = None
    if source.below(2):
        transfer = m.Transfer(_few(source), tuple(map(len, frames)))
        frames = frames if source.below(2) else ()  # whole, or announced
    if kind < 3:
        terms = m.Terms(source.below(3), bytes(source.below(2)), source.below(3) - 1, pos, _few(source), pos % 2**48)
        ttl_ms = (5000, 86_400_000, 1, 0)[source.below(4)]
        settled_below = source.number() if source.below(8) == 7 else 0
        return m.Request(request_id, "s", ttl_ms, settled_below, specs, None, terms, transfer), frames
    if kind == 3:
        return m.Reply(request_id, specs, None, pos, transfer), frames
    return m.Part(request_id, _few(source), specs, None, transfer), frames


def _few(source: Source) -> int:
    """One of few numbers, so that two of them are often the same."""
    choice = source.below(8)
    return choice // 2 if choice < 7 else source.number()
