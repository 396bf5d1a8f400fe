"""All links of a node without sockets: who is let in, who has to make room, and whose message is whose."""

from __future__ import annotations

import itertools
import logging

import pytest

import edgebus
from edgebus import messages as m
from edgebus.hub import Hub
from edgebus.link_states import Surroundings, wire_limits
from edgebus.outcomes import Arrived, Settled
from edgebus.wire import decode, encode

LIMITS = edgebus.Limits()


class Bench:
    """A listening hub and what came out of it."""

    def __init__(self, **limits):
        self.limits = edgebus.Limits(**limits)
        numbers = itertools.count()
        self.hub = Hub(
            around=Surroundings(name="s", limits=self.limits), new_incarnation=lambda: next(numbers).to_bytes(16, "big")
        )
        self.executed = []
        self.settled = []

    def take(self, route, key, header, frames=(), now=0.0):
        """Give the hub a message; returns (route, header) of all it says."""
        self.hub.receive((1, route), encode(m.Message(header, frames)), key, now=now)
        return self.pump()

    def pump(self):
        for attached, event in self.hub.events():
            if isinstance(event, Arrived):
                self.executed.append((attached.key, event.id))
        return [(route[1], decode(frames, LIMITS).header) for route, frames in self.hub.frames_to_send(now=0.0)]

    def greet(self, route, key, incarnation, now=0.0, greeting=1):
        hello = m.Hello(1, 1, "x", incarnation, greeting, wire_limits(LIMITS))
        return [header for _, header in self.take(route, key, hello, now=now)]

    def ask(self, route, key, request_id, ttl_ms=10_000, now=0.0):
        return self.take(route, key, m.Request(request_id, "pay", ttl_ms, 0), (b"x",), now=now)

    def leave(self, route, now):
        self.hub.disconnected((1, route), now=now)
        self.pump()


def names(headers):
    return [type(header).__name__ for header in headers]


GOOD = b"G" * 16


def test_message_by_the_route_of_another_key_is_not_taken_for_its_owners():
    bench = Bench()
    bench.greet(b"r", "GOOD", GOOD)
    assert [type(header) for _, header in bench.ask(b"r", "EVIL", 0)] == [m.Reset]
    assert bench.executed == []
    bench.take(b"r", "EVIL", m.Goodbye("closing", ""))
    assert bench.ask(b"r", "GOOD", 0) == []
    assert bench.executed == [("GOOD", 0)]


def test_greeting_with_the_incarnation_of_another_key_is_another_link():
    bench = Bench()
    bench.greet(b"r", "GOOD", GOOD)
    bench.ask(b"r", "GOOD", 0)
    assert names(bench.greet(b"evil", "EVIL", GOOD)) == ["Welcome"]
    links = {attached.key: attached for attached in bench.hub.links}
    assert len(links) == 2
    assert links["GOOD"].route == (1, b"r"), "its answers go where they went"
    assert links["GOOD"].peer_id != links["EVIL"].peer_id
    links["GOOD"].link.answerer.answer(0, m.Message(m.Reply(0), (b"secret",)))
    bench.hub.touch(links["GOOD"], now=0.1)
    assert bench.pump() == [(b"r", m.Reply(0))]


def test_link_that_lost_its_route_to_another_does_not_take_it_along_when_it_is_forgotten():
    bench = Bench(forget_s=6.0)
    bench.greet(b"r", "ONE", b"1" * 16)
    bench.greet(b"r", "TWO", b"2" * 16, now=1.0)
    bench.take(b"r", "TWO", m.Ping(), now=4.0)
    bench.hub.handle_timer(now=7.5)
    bench.pump()
    assert [attached.key for attached in bench.hub.links] == ["TWO"]
    assert bench.take(b"r", "TWO", m.Ping(), now=7.6) == [(b"r", m.Pong())]


def test_welcome_comes_ahead_of_what_is_sent_again():
    bench = Bench()
    bench.greet(b"r", "GOOD", GOOD)
    [attached] = bench.hub.links
    attached.link.caller.start("ask", (), (b"",), deadline_at=30.0, ref=None, now=0.0)
    bench.hub.touch(attached, now=0.0)
    assert [type(header) for _, header in bench.pump()] == [m.Request]
    bench.leave(b"r", 1.0)
    assert names(bench.greet(b"r2", "GOOD", GOOD, now=2.0, greeting=2)) == ["Welcome", "Request"]


