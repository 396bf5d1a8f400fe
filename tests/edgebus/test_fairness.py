"""One peer that asks without end does not keep the others waiting: they have turns, and sockets are looked at."""

from __future__ import annotations

import time

import pytest

import edgebus
from edgebus import port
from edgebus.queues import DRAIN_BYTES, LARGE_BYTES, LOOK_BYTES
from edgebus.rawzmq import BURST, POLLIN
from edgebus.readiness import Opened
from edgebus.runner_calling import SLICE_S
from tests.edgebus.test_inbox import Peer
from tests.edgebus.test_sharing import eventually

NUM_GREEDY = 20


def test_small_peer_has_its_turn_in_an_inbox_that_another_has_filled():
    inbox = edgebus.Inbox(["x"], 2 * NUM_GREEDY, lambda _: None)
    greedy, other = Peer(inbox, "A", "a"), Peer(inbox, "B", "b")
    for number in range(NUM_GREEDY):
        assert greedy.ask(number) == [True]
    assert other.ask(0) == [True]
    owners = [inbox.get(0).owner for _ in range(4)]
    assert owners == ["A", "B", "A", "A"]
    assert len(inbox.drain()) == NUM_GREEDY - 3


def test_what_stalls_longest_is_told_whoever_has_asked():
    inbox = edgebus.Inbox(["x"], 8, lambda _: None)
    one, two = Peer(inbox, "A", "a"), Peer(inbox, "B", "b")
    for peer, number in ((one, 0), (one, 1), (two, 0)):
        peer.ask(number)
    first = inbox.get(0)
    assert first.owner == "A"
    oldest = min(each.arrived_at for each in inbox._turns.oldest())
    assert inbox.stalled_s(oldest + 50) == pytest.approx(50 - (inbox._looked_at - oldest))


def test_sockets_are_looked_at_between_the_handlers_of_one_peer():
    """Its requests were all there first; another's comes in the middle of the first handler."""
    order, pending = [], []
    with (
        edgebus.Node("s", insecure=True) as node,
        edgebus.Node("g", insecure=True) as greedy,
        edgebus.Node("o", insecure=True) as other,
    ):
        endpoint = node.bind("inproc://between-handlers")
        many, one = greedy.connect(endpoint), other.connect(endpoint)

        def handle(request):
            if not order:
                pending.append(one.send_request("work", b"other"))
            order.append(request.payload)
            until = time.perf_counter() + SLICE_S
            while time.perf_counter() < until:
                pass
            request.reply(b"done")

        node.handle("work", handle)
        with node._engine.runner._lock:
            pending += [many.send_request("work", b"greedy") for _ in range(NUM_GREEDY)]
        eventually(lambda: len(order) == NUM_GREEDY + 1)
        assert [each.result().payload for each in pending] == [b"done"] * (NUM_GREEDY + 1)
    assert order.index(b"other") < 5


class Script(port.open_port):
    """A port with messages of a script: sizes of what follows a header that is none of ours, or minus that of one."""

    def __init__(self, sizes):
        self.sizes, self.num_looks = list(sizes), 0
        self.route, self.key, self.more = b"peer", None, False

    def take(self):
        if not self.sizes:
            return None
        self.more = self.sizes[0] >= LARGE_BYTES
        return b"\xc1" if self.more else b"\xc1" * abs(self.sizes.pop(0))

    def take_rest(self, frames):
        frames.append(bytes(self.sizes.pop(0)))
        return len(frames[-1])

    def readable(self):
        self.num_looks += 1
        return bool(self.sizes)


class Unused:
    """No socket."""

    underlying = 0


def read(sizes, crowd=0):
    """Have a node read from a port where so many messages more were found at once last time.

    Returns:
        What it leaves, and how often it asked for other connections.
    """
    with edgebus.Node("s", insecure=True) as node, node._engine.runner._lock:
        scripted = Script.__new__(Script, Unused(), True, False)
        Script.__init__(scripted, sizes)
        opened = Opened(None, 99, -1, scripted)
        opened.crowd = crowd
        node._engine.express.take(opened, POLLIN)
        assert node._engine.hub.malformed == len(sizes) - len(scripted.sizes)
        return len(scripted.sizes), scripted.num_looks


def test_large_messages_are_read_in_a_row_until_a_small_one_comes():
    assert read([LARGE_BYTES] * 6) == (0, 0)
    assert read([LARGE_BYTES] * 3 + [10] + [LARGE_BYTES] * 5) == (5, 0)
    assert read([LARGE_BYTES] * 3 + [10] + [LARGE_BYTES] * 5, crowd=BURST) == (5, 0)


def test_other_connections_are_asked_for_after_each_megabyte():
    """libzmq by itself looks for them once in 100 frames, while one connection has some."""
    assert read([LOOK_BYTES] * 5) == (0, 5)
    assert read([LOOK_BYTES // 2] * 5) == (0, 2)


def test_large_messages_are_not_read_for_ever():
    size = 4 << 20
    left, looks = read([size] * (DRAIN_BYTES // size + 5))
    assert 0 < left <= 5
    assert looks == DRAIN_BYTES // size + 5 - left


def test_a_large_header_is_a_large_message():
    assert read([-LOOK_BYTES] * 3) == (0, 3)
