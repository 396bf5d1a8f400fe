"""Streams: every part exactly once and in order, within the window at both ends, whoever stops or misbehaves."""

from __future__ import annotations

import random
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgebus
from edgebus import messages as m
from edgebus.config import Limits
from edgebus.streams import MAX_PARTS_AHEAD, InStream, OutStream
from tests.edgebus.duo import Duo

MIB = 1 << 20
STREAM = m.Terms(m.STREAM, window_bytes=1000)


# -- the two ends ---------------------------------------------------------------------------------------


def test_window_worked_by_hand():
    """400 B each under a window of 1000: the third crosses it and goes, the fourth waits for an acknowledgement."""
    out = OutStream(1000)
    for pos in range(3):
        assert out.has_room(400)
        assert out.push(7, (), (bytes(400),)).header == m.Part(7, pos)
    assert not out.has_room(1)
    out.wants_room = True
    assert not out.acknowledge(0)
    assert out.acknowledge(2)
    assert (out.unacked_bytes, list(out.unacked)) == (400, [2])
    assert out.has_room(400)


def test_small_parts_are_bounded_in_number():
    out = OutStream(1 << 30)
    for _ in range(MAX_PARTS_AHEAD):
        assert out.has_room(0)
        out.push(0, (), (b"",))
    assert not out.has_room(0)


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=150), st.integers(1, 500))
def test_whatever_comes_in_whatever_order_goes_out_once_and_in_order(arrivals, window_bytes):
    stream = InStream(window_bytes)
    taken = []
    for pos, consumes in arrivals:
        taken += [arrival.pos for arrival in stream.receive(pos, (), (bytes(20),))]
        held = len(stream._early) + len(stream._unread_bytes)
        assert 20 * held <= 2 * window_bytes + 20 + 20 * 31
        if consumes:
            stream.consume(len(taken))
    assert taken == list(range(len(taken)))
    assert stream.next_pos == len(taken)


def test_part_that_comes_early_again_and_again_takes_no_room_from_those_that_come_later():
    stream = InStream(100)
    for _ in range(50):
        assert stream.receive(1, (), (bytes(20),)) == []
    assert stream.duplicates == 49
    assert [arrival.pos for arrival in stream.receive(0, (), (bytes(20),))] == [0, 1]
    stream.consume(2)
    for pos in (4, 3, 2):
        taken = stream.receive(pos, (), (bytes(60),))
    assert [arrival.pos for arrival in taken] == [2, 3, 4]


