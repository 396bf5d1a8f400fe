"""Plain requests that a hub hands on at once: the same as the usual way, for whatever comes in whatever order."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

import edgebus
from edgebus import messages as m
from edgebus.hub import Hub
from edgebus.link_states import Surroundings, wire_limits
from edgebus.outcomes import Arrived
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


class Listener:
    """A hub with one greeted peer; `at_once` has plain requests handed on without an event."""

    def __init__(self, *, at_once):
        numbers = itertools.count()
        around = Surroundings(name="s", limits=LIMITS)
        self.hub = Hub(around=around, new_incarnation=lambda: next(numbers).to_bytes(16, "big"))
        self.arrived, self.said = [], []
        self.short = 0
        if at_once:
            self.hub.deliver = self.deliver
        self.take(m.Hello(1, 2, "peer", b"P" * 16, 1, wire_limits(LIMITS)), ())
        [self.attached] = self.hub.links
        self.said.clear()

    def deliver(self, attached, arrived):
        assert attached is self.attached
        self.short += 1
        self.arrived.append(arrived)

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
