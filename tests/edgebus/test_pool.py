"""A pool over real sockets: the less loaded server, fail-over, sticky requests, servers that move; announcements."""

from __future__ import annotations

import contextlib
import doctest
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from msgspec.structs import replace

import edgebus
from edgebus import pool as pool_module
from edgebus.directory import TOPIC, Directory, Joined, Left, encode_record, fingerprint
from edgebus.members import Member, Members, Patience
from edgebus.pool import Pool
from edgebus.services import Follower, announce
from edgebus.testing import Proxy

pytestmark = pytest.mark.net
QUICK = edgebus.Limits(heartbeat_s=0.2, silence_s=0.5, resend_s=0.2)
PATIENCE = Patience(dial_s=1.0, move_s=0.2, most_delay_s=0.3)
ANY = "tcp://127.0.0.1:0"


class Server:
    """A node that answers `who` with its name, at once or when it is told to."""

    def __init__(self, name, endpoint=ANY, *, node=None, refuse="", services=("who",)):
        self.node = node or edgebus.Node(name, insecure=True, limits=QUICK)
        self.name = name
        self.seen = []
        self.refuse = refuse
        self.hold = False
        for service in services:
            self.node.handle(service, self._answer)
        self.endpoint = self.node.bind(endpoint)

    def _answer(self, request):
        self.seen.append(request)
        if self.refuse:
            request.refuse(self.refuse, "as I was told")
        elif not self.hold:
            request.reply(self.name.encode())

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.node.close(linger_s=0.1)


@contextlib.contextmanager
def pool_of(*endpoints, service=None, node=None, **options):
    """A pool of plaintext servers, ready."""
    with node or edgebus.Node("client", insecure=True, limits=QUICK) as client:
        keyed = [each if isinstance(each, tuple) else (each, None) for each in endpoints]
        options = {"patience": PATIENCE, "chance": random.Random(1)} | options
        with Pool(client, keyed, service, **options) as pool:
            yield pool


def until(condition, timeout_s=10.0):
    """Wait for something that other threads bring about."""
    end_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_at, "it did not happen in time"
        threading.Event().wait(0.005)


def names(pool, count=20, **options):
    return {pool.request("who", timeout_s=5, **options).payload for _ in range(count)}


def test_requests_spread_over_live_servers_and_a_dead_one_is_no_harm():
    with Server("a") as a, Server("b") as b, pool_of(a.endpoint, b.endpoint, "tcp://127.0.0.1:1") as pool:
        pool.wait_ready(5, servers=2)
        assert names(pool, 40) == {b"a", b"b"}
        stats = pool.stats()
        assert (stats.requests, stats.answered, stats.failed, stats.attempts) == (40, 40, 0, 40)
        assert sum(each.requests for each in stats.members.values()) == 40
        dead = stats.members["at tcp://127.0.0.1:1"]
        assert (dead.health, dead.requests) == ("down", 0)
        until(lambda: "nobody listens" in pool.stats().members["at tcp://127.0.0.1:1"].last_error)


def test_busy_server_is_passed_over_and_the_application_own_no_is_final():
    with Server("a", refuse="busy") as a, Server("b") as b, pool_of(a.endpoint, b.endpoint) as pool:
        pool.wait_ready(5, servers=2)
        assert names(pool) == {b"b"}
        stats = pool.stats()
        assert stats.attempts == stats.requests + len(a.seen)
        assert stats.reasons == {"busy": len(a.seen)}
        assert 0 < len(a.seen) < 10, "a server that is full is left alone for a while"
        a.refuse = b.refuse = "not_today"
        with pytest.raises(edgebus.Refused, match="not_today"):
            pool.request("who")
        assert pool.stats().failed == 1


def test_all_servers_busy_ends_at_the_deadline_with_their_refusal():
    with Server("a", refuse="busy") as a, Server("b", refuse="busy") as b, pool_of(a.endpoint, b.endpoint) as pool:
        pool.wait_ready(5, servers=2)
        began = time.monotonic()
        with pytest.raises(edgebus.Refused, match="busy"):
            pool.request("who", timeout_s=0.5)
        assert time.monotonic() - began < 0.5 + 2.0
        assert len(a.seen) >= 2
        assert len(b.seen) >= 2


