"""The same code over inproc, ipc, tcp, tcp with CURVE, and shared memory; how often arrays are copied on each."""

from __future__ import annotations

import contextlib
import threading
import time

import numpy as np
import pytest

import edgebus
from edgebus import shm
from edgebus.errors import StreamEnded

pytestmark = pytest.mark.net
TRANSPORTS = ("inproc", "ipc", "tcp", "curve")
MIB = 1 << 20


class Ends:
    """A server and a device joined by one transport."""

    def __init__(self, ring, transport, directory, limits):
        self.transport, self._ring, self._limits, self._directory = transport, ring, limits, directory
        self.server = self.new_server()
        where = {"inproc": "inproc://here", "ipc": f"ipc://{directory}/s"}.get(transport, "tcp://127.0.0.1:0")
        self.endpoint = self.server.bind(where)
        options = {"keys": ring.keys("device")} if transport == "curve" else {"insecure": True}
        self.device = edgebus.Node("device", limits=limits, **options)
        self.link = self.device.connect(self.endpoint, ring.public("server") if transport == "curve" else None)

    def new_server(self):
        if self.transport == "curve":
            return self._ring.server(limits=self._limits)
        return edgebus.Node("server", insecure=True, limits=self._limits)

    @property
    def at_server(self):
        [stats] = self.server.stats().peers.values()
        return stats


@contextlib.contextmanager
def joined(ring, transport, directory, **limits):
    ends = Ends(ring, transport, directory, edgebus.Limits(**({"share_bytes": 0} | limits)))
    with ends.device:
        try:
            yield ends
        finally:
            ends.server.close()


@pytest.fixture(params=TRANSPORTS)
def ends(request, ring, tmp_path):
    with joined(ring, request.param, tmp_path) as both:
        yield both


@contextlib.contextmanager
def serving(node, service, function):
    """Answer a service on a thread; yields the inbox."""
    inbox = node.serve(service)

    def run():
        while (request := inbox.get(None)) is not None:
            function(request)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield inbox
    finally:
        inbox.close()
        thread.join(5)
        assert not thread.is_alive()


def echo(request):
    request.reply(request.payload, request.arrays)


def balanced(stats):
    """What was sent has exactly one outcome each, what came was dealt with."""
    sent = stats.answered + stats.refused + stats.expired + stats.unknown + stats.cancelled + stats.outstanding
    got = stats.executed + stats.duplicates + stats.turned_away + stats.repeated
    return stats.started == sent and stats.received == got


# -- one matrix for all ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 3 * MIB])
def test_payloads_of_all_sizes_come_back(ends, size):
    payload = np.random.default_rng(size).bytes(size)
    with serving(ends.server, "echo", echo):
        assert ends.link.request("echo", payload) == (payload, ())
    assert ends.link.endpoint == ends.endpoint
    assert ends.link.health == "up"


@pytest.mark.parametrize("copy", [True, False])
def test_arrays_come_back_whole_and_read_only(ends, copy):
    arrays = [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.arange(MIB, dtype=np.int64).reshape(-1, 1024),
        np.zeros((0, 3), np.uint8),
        np.arange(10, dtype=np.int32)[::2],
        np.array(7, np.uint16),
    ]
    with serving(ends.server, "echo", echo):
        back = ends.link.request("echo", b"p", arrays, copy=copy).arrays
    for sent, came in zip(arrays, back, strict=True):
        assert came.dtype == sent.dtype
        assert np.array_equal(came, sent)
        with pytest.raises(ValueError, match="read-only"):
            came[...] = 1


def test_one_way_is_over_once_it_is_taken(ends):
    inbox = ends.server.serve("tell")
    pending = ends.link.send("tell", b"news", [np.arange(3, dtype=np.int8)])
    request = inbox.get(5)
    assert request.is_one_way
    assert request.arrays[0].tolist() == [0, 1, 2]
    assert pending.wait(5)
    assert pending.outcome == "answered"
    inbox.close()


def test_a_stream_brings_every_part_in_order_within_its_window(ends):
    most_ahead = []
    taken = [10]

    def count(request):
        for number in range(request.from_pos, 300):
            assert request.push(b"%d" % number, [np.full(100, number, np.int32)]) == number
            most_ahead.append(number - taken[0])
        request.reply(b"end")

    with serving(ends.server, "count", count):
        stream = ends.link.stream("count", from_pos=10, window_bytes=8192)
        for expected, part in enumerate(stream, start=10):
            assert (part.pos, part.payload) == (expected, b"%d" % expected)
            assert part.arrays[0].tolist() == [expected] * 100
            taken[0] = part.pos
        assert stream.result().payload == b"end"
    assert len(most_ahead) == 290
    assert max(most_ahead) <= 2 * 8192 // 400 + 2  # one window under way, one not yet acknowledged


