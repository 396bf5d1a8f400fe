"""Versions of the protocol side by side: each pair talks in the highest one that both know, or says why it cannot."""

from __future__ import annotations

import itertools
import logging
import threading

import msgpack
import numpy as np
import pytest
import zmq

import edgebus
from edgebus import messages as m
from edgebus.config import Limits
from edgebus.errors import ConfigError, Refused, RequestCancelled, VersionMismatch
from edgebus.hub import Hub
from edgebus.link_states import Surroundings, wire_limits
from edgebus.outcomes import Arrived, Settled
from edgebus.testing import SimNetwork
from edgebus.wire import decode
from tests.edgebus import old_peer as old

BIG = 300 * 1024
QUIET = {"seed": 1}
ROUGH = {"seed": 7, "loss": 0.1, "duplicate": 0.2, "delay_s": (0.001, 0.2)}
PAIRS = {  # dialler, listener, what they agree on
    "1_with_1": ((1, 1), (1, 1), 1),
    "1_with_2": ((1, 1), (1, 2), 1),
    "2_with_1": ((1, 2), (1, 1), 1),
    "2_with_2": ((1, 2), (1, 2), 2),
    "only_2_with_2": ((2, 2), (1, 2), 2),
    "2_with_only_2": ((1, 2), (2, 2), 2),
    "3_with_2": ((1, 3), (1, 2), 2),
    "2_with_3": ((1, 2), (1, 3), 2),
}