def test_request_that_may_repeat_goes_elsewhere_when_its_server_dies():
    with Server("a") as a, Server("b") as b, pool_of(a.endpoint, b.endpoint) as pool:
        pool.wait_ready(5, servers=2)
        a.hold = b.hold = True
        results = []
        thread = threading.Thread(target=lambda: results.append(pool.request("who", timeout_s=20, may_repeat=True)))
        thread.start()
        until(lambda: a.seen or b.seen)
        first, other = (a, b) if a.seen else (b, a)
        other.hold = False
        first.seen.clear()
        first.node.close(linger_s=0.1)
        thread.join(10)
        assert not thread.is_alive()
        assert results[0].payload == other.name.encode()
        assert pool.stats().attempts == 2


@pytest.mark.parametrize("safe", [{}, {"key": b"once"}])
def test_request_is_repeated_elsewhere_only_if_that_is_safe(safe):
    """The server takes it and falls silent: it may have executed it."""
    with Server("a") as a, Server("b") as b, pool_of(a.endpoint, b.endpoint) as pool:
        pool.wait_ready(5, servers=2)
        a.hold = b.hold = True
        outcome = []

        def ask():
            try:
                outcome.append(pool.request("who", timeout_s=3, **safe).payload)
            except edgebus.RemoteError as error:
                outcome.append(type(error))

        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: a.seen or b.seen)
        first, other = (a, b) if a.seen else (b, a)
        other.hold = False
        first.node.close(linger_s=0.1)
        thread.join(10)
        assert outcome == ([other.name.encode()] if safe else outcome)
        if not safe:
            assert outcome[0] in (edgebus.LinkLost, edgebus.Refused, edgebus.DeadlineExceeded)
            assert other.seen == []


def test_request_that_may_repeat_leaves_a_server_whose_application_hangs():
    """Requests lie at a server that answers pings and serves nobody: they are given to the other one."""
    with Server("stuck", services=()) as stuck, Server("b") as other:
        inbox = stuck.node.serve("who")
        with pool_of(stuck.endpoint, other.endpoint) as pool, ThreadPoolExecutor(8) as threads:
            pool.wait_ready(5, servers=2)
            other.hold = True  # so that both are given some
            asked = [threads.submit(pool.request, "who", timeout_s=20, may_repeat=True) for _ in range(8)]
            until(lambda: pool.stats().attempts == 8 and other.seen and inbox.stalled_s(time.monotonic()) > 0)
            other.hold = False
            for request in list(other.seen):
                request.reply(b"b")
            began = time.monotonic()
            assert {each.result().payload for each in asked} == {b"b"}
            assert time.monotonic() - began < 5
        assert len(other.seen) == 8
        inbox.close()


def test_no_server_is_waited_for_until_the_deadline():
    with pool_of("tcp://127.0.0.1:1") as pool:
        with pytest.raises(edgebus.PeerUnreachable, match=r"no server lived within 0\.3 s: tcp://127.0.0.1:1 is down"):
            pool.request("who", timeout_s=0.3)
        with pytest.raises(edgebus.PeerUnreachable):
            pool.wait_ready(0.1)
        with pytest.raises(edgebus.PeerUnreachable):
            pool.link(0.1)
        assert (pool.stats().failed, pool.stats().attempts) == (1, 0)
    with pytest.raises(edgebus.NodeClosed):
        pool.request("who")


def test_server_that_comes_later_is_found():
    with Server("a") as a:
        endpoint = a.endpoint
    with pool_of(endpoint) as pool:
        results = []
        thread = threading.Thread(target=lambda: results.append(pool.request("who", timeout_s=15)))
        thread.start()
        until(lambda: pool.stats().members["at " + endpoint].dials >= 2)
        with Server("late", endpoint):
            thread.join(15)
            assert results[0].payload == b"late"


def test_sticky_requests_stay_until_their_server_dies():
    with Server("a") as a, Server("b") as b, pool_of(a.endpoint, b.endpoint) as pool:
        pool.wait_ready(5, servers=2)
        first = names(pool, affinity="session")
        assert len(first) == 1
        assert names(pool, 40) == {b"a", b"b"}
        stuck = a if first == {b"a"} else b
        stuck.node.close(linger_s=0.1)
        until(lambda: pool.stats().members["at " + stuck.endpoint].health == "down")
        assert names(pool, affinity="session") == {b"a", b"b"} - first
        assert pool.link(affinity="session").peer_name == {"a": "b", "b": "a"}[stuck.name]


