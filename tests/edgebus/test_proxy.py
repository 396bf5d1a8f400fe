"""The TCP proxy does to real sockets what it is told, counts it, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import doctest
import errno
import os
import socket
import time

import pytest

import edgebus
from edgebus.testing import Proxy, pipe
from edgebus.testing.pipe import Bucket, Pipe

pytestmark = pytest.mark.net


# -- the pure half --------------------------------------------------------------------------------------


def test_pipe_delays_by_hand():
    one = Pipe(Bucket(None, now=0.0), 10)
    one.delay_s = 1.0
    one.put(b"abc", now=5.0)
    one.put(b"de", now=5.5)
    assert (one.size, one.room, one.next_at(now=5.5)) == (5, 5, 6.0)
    assert bytes(one.ready(now=5.9)) == b""
    assert bytes(one.ready(now=6.1)) == b"abc"
    one.took(2)
    assert bytes(one.ready(now=6.1)) == b"c"
    one.took(1)
    assert bytes(one.ready(now=6.1)) == b""
    assert one.next_at(now=6.1) == 6.5
    one.end("eof", now=6.2)
    assert one.room == 0
    one.took(len(one.ready(now=6.5)))
    assert not one.is_over(now=7.1)
    assert one.next_at(now=7.1) == 7.2
    assert one.is_over(now=7.2)


def test_stalled_pipe_keeps_bytes_and_end():
    one = Pipe(Bucket(None, now=0.0), 10)
    one.put(b"abc", now=0.0)
    one.end("reset", now=0.0)
    one.is_stalled = True
    assert (bytes(one.ready(now=9.0)), one.next_at(now=9.0), one.is_over(now=9.0)) == (b"", float("inf"), False)
    one.is_stalled = False
    one.took(len(one.ready(now=9.0)))
    assert one.is_over(now=9.0)


def test_bucket_lets_through_its_rate_and_no_more():
    """1000 B/s, asked as soon as it allows something: after 3 s exactly 3000 B, and at most 20 ms of them at once."""
    bucket, now, passed = Bucket(1000.0, now=0.0), 0.0, 0
    while now <= 3.0:
        allowed = bucket.allows(now=now)
        assert allowed <= 20
        bucket.take(allowed)
        passed += allowed
        later = bucket.allows_at(10_000, now=now)
        assert later > now
        now = later
    assert passed == pytest.approx(3000, abs=21)
    assert bucket.allows(now=now + 100.0) == 20


def test_pipe_over_a_slow_bucket_gives_parts():
    one = Pipe(Bucket(100.0, now=0.0), 1000)
    one.put(bytes(5), now=0.0)
    assert len(one.ready(now=0.0)) == 0
    assert one.next_at(now=0.0) == pytest.approx(0.02, abs=1e-4)
    assert len(one.ready(now=1.0)) == 2
    one.took(2)
    assert (one.size, len(one.ready(now=1.0))) == (3, 0)


def test_doctests_hold():
    assert doctest.testmod(pipe).failed == 0
    with pytest.raises(ValueError, match="above 0"):
        Bucket(0.0, now=0.0)


# -- sockets --------------------------------------------------------------------------------------------


class Ends:
    """A listening socket behind a proxy, and pairs of connected ends."""

    def __init__(self, **options):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(10)
        self.proxy = Proxy(self.listener.getsockname()[1], **options)
        self._sockets = [self.listener]

    def dial(self):
        client = self.connect()
        server, _ = self.listener.accept()
        server.settimeout(10)
        self._sockets.append(server)
        return client, server

    def connect(self):
        client = socket.create_connection(("127.0.0.1", self.proxy.port), 10)
        self._sockets.append(client)
        return client

    def close(self):
        self.proxy.close()
        for one in self._sockets:
            one.close()


@pytest.fixture
def ends():
    made = []

    def make(**options):
        made.append(Ends(**options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def receive(one, num_bytes):
    data = b""
    while len(data) < num_bytes and (part := one.recv(num_bytes - len(data))):
        data += part
    return data


def is_silent(one):
    """Nothing has come; what the proxy was told is in effect when its method returns, so there is no waiting."""
    one.setblocking(False)
    try:
        return one.recv(1, socket.MSG_PEEK) is None
    except BlockingIOError:
        return True
    finally:
        one.settimeout(10)


def is_reset(one):
    try:
        return one.recv(1) is None
    except ConnectionResetError:
        return True


def test_bytes_pass_both_ways_and_are_counted(ends):
    world = ends()
    client, server = world.dial()
    data = os.urandom(3_000_000)
    client.settimeout(10)
    server.sendall(b"hello")
    assert receive(client, 5) == b"hello"
    client.setblocking(False)
    sent, got = 0, bytearray()
    while len(got) < len(data):  # both ends in one thread: send what goes, take what comes
        try:
            sent += client.send(data[sent : sent + 100_000])
        except BlockingIOError:
            got += server.recv(100_000)
        else:
            if sent == len(data):
                got += server.recv(100_000)
    assert bytes(got) == data
    assert world.proxy.wait_for(lambda stats: stats.bytes_to_target == len(data))
    stats = world.proxy.stats()
    assert (stats.bytes_to_client, stats.connections, stats.open, stats.buffered_bytes) == (5, 1, 1, 0)


def test_end_of_one_direction_leaves_the_other(ends):
    world = ends()
    client, server = world.dial()
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    assert receive(server, 100) == b"question"
    server.sendall(b"answer")
    server.close()
    assert receive(client, 100) == b"answer"
    assert world.proxy.wait_for(lambda stats: stats.open == 0)


def test_cut_resets_both_ends_and_welcomes_new_ones(ends):
    world = ends()
    pairs = [world.dial() for _ in range(3)]
    assert world.proxy.cut() == 3
    assert all(is_reset(one) for pair in pairs for one in pair)
    client, server = world.dial()
    client.sendall(b"again")
    assert receive(server, 5) == b"again"
    stats = world.proxy.stats()
    assert (stats.connections, stats.open, stats.cut) == (4, 1, 3)


def test_reset_of_one_end_reaches_the_other(ends):
    world = ends()
    client, server = world.dial()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    assert is_reset(server)
    assert world.proxy.wait_for(lambda stats: stats.open == 0)


def test_stall_holds_everything_back_and_resume_lets_it_go(ends):
    world = ends()
    client, server = world.dial()
    world.proxy.stall()
    client.sendall(b"to the server")
    server.sendall(b"to the client")
    assert world.proxy.wait_for(lambda stats: stats.buffered_bytes == 26)
    assert is_silent(client)
    assert is_silent(server)
    client.shutdown(socket.SHUT_WR)
    assert world.proxy.stats().open == 1
    world.proxy.resume()
    assert receive(server, 100) == b"to the server"  # and then the end
    assert receive(client, 13) == b"to the client"


def test_stall_holds_for_new_connections_too(ends):
    world = ends()
    world.proxy.stall()
    client, server = world.dial()
    client.sendall(b"x")
    assert world.proxy.wait_for(lambda stats: stats.buffered_bytes == 1)
    assert is_silent(server)
    world.proxy.resume()
    assert receive(server, 1) == b"x"


@pytest.mark.parametrize("dead", ["to_target", "to_client"])
def test_half_open_stalls_one_direction(ends, dead):
    world = ends()
    client, server = world.dial()
    world.proxy.half_open(dead)
    deaf, hears = (server, client) if dead == "to_target" else (client, server)
    hears.sendall(b"lost for now")
    deaf.sendall(b"heard")
    assert receive(hears, 5) == b"heard"
    assert world.proxy.wait_for(lambda stats: stats.buffered_bytes == 12)
    assert is_silent(deaf)
    world.proxy.resume()
    assert receive(deaf, 12) == b"lost for now"
    with pytest.raises(ValueError, match="to_target or to_client, got 'both'"):
        world.proxy.half_open("both")


def test_buffers_are_bounded_and_the_sender_feels_it(ends):
    world = ends(buffer_bytes=10_000)
    client, server = world.dial()
    world.proxy.stall()
    client.settimeout(0.05)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 100_000_000:
            sent += client.send(bytes(100_000))
    assert sent < 100_000_000
    assert world.proxy.stats().buffered_bytes == 10_000
    world.proxy.resume()
    assert receive(server, sent) == bytes(sent)


def test_refuse_and_accept_keep_the_port(ends):
    world = ends()
    client, server = world.dial()
    world.proxy.refuse()
    world.proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        world.connect()
    client.sendall(b"those there are stay")
    assert receive(server, 20) == b"those there are stay"
    port = world.proxy.port
    with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
        socket.create_server(("127.0.0.1", port))
    world.proxy.accept()
    world.proxy.accept()
    client, server = world.dial()
    assert world.proxy.port == port


def test_move_cuts_and_listens_elsewhere(ends):
    world = ends()
    client, server = world.dial()
    before = world.proxy.port
    assert world.proxy.move() == world.proxy.endpoint == f"tcp://127.0.0.1:{world.proxy.port}"
    assert world.proxy.port != before
    assert is_reset(client)
    assert is_reset(server)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", before), 10)
    client, server = world.dial()
    client.sendall(b"x")
    assert receive(server, 1) == b"x"


def test_delay_keeps_bytes_each_way(ends):
    world = ends()
    client, server = world.dial()
    world.proxy.delay_s = 0.1
    started_at = time.monotonic()
    client.sendall(b"ping")
    assert receive(server, 4) == b"ping"
    server.sendall(b"pong")
    assert receive(client, 4) == b"pong"
    assert time.monotonic() - started_at >= 0.2
    with pytest.raises(ValueError, match=r"delay_s must be 0 or more, got -1"):
        world.proxy.delay_s = -1


def test_bytes_per_s_holds_for_all_connections_together(ends):
    world = ends()
    pairs = [world.dial() for _ in range(2)]
    world.proxy.bytes_per_s = 100_000.0
    started_at = time.monotonic()
    for client, _ in pairs:
        client.sendall(bytes(15_000))
    for _, server in pairs:
        assert receive(server, 15_000) == bytes(15_000)
    # The bucket was empty at first, or held 20 ms at most.
    assert time.monotonic() - started_at >= 0.3 - 0.02
    world.proxy.bytes_per_s = None
    assert world.proxy.bytes_per_s is None
    with pytest.raises(ValueError, match="above 0"):
        world.proxy.bytes_per_s = 0.0


def test_absent_target_is_counted_and_may_come_later(ends):
    world = ends()
    with socket.socket() as absent:
        absent.bind(("127.0.0.1", 0))
        world.proxy.target_port = absent.getsockname()[1]
        with contextlib.suppress(ConnectionResetError):  # it may be so quick that connecting ends so
            assert is_reset(world.connect())
    assert world.proxy.wait_for(lambda stats: stats.failed == 1 and stats.open == 0)
    world.proxy.target_port = world.listener.getsockname()[1]
    client, server = world.dial()
    client.sendall(b"x")
    assert receive(server, 1) == b"x"


def test_closed_proxy_resets_and_says_so(ends):
    world = ends()
    client, server = world.dial()
    world.proxy.close()
    world.proxy.close()
    assert is_reset(client)
    assert is_reset(server)
    with pytest.raises(RuntimeError, match="proxy is closed"):
        world.proxy.cut()
    with pytest.raises(ConnectionRefusedError):
        world.connect()


def test_waiting_has_an_end_and_passes_on_what_the_condition_raises(ends):
    world = ends()
    assert not world.proxy.wait_for(lambda stats: stats.connections == 1, 0.01)
    with pytest.raises(ZeroDivisionError):
        world.proxy.wait_for(lambda stats: 1 / stats.connections > 0)
    assert world.proxy.stats().connections == 0  # the thread lives on


@pytest.mark.parametrize("target", ["tcp://192.0.2.1:5000", "tcp://127.0.0.1:x", "ipc:///tmp/x", 0, 70_000])
def test_targets_are_ports_of_this_machine(target):
    with pytest.raises(ValueError, match=r"a target is a port or tcp|a port is 1\.\.65535"):
        Proxy(target)


# -- the bus through it ---------------------------------------------------------------------------------


@pytest.fixture
def bus(ring):
    """A server that answers in capitals behind a proxy, and a device linked to it; CURVE goes through unread."""
    with ring.server() as server, Proxy(server.bind("tcp://127.0.0.1:0")) as proxy:
        inbox = server.serve("shout")
        with ring.device() as device:
            yield proxy, inbox, device.connect(proxy.endpoint, ring.public("server"))
        inbox.close()


def answer(inbox, timeout_s=10.0):
    request = inbox.get(timeout_s)
    request.reply(request.payload.upper())


def test_link_survives_a_cut(bus):
    proxy, inbox, link = bus
    pending = link.send_request("shout", b"before", timeout_s=20.0)
    request = inbox.get(10.0)
    assert proxy.cut() >= 1
    request.reply(b"after all")
    assert pending.result().payload == b"after all"
    assert proxy.wait_for(lambda stats: stats.open >= 1)


def test_stalled_request_is_unknown_or_expired_and_the_link_works_afterwards(bus):
    proxy, inbox, link = bus
    proxy.stall()
    pending = link.send_request("shout", b"stalled", timeout_s=0.3)
    with pytest.raises((edgebus.DeadlineExceeded, edgebus.LinkLost)):
        pending.result()
    proxy.resume()
    pending = link.send_request("shout", b"hello", timeout_s=20.0)
    while not pending.done():
        if request := inbox.get(0.2):
            request.reply(request.payload.upper())
    assert pending.result().payload == b"HELLO"


def test_refused_link_comes_up_when_it_is_accepted(bus):
    proxy, inbox, link = bus
    proxy.refuse()
    proxy.cut()
    pending = link.send_request("shout", b"late", timeout_s=20.0)
    proxy.accept()
    answer(inbox)
    assert pending.result().payload == b"LATE"
