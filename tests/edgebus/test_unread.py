"""What comes while nobody reads a node's sockets is bounded in bytes, and costs nobody his connection."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest
import zmq

import edgebus
from bench.micro import zmtp
from edgebus import messages as m
from edgebus.messages import encode_header
from edgebus.queues import UNENDED_PENDING
from edgebus.tcp import Kernel, open_guard
from tests.edgebus.child_flooded import LIMITS, MIB
from tests.edgebus.test_floods import CLAIMED, rss_bytes, server, silent_peer, watched
from tests.edgebus.test_sharing import eventually
from tests.edgebus.test_unended import send_without_end

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(open_guard(1, 1) is None, reason="nothing counts the bytes of connections here, or not in C"),
]
CHILD = Path(__file__).with_name("child_stuck.py")
ANSWER = encode_header(m.Reply(1))
REQUEST = encode_header(m.Request(1, "work", 60_000, 0))
SO_ATTACH_FILTER, SO_LOCK_FILTER = 26, 44  # of Linux; socket does not have them
SENT_MIB = 1000
BOUND_BYTES = UNENDED_PENDING * LIMITS["max_pending_bytes"] + LIMITS["max_frame_bytes"] + LIMITS["bulk_bytes"]
LATE_BYTES = 300 * MIB
"""What comes until somebody looks, at 2 GB/s."""


@contextmanager
def chosen_server(endpoint="tcp://127.0.0.1:*"):
    """A server of raw messages: its socket, its endpoint, and what greets who dials."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as sock:
        sock.linger, sock.sndtimeo, sock.rcvtimeo, sock.sndhwm, sock.router_mandatory = 0, 500, 10_000, 1, 1

        def greet():
            while True:
                route, frame = sock.recv_multipart()[:2]
                header = m.decode_header(frame)
                if isinstance(header, m.Hello) and not header.lane:
                    welcome = m.Welcome(2, "server", bytes(16), header.greeting, CLAIMED)
                    sock.send_multipart([route, encode_header(welcome)])
                    return route

        sock.bind(endpoint)
        yield sock, sock.getsockopt_string(zmq.LAST_ENDPOINT), greet


@contextmanager
def stuck_device(endpoint, greet):
    command = [sys.executable, str(CHILD), endpoint]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        route = greet()
        assert child.stdout.readline() == "stuck\n"
        yield child, route
    finally:
        child.kill()
        child.wait(20)
        child.stdin.close()
        child.stdout.close()