def test_link_avoids_servers_that_are_not_wanted_and_new_ones_can_be_added():
    with Server("a") as a, Server("b") as b, Server("c") as c, pool_of(a.endpoint, b.endpoint) as pool:
        pool.wait_ready(5, servers=2)
        assert {pool.link(but=lambda link: link.peer_name == "a").peer_name for _ in range(8)} == {"b"}
        with pytest.raises(edgebus.PeerUnreachable):
            pool.link(0.1, but=lambda link: True)
        pool.add(c.endpoint, None)
        pool.wait_ready(5, servers=3)
        assert pool.link(but=lambda link: link.peer_name in ("a", "b")).peer_name == "c"


def test_announced_load_decides():
    with Server("a") as a, Server("b") as b, pool_of(a.endpoint, b.endpoint, service="who") as pool:
        heavy = announce(a.node, "who", [a.endpoint], load=50.0, capacity=64)
        announce(b.node, "who", [b.endpoint], capacity=64)
        until(lambda: {each.load for each in pool.stats().members.values()} == {0.0, 50.0})
        pool.wait_ready(5, servers=2)
        assert names(pool) == {b"b"}
        heavy.update(load=0.0)
        until(lambda: {each.load for each in pool.stats().members.values()} == {0.0})
        assert names(pool, 40) == {b"a", b"b"}
        heavy.withdraw()
        heavy.withdraw()
        until(lambda: len(pool._members.candidates(time.monotonic())) == 2)


def test_server_that_announces_other_services_only_is_not_asked():
    with Server("a") as a, Server("b") as b, pool_of(a.endpoint, b.endpoint, service="who") as pool:
        pool.wait_ready(5, servers=2)
        announce(a.node, "something else", [a.endpoint])
        until(lambda: len(pool._members.candidates(time.monotonic())) == 1)
        assert names(pool) == {b"b"}


class Secure:
    """Nodes with keys; everybody may connect."""

    def __init__(self, ring_dir, *more):
        self.keys = {}
        for name in ("server", "device", "stranger", *more):
            directory = ring_dir / f"pool-{name}"
            if not directory.exists():
                edgebus.generate_keys(directory)
            self.keys[name] = edgebus.load_keys(directory)

    def node(self, name, key=None):
        return edgebus.Node(name, keys=self.keys[key or name], allow=edgebus.AllowList.any(), limits=QUICK)

    def public(self, name):
        return self.keys[name].public


@pytest.fixture
def secure(ring_dir):
    return Secure(ring_dir, "relay")


def test_rebooted_server_is_found_at_the_address_a_directory_node_gives(secure):
    """The server moves; a directory node has it from the server itself, the pool from the directory node."""
    with secure.node("relay") as relay, Server("old", node=secure.node("server")) as old:
        relay_at = relay.bind(ANY)
        announce(old.node, "who", [old.endpoint])
        with (
            secure.node("follower", "stranger") as reader,
            contextlib.closing(Follower(Directory(), republish=relay)) as follower,
            pool_of(
                (relay_at, secure.public("relay")),
                service="who",
                node=secure.node("device"),
                trusted=[secure.public("relay")],
            ) as pool,
        ):
            follower.follow(reader.connect(old.endpoint, secure.public("server")), secure.public("server"))
            until(lambda: follower.turn(time.monotonic()) or follower.directory.live("who"))
            until(lambda: secure.public("server") in pool.stats().members)
            assert names(pool, 5) == {b"old"}
            old.node.close(linger_s=0.1)
            with Server("new", node=secure.node("server")) as new:
                announce(new.node, "who", [new.endpoint])
                follower.follow(reader.connect(new.endpoint, secure.public("server")), secure.public("server"))
                until(lambda: follower.turn(time.monotonic()))
                began = time.monotonic()
                assert names(pool, 5, may_repeat=True) == {b"new"}
                assert time.monotonic() - began < 5
                assert pool.stats().members[secure.public("server")].endpoint == new.endpoint


