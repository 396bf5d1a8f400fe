"""Large contents from and to peers that do not keep to the rules: bounded memory, bounded work."""

from __future__ import annotations

import itertools

import pytest

import edgebus
from edgebus import messages as m
from edgebus.hub import Hub
from edgebus.link_states import Surroundings, wire_limits
from edgebus.outcomes import Arrived
from edgebus.wire import decode, encode

LIMITS = edgebus.Limits(
    max_frame_bytes=1 << 20, max_pending_bytes=4 << 20, max_outstanding_bytes=4 << 20, bulk_bytes=1 << 20
)
MIB = bytes(1 << 20)


class Bench:
    """A listening hub with one greeted peer."""

    def __init__(self):
        numbers = itertools.count()
        self.hub = Hub(
            around=Surroundings(name="s", limits=LIMITS), new_incarnation=lambda: next(numbers).to_bytes(16, "big")
        )
        self.greet(wire_limits(LIMITS))
        [self.attached] = self.hub.links
        self.link = self.attached.link

    def take(self, header, *frames, now=0.0):
        self.hub.receive((1, b"r"), encode(m.Message(header, frames)), "KEY", now=now)
        return [frames for _, frames in self.hub.frames_to_send(now=now)]

    def greet(self, limits, greeting=1):
        self.take(m.Hello(1, 2, "peer", b"P" * 16, greeting, limits))

    def announce(self, number, num_frames):
        sizes, specs = (0, *[1 << 20] * num_frames), (m.ArraySpec("u1", (1 << 20,)),) * num_frames
        return self.take(m.Request(number, "s", 60_000, 0, specs, transfer=m.Transfer(number, sizes)))

    def answer_large(self, num_bytes):
        """Our application answers a request with something that goes as chunks."""
        self.take(m.Request(0, "s", 60_000, 0), b"")
        [arrived] = [event for _, event in self.hub.events() if isinstance(event, Arrived)]
        reply = m.Message(m.Reply(0, (m.ArraySpec("u1", (num_bytes,)),)), (b"", bytes(num_bytes)))
        arrived.answerer.answer(0, reply)
        self.hub.touch(self.attached, now=0.0)
        return [frames for _, frames in self.hub.frames_to_send(now=0.0)]


@pytest.mark.timeout(20, func_only=True)
def test_peer_that_opens_no_lane_and_gives_no_credit_does_not_stop_the_node():
    bench = Bench()
    bench.answer_large(1 << 20)
    bench.hub.handle_timer(now=1.5)
    assert bench.hub.next_timer() > 1.5
    assert bench.hub.frames_to_send(now=1.5), "it goes by the control lane instead"


def test_many_transfers_at_once_hold_no_more_than_one_window_beside_what_is_admitted():
    bench = Bench()
    for number in range(40):
        bench.announce(number, 3)
        bench.take(m.Chunk(number, 0), MIB)
    assert bench.link.receiver.held_bytes <= LIMITS.max_pending_bytes + 2 * LIMITS.bulk_bytes


def test_transfer_that_is_over_all_bounds_is_refused_before_its_content_comes():
    bench = Bench()
    said = bench.announce(0, 40)
    for number in range(39):
        bench.take(m.Chunk(0, number << 20), MIB)
    assert decode(said[0], LIMITS).header.code == "too_large"
    assert bench.link.receiver.held_bytes <= LIMITS.max_pending_bytes + 2 * LIMITS.bulk_bytes


def test_peer_that_takes_its_limits_back_is_not_sent_a_million_tiny_chunks():
    bench = Bench()
    bench.greet(m.WireLimits(65536, 1, 64, 32 << 20), greeting=2)
    bench.answer_large(1 << 20)
    bench.hub.touch(bench.attached, now=2.0)
    assert len(bench.hub.frames_to_send(now=2.0)) < 1000
