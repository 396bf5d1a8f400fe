"""The short way of large contents and the usual one are the same thing: wholes, pieces and credit, with any fault."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgebus
from edgebus import express as express_module
from edgebus import hub as hub_module
from edgebus import messages as m
from edgebus.calls import Pending
from edgebus.express import Express
from edgebus.hub import Hub
from edgebus.outcomes import Outcome, Settled
from edgebus.sockets import Sent
from edgebus.stats import LinkStats, link_stats
from tests.edgebus.duo import BULK, CONTROL, DIALLED, LISTENING, Duo
from tests.edgebus.test_express import Port, StubRunner

KIB = 1 << 10
LIMITS = edgebus.Limits(
    max_frame_bytes=64 * KIB,
    max_pending_bytes=256 * KIB,
    max_outstanding_bytes=256 * KIB,
    max_pending=6,
    bulk_bytes=64 * KIB,
    bulk_from_bytes=4 * KIB,
    cache_count=4,
)


class Way(Port):
    """A socket's way out for small messages, onto the wires of a Duo."""

    def __init__(self, duo, socket_id):
        self.duo, self.socket_id = duo, socket_id

    def send(self, route, frame):
        self.duo.put((self.socket_id, route), [frame])


class ShortDuo(Duo):
    """A Duo whose ends have the short way, each or not; requests are Pending."""

    def __init__(self, clock, *, device, server):
        self.clock, self.wanted = clock, {"device": device, "server": server}
        self.express = {}
        self.pendings, self.taken = [], []
        clock.now = 0.0
        super().__init__(LIMITS)
        self.prove()

    @property
    def now(self):
        return self.clock.now

    @now.setter
    def now(self, value):
        self.clock.now = value

    def put(self, route, frames):
        lane = int(route in (self._near(BULK), self._far_route(BULK)))
        self._wires[route[0] != LISTENING, lane].append([bytes(frame) for frame in frames])
        return Sent.OK

    def ask_large(self, sizes, terms=None):
        now, caller = self.now, self.link.caller
        frames = (b"p" * sizes[0], *[bytes([number]) * size for number, size in enumerate(sizes[1:])])
        specs = tuple(m.ArraySpec("u1", (len(frame),)) for frame in frames[1:])
        pending = Pending("s", 30.0, now + 30.0, lambda pending: None)
        self.pendings.append(pending)
        express = self.express.get("device")
        if express is not None and terms is None:
            if specs and express.request_whole(self.attached, "s", specs, frames, pending, now):
                return
            is_small = not specs and len(frames[0]) <= m.INLINE_BYTES
            if is_small and express.request(self.attached, "s", frames[0], pending, now):
                return
        if caller.room_fault(sum(sizes)):
            pending.settle(Settled(pending, Outcome.REFUSED, "queue_full"))
            return
        self.attached.traffic.copied_bytes_sent += sum(map(len, frames[1:]))  # as the engine does
        pending.request_id = caller.start("s", specs, frames, deadline_at=now + 30.0, ref=pending, now=now, terms=terms)
        self.device.touch(self.attached, now=now)

    def answer_oldest(self, size):
        if self.arrived:
            arrived = self.arrived.pop(0)
            self.taken.append((arrived.id, arrived.specs, tuple(map(bytes, arrived.frames))))
            [attached] = self.server.links
            express = self.express.get("server")
            if size or express is None or not express.answer(attached, arrived.answerer, arrived.id, b"yes"):
                self.answer(arrived, b"yes", *([bytes(size)] if size else []))

    def result(self):
        outcomes = [(each.outcome, each._settled.code if each.outcome != "answered" else "") for each in self.pendings]
        [far] = self.server.links
        stats = [
            {
                item.name: getattr(link_stats(each), item.name)
                for item in fields(LinkStats)
                if not item.name.endswith("round_trip_s")
            }
            for each in (self.attached, far)
        ]
        ends = [
            (
                link.sender.queued_bytes,
                link.sender.unsent_bytes,
                link.sender.in_flight_bytes,
                link.sender.credited_bytes,
            )
            for link in (self.link, far.link)
        ]
        return outcomes, self.taken, stats, ends, (self.link.pace.rate, self.link.pace.proven_bytes)

    def check(self):
        """What a sender counts is what is in its queue."""
        for link in (self.link, self.far):
            queue = link.sender._queue.values()
            assert link.sender.queued_bytes == sum(each.total for each in queue)
            assert link.sender.unsent_bytes == sum(each.total - each.sent for each in queue)
            assert link.sender.in_flight_bytes == sum(each.sent - each.credited for each in queue)

    def _hub(self, name):
        hub = super()._hub(name)
        if self.wanted[name]:
            ways = {number: Way(self, number) for number in (DIALLED, DIALLED + BULK, LISTENING)}
            runner = StubRunner(ways, self.put)
            self.express[name] = Express(hub, lambda _, arrived: self.arrived.append(arrived), hub.receive, runner)
        return hub

    def _handle(self, event):
        if isinstance(event, Settled):
            event.ref.settle(event)
        else:
            super()._handle(event)

    def _deliver(self, from_device, lane, frames):
        header = m.decode_header(frames[0])
        if self.loses(from_device, lane, header):
            return
        self.carried.append((from_device, lane, header, sum(map(len, frames[1:]))))
        hub, name = (self.server, "server") if from_device else (self.device, "device")
        route, key = (self._far_route(lane), self._key) if from_device else (self._near(lane), None)
        express = self.express.get(name)
        if express is not None and (
            express.receive_large(route, frames, key)
            if len(frames) > 1
            else (express.receive_small(route, frames[0], key))
        ):
            return
        hub.receive(route, frames, key, now=self.now)


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(express_module, "_now", lambda: clock.now)
    return clock


