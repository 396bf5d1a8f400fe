"""Streams on a virtual network: whatever is lost, doubled, late or restarted, parts come once and in order."""

from __future__ import annotations

import random
from functools import partial

import pytest

from edgebus.config import Limits
from edgebus.errors import RequestCancelled, StreamEnded
from edgebus.streams import InStream
from edgebus.testing import SimNetwork, for_seeds

LIMITS = Limits(max_pending_bytes=1 << 20, max_frame_bytes=1 << 20, bulk_from_bytes=20_000)


def content(pos):
    """What part `pos` holds; some are large."""
    return b"%d:" % pos + bytes(50_000 if pos % 7 == 3 else pos % 200)


class Numbers:
    """A server that pushes parts from the position it is asked for, as there is room, without threads."""

    def __init__(self, net, num_parts):
        self.net, self.num_parts = net, num_parts
        self.pushed, self.asked_from, self.ended = 0, [], 0

    def __call__(self, request):
        if not request.is_stream:
            request.reply()
            return
        self.asked_from.append(request.from_pos)
        self.go(request, request.from_pos)

    def go(self, request, pos):
        try:
            while pos < self.num_parts:
                if not request.try_push(content(pos)):
                    request.when_room(partial(self.go, request, pos))
                    return
                pos += 1
                self.pushed += 1
        except StreamEnded:
            self.ended += 1
            request.forget()
            return
        request.reply(b"end")


def take(stream, limit_s=300.0):
    """All parts, in virtual time."""
    parts = []
    while (part := stream.get(limit_s)) is not None:
        parts.append(part)
    return parts


def check(parts, num_parts):
    assert [part.pos for part in parts] == list(range(num_parts))
    assert all(part.payload == content(part.pos) for part in parts)


@for_seeds(150)
def test_parts_come_once_and_in_order_under_loss_duplication_and_reordering(seed):
    source = random.Random(seed)
    faults = {"loss": 0.15, "duplicate": 0.15, "delay_s": (0.001, 0.3)}
    with SimNetwork(seed, **faults) as net:
        numbers = Numbers(net, source.randrange(1, 60))
        link = net.connect(net.node("device", limits=LIMITS), net.node("server", numbers, LIMITS))
        stream = link.stream("numbers", window_bytes=source.choice([500, 5000, 200_000]))
        check(take(stream), numbers.num_parts)
        assert stream.result().payload == b"end"
        assert (numbers.asked_from, numbers.pushed) == ([0], numbers.num_parts), "executed once, nothing pushed twice"


@for_seeds(60)
def test_restarts_of_the_server_go_on_from_the_position(seed):
    with SimNetwork(seed, loss=0.05, duplicate=0.05, delay_s=(0.001, 0.1)) as net:
        numbers = Numbers(net, 60)
        server = net.node("server", numbers, LIMITS)
        link = net.connect(net.node("device", limits=LIMITS), server)
        stream = link.stream("numbers", window_bytes=2000)
        parts = []
        for number in range(3):
            net.call_later(0.4 + 0.9 * number, lambda: net.restart(server))
        while (part := stream.get(300.0)) is not None:
            parts.append(part)
            if len(parts) % 5 == 0:
                net.run(0.2)  # a reader that takes its time, so that restarts come in the middle
        check(parts, 60)
        assert stream.result().payload == b"end"
        assert len(numbers.asked_from) >= 2
        assert numbers.asked_from == sorted(numbers.asked_from)


@for_seeds(20)
def test_caller_that_stops_reading_stops_the_server_and_goes_on_later(seed):
    with SimNetwork(seed, loss=0.1, duplicate=0.1) as net:
        numbers = Numbers(net, 400)
        link = net.connect(net.node("device", limits=LIMITS), net.node("server", numbers, LIMITS))
        stream = link.stream("numbers", window_bytes=1000)
        assert stream.get(60.0).pos == 0
        net.run(120.0)
        assert numbers.pushed < 60, "about a window, whatever is sent again meanwhile"
        rest = take(stream)
        assert [part.pos for part in rest] == list(range(1, 400))


@for_seeds(30)
def test_cancel_reaches_the_server_whatever_is_lost(seed):
    with SimNetwork(seed, loss=0.2, duplicate=0.2) as net:
        numbers = Numbers(net, 100_000)
        server = net.node("server", numbers, LIMITS)
        link = net.connect(net.node("device", limits=LIMITS), server)
        stream = link.stream("numbers", window_bytes=2000)
        assert stream.get(60.0).pos == 0
        stream.cancel()
        net.run(1.0)
        with pytest.raises(RequestCancelled):
            stream.result()
        for _ in range(3):  # where the word was lost, whatever is said next tells it
            link.send_request("anything", timeout_s=60.0)
            net.run(5.0)
        assert numbers.ended == 1
        assert not server.hub.links[0].link.answerer.num_pending


@for_seeds(30)
def test_partition_in_the_middle_loses_nothing(seed):
    with SimNetwork(seed, duplicate=0.1) as net:
        numbers = Numbers(net, 80)
        device, server = net.node("device", limits=LIMITS), net.node("server", numbers, LIMITS)
        stream = net.connect(device, server).stream("numbers", window_bytes=3000)
        parts = [stream.get(60.0) for _ in range(10)]
        net.partition(device, server)
        net.call_later(15.0, lambda: net.heal(device, server))
        check(parts + take(stream), 80)


class Careless(InStream):
    """The mutant: takes parts as they come."""

    def receive(self, pos, specs, frames):
        self._early.clear()
        self.next_pos = pos
        return super().receive(pos, specs, frames)


def test_caller_that_takes_parts_as_they_come_is_caught(monkeypatch):
    monkeypatch.setattr("edgebus.requests.InStream", Careless)
    with pytest.raises(AssertionError):
        test_parts_come_once_and_in_order_under_loss_duplication_and_reordering()