class Pair:
    """A device and a server of some versions on a virtual network, and all headers that went between them."""

    def __init__(self, device_versions, server_versions, seed, **faults):
        self.net = SimNetwork(seed, **faults)
        self.taken, self.withdrawn = [], []
        self.server = self.net.node("server", self.handle, versions=server_versions)
        self.device = self.net.node("device", versions=device_versions)
        self.link = self.net.connect(self.device, self.server)
        self.seen = []
        for node in (self.server, self.device):
            node.hub.taps.append(self.seen.append)

    def handle(self, request):
        self.taken.append(request.service)
        match request.service:
            case "log":
                if not request.answered:  # for a version that has no one-way messages it is a request like others
                    request.reply()
            case "no":
                request.refuse("odd", "not today", b"info")
            case "late":
                self.withdrawn.append(request)
                self.net.call_later(5.0, lambda: request.answered or request.reply(b"late"))
            case "count":
                for number in range(request.from_pos, 20):
                    assert request.try_push(b"%d" % number)
                request.reply(b"done")
            case _:
                request.reply(request.payload, request.arrays)

    def kinds(self):
        return {type(event.header) for event in self.seen}

    def num_malformed(self):
        return self.server.hub.malformed + self.device.hub.malformed

    def check_requests(self):
        assert self.link.request("echo", b"small").payload == b"small"
        array = np.arange(BIG // 4, dtype=np.float32).reshape(-1, 64)
        reply = self.link.request("echo", b"x" * 100, [array], timeout_s=60.0)
        assert reply.payload == b"x" * 100
        np.testing.assert_array_equal(reply.arrays[0], array, strict=True)
        assert self.link.request("echo", b"p" * BIG, timeout_s=60.0).payload == b"p" * BIG

    def check_others(self):
        one_way = self.link.send("log", b"line", timeout_s=60.0)
        assert self.net.run_until(one_way.done, 60.0)
        assert one_way.outcome == "answered"
        with pytest.raises(Refused, match="not today") as caught:
            self.link.request("no", timeout_s=60.0)
        assert (caught.value.code, caught.value.info) == ("odd", b"info")
        late = self.link.send_request("late", timeout_s=60.0)
        assert self.net.run_until(lambda: "late" in self.taken, 60.0)
        late.cancel()
        assert self.net.run_until(late.done, 1.0)
        with pytest.raises(RequestCancelled):
            late.result()


@pytest.mark.parametrize("faults", [QUIET, ROUGH], ids=["quiet", "rough"])
@pytest.mark.parametrize(("device", "server", "agreed"), PAIRS.values(), ids=PAIRS)
def test_each_pair_does_all_that_its_common_version_has(device, server, agreed, faults):
    pair = Pair(device, server, **faults)
    with pair.net:
        pair.check_requests()
        pair.check_others()
        assert pair.link.attached.link.version == agreed
        assert [attached.link.version for attached in pair.server.hub.links] == [agreed]
        assert pair.num_malformed() == 0
        if agreed == 1:
            check_that_all_was_version_1(pair)
        else:
            check_version_2(pair)


def check_that_all_was_version_1(pair):
    assert pair.kinds() <= {*m.Header.__args__[:10]}  # Hello .. Cancel
    content = [event for event in pair.seen if isinstance(event.header, m.Request | m.Reply)]
    assert all(event.header.transfer is None and event.header.inline is None for event in content)
    assert max(sum(event.sizes) for event in content) == BIG + 100, "it went whole"
    with pytest.raises(ConfigError, match="server speaks protocol version 1, streams need 2"):
        pair.link.stream("count")


def check_version_2(pair):
    assert pair.kinds() >= {m.Chunk, m.Credit}
    assert not any(sum(event.sizes) > 70_000 for event in pair.seen if isinstance(event.header, m.Request | m.Reply))
    stream = pair.link.stream("count", from_pos=5)
    assert [int(part.payload) for part in stream] == list(range(5, 20))
    assert stream.result().payload == b"done"


@pytest.mark.parametrize(("device", "server"), [((2, 2), (1, 1)), ((1, 1), (2, 2)), ((3, 5), (1, 2))])
def test_without_a_common_version_requests_end_at_once_and_say_why(device, server):
    pair = Pair(device, server, seed=3)
    other = pair.net.connect(pair.net.node("other", versions=server), pair.server)
    with pair.net:
        with pytest.raises(VersionMismatch, match=f"speaks {server[0]}..{server[1]}, the peer {device[0]}"):
            pair.link.request("echo")
        assert pair.net.clock.now < 1.0
        assert (pair.taken, len(pair.server.hub.links)) == ([], 1)
        assert other.request("echo", b"unharmed").payload == b"unharmed"


def test_server_that_comes_back_with_another_version_goes_on_with_that():
    pair = Pair((1, 2), (1, 1), seed=4)
    with pair.net:
        pair.check_requests()
        pair.server.versions = (1, 2)
        pair.net.restart(pair.server)
        pair.net.run(3.0)
        pair.check_requests()
        assert pair.link.attached.link.version == 2
        pair.server.versions = (1, 1)
        pair.net.restart(pair.server)
        pair.net.run(3.0)
        pair.check_requests()
        assert pair.link.attached.link.version == 1
        pending = pair.link.send_request("late", timeout_s=60.0)
        pair.server.versions = (3, 3)
        pair.net.restart(pair.server)
        pair.net.run(3.0)
        with pytest.raises(VersionMismatch, match=r"speaks 3\.\.3, the peer 1\.\.2"):
            pending.result()


@pytest.mark.parametrize("after_s", [0.02, 0.1, 0.3, 1.0])
def test_large_content_under_way_goes_on_whole_when_the_peer_comes_back_older(after_s):
    pair = Pair((1, 2), (1, 2), seed=5, delay_s=(0.05, 0.1))
    with pair.net:
        pending = pair.link.send_request("late", b"p" * BIG, timeout_s=60.0)  # answered after 5 s
        pair.net.run(after_s)
        pair.server.versions = (1, 1)
        pair.net.restart(pair.server)
        pair.net.run(0.01)
        pair.seen.clear()
        assert pair.net.run_until(pending.done, 60.0)
        assert pending.result().payload == b"late"
        pair.net.run(10.0)
        assert pair.num_malformed() == 0
        assert not pair.kinds() & {m.Chunk, m.Credit, m.Drop, m.OpenBulk}


@pytest.mark.parametrize("when", ["asked before it was known", "came back older"])
def test_stream_that_meets_version_1_ends_and_says_so(when):
    before = (1, 1) if when == "asked before it was known" else (1, 2)
    pair = Pair((1, 2), before, seed=4)
    with pair.net:
        stream = pair.link.stream("late")
        if before == (1, 2):
            pair.net.run(1.0)
            pair.server.versions = (1, 1)
            pair.net.restart(pair.server)
        pair.net.run(30.0)
        assert stream.ended
        with pytest.raises(VersionMismatch, match="speaks protocol version 1, streams need 2: upgrade it"):
            stream.result()


# -- a version that is not written yet ------------------------------------------------------------------

FUTURE_LIMITS = [65536, 16777216, 64, 33554432, 99, "more"]
UNKNOWN = [
    [20, 1],
    [99, {"what": [1, 2]}, b"x"],
    [100, None],
]


class FutureBench:
    """A hub and a peer of versions 1..3 that is played by raw bytes."""

    def __init__(self):
        numbers = itertools.count()
        around = Surroundings(name="s", limits=Limits())
        self.hub = Hub(around=around, new_incarnation=lambda: next(numbers).to_bytes(16, "big"))

    def take(self, route, header, *frames):
        self.hub.receive(route, [msgpack.packb(header), *frames], "KEY", now=0.0)
        return self.pump()

    def pump(self):
        return [decode(frames, Limits()) for _, frames in self.hub.frames_to_send(now=0.0)]


def future_hello(low, high):
    return [1, low, high, "future", bytes(16), 7, FUTURE_LIMITS, 0, [bytes(16), 1, 2, "more"], "more", [1]]


def test_dialler_of_a_later_version_is_welcome_whatever_it_adds(caplog):
    caplog.set_level(logging.CRITICAL, "edgebus")
    bench, route = FutureBench(), (1, b"r")
    [welcome] = bench.take(route, future_hello(1, 3))
    assert (welcome.header.version, welcome.header.greeting) == (2, 7)
    for number in range(10):
        for unknown in UNKNOWN:
            assert bench.take(route, unknown, b"frame") == []
        bench.take(
            route,
            [
                4,
                number,
                "s",
                1000,
                0,
                [["u1", [3, "?"][:1], "more"]],
                b"",
                [0, b"", -1, 0, 0, 0, 9],
                None,
                None,
                "more",
            ],
            b"abc",
        )
        [arrived] = [event for _, event in bench.hub.events() if isinstance(event, Arrived)]
        assert (arrived.id, arrived.service, arrived.frames) == (number, "s", (b"", b"abc"))
    [attached] = bench.hub.links
    assert (attached.link.state, bench.hub.malformed, attached.traffic.malformed) == ("up", 30, 30)


def test_listener_of_a_later_version_is_talked_to_whatever_it_adds(caplog):
    caplog.set_level(logging.CRITICAL, "edgebus")
    bench, route = FutureBench(), (1, b"")
    attached = bench.hub.dial(route, now=0.0)
    bench.hub.connected(route, now=0.0)
    [hello] = bench.pump()
    attached.link.caller.start("s", (), (b"q",), deadline_at=9.0, ref="ask", now=0.0)
    welcome = [2, 2, "future", bytes(16), hello.header.greeting, FUTURE_LIMITS, 0, None, "more"]
    [asked] = bench.take(route, welcome)
    for unknown in UNKNOWN:
        assert bench.take(route, unknown) == []
    assert attached.link.state == "up"
    assert bench.take(route, [5, asked.header.id, [], b"answer", 0, None, None, "more", 4]) == []
    [settled] = [event for _, event in bench.hub.events() if isinstance(event, Settled)]
    assert (settled.ref, settled.outcome, settled.frames) == ("ask", "answered", (b"answer",))
    assert bench.hub.malformed == len(UNKNOWN)


def test_peer_that_speaks_later_versions_only_is_told_what_we_speak():
    [goodbye] = FutureBench().take((1, b"r"), future_hello(3, 4))
    assert goodbye.header.code == "version"
    assert "speaks 1..2, the peer 3..4: upgrade the older one" in goodbye.header.detail


def test_what_a_hello_of_ours_says_is_what_version_1_reads():
    hello = m.encode_header(m.Hello(1, 2, "n", bytes(16), 1, wire_limits(Limits())))
    tag, low, high, name, incarnation, greeting, limits, *_ = msgpack.unpackb(hello)
    assert (tag, low, high, name, incarnation, greeting) == (1, 1, 2, "n", bytes(16), 1)
    assert limits[:3] == [65536, 16777216, 64]


# -- version 1 as it was, over sockets ------------------------------------------------------------------


def serve(node):
    """A thread that answers what old peers ask."""
    inbox = node.serve("echo", "no", "hold")
    held, kinds = [], set()

    def work():
        while (request := inbox.get()) is not None:
            match request.service:
                case "echo":
                    kinds.add(type(request.payload))
                    request.reply(request.payload, request.arrays)
                case "no":
                    request.refuse("odd", "not today", b"info")
                case _:
                    held.append(request)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, held, kinds


@pytest.mark.net
def test_client_of_version_1_as_it_was_talks_to_a_node():
    with edgebus.Node("server", insecure=True) as node, old.OldPeer(zmq.DEALER) as client:
        endpoint = node.bind("tcp://127.0.0.1:0")
        thread, held, kinds = serve(node)
        assert client.dial(endpoint)[:3] == [old.WELCOME, 1, "server"]
        client.send([old.REQUEST, 0, "echo", 10_000, 0, []], b"small")
        assert client.expect(old.REPLY) == ([old.REPLY, 0, []], [b"small"])
        array = np.arange(BIG, dtype=np.uint8).tobytes()
        client.send([old.REQUEST, 1, "echo", 10_000, 1, [["u1", [BIG]]]], b"p" * BIG, array)
        assert client.expect(old.REPLY) == ([old.REPLY, 1, [["u1", [BIG]]]], [b"p" * BIG, array])
        client.send([old.REQUEST, 2, "no", 10_000, 2, []], b"")
        assert client.expect(old.REFUSAL) == ([old.REFUSAL, 2, "odd", "not today"], [b"info"])
        client.send([old.REQUEST, 3, "hold", 10_000, 3, []], b"")
        client.send([old.CANCEL, 3])
        client.send([old.REQUEST, 3, "hold", 10_000, 3, []], b"")  # a resend that crossed it
        header, _ = client.expect(old.REFUSAL)
        assert header[:3] == [old.REFUSAL, 3, "cancelled"]
        client.send([old.PING])
        assert client.expect(old.PONG) == ([old.PONG], [])
        client.send([old.REQUEST, 4, "edgebus.ping", 10_000, 4, []], b"are you there")
        assert client.expect(old.REPLY) == ([old.REPLY, 4, []], [b"are you there"])
        client.send([old.GOODBYE, "closing", ""])
        stats = node.stats()
        assert (stats.malformed, stats.total.executed) == (0, 5)
    thread.join(5)
    assert [request.remaining_s() for request in held] in ([], [0.0])
    assert kinds == {bytes}, "a payload is bytes, however it came"


@pytest.mark.net
def test_client_of_version_1_is_told_why_a_node_of_later_versions_lets_it_go(monkeypatch):
    with edgebus.Node("server", insecure=True) as node, old.OldPeer(zmq.DEALER) as client:
        endpoint = node.bind("tcp://127.0.0.1:0")
        goodbye = client.dial(endpoint, 0, 0)
        assert goodbye[:2] == [old.GOODBYE, "version"]
        assert "this node speaks 1..2, the peer 0..0: upgrade the older one" in goodbye[2]


@pytest.mark.net
def test_node_talks_to_a_server_of_version_1_as_it_was():
    with old.OldPeer(zmq.ROUTER) as server, edgebus.Node("device", insecure=True) as node:
        endpoint, errors = server.listen(), []

        def work():
            try:
                server.welcome()
                for _ in range(4):
                    (_, number, service, _, _, specs), frames = server.expect(old.REQUEST)
                    if service == "no":
                        server.send([old.REFUSAL, number, "odd", "not today"], b"info")
                    else:
                        server.send([old.REPLY, number, specs], *frames)
                server.expect(old.GOODBYE)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        link = node.connect(endpoint)
        assert (link.request("echo", b"small").payload, link.peer_name) == (b"small", "old")
        array = np.arange(BIG // 4, dtype=np.int32)
        reply = link.request("echo", b"p" * BIG, [array])
        assert reply.payload == b"p" * BIG
        assert type(reply.payload) is bytes
        np.testing.assert_array_equal(reply.arrays[0], array, strict=True)
        with pytest.raises(Refused, match="not today"):
            link.request("no")
        assert link.send("log", b"line").result() == (b"line", ())
        with pytest.raises(ConfigError, match="speaks protocol version 1, streams need 2: upgrade it"):
            link.stream("count")
        link.close()
        thread.join(10)
        assert errors == []