def test_hint_is_tried_with_the_key_we_know_and_a_liar_gains_nothing(secure):
    hints = []
    with Server("old", node=secure.node("server")) as old, Server("liar", node=secure.node("stranger")) as liar:
        known = secure.public("server")
        with pool_of((old.endpoint, known), node=secure.node("device"), hints=lambda: list(hints)) as pool:
            pool.wait_ready(5)
            hints.append((fingerprint(known), liar.endpoint))
            hints.append((fingerprint(secure.public("stranger")), liar.endpoint))
            until(lambda: pool.stats().strange_hints == 1)
            old.node.close(linger_s=0.1)
            until(lambda: "holds another key" in pool.stats().members[known].last_error, 20)
            with Server("new", node=secure.node("server")) as new:
                hints.append((fingerprint(known), new.endpoint))
                assert names(pool, 5, may_repeat=True) == {b"new"}
                assert pool.stats().members[known].moves == 1
            assert liar.seen == []
            assert set(pool.stats().members) == {known}


def test_lies_in_any_number_leave_a_server_its_static_address(secure):
    """Whoever saw its fingerprint on the network can announce it for as many addresses as he likes."""
    quick = Patience(dial_s=0.05, least_delay_s=0.01, most_delay_s=0.05, move_s=0.2)
    with Server("server", node=secure.node("server")) as server:
        known = secure.public("server")
        lies = [(fingerprint(known), f"tcp://127.0.0.{number}:1") for number in range(1, 60)]
        with pool_of((server.endpoint, known), node=secure.node("device"), hints=lambda: lies, patience=quick) as pool:
            pool.wait_ready(5)
            assert pool.stats().members[known].endpoint == server.endpoint


def test_addresses_that_come_and_go_bring_one_dial_forward_a_second_and_displace_no_static_one():
    member = Member("m", "KEY", ["tcp://static:1"], fixed=True, static={"tcp://static:1"})
    dialled = []
    for number in range(40):
        member.hinted([f"tcp://lie:{number + 1}"], now=number * 0.1)
        if member.dial_at == 0.0:
            dialled.append(member.next_endpoint())
            member.dial_at = 1e9
    assert dialled == ["tcp://static:1", "tcp://lie:11", "tcp://static:1", "tcp://lie:31"]
    for number in range(40):
        member.offer(f"tcp://record:{number}")
    assert len(member.addresses) == 17
    assert member.addresses[-1] == "tcp://static:1"
    member.hinted([], now=9.0)
    assert member.next_endpoint() == "tcp://record:39", "what nobody announces any more is not tried"


def test_link_that_comes_when_its_server_has_left_is_closed():
    class FalseLink:
        health, closed = "up", False

        def close(self):
            self.closed = True

    class FalseNode:
        def connect(self, endpoint, key, timeout_s):
            members.by_id.clear()  # the directory withdrew it meanwhile
            return link

    link = FalseLink()
    members = Members(FalseNode(), None, None, PATIENCE, random.Random(1))
    member = members.add("tcp://a:1", "KEY", fixed=False)
    members._dial(member, "tcp://a:1")
    assert (member.link, link.closed) == (None, True)


def test_what_was_asked_over_the_old_link_is_answered_although_the_server_was_found_elsewhere(secure):
    hints = []
    with Server("server", node=secure.node("server")) as server, Proxy(server.endpoint) as proxy:
        elsewhere, known = server.node.bind(ANY), secure.public("server")
        with pool_of((proxy.endpoint, known), node=secure.node("device"), hints=lambda: list(hints)) as pool:
            old = pool.link(5)
            server.hold = True
            pending = old.send_request("who", timeout_s=20)
            until(lambda: server.seen)
            server.hold = False
            proxy.stall()
            hints.append((fingerprint(known), elsewhere))
            until(lambda: pool.stats().members[known].moves == 1)
            assert pool.link(5).endpoint == elsewhere
            proxy.resume()
            server.seen[0].reply(b"late")
            assert pending.result().payload == b"late"


def test_follower_merges_what_peers_say_of_themselves_and_a_lease_ends(secure):
    with secure.node("device") as device, contextlib.closing(Follower(Directory(lease_s=0.3))) as follower:
        with secure.node("server") as server:
            announcement = announce(server, "who", ["tcp://10.0.0.1:1"], meta={"gpu": "a"})
            endpoint = server.bind(ANY)
            follower.follow(device.connect(endpoint, secure.public("server")), secure.public("server"))
            events = []
            until(lambda: events.extend(follower.turn(time.monotonic())) or events)
            assert events == [Joined(announcement.record)]
            assert announcement.record.key == secure.public("server")
            # A record about another node, from a server that is not trusted to speak for others.
            other = announce(server, "lie", ["tcp://10.0.0.1:1"]).record
            forged = replace(other, key="x" * 40)
            server.publish(TOPIC, forged.id, encode_record(forged))
            until(lambda: follower.turn(time.monotonic()) or follower.directory.rejected["foreign"])
            assert follower.directory.live("lie")[0].key == secure.public("server")
        events.clear()
        until(lambda: events.extend(follower.turn(time.monotonic())) or len(events) == 2)
        assert {type(event) for event in events} == {Left}