def test_a_cancelled_stream_ends_for_its_server(ends):
    ended = threading.Event()

    def endless(request):
        try:
            while True:
                request.push(bytes(1000))
        except StreamEnded:
            ended.set()
        finally:
            request.forget()

    with serving(ends.server, "endless", endless):
        with ends.link.stream("endless", window_bytes=4000) as stream:
            assert stream.get(5).pos == 0
        assert ended.wait(5)
        with pytest.raises(edgebus.RequestCancelled):
            stream.result()


def test_refusals_say_why(ends):
    with pytest.raises(edgebus.Refused) as caught:
        ends.link.request("nowhere")
    assert caught.value.code == "unknown_service"
    with serving(ends.server, "picky", lambda request: request.refuse("no", "not today", b"info")):
        with pytest.raises(edgebus.Refused) as caught:
            ends.link.request("picky", bytes(2 * MIB))
        assert (caught.value.code, caught.value.detail, caught.value.info) == ("no", "not today", b"info")
        with pytest.raises(edgebus.MessageTooLarge):
            ends.link.request("picky", b"", [np.zeros(17 * MIB, np.uint8)])


def test_a_cancelled_request_is_over_for_its_server(ends):
    inbox = ends.server.serve("slow")
    pending = ends.link.send_request("slow", timeout_s=30)
    request = inbox.get(5)
    assert request.remaining_s() > 20
    pending.cancel()
    with pytest.raises(edgebus.RequestCancelled):
        pending.result()
    ends.link.request("edgebus.ping")  # behind the cancellation
    assert request.remaining_s() == 0
    inbox.close()


def test_deadlines_hold(ends):
    inbox = ends.server.serve("never")
    with pytest.raises(edgebus.DeadlineExceeded):
        ends.link.request("never", timeout_s=0.1)
    inbox.close()


def test_a_key_is_executed_once(ends):
    with serving(ends.server, "once", echo):
        first = ends.link.request("once", b"first", key=b"k")
        assert ends.link.request("once", b"second", key=b"k") == first
    assert ends.at_server.repeated == 1


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_server_holds_no_more_than_it_said(ring, tmp_path, transport):
    """Sockets keep back what there is no credit for; within a process, where nothing is sent, it is refused."""
    with joined(ring, transport, tmp_path, max_pending_bytes=16 * MIB) as ends:
        inbox = ends.server.serve("hold")
        array = np.zeros(9 * MIB, np.uint8)
        first = ends.link.send_request("hold", b"", [array], timeout_s=30, copy=False)
        held = inbox.get(10)
        second = ends.link.send_request("hold", b"", [array], timeout_s=30, copy=False)
        if transport == "inproc":
            with pytest.raises(edgebus.Refused) as caught:
                second.result()
            assert caught.value.code == "busy"
        else:
            assert inbox.get(0.2) is None
            assert ends.at_server.bytes_pending <= 18 * MIB
        held.reply()
        first.result()
        if transport != "inproc":
            inbox.get(10).reply()
            second.result()
        inbox.close()


def test_closing_ends_what_is_open(ends):
    inbox = ends.server.serve("x")
    pending = ends.link.send_request("x")
    held = inbox.get(5)
    ends.server.close()
    with pytest.raises(edgebus.Refused) as caught:
        pending.result()
    assert caught.value.code == "closing"
    held.reply(b"too late, and harmless")
    waiting = ends.link.send_request("x", timeout_s=30)
    ends.device.close()
    with pytest.raises(edgebus.NodeClosed):
        waiting.result()


def test_a_request_waits_for_the_next_life_of_its_server(ends):
    ends.server.close()
    pending = ends.link.send_request("echo", b"still here", timeout_s=20)
    ends.server = ends.new_server()
    with serving(ends.server, "echo", echo):
        ends.server.bind(ends.endpoint)
        assert pending.result().payload == b"still here"
    assert ends.link.stats().reconnects == 1


def test_many_threads_at_once_have_one_outcome_each(ends):
    results = []

    def ask(number):
        for turn in range(50):
            payload = b"%d %d" % (number, turn)
            size = 80_000 if turn % 10 == 0 else 10
            reply = ends.link.request("echo", payload, [np.full(size, number, np.uint8)], timeout_s=30)
            results.append(reply.payload == payload and bool((reply.arrays[0] == number).all()))

    with serving(ends.server, "echo", echo):
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert results == [True] * 200
    assert balanced(ends.link.stats())
    assert balanced(ends.at_server)
    assert ends.link.stats().answered == ends.at_server.executed == 200


