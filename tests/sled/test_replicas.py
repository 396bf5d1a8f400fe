"""Several servers, or one that comes back: the answer stays the same; streams that the server decodes."""

from __future__ import annotations

import contextlib
import threading
import time
from contextlib import ExitStack, contextmanager

import pytest

import edgebus
from edgebus.directory import Directory
from edgebus.errors import NodeClosed
from edgebus.services import Follower
from edgebus.testing.proxy import Proxy
from sled import Device
from sled.errors import ServerBusy, TargetChanged
from sled.run import answering
from sled.run.announcing import Presence
from sled.server import FixedWindow, ServerLimits
from sled.testing import ToyDrafter, ToyTarget
from sled.types import Sampling
from sled.window import Window

pytestmark = pytest.mark.net

PROMPT = [5, 6, 7, 8, 5, 6]
SAMPLED = Sampling(temperature=0.8, top_k=20, top_p=0.95, seed=3)
NUM_TOKENS = 40


class Rising(FixedWindow):
    """The server decodes until so many tokens have been decided, then devices draft; and again after so many rounds."""

    def __init__(self, first=10, again=4):
        super().__init__(0)
        self.left, self.again, self.drafted = first, again, 0

    def verdict(self, session_id, drafted, accepted):
        if drafted:
            self.drafted += 1
            if self.drafted == self.again:
                self.left = 5
        else:
            self.left -= 1

    def limit(self, session_id, now):
        return 0 if self.left > 0 else 4


class Held(ToyTarget):
    """Computes no more than a part of an answer until it is let go on."""

    def __init__(self, steps) -> None:
        super().__init__()
        self.left, self.go_on = steps, threading.Event()

    def verify(self, chunks, rounds):
        self.left -= 1
        assert self.left >= 0 or self.go_on.wait(20.0)
        return super().verify(chunks, rounds)


@contextmanager
def two(served, *, device=None, proxied=False, target=None, other=None, **more):
    """Two servers of one target, and a device that begins at the first one."""
    with ExitStack() as stack:
        first = stack.enter_context(served.serving(target=target or ToyTarget(), **more))
        second = stack.enter_context(served.serving(target=other or ToyTarget(), name="other", **more))
        served.proxy = None
        if proxied:
            served.proxy = stack.enter_context(Proxy(int(first.rpartition(":")[2])))
            first = served.proxy.endpoint
        unit = stack.enter_context(served.device([first, second], **(device or {})))
        pool = unit._servers._pool
        pool.wait_ready(10.0, servers=2)
        # Whoever is chosen first is chance: make it the first one.
        unit._servers._avoided[second] = time.monotonic() + 1e6
        served.second = second
        yield unit


def begin(served, device, *, tokens=5, window=3, **more):
    """Some tokens of an answer from the first server, which alone may be asked so far."""
    stream = device.generate(PROMPT, max_tokens=NUM_TOKENS, sampling=SAMPLED, window=Window(window), **more)
    iterator = iter(stream)
    got = [next(iterator).id for _ in range(tokens)]
    assert committed(served, "server") >= tokens
    device._servers._avoided.clear()
    return stream, iterator, got


def right(served, sampling=SAMPLED, num_tokens=NUM_TOKENS):
    return served.target.plain_answer(PROMPT, sampling, num_tokens)


def none_left(served):
    """The server forgets every session, and soon."""
    until = time.monotonic() + 5.0
    while len(served.server._machine.sessions):
        assert time.monotonic() < until
        threading.Event().wait(0.01)


def committed(served, name):
    """Tokens committed by a server that runs on another thread."""
    return served.servers[name]._board.counters["committed"]


@pytest.mark.parametrize("policy", [lambda: None, lambda: FixedWindow(0)], ids=["rounds", "stream"])
def test_server_that_vanishes_is_replaced_and_the_answer_is_the_same(served, policy):
    """The connection is cut and the port refuses: what a killed process looks like."""
    target = Held(steps=8)
    with two(served, proxied=True, policy=policy(), target=target) as device:
        stream, iterator, got = begin(served, device)
        served.proxy.refuse()
        served.proxy.cut()
        target.go_on.set()
        got += [token.id for token in iterator]
        assert got == right(served) == stream.answer().tokens
        assert stream.moves >= 1
        assert device.server == served.second
        assert committed(served, "other") > 0
        assert device.generate(PROMPT, max_tokens=4).answer().tokens == right(served, Sampling(), 4)