def test_announcement_survives_a_clock_that_went_back(tmp_path, monkeypatch):
    with edgebus.Node("a", insecure=True) as node:
        first = announce(node, "who", [], epoch_file=tmp_path / "epoch")
        monkeypatch.setattr(time, "time_ns", lambda: 5_000_000)
        second = announce(node, "who", [], epoch_file=tmp_path / "epoch")
        assert second.record.epoch == first.record.epoch + 1
        third = announce(node, "who", [])
        assert third.record.epoch == 5
        third.exceed(second.record.epoch)
        assert third.record.epoch == second.record.epoch + 1
        third.exceed(7)
        assert third.record.epoch == second.record.epoch + 1


def test_epoch_file_that_cannot_be_written_is_said_with_its_remedy(tmp_path):
    with edgebus.Node("server", insecure=True) as node:
        with pytest.raises(edgebus.FileError, match=f"epoch file {tmp_path}/none/epoch: No such .*; check the path"):
            announce(node, "who", [], epoch_file=tmp_path / "none" / "epoch")
        with pytest.raises(OSError, match="Is a directory"):
            announce(node, "who", [], epoch_file=tmp_path)


def test_node_that_hears_of_a_later_life_of_its_own_exceeds_it(secure):
    """Its clock went back and it kept no file: a directory node still has the record of its last life."""
    with secure.node("relay") as relay, secure.node("server") as server:
        before = announce(server, "who", ["tcp://10.0.0.1:1"]).record
        relay.publish(TOPIC, before.id, encode_record(replace(before, epoch=before.epoch + 1000)))
        mine = announce(server, "who", ["tcp://10.0.0.1:2"])
        with contextlib.closing(Follower(Directory(), trusted=[secure.public("relay")])) as follower:
            follower.exceed_for(mine)
            link = server.connect(relay.bind(ANY), secure.public("relay"))
            follower.follow(link, secure.public("relay"))
            until(lambda: follower.turn(time.monotonic()) or mine.record.epoch == before.epoch + 1001)
            assert mine.record.endpoints == ["tcp://10.0.0.1:2"]


def test_announced_endpoint_has_to_be_dialable():
    with edgebus.Node("a", insecure=True) as node:
        for endpoint in ("tcp://0.0.0.0:7000", "tcp://*:7000", "tcp://[::]:7000"):
            with pytest.raises(ValueError, match="nobody can dial"):
                announce(node, "who", [endpoint])
        announcement = announce(node, "who", ["tcp://10.0.0.1:7000"])
        with pytest.raises(ValueError, match="not a valid Record"):
            announcement.update(load=-1)
        assert announcement.record.version == 0


def test_pool_needs_a_server_to_begin_with():
    with edgebus.Node("a", insecure=True) as node, pytest.raises(edgebus.ConfigError, match="at least one server"):
        Pool(node, [])


def test_many_threads_share_a_pool_while_a_server_comes_and_goes():
    with Server("a") as a, Server("b") as b, pool_of(a.endpoint, b.endpoint) as pool:
        pool.wait_ready(5, servers=2)
        failures, total = [], []

        def work():
            for _ in range(60):
                try:
                    total.append(pool.request("who", timeout_s=15, may_repeat=True).payload)
                except edgebus.EdgebusError as error:
                    failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        until(lambda: len(total) > 100)
        b.node.close(linger_s=0.1)
        for thread in threads:
            thread.join(30)
        assert failures == []
        assert len(total) == 360
        stats = pool.stats()
        assert (stats.requests, stats.answered, stats.failed) == (360, 360, 0)
        assert stats.attempts == 360 + sum(stats.reasons.values())
        assert all(each.outstanding == 0 for each in stats.members.values())


def test_doctests_hold():
    result = doctest.testmod(pool_module, extraglobs={"Node": edgebus.Node})
    assert (result.failed, result.attempted) == (0, 1)