@pytest.mark.parametrize("num_frames", [1, 20])
def test_chosen_server_that_floods_a_device_which_does_not_read_is_held_back_and_not_cut(num_frames):
    message = [ANSWER, *[bytes(MIB)] * num_frames]
    with chosen_server() as (sock, endpoint, greet), stuck_device(endpoint, greet) as (child, route):
        before, peaks, left = rss_bytes(child.pid), [0], SENT_MIB // num_frames
        with watched(child.pid, peaks), suppress(zmq.Again):
            while left:
                sock.send_multipart([route, *message], copy=False)
                left -= 1
        assert left, "all of it was taken"
        assert max(peaks) - before < BOUND_BYTES + LATE_BYTES
        child.stdin.write("\n")
        child.stdin.flush()
        sock.sndtimeo = 10_000  # TCP sends again what was dropped
        for _ in range(min(left, 60 // num_frames)):
            sock.send_multipart([route, *message], copy=False)


@pytest.mark.parametrize("service", ["stall", "nap"], ids=["keeps Python's lock", "only waits"])
@pytest.mark.parametrize("ends", [True, False], ids=["whole", "without an end"])
def test_server_that_does_not_read_since_a_handler_is_at_work(service, ends):
    with server() as (child, endpoint), silent_peer(endpoint, 2, 1) as sock:
        peer = zmtp.Plain(endpoint)
        with closing(peer.sock):
            peer.send(encode_header(m.Hello(1, 2, "peer", b"p" * 16, 1, CLAIMED)), more=False)
            peer.receive()
            sock.send_multipart([encode_header(m.Request(0, service, 60_000, 0)), b""])
            assert child.stdout.readline() == "stalled\n"
            peer.sock.settimeout(0.5)
            before, peaks, sent = rss_bytes(child.pid), [0], 0
            with watched(child.pid, peaks), suppress(OSError):
                if not ends:
                    peer.send(REQUEST, more=True)
                while sent < SENT_MIB * MIB:
                    if ends:
                        peer.send(REQUEST, more=True)
                    for number in range(20):
                        peer.send(bytes(MIB), more=not ends or number < 19)
                        sent += MIB
            assert sent < SENT_MIB * MIB
            assert max(peaks) - before < BOUND_BYTES + LATE_BYTES


def test_coming_again_is_no_way_around_while_nobody_reads():
    """Each time less than is allowed: once there is too much, nobody new comes in."""
    with server() as (child, endpoint), silent_peer(endpoint, 2, 1) as sock:
        sock.send_multipart([encode_header(m.Request(0, "stall", 60_000, 0)), b""])
        assert child.stdout.readline() == "stalled\n"
        before, peaks, host = rss_bytes(child.pid), [0], endpoint.removeprefix("tcp://").rpartition(":")
        with watched(child.pid, peaks), suppress(OSError), ExitStack() as peers:
            for _ in range(SENT_MIB // 7):
                with socket.socket() as tried:  # zmtp's waits for 10 s
                    tried.settimeout(0.5)
                    tried.connect((host[0], int(host[2])))
                peer = peers.enter_context(closing(zmtp.Plain(endpoint)))
                peer.sock.settimeout(0.5)
                for _ in range(7):
                    peer.send(bytes(MIB), more=False)
                peer.sock.close()
        assert max(peaks) - before < BOUND_BYTES + LATE_BYTES


def test_honest_peers_are_heard_again_after_a_handler_was_at_work():
    with server() as (child, endpoint), edgebus.Node("other", insecure=True) as other:
        link = other.connect(endpoint)
        with silent_peer(endpoint, 2, 1) as sock:
            sock.send_multipart([encode_header(m.Request(0, "nap", 60_000, 0)), b""])
            assert child.stdout.readline() == "stalled\n"
            sock.sndtimeo = 500
            with suppress(zmq.Again):
                for number in range(1, SENT_MIB):
                    header = encode_header(m.Request(number, "work", 60_000, 0))
                    sock.send_multipart([header, bytes(MIB)], copy=False)
            asked = link.send_request("work", b"hi", timeout_s=20)
            child.stdin.write("\n")
            child.stdin.flush()
            assert asked.result().payload == b"echo:hi"
        assert link.request("work", b"hi", timeout_s=20).payload == b"echo:hi"
        assert link.stats().reconnects == 0


# -- a guard by itself -----------------------------------------------------------------------------------


class Received:
    """A connection that a thread reads, as libzmq would; what comes stays in memory."""

    def __init__(self, stack, listening=None):
        if listening is None:
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.listening, self.tcp_port = listening, listening.getsockname()[1]
        self.sending = stack.enter_context(socket.create_connection(listening.getsockname()))
        self.sock = stack.enter_context(listening.accept()[0])
        self.sending.settimeout(0.3)
        self.found, self.pieces, self.num_bytes = Kernel().came(self.sock.fileno()), [], 0
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        stack.callback(self._end)

    def _read(self):
        with suppress(ConnectionResetError):
            while piece := self.sock.recv(MIB):
                self.pieces.append(piece)
                self.num_bytes += len(piece)

    def _end(self):
        with suppress(OSError):  # it was ended
            self.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def known(self, guard):
        assert guard.know(self.sock.fileno(), self.found.inode, True, self.tcp_port, "")

    def send(self, num_mib):
        """Send so much, until it is not taken any more; whether it was all."""
        with suppress(TimeoutError):
            for _ in range(num_mib):
                self.sending.sendall(bytes(MIB))
            return True
        return False


@contextmanager
def guarded(most_mib=32, allowed_mib=8):
    with ExitStack() as stack:
        guard = open_guard(most_mib * MIB, allowed_mib * MIB)
        stack.callback(guard.close)
        yield guard, stack


def asks(guard, wait_s):
    """Whether the node is to look."""
    if select.select([guard.fileno()], [], [], wait_s)[0]:
        os.read(guard.fileno(), 8)
        return True
    return False


def test_guard_asks_when_memory_has_grown_and_holds_back_until_somebody_has_looked():
    with guarded() as (guard, stack):
        one, other = Received(stack), Received(stack)
        one.known(guard)
        other.known(guard)
        assert not asks(guard, 0.3)
        assert not one.send(500)
        assert asks(guard, 0)
        assert guard.num_ever_paused == 1
        assert other.send(4)
        guard.looked(False, 0)
        assert guard.num_paused == 1
        guard.looked(True, 0)
        assert guard.num_paused == 0
        before = one.num_bytes
        eventually(lambda: one.num_bytes > before, 5, "what was dropped comes again")


def test_guard_lets_no_crowd_have_what_is_allowed_to_each():
    """An allowed peer may open as many connections as it likes."""
    with guarded(16, 8) as (guard, stack):
        crowd = [Received(stack) for _ in range(40)]
        for each in crowd:
            each.known(guard)
        applications = bytearray(b"x") * (40 * MIB)
        assert asks(guard, 5.0)
        rounds = 0
        while not guard.num_ever_paused and rounds < 8 * 16:
            for each in crowd:
                each.sending.sendall(bytes(MIB // 16))
            rounds += 1
        assert guard.num_ever_paused > 30
        assert sum(each.num_bytes for each in crowd) < 40 * 8 * MIB - len(applications)


def test_guard_leaves_who_is_read_alone():
    with guarded() as (guard, stack):
        one = Received(stack)
        one.known(guard)
        for _ in range(40):
            assert one.send(8)
            if asks(guard, 0.0):
                guard.looked(False, 0)
            one.pieces.clear()
        assert guard.num_ever_paused == 0


def test_guard_leaves_what_is_the_applications_alone():
    """Another port, and a node that reads while this one does not."""
    with guarded() as (guard, stack), guarded() as (other, _):
        one, applications, others = Received(stack), Received(stack), Received(stack)
        one.known(guard)
        others.known(other)
        done = threading.Event()

        def look():
            while not done.wait(0.005):
                if asks(other, 0.0):
                    other.looked(False, 0)

        thread = threading.Thread(target=look)
        thread.start()
        try:
            assert applications.send(100)
            assert others.send(200)
            assert not one.send(500)
        finally:
            done.set()
            thread.join()
        assert (guard.num_ever_paused, other.num_ever_paused) == (1, 0)


def test_guard_finds_connections_that_nobody_has_told_it_of():
    with guarded() as (guard, stack):
        one = Received(stack)
        one.known(guard)
        assert not one.send(500)
        with socket.socket() as tried:
            tried.settimeout(0.3)
            with pytest.raises(TimeoutError):
                tried.connect(one.listening.getsockname())
            guard.looked(False, 0)
            assert guard.num_paused == 1, "only who has sent too much waits on"
            assert select.select([], [tried], [], 5)[1], "it is not let in afterwards either"


def test_guard_ends_whom_it_cannot_hold_back():
    """A socket whose filter is locked, as where the kernel allows none."""
    with guarded() as (guard, stack):
        one = Received(stack)
        one.known(guard)
        passes_all = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0xFFFFFFFF))
        program = struct.pack("HxxxxxxP", 1, ctypes.addressof(passes_all))
        one.sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        one.sock.setsockopt(socket.SOL_SOCKET, SO_LOCK_FILTER, 1)
        with pytest.raises(ConnectionError):
            one.send(500)
        assert guard.num_ever_paused == 1


def test_guard_that_is_closed_holds_nobody_back():
    with guarded() as (guard, stack):
        one = Received(stack)
        one.known(guard)
        assert not one.send(500)
        before = one.num_bytes
        guard.close()
        guard.looked(True, 0)
        assert not guard.know(one.sock.fileno(), one.found.inode, True, one.tcp_port, "")
        assert (guard.fileno(), guard.num_paused) == (-1, 0)
        eventually(lambda: one.num_bytes > before, 5, "what was dropped comes again")


def test_what_is_left_counts_until_it_is_read():
    with guarded(64, 1) as (guard, stack):
        one = Received(stack)
        one.known(guard)
        guard.looked(False, 64 * MIB)
        applications = bytearray(b"x") * (40 * MIB)
        assert asks(guard, 5.0)
        eventually(lambda: one.send(1) and guard.num_ever_paused, 5, "it is held back")
        assert one.num_bytes < len(applications)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_guard_of_a_forked_child_is_its_own():
    with guarded() as (guard, stack):
        one = Received(stack)
        one.known(guard)
        child = os.fork()
        if not child:
            with suppress(BaseException):
                guard.close()
                own = open_guard(32 * MIB, 8 * MIB)
                assert own.know(one.sock.fileno(), one.found.inode, True, one.tcp_port, "")
                kept = [bytearray(b"x") * (40 * MIB)]
                os._exit(0 if asks(own, 5.0) and kept else 1)
            os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        assert not one.send(500)


def test_what_was_sent_without_an_end_is_told_by_the_look_that_follows():
    """A node whose handler is at work for a while: it holds the peer back, and ends it afterwards."""
    with server() as (child, endpoint), silent_peer(endpoint, 2, 1) as sock:
        sock.send_multipart([encode_header(m.Request(0, "nap", 60_000, 0)), b""])
        assert child.stdout.readline() == "stalled\n"
        with closing(zmtp.Plain(endpoint)) as peer:
            peer.sock.settimeout(0.5)
            assert send_without_end(peer, SENT_MIB * MIB) < SENT_MIB * MIB
            child.stdin.write("\n")
            child.stdin.flush()
            peer.sock.settimeout(10)
            with suppress(ConnectionResetError):
                assert peer.sock.recv(1) == b"", "it was not ended"
