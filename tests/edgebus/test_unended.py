"""A message that never ends costs a bounded amount of memory, and nobody else's connection."""

from __future__ import annotations

import math
import os
import socket
import tempfile
from contextlib import contextmanager, suppress

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

import edgebus
from bench.micro import zmtp
from edgebus import messages as m
from edgebus import port, tcp
from edgebus.messages import encode_header
from edgebus.queues import UNENDED_PENDING
from edgebus.tcp import Came, Kernel, can_look
from edgebus.unended import CHOSEN_S, GROWN_BYTES, LOOK_S, SILENT_LOOKS, Unended
from tests.edgebus import interrupting
from tests.edgebus.child_flooded import LIMITS, MIB
from tests.edgebus.test_floods import CLAIMED, rss_bytes, server, watched
from tests.edgebus.test_interrupts import PLAIN
from tests.edgebus.test_sharing import eventually

FRAME, MOST, BEAT_S, PORT = 4 * MIB, 32 * MIB, 2.0, 5555
needs_counts = pytest.mark.skipif(not can_look(), reason="this kernel does not count the bytes of a connection")


class FakePort:
    def __init__(self):
        self.counts, self.has_more = {}, False

    def take_counts(self):
        counts, self.counts = self.counts, {}
        return counts.items()

    def readable(self):
        return self.has_more


class FakeKernel(Kernel):
    def __init__(self):
        self.connections, self.resident, self.ended, self.asked = {}, 100 * MIB, [], 0

    def came(self, fd):
        self.asked += 1
        return self.connections.get(fd)

    def end(self, fd, inode):
        if fd in self.connections and self.connections[fd].inode == inode:
            self.ended.append(fd)
            return True
        return False

    def resident_bytes(self):
        return self.resident

    def receive(self, fd, num_bytes, inode=None):
        """So many bytes come by a connection, and stay in memory."""
        before = self.connections.get(fd, Came(fd, 0, PORT, 40_000 + fd, f"10.0.0.{fd}:1"))
        inode = before.inode if inode is None else inode
        self.connections[fd] = before._replace(num_bytes=before.num_bytes + num_bytes, inode=inode)
        self.resident += num_bytes


class World:
    def __init__(self, count=1, beat_s=BEAT_S):
        self.kernel, self.port, self.now = FakeKernel(), FakePort(), 1000.0
        self.unended = Unended(FRAME, MOST, beat_s, self.kernel)
        for fd in range(1, count + 1):
            self.kernel.receive(fd, 200)
            self.unended.opened(fd, self.port, PORT, is_accepted=True, now=self.now)

    def give(self, fd, num_bytes):
        """A whole message comes and is taken."""
        self.kernel.receive(fd, num_bytes)
        self.kernel.resident -= num_bytes
        self.port.counts[fd] = self.port.counts.get(fd, 0) + num_bytes

    def look(self):
        self.now = max(self.now, self.unended.look_at)
        self.unended.look(self.now)
        return self.kernel.ended


def test_who_never_ends_a_message_is_ended_and_nobody_else():
    world = World(3)
    for _ in range(100):
        world.give(1, MIB)
        world.give(2, 500)
        world.kernel.receive(3, MIB)
        if world.look():
            break
    assert world.kernel.ended == [3]
    assert MOST < world.kernel.connections[3].num_bytes <= MOST + GROWN_BYTES + MIB
    assert world.unended.num_ended == 1


def test_whole_messages_are_nothing_however_many_there_were():
    world = World()
    for _ in range(300):
        world.give(1, 8 * MIB)
        world.kernel.resident += MIB  # the application's
        assert world.look() == []


def test_a_frame_may_be_on_its_way_by_every_connection_that_has_given_a_message():
    world = World(40)
    for fd in range(1, 41):
        world.give(fd, 500)
    world.look()
    for fd in range(1, 41):
        world.kernel.receive(fd, FRAME - 1)
    for _ in range(2 * SILENT_LOOKS):
        assert world.look() == []


def test_connections_that_only_greeted_libzmq_share_the_bound():
    world = World(40)
    for fd in range(1, 41):
        world.kernel.receive(fd, MIB + fd)
    assert world.look() == list(range(40, 32, -1))  # the largest go until the rest fits


