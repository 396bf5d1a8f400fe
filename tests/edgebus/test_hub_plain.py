"""Plain requests that a hub hands on at once: the same as the usual way, for whatever comes in whatever order."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

import edgebus
from edgebus import messages as m
from edgebus.hub import Hub
from edgebus.link_states import ShareDone, Surroundings, wire_limits
from edgebus.outcomes import Arrived, Settled
from edgebus.wire import decode, encode

KIB = 1 << 10
LIMITS = edgebus.Limits(
    max_frame_bytes=64 * KIB,
    max_pending_bytes=128 * KIB,
    max_pending=6,
    bulk_bytes=64 * KIB,
    bulk_from_bytes=4 * KIB,
    cache_count=3,
)


class Taker:
    """Takes what needs no event, for a listener or a dialler."""

    def __init__(self, owner):
        self.owner = owner

    def arrived(self, attached, arrived):
        assert attached is self.owner.attached
        assert arrived.answerer.claim(arrived.id)  # else the usual way brings it once more
        self.owner.short += 1
        self.owner.arrived.append(arrived)

    def settled(self, attached, settled):
        assert attached is self.owner.attached
        self.owner.short += 1
        self.owner.outcomes.append(settled)
        caller = attached.link.caller
        self.owner.leases_done += caller.leases_done
        caller.leases_done, caller.leases_unsent = [], []


class Listener:
    """A hub with one greeted peer; `at_once` has plain requests handed on without an event."""

    def __init__(self, *, at_once):
        numbers = itertools.count()
        around = Surroundings(name="s", limits=LIMITS)
        self.hub = Hub(around=around, new_incarnation=lambda: next(numbers).to_bytes(16, "big"))
        self.arrived, self.said = [], []
        self.short = 0
        if at_once:
            self.hub.taker = Taker(self)
        self.take(m.Hello(1, 2, "peer", b"P" * 16, 1, wire_limits(LIMITS)), ())
        [self.attached] = self.hub.links
        self.said.clear()

    def take(self, header, frames, now=0.0):
        self.hub.receive((1, b"r"), encode(m.Message(header, frames)), "KEY", now=now)
        self.collect(now)

    def answer(self, which, payload, now):
        if self.arrived:
            arrived = self.arrived[which % len(self.arrived)]
            arrived.answerer.answer(arrived.id, m.Message(m.Reply(arrived.id), (payload,)))
            self.hub.touch(self.attached, now=now)
            self.collect(now)

    def pass_time(self, now):
        self.hub.handle_timer(now=now)
        self.collect(now)

    def collect(self, now):
        self.arrived += [event for _, event in self.hub.events() if isinstance(event, Arrived)]
        self.said += [decode(frames, LIMITS) for _, frames in self.hub.frames_to_send(now=now)]

    def seen(self):
        link = self.attached.link
        arrived = [(each.id, each.service, tuple(map(bytes, each.frames)), each.expires_at) for each in self.arrived]
        rest = (link.receiver.held_bytes, link.answerer.pending_bytes, link.answerer.num_pending, link.heard_at)
        return arrived, self.said, vars_of(link.answerer.counts), rest


def vars_of(counts):
    names = ("received", "executed", "duplicates", "expired", "forgotten", "busy", "answered", "stale", "denied")
    return {name: getattr(counts, name) for name in names}


steps = st.one_of(
    st.tuples(
        st.just("request"),
        st.integers(0, 12),
        st.sampled_from([0, 100, 5000, 40_000]),
        st.sampled_from(["plain", "whole", "announced"]),
        st.sampled_from([60_000, 60_000, 60_000, 0]),
        st.sampled_from([None, None, m.Terms(), m.Terms(stream=1, pos=3)]),
        st.integers(0, 3),
    ),
    st.tuples(st.just("chunk"), st.integers(0, 12), st.integers(0, 1)),
    st.tuples(st.just("answer"), st.integers(0, 12), st.sampled_from([b"", bytes(5000)])),
    st.tuples(st.just("time"), st.sampled_from([0.001, 0.006, 0.5])),
)


def play(listener, script):
    now = 0.0
    for what, *step in script:
        if what == "request":
            number, size, how, ttl_ms, terms, settled_below = step
            frames = (bytes([number]), bytes(size))
            header = m.Request(number, "s", ttl_ms, settled_below, (m.ArraySpec("u1", (size,)),), None, terms)
            if how != "plain":
                header.transfer = m.Transfer(number, (1, size))
            listener.take(header, () if how == "announced" else frames, now)
        elif what == "chunk":
            listener.take(m.Chunk(step[0], step[1]), (bytes(1),), now)
        elif what == "answer":
            listener.answer(*step, now)
        else:
            now += step[0]
            listener.pass_time(now)
    for _ in range(3):
        now += 0.01
        listener.pass_time(now)


@settings(deadline=None, max_examples=300)
@given(st.lists(steps, max_size=25))
def test_handed_on_at_once_or_the_usual_way_is_the_same(script):
    usual, at_once = Listener(at_once=False), Listener(at_once=True)
    play(usual, script)
    play(at_once, script)
    assert usual.seen() == at_once.seen()


def test_plain_request_is_handed_on_and_what_is_special_is_not():
    listener = Listener(at_once=True)
    frames, specs = (b"p", bytes(40_000)), (m.ArraySpec("u1", (40_000,)),)
    listener.take(m.Request(0, "s", 1000, 0, specs), frames)
    listener.take(m.Request(1, "s", 1000, 0, specs, transfer=m.Transfer(0, (1, 40_000))), frames)
    assert listener.short == 2
    listener.take(m.Request(1, "s", 1000, 0, specs), frames)  # a duplicate
    listener.take(m.Request(2, "s", 1000, 0, specs, None, m.Terms(m.ONE_WAY)), frames)
    listener.take(m.Request(3, "s", 1000, 0, specs, transfer=m.Transfer(1, (1, 40_000))), ())
    listener.take(m.Request(4, "s", 1000, 0, (), None), (b"",))  # while a content is under way
    assert listener.short == 2
    assert [arrived.id for arrived in listener.arrived] == [0, 1, 2, 4]


# -- answers -------------------------------------------------------------------------------------------


BLOCK = m.Block(0, 1, 1, 1 << 20, bytes(16), 4096, 5000)


class Dialler:
    """A hub that dialled a peer and greeted it; both lanes are there."""

    def __init__(self, *, at_once):
        numbers = itertools.count()
        around = Surroundings(name="d", limits=LIMITS)
        self.hub = Hub(around=around, new_incarnation=lambda: next(numbers).to_bytes(16, "big"))
        self.outcomes, self.said, self.leases_done = [], [], []
        self.short = self.asked = 0
        if at_once:
            self.hub.taker = Taker(self)
        self.attached = self.hub.dial((1, b""), now=0.0)
        self.hub.connected((1, b""), now=0.0)
        self.collect(0.0)
        for lane in (0, 1):
            self.take(m.Welcome(2, "peer", b"P" * 16, 1, wire_limits(LIMITS), lane), (), 0.0)
        self.hub.add_lane(self.attached, (2, b""))
        self.said.clear()

    def take(self, header, frames, now):
        self.hub.receive((1, b""), encode(m.Message(header, frames)), None, now=now)
        self.collect(now)

    def ask(self, size, terms, blocks, now):
        frames, specs = (b"p", bytes(size)), (m.ArraySpec("u1", (size,)),)
        if blocks:
            frames, specs = (b"p",), (m.ArraySpec("u1", (5000,)),)
        caller = self.attached.link.caller
        if caller.room_fault(size) is None:
            caller.start("s", specs, frames, deadline_at=now + 5.0, ref=self.asked, now=now, terms=terms, blocks=blocks)
            self.asked += 1
        self.hub.touch(self.attached, now=now)
        self.collect(now)

    def pass_time(self, now):
        self.hub.handle_timer(now=now)
        self.collect(now)

    def collect(self, now):
        for _, event in self.hub.events():
            if isinstance(event, Settled):
                self.outcomes.append(event)
            elif isinstance(event, ShareDone):
                self.leases_done += event.leases
        self.said += [(route, decode(frames, LIMITS)) for route, frames in self.hub.frames_to_send(now=now)]

    def seen(self):
        link = self.attached.link
        outcomes = [(each.ref, each.outcome, each.code, tuple(map(bytes, each.frames))) for each in self.outcomes]
        caller, sender = link.caller, link.sender
        rest = (caller.outstanding_bytes, caller.late_answers, dict(caller.outcomes), caller.retries, link.heard_at)
        bulk = (sender.queued_bytes, sender.in_flight_bytes, sender.credited_bytes, link.receiver.held_bytes)
        return outcomes, self.said, sorted(self.leases_done), rest, bulk, link.pace.rate


answering = st.one_of(
    st.tuples(
        st.just("ask"),
        st.sampled_from([0, 5000, 40_000]),
        st.sampled_from([None, None, None, m.Terms(m.STREAM, window_bytes=10_000)]),
        st.sampled_from([None, None, (BLOCK,)]),
    ),
    st.tuples(
        st.just("reply"),
        st.integers(0, 6),
        st.sampled_from([0, 100, 5000]),
        st.sampled_from(["plain", "plain", "whole", "announced"]),
    ),
    st.tuples(st.just("refuse"), st.integers(0, 6)),
    st.tuples(st.just("credit"), st.integers(0, 6), st.sampled_from([0, 5001, 40_001]), st.booleans()),
    st.tuples(st.just("time"), st.sampled_from([0.001, 0.006, 0.5, 3.0])),
)


def play_answers(dialler, script):
    now = 0.0
    for what, *step in script:
        if what == "ask":
            dialler.ask(*step, now)
        elif what == "reply":
            number, size, how = step
            header = m.Reply(number, (m.ArraySpec("u1", (size,)),))
            if how != "plain":
                header.transfer = m.Transfer(number, (1, size))
            dialler.take(header, () if how == "announced" else (b"a", bytes(size)), now)
        elif what == "refuse":
            dialler.take(m.Refusal(step[0], "no", ""), (b"",), now)
        elif what == "credit":
            dialler.take(m.Credit(*step), (), now)
        else:
            now += step[0]
            dialler.pass_time(now)
    for _ in range(3):
        now += 3.0
        dialler.pass_time(now)


@settings(deadline=None, max_examples=300)
@given(st.lists(answering, max_size=25))
def test_answers_at_once_or_the_usual_way_are_the_same(script):
    usual, at_once = Dialler(at_once=False), Dialler(at_once=True)
    play_answers(usual, script)
    play_answers(at_once, script)
    assert usual.seen() == at_once.seen()


def test_answer_to_a_large_request_settles_it_at_once_and_to_a_stream_it_does_not():
    dialler = Dialler(at_once=True)
    dialler.ask(40_000, None, None, 0.0)
    dialler.ask(0, m.Terms(m.STREAM, window_bytes=10_000), None, 0.0)
    dialler.take(m.Reply(0), (b"a",), 0.0)
    dialler.take(m.Reply(1), (b"a",), 0.0)
    assert dialler.short == 1
    assert [(settled.ref, settled.outcome) for settled in dialler.outcomes] == [(0, "answered"), (1, "answered")]
    assert dialler.attached.link.sender.queued_bytes == 0