def test_acknowledgements_come_every_half_window_and_every_half_of_the_most_parts():
    stream = InStream(1000)
    for pos in range(6):
        stream.receive(pos, (), (bytes(200),))
    assert [stream.consume(pos + 1) for pos in range(6)] == [None, None, 3, None, None, 6]
    small = InStream(1 << 30)
    told = []
    for pos in range(MAX_PARTS_AHEAD):
        small.receive(pos, (), (b"",))
        told.append(small.consume(pos + 1))
    assert [pos for pos in told if pos] == [MAX_PARTS_AHEAD // 2, MAX_PARTS_AHEAD]


def test_server_that_ignores_the_window_is_not_given_memory():
    stream = InStream(1000)
    for pos in range(10_000):
        stream.receive(pos, (), (bytes(100),))
    assert stream._held_bytes <= 2 * 1000 + 100
    empty = InStream(1000)
    for pos in range(1, 30_000):
        empty.receive(pos, (), (b"",))
    assert len(empty._early) <= 2 * MAX_PARTS_AHEAD


# -- two hubs ---------------------------------------------------------------------------------------------


def stream_of(duo, **terms):
    request_id = duo.ask(b"", timeout_s=3600.0, terms=m.Terms(m.STREAM, **({"window_bytes": 1000} | terms)))
    duo.run()
    return request_id, duo.arrived[-1]


def positions(duo):
    return [part.pos for part in duo.parts]


def test_caller_that_never_reads_holds_the_server_to_the_window():
    duo = Duo()
    _, arrived = stream_of(duo)
    pushed = 0
    while duo.push(arrived, bytes(100)):
        pushed += 1
    duo.advance(60.0)
    assert pushed == 10
    assert duo.push(arrived, bytes(100)) is False
    assert arrived.answerer._entries[arrived.id].parts.unacked_bytes <= 1000 + 100


def test_room_is_told_once_and_the_stream_goes_on():
    duo = Duo()
    request_id, arrived = stream_of(duo)
    while duo.push(arrived, bytes(100)):
        pass
    duo.run()
    assert duo.rooms == []
    duo.consume(request_id, 5)
    duo.run()
    assert duo.rooms == [arrived.id]
    assert duo.push(arrived, bytes(100))


def test_cancel_of_the_caller_ends_it_for_the_server():
    duo = Duo()
    request_id, arrived = stream_of(duo)
    assert duo.push(arrived, b"x")
    duo.cancel(request_id)
    duo.run()
    assert duo.push(arrived, b"x") is None
    assert duo.rooms == [arrived.id], "whoever waits for room is woken"
    assert duo.withdrawn == [arrived.id]
    assert [settled.outcome for settled in duo.settled] == ["cancelled"]


def test_refusal_of_the_server_ends_it_for_the_caller_and_keeps_what_came():
    duo = Duo()
    _, arrived = stream_of(duo)
    duo.push(arrived, b"x")
    arrived.answerer.answer(arrived.id, edgebus.requests.refusal(arrived.id, "enough", "no more"))
    duo.touch_server()
    duo.run()
    assert positions(duo) == [0]
    assert [(settled.outcome, settled.code) for settled in duo.settled] == [("refused", "enough")]


def test_end_that_overtakes_parts_waits_for_them():
    duo = Duo()
    _, arrived = stream_of(duo)
    duo.loses = lambda from_device, lane, header: isinstance(header, m.Part) and header.pos in (1, 2)
    for _ in range(4):
        duo.push(arrived, b"x")
    duo.answer(arrived, b"end")
    duo.run()
    assert positions(duo) == [0]
    assert duo.settled == []
    duo.loses = lambda *_: False
    duo.advance(10.0)
    assert positions(duo) == [0, 1, 2, 3]
    assert [bytes(settled.frames[0]) for settled in duo.settled] == [b"end"]


def test_large_parts_go_by_the_bulk_lane_in_order_with_small_ones_between():
    duo = Duo(Limits(max_frame_bytes=2 * MIB))
    request_id, arrived = stream_of(duo, window_bytes=16 * MIB)
    source = random.Random(1)
    contents = [source.randbytes(MIB if pos % 2 else 100) for pos in range(10)]
    for content in contents:
        assert duo.push(arrived, b"", content)
    duo.answer(arrived)
    duo.run()
    duo.consume(request_id, 10)
    duo.advance(2.0)
    assert positions(duo) == list(range(10))
    assert [bytes(part.frames[1]) for part in duo.parts] == contents
    assert duo.count(m.Chunk, lane=1, from_device=False) >= 5
    assert [settled.outcome for settled in duo.settled] == ["answered"]


def test_restarted_server_is_asked_for_the_rest_and_nothing_of_its_earlier_life_is_mixed_in():
    duo = Duo()
    _, arrived = stream_of(duo)
    duo.loses = lambda from_device, lane, header: isinstance(header, m.Part) and header.pos == 2
    for _ in range(6):
        duo.push(arrived, b"first life")
    duo.answer(arrived, b"first end")
    duo.run()
    assert positions(duo) == [0, 1]
    duo.loses = lambda *_: False
    duo.restart_server()
    duo.advance(0.5)
    duo.reconnect()
    duo.advance(5.0)
    arrived = duo.arrived[-1]
    assert arrived.terms.from_pos == 2
    for _ in range(3):
        duo.push(arrived, b"second life")
    duo.answer(arrived, b"second end")
    duo.advance(20.0)
    assert positions(duo) == [0, 1, 2, 3, 4]
    assert [bytes(part.frames[0]) for part in duo.parts] == [b"first life"] * 2 + [b"second life"] * 3
    assert [bytes(settled.frames[0]) for settled in duo.settled] == [b"second end"]


def test_deadline_ends_both_ends():
    duo = Duo()
    duo.ask(b"", timeout_s=3.0, terms=STREAM)
    duo.run()
    [arrived] = duo.arrived
    duo.push(arrived, b"x")
    duo.advance(4.0)
    assert [settled.outcome for settled in duo.settled] == ["expired"]
    assert arrived.expires_at <= duo.now
    assert duo.link.caller.outstanding == {}


def test_parts_for_a_plain_request_and_parts_nobody_asked_for_are_dropped():
    duo = Duo()
    duo.ask(b"")
    duo.run()
    for request_id in (0, 99):
        duo.attached.link.receive(m.Message(m.Part(request_id, 0), (b"x",)), now=duo.now)
    assert duo.parts == []
    assert duo.link.caller.late_answers == 2


# -- real sockets ----------------------------------------------------------------------------------------


@contextmanager
def two_nodes(service="numbers", **limits):
    made = Limits(**limits)
    with (
        edgebus.Node("server", insecure=True, limits=made) as server,
        edgebus.Node("device", insecure=True, limits=made) as device,
    ):
        inbox = server.serve(service)
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        yield inbox, link


class Pusher(threading.Thread):
    """The server's thread: pushes parts until told that nobody wants them."""

    def __init__(self, inbox, parts, size_bytes=0):
        super().__init__()
        self._inbox, self._parts, self._array = inbox, parts, np.zeros(size_bytes, np.uint8)
        self.pushed, self.ended = 0, None
        self.start()

    def run(self):
        request = self._inbox.get(10)
        arrays = (self._array,) if self._array.size else ()
        try:
            for pos in range(request.from_pos, self._parts):
                assert request.push(b"%d" % pos, arrays) == pos
                self.pushed += 1
            request.reply(b"end")
        except edgebus.StreamEnded as error:
            self.ended = error


@pytest.mark.net
@pytest.mark.parametrize(("parts", "size_bytes"), [(3000, 0), (12, MIB)], ids=["small", "1 MiB"])
def test_parts_come_in_order_then_the_end(parts, size_bytes):
    with two_nodes() as (inbox, link):
        stream = link.stream("numbers", window_bytes=4 * MIB)
        pusher = Pusher(inbox, parts, size_bytes)
        got = [(part.pos, int(part.payload), [array.size for array in part.arrays]) for part in stream]
        assert got == [(pos, pos, [size_bytes] if size_bytes else []) for pos in range(parts)]
        assert stream.ended
        assert stream.result().payload == b"end"
        pusher.join(5)


@pytest.mark.net
def test_push_waits_for_a_slow_caller_and_goes_on_with_it():
    with two_nodes() as (inbox, link), link.stream("numbers", window_bytes=2000) as stream:
        pusher = Pusher(inbox, 300, 100)
        time.sleep(0.2)
        waiting_at = pusher.pushed
        assert 10 <= waiting_at <= 25, "a window of parts, no more"
        assert [part.pos for part in stream] == list(range(300))
        pusher.join(5)
        assert (pusher.pushed, pusher.ended) == (300, None)


@pytest.mark.net
def test_push_that_waits_is_told_when_the_caller_cancels():
    with two_nodes() as (inbox, link):
        stream = link.stream("numbers", window_bytes=100)
        pusher = Pusher(inbox, 1000, 100)
        assert stream.get(5).pos == 0
        stream.cancel()
        pusher.join(2)
        assert not pusher.is_alive()
        assert pusher.ended is not None
        with pytest.raises(edgebus.RequestCancelled):
            stream.result()


@pytest.mark.net
def test_push_with_a_timeout_sends_nothing_when_it_is_over():
    with two_nodes() as (inbox, link), link.stream("numbers", window_bytes=100) as stream:
        request = inbox.get(5)
        assert request.push(bytes(100)) == 0
        with pytest.raises(edgebus.DeadlineExceeded, match="the caller does not read"):
            request.push(bytes(100), timeout_s=0.05)
        assert stream.get(5).pos == 0
        assert request.push(b"next", timeout_s=5) == 1
        assert stream.get(5).payload == b"next"
        request.reply()


@pytest.mark.net
def test_server_without_threads_pushes_when_there_is_room():
    """try_push says False, when_room calls once there is: 200 parts through a window of three."""
    with edgebus.Node("server", insecure=True) as server, edgebus.Node("device", insecure=True) as device:
        calls, full = [], threading.Event()

        def serve(request):
            left = iter(range(200))
            waiting = []

            def go():
                calls.append(len(waiting))
                while True:
                    pos = waiting.pop() if waiting else next(left, None)
                    if pos is None:
                        request.reply(b"end")
                        return
                    if not request.try_push(b"%3d" % pos + bytes(97)):
                        waiting.append(pos)
                        request.when_room(go)
                        full.set()
                        return

            go()

        server.handle("numbers", serve)
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        stream = link.stream("numbers", window_bytes=300)
        assert full.wait(20), "three parts are pushed before the first one is taken"
        assert [int(part.payload[:3]) for part in stream] == list(range(200))
        assert len(calls) > 1, "it had to wait for room; how often is up to how fast parts are taken"


@pytest.mark.net
def test_stream_of_another_kind_of_request_is_a_type_error():
    with two_nodes() as (inbox, link):
        pending = link.send_request("numbers")
        request = inbox.get(5)
        with pytest.raises(TypeError, match=r"link\.stream"):
            request.push(b"x")
        request.reply(b"plain")
        assert pending.result().payload == b"plain"