def test_what_a_connection_sent_in_small_steps_is_not_forgotten():
    """The memory stands still in between, or falls by what the application gives back."""
    world = World(2)
    for _ in range(100):
        world.kernel.receive(1, MIB)
        world.look()
        world.kernel.resident -= MIB
        world.look()
        world.give(2, 500)
    world.kernel.resident += GROWN_BYTES
    assert world.look() == [1]


def test_a_descriptor_that_is_another_connections_by_now_is_left_alone():
    world = World()
    world.kernel.receive(1, 100 * MIB, inode=99)
    assert world.look() == []
    world.kernel.receive(2, 100 * MIB)
    world.unended.opened(2, world.port, PORT + 1, is_accepted=True, now=world.now)  # it has another port
    for _ in range(2 * SILENT_LOOKS):
        world.kernel.resident += GROWN_BYTES
        assert world.look() == []


@needs_counts
@pytest.mark.parametrize(("asked", "told"), [(tcp._came, tcp._end), (tcp.came, tcp.end)])
def test_descriptors_that_are_something_else_by_now_are_asked_and_left_as_they_are(asked, told, monkeypatch):
    """The fixture of all tests counts descriptors."""
    monkeypatch.setattr(tcp, "_came", asked)
    monkeypatch.setattr(tcp, "_end", told)
    kernel = Kernel()
    with tempfile.TemporaryFile() as file, socket.socket(socket.AF_UNIX) as other, socket.socket() as unconnected:
        for fd in (file.fileno(), other.fileno(), unconnected.fileno(), 9999):
            assert kernel.came(fd) is None
            assert not kernel.end(fd, 1)
        assert os.fstat(file.fileno())