@pytest.mark.parametrize("policy", [lambda: None, lambda: FixedWindow(0)], ids=["rounds", "stream"])
def test_server_that_drains_hands_its_answers_over(served, policy):
    target = Held(steps=8)
    with two(served, drain_s=0.0, policy=policy(), target=target) as device:
        stream, iterator, got = begin(served, device)
        served.servers["server"].drain()
        target.go_on.set()
        got += [token.id for token in iterator]
        assert got == right(served)
        assert stream.moves >= 1
        assert device.server == served.second


def test_draining_server_finishes_what_runs_and_refuses_what_is_new(served):
    with two(served, drain_s=60.0) as device:
        stream, iterator, got = begin(served, device)
        served.servers["server"].drain()
        got += [token.id for token in iterator]
        assert got == right(served)
        assert stream.moves == 0
        device._servers._avoided[served.second] = time.monotonic() + 1e6
        new = device.generate(PROMPT, max_tokens=4)
        assert new.answer().tokens == right(served, Sampling(), 4)


def test_server_restarted_on_its_port_in_the_middle_of_a_stream_goes_on(served):
    with served.serving(policy=FixedWindow(0)) as endpoint:
        device = served.device(endpoint)
        stream = device.generate(PROMPT, max_tokens=NUM_TOKENS, sampling=SAMPLED)
        iterator = iter(stream)
        got = [next(iterator).id for _ in range(3)]
    with served.serving(endpoint, target=ToyTarget(), policy=FixedWindow(0)), device:
        got += [token.id for token in iterator]
        assert got == right(served)


@pytest.mark.parametrize("num_servers", [1, 2])
def test_device_that_was_given_both_keys_of_a_server_works_with_either(served, num_servers):
    """While a server changes its key: cat server.key server.key.new > servers.key."""
    both = served.directory / "servers.key"
    both.write_text("".join((served.directory / name / "node.key").read_text() for name in ("other", "server")))
    with served.serving() as endpoint:
        where = {"server_key": [both] * num_servers, "keys": served.directory / "device", "remember": False}
        with Device([endpoint] * num_servers, drafter="none", timeout_s=10.0, **where) as device:
            assert len(list(device.generate(PROMPT, max_tokens=3))) == 3


def test_other_target_does_not_finish_the_answer(served):
    with two(served, proxied=True, other=ToyTarget(seed=1), device={"timeout_s": 2.0}) as device:
        device.target = served.target.described  # as if it had asked the first one
        _, iterator, _ = begin(served, device)
        served.proxy.refuse()
        served.proxy.cut()
        with pytest.raises((TargetChanged, edgebus.PeerUnreachable), match=r"start again|no server lived"):
            list(iterator)
        assert committed(served, "other") == 0


def test_full_server_leads_to_the_other_one_and_two_full_ones_to_an_error(served):
    with two(served, limits=ServerLimits(max_sessions=1)) as device:
        first, _, _ = begin(served, device)
        endpoints = [endpoint for endpoint, _ in device._servers._endpoints]
        with served.device(endpoints) as more, served.device(endpoints, timeout_s=1.5) as last:
            for unit in (more, last):
                unit._servers._pool.wait_ready(10.0, servers=2)
            second = more.generate(PROMPT, max_tokens=NUM_TOKENS, sampling=SAMPLED)
            next(iter(second))
            assert more.server == served.second
            with pytest.raises(ServerBusy):
                last.generate(PROMPT, max_tokens=4).answer()
            assert second.answer().tokens == right(served)
        first.close()


def test_single_server_names_another_one_when_it_stops(served):
    """A device that knows one server is told of the second by it."""
    with served.serving(target=ToyTarget(), name="other") as second:
        key = edgebus.read_public_key(served.directory / "other" / "node.key")
        with (
            served.serving(target=ToyTarget(), others=[(second, key)], limits=ServerLimits(max_sessions=1)) as first,
            served.device(first) as one,
            served.device(first) as two,
        ):
            stream = one.generate(PROMPT, max_tokens=NUM_TOKENS, sampling=SAMPLED)
            next(iter(stream))
            assert two.generate(PROMPT, max_tokens=4).answer().tokens == right(served, Sampling(), 4)
            assert (one.server, two.server) == (first, second)


