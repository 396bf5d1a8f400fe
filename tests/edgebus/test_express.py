"""The short way of small messages and the usual one are the same thing: same outcomes, same counters, same order."""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

import edgebus
from edgebus import express as express_module
from edgebus import messages as m
from edgebus.calls import Pending
from edgebus.express import Express
from edgebus.hub import Hub
from edgebus.link_states import Surroundings
from edgebus.outcomes import Arrived, Settled, Withdrawn
from edgebus.port import open_port
from edgebus.readiness import Opened
from edgebus.requests import refusal
from edgebus.runner import Runner
from edgebus.sockets import Sockets
from edgebus.stats import LinkStats, link_stats

LIMITS = edgebus.Limits(
    max_frame_bytes=8000, max_pending=6, max_pending_bytes=20_000, max_outstanding_bytes=20_000, cache_count=4
)


Port: Any = open_port


class StubRunner(Runner):
    """A runner as far as the short way knows one: without a thread, and with sockets that are stubs."""

    def __init__(self, ports, put=None):
        self.sockets = StubSockets(ports, put)
        self.stirred = False

    def soon(self, callback):
        callback()


class StubSockets(Sockets):
    """Sockets that are ports, each by its number."""

    def __init__(self, ports, put):
        self.by_id = {number: Opened(port, number, number, port) for number, port in ports.items()}
        self.touched = set()
        self.put = put

    def send(self, route, frames):
        return self.put(route, frames)


class Stub(Port):
    """A socket's port as far as the short way knows one."""

    def __init__(self, is_router):
        self.incoming, self.sent = deque(), []
        self.is_router, self.route, self.key, self.more, self.rest = is_router, b"", None, False, []

    def send(self, route, frame):
        self.sent.append([route, bytes(frame)] if route else [bytes(frame)])

    def take(self):
        if not self.incoming:
            return None
        frames = list(self.incoming.popleft())
        if self.is_router:
            self.route, self.key = frames.pop(0), "DEVICE"
        frame, *self.rest = frames
        self.more = bool(self.rest)
        return frame

    def take_rest(self, frames):
        frames.extend(self.rest)
        return sum(map(len, self.rest))

    def readable(self):
        return bool(self.incoming)