STEPS = st.one_of(
    st.tuples(
        st.just("ask"), st.sampled_from([(9,), (1, 9), (1, 5000), (0, 30_000), (1, 5000, 20_000), (1, 63_000), (5000,)])
    ),
    st.tuples(st.just("ask"), st.sampled_from([(1, 5000), (1, 30_000), (5000, 9), (4097, 20_000), (1, *[300] * 20)])),
    st.tuples(st.just("special"), st.sampled_from([m.Terms(m.ONE_WAY), m.Terms(m.PLAIN, b"", 1, 1)])),
    st.tuples(st.just("answer"), st.sampled_from([0, 0, 100, 40_000])),
    st.tuples(st.just("carry"), st.integers(1, 6)),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
    st.tuples(st.just("lose"), st.integers(1, 3)),
    st.tuples(st.just("time"), st.sampled_from([0.001, 0.006, 0.3, 1.5])),
    st.tuples(st.just("cut"), st.sampled_from([(CONTROL, BULK), (BULK,)])),
)


def play(clock, script, *, device, server):
    duo = ShortDuo(clock, device=device, server=server)
    lost = [0]

    def loses(from_device, lane, header):
        lost[0] -= lost[0] > 0
        return lost[0] > 0

    duo.loses = loses
    for what, how in script:
        match what:
            case "ask":
                duo.ask_large(how)
            case "special":
                duo.ask_large((1, 5000), how)
            case "answer":
                duo.answer_oldest(how)
            case "carry":
                duo.run(how)
            case "cancel" if how < len(duo.pendings) and duo.pendings[how].request_id is not None:
                duo.cancel(duo.pendings[how].request_id)
            case "lose":
                lost[0] = how + 1
            case "time":
                duo.advance(how)
            case "cut":
                duo.cut(lanes=how)
                duo.reconnect(lanes=how)
        duo._collect()
        duo.check()
    for _ in range(40):
        duo.answer_oldest(0)
        duo.advance(1.0)
    duo.check()
    return duo.result()


@settings(deadline=None, max_examples=200)
@given(st.lists(STEPS, max_size=30))
def test_any_script_ends_the_same_with_the_short_way_at_either_end_or_both(script):
    clock, before = SimpleNamespace(now=0.0), express_module._now
    express_module._now = lambda: clock.now
    try:
        usual = play(clock, script, device=False, server=False)
        assert None not in [outcome for outcome, _ in usual[0]], "every request has an outcome"
        for device, server in ((True, True), (True, False), (False, True)):
            assert play(clock, script, device=device, server=server) == usual
    finally:
        express_module._now = before


def open_lane(clock):
    duo = ShortDuo(clock, device=True, server=True)
    duo.ask_large((1, 5000))
    duo.run()
    duo.answer_oldest(0)
    duo.run()
    assert duo.link.bulk_up
    return duo


def test_the_short_way_is_taken_by_wholes_pieces_and_credit(clock, monkeypatch):
    """Else the test above compares the usual way with itself."""
    duo = open_lane(clock)
    usual, receive = [], Hub.receive
    monkeypatch.setattr(
        Hub, "receive", lambda hub, route, frames, key, *, now: usual.append(m.decode_header(frames[0]))
    )
    duo.ask_large((1, 30_000))
    duo.run()
    duo.answer_oldest(0)
    duo.run()
    assert usual == []
    assert duo.pendings[-1].result().payload == b"yes"
    duo.link.pace.small(now=clock.now)  # polite: in pieces
    duo.carried.clear()
    kinds = []
    monkeypatch.setattr(
        Hub, "receive", lambda hub, route, frames, key, *, now: (
            kinds.append(type(m.decode_header(frames[0]))), receive(hub, route, frames, key, now=now)
        )
    )  # fmt: skip
    duo.ask_large((1, 60_000))
    duo.run()
    assert duo.count(m.Chunk) >= 2
    assert m.Chunk not in kinds
    assert duo.arrived


