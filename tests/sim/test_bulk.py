"""Large contents on a virtual network: whole or not at all, executed once, whatever happens on the way."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from edgebus.bulk_receiver import BulkReceiver
from edgebus.testing import SimNetwork, for_seeds
from tests.edgebus.duo import KIB, SMALL


def payload(seed, number):
    source = random.Random(seed * 100 + number)
    return b"%d:" % number + source.randbytes(source.randrange(100 * KIB))


class World:
    """A device that sends large requests and a server that answers each with as much, backwards."""

    def __init__(self, seed, **faults):
        self.seed, self.net = seed, SimNetwork(seed, **faults)
        self.executed = Counter()
        self.server = self.net.node("server", self.handle, SMALL)
        self.device = self.net.node("device", limits=SMALL)
        self.link = self.net.connect(self.device, self.server)

    def handle(self, request):
        self.executed[request.payload.split(b":")[0]] += 1
        number = int(request.payload.split(b":")[0])
        self.net.call_later(number % 3 * 0.2, lambda: request.reply(request.payload[::-1]))

    def send(self, count, timeout_s=120.0):
        return [self.link.send_request("reverse", payload(self.seed, n), timeout_s=timeout_s) for n in range(count)]

    def check(self, pendings, lives=1):
        assert self.net.run_until(lambda: all(pending.done() for pending in pendings), 130.0)
        for number, pending in enumerate(pendings):
            assert pending.result().payload == payload(self.seed, number)[::-1]
        assert all(count <= lives for count in self.executed.values())

    def check_memory(self):
        """Nothing is held when nothing is under way."""
        self.net.run(30.0)
        for link in (self.link.attached.link, *(attached.link for attached in self.server.hub.links)):
            assert (link.sender.queued_bytes, link.sender.in_flight_bytes, link.receiver.held_bytes) == (0, 0, 0)


@for_seeds(60)
def test_whole_and_once_under_loss_duplication_and_delay(seed):
    world = World(seed, loss=0.03, duplicate=0.05, delay_s=(0.001, 0.01), reorder=False)
    with world.net:
        world.check(world.send(6))
        world.check_memory()


@for_seeds(30)
def test_reordered_chunks_are_put_right(seed):
    world = World(seed, duplicate=0.05, delay_s=(0.001, 0.003), reorder=True)
    with world.net:
        world.check(world.send(4))
        world.check_memory()


@for_seeds(30)
def test_partition_and_restart_in_the_middle(seed):
    world = World(seed, loss=0.01, reorder=False)
    with world.net:
        pendings = world.send(8)
        world.net.call_later(0.6, lambda: world.net.partition(world.device, world.server))
        world.net.call_later(7.0, lambda: world.net.heal(world.device, world.server))
        world.net.call_later(9.0, lambda: world.net.restart(world.server))
        world.check(pendings, lives=2)
        world.check_memory()


@for_seeds(30)
def test_cancelled_in_the_middle_leaves_nothing_behind(seed):
    world = World(seed, loss=0.03, duplicate=0.05, reorder=False)
    with world.net:
        pendings = world.send(8)
        source = random.Random(seed)
        for pending in pendings[::2]:
            world.net.call_later(source.random() * 2, pending.cancel)
        assert world.net.run_until(lambda: all(pending.done() for pending in pendings), 130.0)
        for number, pending in list(enumerate(pendings))[1::2]:
            assert pending.result().payload == payload(seed, number)[::-1]
        world.check_memory()


class Trusting(BulkReceiver):
    """The mutant: takes chunks for what they should be."""

    def receive(self, chunk, frame, *, now):
        incoming = self._partial.get(chunk.transfer)
        if incoming is not None:
            chunk = type(chunk)(chunk.transfer, incoming.received)
        return super().receive(chunk, frame, now=now)


def test_receiver_that_does_not_look_at_offsets_is_caught(monkeypatch):
    monkeypatch.setattr("edgebus.link.BulkReceiver", Trusting)
    with pytest.raises((AssertionError, ValueError)):
        test_whole_and_once_under_loss_duplication_and_delay()