def test_server_is_chosen_by_announced_load(served):
    with two(served) as device:
        presences = {}
        for name, endpoint in zip(("server", "other"), (device._servers._endpoints[0][0], served.second), strict=True):
            presences[name] = Presence(served.nodes[name], "sled", [endpoint], max_sessions=256, target_id=b"toy")
        presences["server"].look(10_000)
        device._servers._avoided.clear()
        until = time.monotonic() + 10.0
        while {each.load for each in device._servers._pool.stats().members.values()} != {10_000 / 256, 0.0}:
            assert time.monotonic() < until
            threading.Event().wait(0.01)
        for _ in range(8):
            device.generate(PROMPT, max_tokens=2).answer()
        assert committed(served, "other") >= 14
        presences["server"].withdraw()
        presences["server"].withdraw()


def test_directory_names_a_server_that_the_device_did_not_know(served):
    """The device knows a node that serves nothing; it passes on what a server announces."""
    with served.serving(name="other") as endpoint:
        key = edgebus.read_public_key(served.directory / "other" / "node.key")
        presence = Presence(served.nodes["other"], "sled", [endpoint], max_sessions=256, target_id=b"toy")
        own = edgebus.load_keys(served.directory / "server")
        edgebus.add_to_allow_list(served.allow_file, served.directory / "server" / "node.key")
        with (
            edgebus.Node("directory", keys=own, allow=edgebus.AllowList.any()) as relay,
            contextlib.closing(Follower(Directory(), republish=relay)) as follower,
        ):
            where = relay.bind("tcp://127.0.0.1:0")
            follower.follow(relay.connect(endpoint, key), key)
            until = time.monotonic() + 10.0
            while not follower.directory.records():
                follower.turn(time.monotonic())
                assert time.monotonic() < until
            with served.device(where, directory=True) as device:
                assert device.generate(PROMPT, max_tokens=8).answer().tokens == right(served, Sampling(), 8)
                assert device.server == endpoint
        presence.withdraw()


# -- streams that the server decodes ------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED], ids=["greedy", "sampled"])
def test_device_takes_the_stream_until_drafting_pays_again(served, sampling):
    policy = Rising()
    with (
        served.serving(policy=policy) as endpoint,
        served.device(endpoint, ToyDrafter(served.target)) as device,
    ):
        answer = device.generate(PROMPT, max_tokens=NUM_TOKENS, sampling=sampling, window=Window(4)).answer()
        assert answer.tokens == right(served, sampling)
        if len(answer.tokens) == NUM_TOKENS:
            assert policy.drafted > policy.again
            assert policy.left <= 0
        assert answer.stats.drafted > 0


def test_stream_stops_at_max_tokens_and_frees_its_session(served):
    with served.serving(policy=FixedWindow(0)) as endpoint, served.device(endpoint) as device:
        answer = device.generate(PROMPT, max_tokens=7, sampling=SAMPLED).answer()
        assert answer.tokens == right(served, num_tokens=7)
        assert answer.finish_reason == "length"
        assert answer.stats.drafted == 0
        none_left(served)
        assert committed(served, "server") == 7


def test_stream_that_the_user_breaks_off_ends_at_the_server_too(served):
    target = ToyTarget(max_positions=100_000)
    with served.serving(target=target, policy=FixedWindow(0)) as endpoint, served.device(endpoint) as device:
        stream = device.generate(PROMPT, max_tokens=90_000, sampling=SAMPLED)
        iterator = iter(stream)
        next(iterator)
        stream.close()
        until = time.monotonic() + 10.0
        while len(served.server._machine.sessions) or not served.server._machine.idle:
            assert time.monotonic() < until
        assert device.generate(PROMPT, max_tokens=4).answer().tokens == right(served, Sampling(), 4)