def test_backoff_starts_anew_when_the_link_comes_up_again():
    """Sent at 0, again at 1 and 3 (next would be 7); down and up at 4: sent, and again after 1, 2 s: 5 and 7."""
    bench = Bench(silence_s=100.0, heartbeat_s=99.0)
    bench.greet(b"r", "GOOD", GOOD)
    [attached] = bench.hub.links
    attached.link.caller.start("ask", (), (b"",), deadline_at=20.0, ref=None, now=0.0)
    bench.hub.touch(attached, now=0.0)
    times = [(0.0, len(bench.pump()))]

    def run_to(end_at):
        while (at := bench.hub.next_timer()) < end_at:
            bench.hub.handle_timer(now=at)
            times.append((at, len(bench.pump())))

    run_to(4.0)
    bench.leave(b"r", 4.0)
    bench.greet(b"r", "GOOD", GOOD, now=4.0, greeting=2)
    run_to(8.0)
    assert [at for at, number in times if number] == [0.0, 1.0, 3.0, 5.0, 7.0]


def test_peer_whose_deadlines_are_not_over_is_not_evicted_and_executes_once():
    bench = Bench(max_peers=4)
    bench.greet(b"r", "GOOD", GOOD)
    bench.ask(b"r", "GOOD", 0)
    bench.leave(b"r", 1.0)
    for n in range(3):
        assert names(bench.greet(b"e%d" % n, f"E{n}", bytes([n]) * 16, now=1.1)) == ["Welcome"]
    refused = bench.greet(b"e4", "E4", bytes(16), now=1.2)
    assert [(type(header), header.code) for header in refused] == [(m.Goodbye, "busy")]
    assert "max_peers is 4" in refused[0].detail
    bench.greet(b"r2", "GOOD", GOOD, now=1.5, greeting=2)
    bench.ask(b"r2", "GOOD", 0, ttl_ms=8500, now=1.5)
    assert bench.executed == [("GOOD", 0)]


@pytest.mark.parametrize(("ttl_ms", "spare_at"), [(10_000, 10.0), (86_400_000, 61.0)])
def test_place_is_free_after_the_deadlines_but_not_later_than_forget_s(ttl_ms, spare_at):
    """Asked at 0, silent from 1 s; the place is wanted by another key, whose hellos end in silence too."""
    bench = Bench(max_peers=1, silence_s=1000.0, heartbeat_s=999.0)
    bench.greet(b"r", "GOOD", GOOD)
    bench.ask(b"r", "GOOD", 0, ttl_ms=ttl_ms)
    bench.leave(b"r", 1.0)
    assert names(bench.greet(b"e", "E", b"e" * 16, now=spare_at - 0.01)) == ["Goodbye"]
    assert names(bench.greet(b"e", "E", b"e" * 16, now=spare_at)) == ["Welcome"]
    assert [attached.key for attached in bench.hub.links] == ["E"]


def test_who_has_said_goodbye_makes_room_at_once_and_before_who_is_only_away():
    """A link that was closed with an answered request of an hour took a place for forget_s."""
    bench = Bench(max_peers=2)
    bench.greet(b"a", "AWAY", b"a" * 16)
    bench.leave(b"a", 1.0)
    bench.greet(b"r", "GOOD", GOOD)
    bench.ask(b"r", "GOOD", 0, ttl_ms=3_600_000)
    bench.take(b"r", "GOOD", m.Goodbye("closing", ""), now=2.0)
    assert names(bench.greet(b"e", "E", b"e" * 16, now=2.1)) == ["Welcome"]
    assert {attached.key for attached in bench.hub.links} == {"AWAY", "E"}
    assert [type(header) for _, header in bench.ask(b"r", "GOOD", 0, now=2.2)] == [m.Reset]
    assert bench.executed == [("GOOD", 0)]