@pytest.mark.parametrize("sizes", [(4096, 9000), (4097, 9000), (30_000, 9), (1, *[600] * 20)])
def test_payload_in_a_frame_of_its_own_goes_at_once_with_its_arrays(clock, monkeypatch, sizes):
    duo = open_lane(clock)
    usual = []
    monkeypatch.setattr(Hub, "receive", lambda hub, route, frames, *_, **options: usual.append(frames))
    frames, specs = tuple(map(bytes, sizes)), tuple(m.ArraySpec("u1", (size,)) for size in sizes[1:])
    pending = Pending("s", 30.0, 30.0, lambda pending: None)
    assert duo.express["device"].request_whole(duo.attached, "s", specs, frames, pending, clock.now)
    before = link_stats(duo.attached).bytes_sent
    duo.run()
    assert usual == []
    assert tuple(map(bytes, duo.arrived[-1].frames)) == frames
    assert link_stats(duo.server.links[0]).bytes_received == before


def test_small_answer_by_the_short_way_leaves_no_credit_to_come_back_for(clock):
    duo = open_lane(clock)
    duo.ask_large((1, 12_000))
    duo.run()
    assert clock.now < duo.far.receiver.credit_at < float("inf")
    duo.answer_oldest(0)
    assert duo.far.receiver.credit_at == float("inf")


@pytest.mark.parametrize(
    "why", ["tapped", "no lane", "something before it", "queue full", "no room in the window", "small"]
)
def test_what_cannot_go_at_once_goes_the_usual_way(clock, why):
    duo = open_lane(clock)
    sizes = (1, 30_000)
    match why:
        case "tapped":
            duo.device.taps.append(lambda event: None)
        case "no lane":
            duo.cut(lanes=(BULK,))
        case "something before it":
            duo.ask_large((1, 63_000))
        case "queue full":
            duo.link.caller.outstanding_bytes = LIMITS.max_outstanding_bytes
        case "no room in the window":
            duo.ask_large((1, 40_000))
        case "small":
            sizes = (1, 4000)
    started = duo.link.caller.started
    pending = Pending("s", 30.0, 30.0, lambda pending: None)
    specs = (m.ArraySpec("u1", (sizes[1],)),)
    assert not duo.express["device"].request_whole(
        duo.attached, "s", specs, (b"p", bytes(sizes[1])), pending, clock.now
    )
    assert duo.link.caller.started == started
    assert pending.request_id is None


def test_large_request_of_another_key_is_not_taken(clock):
    duo = open_lane(clock)
    duo.ask_large((1, 30_000))
    frames = duo._wires[True, BULK].popleft()
    server, route = duo.express["server"], duo._far_route(BULK)
    assert not server.receive_large(route, frames, "SOMEBODY ELSE")
    assert not server.receive_large(route, [b"rubbish", *frames[1:]], "DEVICE")
    assert duo.arrived == []
    assert server.receive_large(route, frames, "DEVICE")
    assert len(duo.arrived) == 1


@pytest.mark.parametrize("sizes", [(9,), (1, 5000)])
def test_request_that_there_is_no_room_for_is_judged_once(clock, sizes):
    """Its sender pays for it by the judge's count of requests and bytes."""
    duo, judged = open_lane(clock), []
    duo.server.judge = lambda key, service, size, now: judged.append(size)
    for _ in range(LIMITS.max_pending + 1):
        duo.ask_large(sizes)
        duo.run()
        duo.advance(0.01)
    assert judged == [sum(sizes)] * (LIMITS.max_pending + 1)
    assert duo.pendings[-1]._settled.code == "busy"
    [far] = duo.server.links
    near, there = link_stats(duo.attached), link_stats(far)
    for what in ("messages", "bytes", "content_bytes"):
        assert getattr(near, f"{what}_sent") == getattr(there, f"{what}_received"), "the greeting of the lane, too"
        assert getattr(there, f"{what}_sent") == getattr(near, f"{what}_received")


def test_small_arrays_and_answers_with_arrays_are_decoded_once(clock, monkeypatch):
    duo, decoded = open_lane(clock), []
    for module in (express_module, hub_module):
        decode = module.decode
        monkeypatch.setattr(module, "decode", lambda frames, limits, decode=decode: (
            decoded.append(len(frames)), decode(frames, limits))[1])  # fmt: skip
    duo.ask_large((1, 9))
    duo.run()
    assert decoded == [2]
    duo.answer_oldest(9)
    duo.run()
    assert decoded == [2, 2]
    assert [len(frame) for frame in duo.pendings[-1]._settled.frames] == [3, 9]