class Gated(ToyTarget):
    """Computes nothing while its gate is shut."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.stands = threading.Event(), threading.Event()
        self.gate.set()

    def verify(self, chunks, rounds):
        if not self.gate.is_set():
            self.stands.set()
            assert self.gate.wait(20.0)
        return super().verify(chunks, rounds)


@pytest.mark.parametrize("leaves", [False, True], ids=["stays", "leaves"])
def test_server_that_is_busy_when_an_answer_ends_forgets_its_session_all_the_same(served, monkeypatch, leaves):
    monkeypatch.setattr(answering, "_FORGET_S", 0.01)
    target = Gated()
    with served.serving(target=target) as endpoint, served.device(endpoint) as one, served.device(endpoint) as two:
        stream = one.generate(PROMPT, max_tokens=NUM_TOKENS, sampling=SAMPLED)
        next(iter(stream))
        target.gate.clear()
        other = threading.Thread(target=lambda: two.generate(PROMPT, max_tokens=4).answer())
        other.start()
        assert target.stands.wait(10.0)
        stream.close()
        leaving = threading.Thread(target=one.close if leaves else lambda: None)
        leaving.start()
        threading.Event().wait(0.1)  # longer than the device waits for the server's word
        target.gate.set()
        for thread in (other, leaving):
            thread.join(10.0)
        none_left(served)


def test_device_that_closes_in_the_middle_of_an_answer_leaves_no_session(served):
    with served.serving() as endpoint:
        device = served.device(endpoint)
        stream = device.generate(PROMPT, max_tokens=NUM_TOKENS, sampling=SAMPLED)
        next(iter(stream))
        device.close()
        none_left(served)
        with pytest.raises(NodeClosed):
            stream.answer()


def test_answer_that_is_interrupted_while_it_is_opened_leaves_no_session(served, monkeypatch):
    with served.serving() as endpoint, served.device(endpoint) as device:
        stream = device.generate(PROMPT, max_tokens=NUM_TOKENS, sampling=SAMPLED)

        def interrupted(pending):
            assert pending.wait(10.0)
            raise KeyboardInterrupt

        monkeypatch.setattr(stream, "_idle", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(iter(stream))
        none_left(served)


def test_device_that_does_not_read_holds_the_server_back(served):
    """Without the window of the stream the server would decode the whole answer ahead."""
    target = ToyTarget(max_positions=100_000)
    longest = 20_000
    with served.serving(target=target, policy=FixedWindow(0)) as endpoint, served.device(endpoint) as device:
        prompt = endless(target)
        stream = device.generate(prompt, max_tokens=longest)
        iterator = iter(stream)
        next(iterator)
        until = time.monotonic() + 10.0
        before = -1.0
        while (now := committed(served, "server")) != before:
            before = now
            assert time.monotonic() < until
            threading.Event().wait(0.1)
        assert 1 < now < longest / 4
        for _ in range(1000):
            next(iterator)
        stream.close()


def endless(target):
    """A prompt whose greedy answer runs in a circle."""
    return next(
        [first, second]
        for first in range(1, 50)
        for second in range(1, 50)
        if len(target.plain_answer([first, second], Sampling(), 60)) == 60
        and 0 not in target.plain_answer([first, second], Sampling(), 2600)[-1:]
        and len(target.plain_answer([first, second], Sampling(), 2600)) == 2600
    )


def test_trace_and_stats_over_the_bus(served):
    with served.serving() as endpoint, served.device(endpoint, ToyDrafter(served.target)) as device:
        stream = device.generate(PROMPT, max_tokens=NUM_TOKENS, sampling=SAMPLED, window=Window(4))
        iterator = iter(stream)
        tokens = [next(iterator) for _ in range(12)]
        traced = stream.trace()
        assert sum(each.tokens for each in traced.rounds) >= len(tokens)
        assert traced.rounds[0].base == len(PROMPT)
        assert all(each.drafted == 4 for each in traced.rounds[:2])
        stream.close()


def test_busy_server_says_when_to_come_back(served):
    limits = ServerLimits(max_sessions=1)
    with (
        served.serving(limits=limits) as endpoint,
        served.device(endpoint) as one,
        served.device(endpoint, timeout_s=1.5) as two,
    ):
        first = one.generate(PROMPT, max_tokens=10)
        next(iter(first))
        with pytest.raises(ServerBusy) as busy:
            two.generate(PROMPT, max_tokens=10).answer()
        assert busy.value.retry_after_s > 0
        assert busy.value.servers == []