def test_a_link_moves_between_transports_with_what_is_open(ends):
    inbox = ends.server.serve("x")
    pending = ends.link.send_request("x", b"moved", [np.zeros(2 * MIB, np.uint8)], timeout_s=30)
    held = inbox.get(5)
    there = "tcp://127.0.0.1:0" if ends.transport == "inproc" else "inproc://there"
    ends.link.move(ends.server.bind(there))
    held.reply(held.payload, held.arrays)
    reply = pending.result()
    assert (reply.payload, reply.arrays[0].nbytes) == (b"moved", 2 * MIB)
    assert ends.link.request("edgebus.ping", b"x").payload == b"x"
    inbox.close()


# -- copies ---------------------------------------------------------------------------------------------


def exchange(ends, array, *, copy):
    """Send an array one way and the next one back; returns both views, and what was copied by (device, server)."""
    back = np.arange(array.size, dtype=array.dtype)
    inbox = ends.server.serve("swap")
    before = ends.link.stats(), ends.at_server
    pending = ends.link.send_request("swap", b"", [array], copy=copy)
    request = inbox.get(10)
    request.reply(b"", [back], copy=copy)
    reply = pending.result()
    after = ends.link.stats(), ends.at_server
    inbox.close()
    assert np.array_equal(request.arrays[0], array)
    assert np.array_equal(reply.arrays[0], back)
    copied = [
        (now.copied_bytes_sent - then.copied_bytes_sent, now.copied_bytes_received - then.copied_bytes_received)
        for then, now in zip(before, after, strict=True)
    ]
    return (request.arrays[0], reply.arrays[0]), (array, back), copied


@pytest.mark.parametrize("size", [100, 4 * MIB])
def test_inproc_copies_nothing_that_is_lent_and_once_what_is_not(ring, tmp_path, size):
    with joined(ring, "inproc", tmp_path) as ends:
        came, sent, copied = exchange(ends, np.ones(size, np.uint8), copy=False)
        assert all(np.shares_memory(*pair) for pair in zip(came, sent, strict=True))
        assert copied == [(0, 0), (0, 0)]
        came, sent, copied = exchange(ends, np.ones(size, np.uint8), copy=True)
        assert not any(np.shares_memory(*pair) for pair in zip(came, sent, strict=True))
        assert copied == [(size, 0), (size, 0)]


@pytest.mark.parametrize("transport", ["ipc", "tcp", "curve"])
def test_sockets_copy_nothing_that_is_lent_and_comes_in_one_chunk(ring, tmp_path, transport):
    size = MIB
    with joined(ring, transport, tmp_path) as ends:
        for _ in range(2):  # a new link begins with small pieces
            exchange(ends, np.ones(size, np.uint8), copy=False)
        assert exchange(ends, np.ones(size, np.uint8), copy=False)[2] == [(0, 0), (0, 0)]
        assert exchange(ends, np.ones(size, np.uint8), copy=True)[2] == [(size, 0), (size, 0)]


@pytest.mark.parametrize("transport", ["ipc", "tcp", "curve"])
def test_sockets_copy_once_at_the_receiver_what_comes_in_pieces(ring, tmp_path, transport):
    size = 4 * MIB
    with joined(ring, transport, tmp_path) as ends:
        for node in (ends.device, ends.server):  # as if small messages went by: the chunks are small then
            [attached] = node._engine.hub.links
            attached.link.pace.small(now=time.monotonic() + 60)
        (device, server) = exchange(ends, np.ones(size, np.uint8), copy=False)[2]
        assert device[0] == server[0] == 0
        assert device[1] == server[1] == size


@pytest.mark.skipif(not shm.available(), reason="no shared memory here")
@pytest.mark.parametrize("transport", ["ipc", "tcp", "curve"])
@pytest.mark.parametrize("copy", [True, False])
def test_shared_memory_copies_once_at_the_sender(ring, tmp_path, transport, copy):
    size = 2 * MIB
    with joined(ring, transport, tmp_path, share_bytes=64 * MIB) as ends:
        exchange(ends, np.ones(size, np.uint8), copy=copy)  # finds out at both ends whether the other one sees
        before = ends.link.stats().bytes_sent, ends.at_server.bytes_sent
        assert exchange(ends, np.ones(size, np.uint8), copy=copy)[2] == [(size, 0), (size, 0)]
        assert ends.link.stats().bytes_sent - before[0] < 10_000, "it went by sockets"
        assert ends.at_server.bytes_sent - before[1] < 10_000, "it went by sockets"


def test_parts_of_a_stream_are_counted_too(ring, tmp_path):
    with joined(ring, "inproc", tmp_path) as ends:
        lent = np.ones(1000, np.uint8)

        def two(request):
            request.push(b"", [lent], copy=False)
            request.push(b"", [lent], copy=True)
            request.reply()

        with serving(ends.server, "two", two):
            first, second = ends.link.stream("two")
        assert np.shares_memory(first.arrays[0], lent)
        assert not np.shares_memory(second.arrays[0], lent)
        assert ends.at_server.copied_bytes_sent == 1000
        assert ends.link.stats().copied_bytes_received == 0