def test_one_key_cannot_take_every_place():
    bench = Bench(max_links_per_key=3)
    for n in range(5):
        code = names(bench.greet(b"e%d" % n, "EVIL", bytes([n]) * 16))
        assert code == (["Welcome"] if n < 3 else ["Goodbye"])
    assert names(bench.greet(b"g", "GOOD", GOOD)) == ["Welcome"]
    bench.leave(b"e1", 1.0)
    bench.leave(b"e0", 2.0)
    bench.leave(b"g", 0.5)
    assert names(bench.greet(b"e9", "EVIL", b"9" * 16, now=3.0)) == ["Welcome"]
    left = {attached.hello_id for attached in bench.hub.links}
    assert left == {bytes(16), b"\2" * 16, b"9" * 16, GOOD}, "its own oldest quiet link went, not another's"


def test_full_node_takes_the_newcomers_own_quiet_link_before_anothers():
    bench = Bench(max_peers=2)
    bench.greet(b"g", "GOOD", GOOD)
    bench.greet(b"a", "A", b"a" * 16)
    bench.leave(b"g", 1.0)
    bench.leave(b"a", 2.0)
    assert names(bench.greet(b"b", "A", b"b" * 16, now=3.0)) == ["Welcome"]
    assert {attached.key for attached in bench.hub.links} == {"GOOD", "A"}


def test_plaintext_peers_have_no_key_to_count_links_by():
    bench = Bench(max_links_per_key=1)
    for n in range(3):
        assert names(bench.greet(b"e%d" % n, None, bytes([n]) * 16)) == ["Welcome"]


def test_dialled_links_count_as_peers():
    bench = Bench(max_peers=2)
    bench.hub.dial((7, b""), now=0.0)
    assert names(bench.greet(b"g", "GOOD", GOOD)) == ["Welcome"]
    with pytest.raises(edgebus.ConfigError, match="max_peers is 2"):
        bench.hub.dial((8, b""), now=0.0)
    assert names(bench.greet(b"h", "H", b"h" * 16)) == ["Goodbye"]


def test_totals_keep_links_that_were_forgotten_or_made_room():
    bench = Bench(max_peers=1, forget_s=6.0)
    bench.greet(b"a", "A", b"a" * 16)
    bench.take(b"a", "A", m.Ping())
    bench.leave(b"a", 1.0)
    bench.greet(b"b", "B", b"b" * 16, now=2.0)
    bench.hub.handle_timer(now=7.5)
    bench.hub.handle_timer(now=100.0)
    bench.pump()
    assert bench.hub.links == []
    assert bench.hub.gone.messages_received == 3
    assert bench.hub.gone.messages_sent == 3  # two welcomes and a pong


def test_message_that_does_not_encode_leaves_the_others_alone(caplog):
    bench = Bench()
    bench.greet(b"r", "GOOD", GOOD)
    [attached] = bench.hub.links
    for service in ("\ud800", "fine"):
        attached.link.caller.start(service, (), (b"",), deadline_at=9.0, ref=None, now=0.0)
    bench.hub.touch(attached, now=0.0)
    assert [header.service for _, header in bench.pump()] == ["fine"]
    assert "a Request is not sent" in caplog.text
    [(_, settled)] = [told for told in bench.hub.events() if isinstance(told[1], Settled)]
    assert (settled.outcome, settled.code) == ("refused", "internal")


def test_malformed_routes_are_warned_about_again_after_a_minute(caplog):
    bench = Bench(max_peers=1)
    caplog.set_level(logging.WARNING, "edgebus")
    for at, number in ((0.0, 4), (1.0, 0), (60.0, 4)):
        caplog.clear()
        for n in range(9):
            bench.hub.receive((1, b"%d" % n), [b"\xff"], None, now=at)
        assert len(caplog.records) == number
    assert bench.hub.malformed == 27


def test_node_that_has_no_place_says_so_to_the_newcomer_and_once_in_its_log(caplog):
    limits = edgebus.Limits(max_peers=1)
    with edgebus.Node("s", insecure=True, limits=limits) as server, edgebus.Node("d", insecure=True) as device:
        endpoint = server.bind("tcp://127.0.0.1:0")
        device.connect(endpoint)
        for _ in range(2):
            with pytest.raises(edgebus.PeerUnreachable, match="sent us away with 'busy: all in use: max_peers is 1"):
                device.connect(endpoint, timeout_s=0.3)
    assert len([each for each in caplog.records if "no place for a link" in each.getMessage()]) == 1