@needs_counts
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_both_forms_say_the_same_of_a_connection_and_end_it(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for end in (tcp._end, tcp.end):
        with socket.create_server((host, 0), family=family) as listening, socket.socket(family) as dialled:
            dialled.connect(listening.getsockname()[:2])
            accepted, _ = listening.accept()
            with accepted:
                dialled.sendall(bytes(100))
                accepted.recv(30)
                found = tcp.came(accepted.fileno())
                assert found == tcp._came(accepted.fileno())
                ports = listening.getsockname()[1], dialled.getsockname()[1]
                assert found[1:] == (30, *ports, f"{host}:{ports[1]}")
                assert not end(accepted.fileno(), found[0] + 1)
                assert end(accepted.fileno(), found[0])
                accepted.close()
                dialled.settimeout(5)
                with suppress(ConnectionResetError):
                    assert dialled.recv(1) == b""


def test_messages_of_a_connection_that_came_before_its_news_are_its():
    world = World()
    world.kernel.receive(2, 100 * MIB)
    world.port.counts[2] = 100 * MIB
    world.unended.opened(2, world.port, PORT, is_accepted=True, now=world.now)
    for _ in range(2 * SILENT_LOOKS):
        world.kernel.resident += GROWN_BYTES
        assert world.look() == []


def test_news_may_come_one_look_after_the_messages():
    world = World()
    world.kernel.receive(2, 100 * MIB)
    world.port.counts[2] = 100 * MIB
    world.look()
    world.unended.opened(2, world.port, PORT, is_accepted=True, now=world.now)
    for _ in range(2 * SILENT_LOOKS):
        world.kernel.resident += GROWN_BYTES
        assert world.look() == []


def test_a_connection_that_is_told_of_twice_is_known_as_before():
    world = World()
    world.give(1, 100 * MIB)
    world.look()
    world.unended.opened(1, world.port, PORT, is_accepted=True, now=world.now)
    for _ in range(2 * SILENT_LOOKS):
        world.kernel.resident += GROWN_BYTES
        assert world.look() == []


def test_messages_that_wait_to_be_taken_are_no_end_missing():
    world = World(2)
    for _ in range(2 * SILENT_LOOKS):
        world.kernel.resident += GROWN_BYTES
        world.look()  # nothing comes by any
    world.port.has_more = True
    world.kernel.receive(1, 100 * MIB)
    for _ in range(SILENT_LOOKS - 1):
        assert world.look() == []
    world.port.counts[1] = 100 * MIB
    for _ in range(SILENT_LOOKS):
        assert world.look() == []
    world.kernel.receive(2, 100 * MIB)
    for _ in range(SILENT_LOOKS - 1):
        assert world.look() == []
    assert world.look() == [2], "while others kept the socket busy it gave nothing"


def test_beats_of_libzmq_do_not_add_up():
    world = World(200)
    for fd in range(1, 201):
        world.give(fd, 500)
    for hour in range(24 * 30):
        for fd in range(1, 201):
            if hour % 5 == fd % 5:
                world.give(fd, 500)
            world.kernel.receive(fd, int(3600 / BEAT_S * 82))
        world.kernel.resident += GROWN_BYTES
        for _ in range(3):
            world.now += 1200
            assert world.look() == []


def test_who_gives_something_now_and_then_is_waited_for():
    world = World()
    world.port.has_more = True
    world.kernel.receive(1, 100 * MIB)
    for _ in range(4):
        for _ in range(SILENT_LOOKS - 2):
            assert world.look() == []
        world.port.counts[1] = MIB
        assert world.look() == []


def test_what_counts_as_beats_is_not_kept_for_the_next_message():
    world = World()
    world.now += 1e9
    world.give(1, 500)
    world.kernel.receive(1, 2 * MOST)  # so much may be beats, after so long
    assert world.look() == []
    world.port.counts[1] = 2 * MOST  # but it was a message
    world.kernel.resident += GROWN_BYTES
    assert world.look() == []
    world.kernel.receive(1, 2 * MOST)
    assert world.look() == [1]


def test_who_is_gone_is_not_looked_at():
    for goes in (
        lambda world: world.kernel.receive(1, 10, inode=99),
        lambda world: world.unended.closed(world.port),
    ):
        world = World()
        goes(world)
        for _ in range(2):
            world.kernel.resident += GROWN_BYTES
            world.look()
        assert world.unended.look_at == math.inf


def test_what_another_socket_gave_is_not_counted_for_a_connection():
    """Its descriptor is another one's by now."""
    world, other = World(), FakePort()
    world.kernel.receive(2, 200)
    world.unended.opened(2, other, PORT, is_accepted=True, now=world.now)
    world.kernel.receive(1, 2 * MOST)
    other.counts[1] = 2 * MOST
    assert world.look() == [1]


def test_memory_that_falls_and_grows_again_has_grown():
    world = World()
    world.look()
    world.kernel.resident -= 50 * MIB
    world.look()
    world.kernel.resident += GROWN_BYTES
    asked = world.kernel.asked
    world.look()
    assert world.kernel.asked == asked + 1


def test_lanes_without_messages_may_stand_for_weeks():
    """The bulk lane of a link on which nothing large is asked for: its greeting, then libzmq's beats (CURVE)."""
    world = World(200)
    for fd in range(1, 201):
        world.give(fd, 500)
    world.look()
    for _day in range(30):
        for fd in range(1, 201):
            world.kernel.receive(fd, int(86_400 / BEAT_S * 82))
        world.kernel.resident -= 200 * int(86_400 / BEAT_S * 82)
        world.now += 86_400
        assert world.look() == []


def test_beats_are_told_from_a_message_without_an_end_by_the_messages_that_follow():
    """Limits(heartbeat_s=0.05) at the other end: 852 bytes a second were seen beside its messages."""
    world = World(40)
    for _hour in range(30 * 24):
        for fd in range(1, 41):
            world.give(fd, 500)
            world.kernel.receive(fd, 3600 * 852)
        world.kernel.resident -= 40 * 3600 * 852
        world.now += 3600
        assert world.look() == []


def test_messages_that_follow_do_not_hide_one_without_an_end():
    """What nobody had read when it was looked may be ended before what comes after; a message is, by definition."""
    world = World()
    world.give(1, 500)
    world.look()
    world.kernel.receive(1, FRAME)
    world.look()
    world.port.has_more = True
    for _ in range(100):
        world.kernel.receive(1, MIB)
        world.give(1, 500)  # of those that were not read then: all of them ended before what it sends now
        world.kernel.resident += GROWN_BYTES
        world.look()
    world.port.has_more = False
    for _ in range(2 * SILENT_LOOKS):
        world.look()
    assert world.kernel.ended == [1]


def test_lane_without_messages_beats_no_more_often_than_is_forgiven():
    """With CURVE and any heartbeat_s of ours and of theirs; see _LANE_BEAT_S of sockets.py."""
    for beat_s in (0.05, 2.0, 10.0):
        world = World(40, beat_s)
        for _day in range(60):
            for fd in range(1, 41):
                world.kernel.receive(fd, int(86_400 * (41 / 1.0 + 41 / max(beat_s, 2.0))))
            world.kernel.resident -= 40 * int(86_400 * (41 / 1.0 + 41 / max(beat_s, 2.0)))
            world.now += 86_400
            assert world.look() == []


@pytest.mark.parametrize(("beat_s", "expected_ms"), [(0.05, (50, 1000)), (2.0, (2000, 2000))])
def test_bulk_lane_beats_once_a_second_at_most(beat_s, expected_ms):
    with edgebus.Node("d", insecure=True, limits=edgebus.Limits(heartbeat_s=beat_s)) as node:
        sockets = node._engine.runner.sockets

        def opened():
            ids = [sockets.dial("tcp://127.0.0.1:1", None, None, is_bulk=is_bulk) for is_bulk in (False, True)]
            found = tuple(sockets.by_id[each].sock.getsockopt(zmq.HEARTBEAT_IVL) for each in ids)
            for each in ids:
                sockets.close(each, 0.0)
            return found

        assert node._engine.runner.do(opened) == expected_ms


def test_connections_are_looked_at_when_memory_has_grown_and_every_second():
    world = World()
    world.look()
    asked = world.kernel.asked
    for _ in range(round(1 / LOOK_S) - 1):
        world.look()
    assert world.kernel.asked == asked
    world.look()
    assert world.kernel.asked == asked + 1
    world.kernel.resident += GROWN_BYTES
    world.look()
    assert world.kernel.asked == asked + 2


def test_who_fills_memory_that_is_there_is_seen_as_well():
    world = World()
    world.look()
    world.kernel.receive(1, MOST + MIB)
    world.kernel.resident -= MOST + MIB
    for _ in range(round(1 / LOOK_S)):
        world.look()
    assert world.kernel.ended == [1]
    world.kernel.receive(2, MOST + MIB)
    world.kernel.resident -= MOST + MIB
    world.unended.opened(2, world.port, PORT, is_accepted=True, now=world.now)
    assert world.look() == [1, 2], "sooner, since one was ended a moment ago"


class FakeGuard:
    def __init__(self):
        self.num_paused = self.num_ever_paused = 0
        self.known, self.told, self.forgotten = [], [], []

    def know(self, fd, inode, is_accepted, tcp_port, remote):
        self.known.append((fd, inode, is_accepted, tcp_port, remote))
        return True

    def forget(self, *end):
        self.forgotten.append(end)

    def looked(self, resumes, left_bytes):
        self.told.append((resumes, left_bytes))
        if resumes:
            self.num_paused = 0


def guarded_world():
    world = World(0)
    world.guard = FakeGuard()
    world.unended = Unended(FRAME, MOST, BEAT_S, world.kernel, world.guard)
    world.kernel.receive(1, 200)
    world.unended.opened(1, world.port, PORT, is_accepted=True, now=world.now, address="10.0.0.9")
    world.look()
    return world


def test_a_guard_is_told_of_connections_and_looks_and_asks_for_them():
    world = guarded_world()
    assert world.guard.known == [(1, 1, True, PORT, "10.0.0.9")]
    assert world.guard.told == [(False, 0)]
    assert world.unended.look_at == world.now + CHOSEN_S, "it looks at the memory"
    asked = world.kernel.asked
    world.unended.look_soon()
    assert world.unended.look_at < world.now
    world.unended.look(world.now)
    assert world.kernel.asked > asked
    assert world.unended.look_at == world.now + CHOSEN_S


def test_who_was_held_back_goes_on_when_half_is_read_or_nothing_is_left_to_read():
    for left_bytes, has_more, goes_on in ((MOST, True, False), (MOST, False, True), (MOST // 4, True, True)):
        world = guarded_world()
        world.kernel.receive(1, 16384 + left_bytes)
        world.port.has_more, world.guard.num_paused = has_more, 1
        world.look()
        assert world.guard.told[-1][0] is goes_on


def test_guard_forgets_the_address_of_a_socket_that_is_closed_unless_another_has_it():
    world = guarded_world()
    second = type(world.port)()
    world.kernel.receive(2, 200)
    world.unended.opened(2, second, PORT, is_accepted=True, now=world.now, address="10.0.0.8")
    world.unended.closed(world.port)
    assert world.guard.forgotten == []
    world.unended.closed(second)
    assert world.guard.forgotten == [(True, PORT, "10.0.0.8")]


def test_guard_is_told_of_a_look_although_a_signal_handler_raised():
    world = guarded_world()
    world.guard.told.clear()

    def interrupted():
        raise KeyboardInterrupt

    world.kernel.resident_bytes = interrupted
    with pytest.raises(KeyboardInterrupt):
        world.unended.look(world.now)
    assert world.guard.told == [(False, -1)]


def test_who_listens_is_looked_after_although_no_connection_is_left():
    world = guarded_world()
    world.guard.num_paused, world.guard.looked = 1, lambda *_: None
    world.kernel.connections.clear()
    world.kernel.resident += 100 * MIB
    for _ in range(2):
        world.unended.look(world.now)
        assert world.unended.look_at <= world.now + CHOSEN_S


def test_how_many_were_held_back_is_what_the_guard_says():
    world = guarded_world()
    world.guard.num_ever_paused = 3
    assert world.unended.num_held_back == 3
    assert World(0).unended.num_held_back == 0


def test_who_was_held_back_waits_a_second_for_that_at_most():
    world = guarded_world()
    world.kernel.receive(1, 16384 + MOST)
    world.port.has_more, world.guard.num_paused = True, 1
    began = world.now
    while world.guard.num_paused:
        world.look()
        world.kernel.resident += GROWN_BYTES
    assert 1.0 <= world.now - began <= 1.2 + CHOSEN_S


def test_a_node_looks_itself_when_nobody_can_look_after_it():
    world = World(0)
    guard = FakeGuard()
    guard.know = lambda *_: False
    world.unended = Unended(FRAME, MOST, BEAT_S, world.kernel, guard)
    world.kernel.receive(1, 200)
    world.unended.opened(1, world.port, PORT, is_accepted=True, now=world.now)
    assert world.unended.look_at == world.now + LOOK_S


def test_sockets_that_were_asked_whether_there_is_something_to_read_are_read():
    """Asking takes the news away that something has come."""
    world, touched = World(), []
    world.unended = Unended(FRAME, MOST, BEAT_S, world.kernel, touch=lambda: touched.append(True))
    world.unended.opened(1, world.port, PORT, is_accepted=True, now=world.now)
    world.look()
    assert touched == []
    world.port.has_more = True
    world.kernel.resident += GROWN_BYTES
    world.look()
    assert touched == [True]


def test_a_node_that_nobody_dials_looks_less_often():
    world = World(0)
    world.kernel.receive(1, 200)
    world.unended.opened(1, world.port, 40_001, is_accepted=False, now=world.now)
    assert world.unended.look_at == world.now + CHOSEN_S
    world.look()
    assert world.unended.look_at == world.now + CHOSEN_S


def test_nothing_is_due_while_there_is_no_connection():
    world = World()
    world.kernel.connections.clear()
    world.kernel.resident += GROWN_BYTES
    world.look()
    world.look()
    assert world.unended.look_at == math.inf


def test_who_could_not_be_ended_is_not_forgotten(monkeypatch):
    world = World()
    world.kernel.receive(1, MOST + MIB)
    with monkeypatch.context() as patch:
        patch.setattr(world.kernel, "end", interrupting.raising)
        with pytest.raises(interrupting.Interrupt):
            world.look()
    world.kernel.resident += GROWN_BYTES
    assert world.look() == [1]


@pytest.mark.skipif(PLAIN, reason="plain Python shows a signal handler between any two steps")
def test_what_was_counted_is_not_lost_when_a_signal_handler_raises():
    for at in range(1, 50):
        world = World()
        world.give(1, 2 * MOST)
        interrupting.interrupted(world.look, at, lambda name: name == "edgebus.unended")
        for _ in range(2):
            world.kernel.resident += GROWN_BYTES
            assert world.look() == []


def test_all_connections_are_looked_at_while_nobody_knows_the_memory_of_the_process():
    world = World()
    world.look()
    world.kernel.receive(1, MOST + MIB)
    world.kernel.resident = math.inf
    assert world.look() == [1]


@needs_counts
@pytest.mark.skipif(tcp._came is tcp.came, reason="plain Python needs a descriptor to ask by")
def test_a_full_table_of_descriptors_hides_nobody():
    resource, kernel, doubles = pytest.importorskip("resource"), Kernel(), []
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as dialled,
        listening.accept()[0] as accepted,
    ):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (dialled.fileno() + 20, hard))
        try:
            with suppress(OSError):
                while True:
                    doubles.append(os.dup(0))
            found = kernel.came(accepted.fileno())
            assert kernel.resident_bytes() == math.inf
            assert kernel.end(accepted.fileno(), found.inode)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for each in doubles:
                os.close(each)
        assert dialled.recv(1) == b""


@contextmanager
def allowed(endpoint, keys=None):
    """A raw connection, with the server's public key and our own keys if there are any."""
    if keys is None:
        peer = zmtp.Plain(endpoint)
    else:
        try:
            peer = zmtp.Curve(endpoint, keys[0], keys[1].public, keys[1].secret)
        except LookupError as error:
            pytest.skip(str(error))
    try:
        yield peer
    finally:
        peer.close()


def send_without_end(peer, num_bytes, piece=bytes(MIB)):
    """Send parts of one message until that is all, or the connection is ended; what went out, in bytes."""
    sent = 0
    with suppress(OSError):
        while sent < num_bytes:
            peer.send(piece, more=True)
            sent += len(piece)
    return sent


@needs_counts
@pytest.mark.net
def test_parts_without_an_end_cost_a_bounded_amount_of_memory():
    bound = UNENDED_PENDING * LIMITS["max_pending_bytes"] + LIMITS["max_frame_bytes"]
    with server() as (child, endpoint), edgebus.Node("other", insecure=True) as other:
        link = other.connect(endpoint)
        assert link.request("work", b"hi", timeout_s=10).payload == b"echo:hi"
        for greets in (False, True):
            with allowed(endpoint) as peer:
                if greets:
                    peer.send(encode_header(m.Hello(1, 2, "endless", bytes(16), 1, CLAIMED)), more=False)
                peaks = [rss_bytes(child.pid)]
                with watched(child.pid, peaks):
                    sent = send_without_end(peer, 4096 * MIB)
            assert bound - LIMITS["max_frame_bytes"] < sent < 4096 * MIB, "it was not ended"
            slack = sent - bound  # what came until somebody looked
            assert max(peaks) - peaks[0] < bound + slack + 16 * MIB
        assert link.request("work", b"hi", timeout_s=10).payload == b"echo:hi"
        assert link.stats().reconnects == 0


@needs_counts
@pytest.mark.net
@pytest.mark.parametrize("opened", [port.open_port, port.PlainPort])
def test_a_peer_before_zmtp_3_is_heard_as_any(opened):
    """libzmq does not say which connection its messages came by: they are nobody's, and whole."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as listening, socket.socket() as dialled:
        listening.linger = 0
        reading = opened(listening, True, False)
        reading.count(False)
        dialled.connect(("127.0.0.1", listening.bind_to_random_port("tcp://127.0.0.1")))
        dialled.sendall(b"\xff" + bytes(8) + b"\x7f\1\5" + b"\0\0")  # ZMTP 2.0, a DEALER without an identity
        dialled.sendall(b"\1\3one\0\3two\0\5three")
        assert taken_by(reading, listening) == [b"one", b"two"]
        assert taken_by(reading, listening) == [b"three"]
        assert [fd for fd, _ in reading.take_counts()] == [-1]
        reading.close()


@needs_counts
@pytest.mark.net
@pytest.mark.parametrize(("keyed", "greets"), [(True, True), (True, False), (False, False)])
def test_keys_do_not_help_and_the_node_says_what_it_did(keyed, greets, ring, caplog):
    """A node on which nothing else happens."""
    limits = edgebus.Limits(max_frame_bytes=2 * MIB, max_pending_bytes=4 * MIB)
    with ring.server(limits=limits) if keyed else edgebus.Node("server", insecure=True, limits=limits) as node:
        keys = (ring.public("server"), ring.keys("device")) if keyed else None
        with allowed(node.bind("tcp://127.0.0.1:0"), keys) as peer:
            if greets:
                peer.send(encode_header(m.Hello(1, 2, "endless", bytes(16), 1, CLAIMED)), more=False)
            assert send_without_end(peer, 2048 * MIB) < 2048 * MIB
            eventually(lambda: node.stats().unended == 1, 5, "its connection was ended")
    assert "MiB of a message without an end" in caplog.text
    assert "127.0.0.1:" in caplog.text


@needs_counts
@pytest.mark.net
def test_what_a_connection_left_unread_is_not_counted_for_the_next_one():
    """Whole messages of one that is gone, read when another has its descriptor, hide what that one has not ended."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as listening:
        listening.linger = 0
        endpoint = f"tcp://127.0.0.1:{listening.bind_to_random_port('tcp://127.0.0.1')}"
        monitor = listening.get_monitor_socket(zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
        reading, unended = port.open_port(listening, True, False), Unended(MIB, 4 * MIB, BEAT_S)
        reading.count(False)
        try:
            with allowed(endpoint) as first:
                for _ in range(20):
                    first.send(bytes(MIB), more=False)
            assert recv_monitor_message(monitor)["event"] == zmq.EVENT_ACCEPTED
            assert recv_monitor_message(monitor)["event"] == zmq.EVENT_DISCONNECTED
            with allowed(endpoint) as second:
                fd = recv_monitor_message(monitor)["value"]
                unended.opened(fd, reading, int(endpoint.rpartition(":")[2]), is_accepted=True, now=0.0)
                assert send_without_end(second, 16 * MIB) == 16 * MIB
                eventually(lambda: Kernel().came(fd).num_bytes >= 16 * MIB, 5, "it has come")
                for _ in range(20):
                    taken_by(reading, listening)
                for number in range(1, 2 * SILENT_LOOKS):
                    unended.look(2.0 * number)
                assert unended.num_ended == 1
        finally:
            reading.close()
            listening.disable_monitor()
            monitor.close(linger=0)


@needs_counts
@pytest.mark.net
@pytest.mark.parametrize("opened", [port.open_port, port.PlainPort])
@pytest.mark.parametrize("keyed", [False, True])
def test_what_is_counted_is_what_came(opened, keyed, ring):
    """Messages of all sizes, by either end of a connection, to the byte but for what libzmq says itself."""
    sizes = [0, 1, 199, 221, 222, 223, 254, 255, 256, 257, 5000, 40_000, MIB]
    with zmq.Context() as context, context.socket(zmq.ROUTER) as listening, context.socket(zmq.DEALER) as dialling:
        if keyed:
            server_keys, keys = ring.keys("server"), ring.keys("device")
            listening.curve_server, listening.curve_secretkey = True, server_keys.secret.encode()
            dialling.curve_serverkey = server_keys.public.encode()
            dialling.curve_publickey, dialling.curve_secretkey = keys.public.encode(), keys.secret.encode()
        listening.linger = dialling.linger = 0
        dialling.connect(f"tcp://127.0.0.1:{listening.bind_to_random_port('tcp://127.0.0.1')}")
        ports = opened(listening, True, False), opened(dialling, False, False)
        for each in ports:
            each.count(keyed)
        dialling.send(b"first")
        taken_by(ports[0], listening)
        ((fd, num_bytes),) = ports[0].take_counts()
        greeted = Kernel().came(fd).num_bytes - num_bytes
        listening.send_multipart([ports[0].route, b"first"])
        taken_by(ports[1], dialling)
        ((dialled_fd, num_bytes),) = ports[1].take_counts()
        dialled_greeted = Kernel().came(dialled_fd).num_bytes - num_bytes
        for size in sizes:
            dialling.send_multipart([bytes(size), b"", bytes(size)])
            taken_by(ports[0], listening)
            listening.send_multipart([ports[0].route, bytes(size), bytes(7)])
            taken_by(ports[1], dialling)
        ((same_fd, num_bytes),) = ports[0].take_counts()
        assert same_fd == fd
        assert Kernel().came(fd).num_bytes - num_bytes - greeted == len(b"first") + (35 if keyed else 2)
        ((same_fd, num_bytes),) = ports[1].take_counts()
        assert same_fd == dialled_fd
        assert Kernel().came(dialled_fd).num_bytes - num_bytes - dialled_greeted == len(b"first") + (35 if keyed else 2)
        for each in ports:
            each.close()


def taken_by(reading, sock):
    """Take the next message through a port."""
    assert sock.poll(5000)
    frame = reading.take()
    frames = [frame]
    if reading.more:
        reading.take_rest(frames)
    return frames