@pytest.fixture(autouse=True)
def stub_sockets(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(express_module, "_now", lambda: clock.now)
    return clock


class Side:
    """One node: its hub, and the short way if it has one."""

    def __init__(self, name, clock, route, *, short):
        numbers = itertools.count(1)
        around = Surroundings(name=name, limits=LIMITS)
        incarnation = name[:1].encode() * 15
        self.hub = Hub(around=around, new_incarnation=lambda: incarnation + next(numbers).to_bytes(1, "big"))
        self.clock, self.route = clock, route
        self.stub = Stub(is_router=bool(route[1]))
        runner = StubRunner({route[0]: self.stub})
        self.opened = runner.sockets.by_id[route[0]]
        self.express = Express(self.hub, self.deliver, self.on_frames, runner) if short else None
        self.taken, self.withdrawn = [], []

    def deliver(self, attached, arrived):
        self.taken.append(arrived)

    def on_frames(self, route, frames, key):
        self.hub.receive(route, frames, key, now=self.clock.now)

    def receive(self, frames):
        key = "DEVICE" if self.route[1] else None
        if self.express is None:
            self.hub.receive(self.route, frames, key, now=self.clock.now)
        else:
            self.stub.incoming.append([*([self.route[1]] if self.route[1] else []), *frames])
            self.express.take(self.opened, zmq.POLLIN)

    def turn(self):
        """What is to be sent, in order; events are handled."""
        if self.hub.next_timer() <= self.clock.now:
            self.hub.handle_timer(now=self.clock.now)
        out = [frames[1:] if self.route[1] else frames for frames in self.stub.sent]
        self.stub.sent.clear()
        while True:
            for _, event in self.hub.events():
                if isinstance(event, Arrived):
                    self.taken.append(event)
                elif isinstance(event, Settled):
                    event.ref.settle(event)
                elif isinstance(event, Withdrawn):
                    self.withdrawn.append(event.id)
            sending = self.hub.frames_to_send(now=self.clock.now)
            if not sending:
                return out
            out += [[bytes(frame) for frame in frames] for _, frames in sending]


class World:
    """A device and a server, each with or without the short way, and what an application does with them."""

    def __init__(self, clock, short_device, short_server):
        clock.now = 0.0
        self.clock = clock
        self.device = Side("device", clock, (1, b""), short=short_device)
        self.server = Side("server", clock, (2, b"route"), short=short_server)
        self.attached = self.device.hub.dial((1, b""), now=0.0)
        self.device.hub.connected((1, b""), now=0.0)
        self.wires = {True: deque(), False: deque()}
        self.pendings, self.order = [], []
        self.settle()

    def collect(self):
        self.wires[True] += self.device.turn()
        self.wires[False] += self.server.turn()

    def settle(self):
        self.collect()
        while any(self.wires.values()):
            for from_device in (True, False):
                self.step("carry" if from_device else "carry back", 0)

    def step(self, what, number):
        hub, link = self.device.hub, self.attached.link
        match what:
            case "ask":
                self.ask(bytes([number]) * [0, 1, 50, 4096, 4097, 7000][number % 6])
            case "special":
                self.ask(b"special", m.Terms(m.ONE_WAY if number % 2 else m.PLAIN, b"", number % 3, number))
            case "answer" | "refuse" if self.server.taken:
                self.answer(self.server.taken.pop(number % len(self.server.taken)), what, bytes([number]) * 10 * number)
            case "cancel" if self.pendings:
                pending = self.pendings[number % len(self.pendings)]
                if pending.request_id is not None:
                    link.caller.cancel(pending.request_id)
                    hub.touch(self.attached, now=self.clock.now)
            case "carry" | "carry back" if self.wires[what == "carry"]:
                target = self.server if what == "carry" else self.device
                target.receive(self.wires[what == "carry"].popleft())
            case "lose" if self.wires[bool(number % 2)]:
                self.wires[bool(number % 2)].popleft()
            case "wait":
                self.clock.now += number / 10
            case "break":
                self.wires[True].clear()
                self.wires[False].clear()
                hub.disconnected((1, b""), now=self.clock.now)
                hub.connected((1, b""), now=self.clock.now)
        self.collect()

    def ask(self, payload, terms=None):
        now, link = self.clock.now, self.attached.link
        pending = Pending("s", 3.0, now + 3.0, lambda pending: None)
        self.pendings.append(pending)
        express = self.device.express
        is_short = terms is None and express is not None and len(payload) <= m.INLINE_BYTES
        if is_short and express.request(self.attached, "s", payload, pending, now):
            return
        if link.caller.room_fault(len(payload)):
            pending.settle(Settled(pending, edgebus.outcomes.Outcome.REFUSED, "queue_full"))
            return
        pending.request_id = link.caller.start(
            "s", (), (payload,), deadline_at=now + 3.0, ref=pending, now=now, terms=terms
        )
        self.device.hub.touch(self.attached, now=now)

    def answer(self, arrived, what, payload):
        self.order.append((arrived.id, arrived.frames[0][:1], what))
        [attached] = self.server.hub.links
        express = self.server.express
        is_short = what == "answer" and express is not None and len(payload) <= m.INLINE_BYTES
        if is_short and express.answer(attached, arrived.answerer, arrived.id, payload):
            return
        message = m.Message(m.Reply(arrived.id), (payload,))
        arrived.answerer.answer(arrived.id, refusal(arrived.id, "no", "") if what == "refuse" else message)
        self.server.hub.touch(attached, now=self.clock.now)

    def result(self):
        """All that an application or an operator can see."""
        outcomes = []
        for pending in self.pendings:
            try:
                outcomes.append(pending.result().payload if pending.done() else "waits")
            except edgebus.EdgebusError as error:
                outcomes.append((pending.outcome, str(error)))
        [attached] = self.server.hub.links
        stats = [visible(link_stats(self.attached)), visible(link_stats(attached))]
        return outcomes, stats, self.order, [arrived.id for arrived in self.server.taken], self.server.withdrawn


def visible(stats):
    return {
        item.name: getattr(stats, item.name) for item in fields(LinkStats) if not item.name.endswith("round_trip_s")
    }


WHAT = (
    *["ask"] * 3, "special", *["answer"] * 2, "refuse", "cancel",
    *["carry"] * 3, *["carry back"] * 2, "lose", "wait", "break",
)  # fmt: skip
steps = st.lists(st.tuples(st.sampled_from(WHAT), st.integers(0, 40)), max_size=80)


def run(clock, script, short_device, short_server):
    world = World(clock, short_device, short_server)
    for what, number in script:
        world.step(what, number)
    for _ in range(60):
        world.step("wait", 2)
        world.settle()
    return world.result()


@settings(deadline=None, max_examples=120)
@given(steps)
def test_any_script_ends_the_same_with_the_short_way_at_either_end_or_both(script):
    clock = SimpleNamespace(now=0.0)
    express_module._now = lambda: clock.now  # put back by the fixture
    usual = run(clock, script, False, False)
    for short_device, short_server in ((True, True), (True, False), (False, True)):
        assert run(clock, script, short_device, short_server) == usual


def test_the_short_way_is_taken(stub_sockets, monkeypatch):
    """Else the test above compares the usual way with itself."""
    world = World(stub_sockets, True, True)
    usual = []
    monkeypatch.setattr(Hub, "receive", lambda *args, **options: usual.append(args))
    world.step("ask", 1)
    world.step("carry", 0)
    world.step("answer", 3)
    world.step("carry back", 0)
    assert usual == []
    assert world.pendings[0].result().payload == bytes([3]) * 30


@pytest.mark.parametrize("why", ["tapped", "version 1", "link down", "over the limit of the peer", "queue full"])
def test_what_is_special_goes_the_usual_way(stub_sockets, why):
    world = World(stub_sockets, True, True)
    link, payload = world.attached.link, b"x"
    match why:
        case "tapped":
            world.device.hub.taps.append(lambda event: None)
        case "version 1":
            link.version = 1
        case "link down":
            world.device.hub.disconnected((1, b""), now=0.0)
        case "over the limit of the peer":
            payload = bytes(9000)
        case "queue full":
            link.caller.outstanding_bytes = LIMITS.max_outstanding_bytes
    pending = Pending("s", 3.0, 3.0, lambda pending: None)
    assert not world.device.express.request(world.attached, "s", payload, pending, 0.0)
    assert link.caller.started == 0
    assert pending.request_id is None


def test_message_of_another_key_is_not_taken(stub_sockets):
    world = World(stub_sockets, True, True)
    [attached] = world.server.hub.links
    attached.key = "SOMEBODY ELSE"
    world.step("ask", 1)
    world.step("carry", 0)
    assert world.server.taken == []


def test_short_request_does_not_overtake_one_that_was_before_it(stub_sockets):
    world = World(stub_sockets, True, True)
    world.step("special", 0)
    world.step("ask", 1)
    special, short = world.wires[True]
    world.server.stub.incoming += [[b"route", *special], [b"route", *short]]
    world.server.opened.crowd = 8
    world.server.express.take(world.server.opened, zmq.POLLIN)
    world.server.turn()
    assert [arrived.frames[0] for arrived in world.server.taken] == [b"special", b"\x01"]


@pytest.mark.parametrize(("way", "times"), [("small", 1), ("arrays", 1), ("usual", 2)])
def test_message_that_a_signal_handler_interrupts_is_counted_once(stub_sockets, way, times):
    """It is taken again, and once more if it is interrupted again."""

    class Interrupt(BaseException):
        pass

    interrupts = []

    def interrupt(*_):
        if len(interrupts) < times:
            interrupts.append(way)
            raise Interrupt

    world = World(stub_sockets, True, True)
    server, [attached] = world.server, world.server.hub.links
    server.express._deliver = interrupt
    if way == "usual":
        server.hub.taps.append(interrupt)
    specs, arrays = ((m.ArraySpec("u1", (3000,)),), (bytes(3000),)) if way == "arrays" else ((), ())
    world.attached.link.caller.start("s", specs, (b"p", *arrays), deadline_at=9.0, ref=None, now=0.0)
    world.device.hub.touch(world.attached, now=0.0)
    world.collect()
    with pytest.raises(Interrupt):
        server.receive(world.wires[True].popleft())
    for _ in range(times - 1):
        with pytest.raises(Interrupt):
            server.express.take(server.opened, 0)
    server.express.take(server.opened, 0)
    assert len(interrupts) == times
    near, there = link_stats(world.attached), link_stats(attached)
    for what in ("messages", "bytes", "content_bytes"):
        assert getattr(near, f"{what}_sent") == getattr(there, f"{what}_received")
