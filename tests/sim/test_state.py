"""The publisher over streams of the virtual network: whatever happens, subscribers end with its table."""

from __future__ import annotations

import random

import pytest

from edgebus.payloads import decode, encode
from edgebus.replica import Changed, Replica
from edgebus.state import Part
from edgebus.testing import SimNetwork
from edgebus.topics import Publisher, topic_service

SEEDS = range(60)
FAULTS = {"loss": 0.15, "duplicate": 0.2, "delay_s": (0.001, 0.3)}


class Shelf:
    """What a Publisher needs of a node, on a virtual one; a new life has a new publisher."""

    def __init__(self, net):
        self.net = net
        self.lives = 0
        self.begin()
        self.node = net.node("server", self.serve, on_restart=self.begin)

    def begin(self):
        self.lives += 1
        self.handlers = {}
        self.publisher = Publisher(self, epoch=self.lives.to_bytes(8, "big"))
        self.publisher.declare("t")

    def handle(self, service, function):
        self.handlers[service] = function

    def serve(self, request):
        self.handlers[request.service](request)


class Reader:
    """A subscriber that reads its stream as parts come, and begins another one after a gap."""

    def __init__(self, net, shelf, name):
        self.link = net.connect(net.node(name), shelf.node)
        self.replica, self.shown = Replica(), {}
        self.subscribe()

    def subscribe(self):
        self.stream = self.link.stream(topic_service("t"), encode(self.replica.subscribe(1024)), window_bytes=4096)

    def read(self):
        while self.stream.ready and (part := self.stream.get(0.0)) is not None:
            for event in self.replica.apply(decode(Part, part.payload)):
                if isinstance(event, Changed):
                    self.shown[event.key] = event.value
                else:
                    del self.shown[event.key]
        if self.stream.ended or self.replica.needs_repair:
            self.subscribe()


def run_world(seed, *, restarts, **faults):
    """40 changes over 20 s to 12 keys, with some restarts; then 60 s of peace."""
    chance = random.Random(seed)
    with SimNetwork(seed, **faults) as net:
        shelf = Shelf(net)
        readers = [Reader(net, shelf, f"device-{n}") for n in range(3)]

        def change():
            key = f"k{chance.randrange(12)}"
            if chance.random() < 0.7:
                shelf.publisher.publish("t", key, chance.randbytes(chance.choice((0, 10, 2000))))
            else:
                shelf.publisher.unpublish("t", key)

        for _ in range(40):
            net.call_later(chance.uniform(0, 20), change)
        for _ in range(restarts):
            net.call_later(chance.uniform(0, 20), lambda: net.restart(shelf.node))

        def all_agree():
            for reader in readers:
                reader.read()
            table = shelf.publisher.snapshot("t")
            return net.clock.now > 20.0 and all(
                reader.replica.synced and reader.shown == reader.replica.snapshot() == table for reader in readers
            )

        assert net.run_until(all_agree, 80.0), f"not within 80 s: {[reader.replica.counts for reader in readers]}"
        assert shelf.lives == 1 + restarts
        return readers


@pytest.mark.parametrize("seed", SEEDS)
def test_subscribers_end_with_the_publishers_table_under_loss_and_restarts(seed):
    run_world(seed, restarts=seed % 3, **FAULTS)


def test_streams_leave_no_gaps_as_long_as_the_publisher_lives():
    for seed in range(10):
        for reader in run_world(seed, restarts=0, **FAULTS):
            assert (reader.replica.counts.gaps, reader.replica.counts.stale, reader.replica.counts.snapshots) == (
                0,
                0,
                1,
            )


def test_publisher_that_skips_a_part_is_caught(monkeypatch):
    """The mutant: what had no room is not sent later."""

    def forget(self, topic, subscriber):
        with topic.lock:
            subscriber.feeding = False
            subscriber.cursor = subscriber.cursor._replace(seq=topic.publication.head, greeted=True)

    monkeypatch.setattr(Publisher, "_resume", forget)
    with pytest.raises(AssertionError, match="not within 80 s"):
        [run_world(seed, restarts=0, **FAULTS) for seed in range(20)]
