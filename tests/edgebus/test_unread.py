"""What comes while nobody reads a node's sockets is bounded in bytes, and costs nobody his connection."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
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
        sock.linger, sock.sndtimeo, sock.rcvtimeo, sock.sndhwm, sock.router_mandatory = 0, 300, 10_000, 1, 1

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
    command = [sys.executable, str(CHILD), endpoint, json.dumps(LIMITS)]
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


def test_chosen_server_that_floods_a_device_which_does_not_read_is_held_back_and_not_cut():
    num_frames = 20
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


@pytest.mark.parametrize(
    ("service", "ends"), [("stall", False), ("nap", True)], ids=["keeps Python's lock", "only waits"]
)
def test_server_that_does_not_read_since_a_handler_is_at_work(service, ends):
    with server() as (child, endpoint), silent_peer(endpoint, 2, 1) as sock:
        peer = zmtp.Plain(endpoint)
        with closing(peer.sock):
            peer.send(encode_header(m.Hello(1, 2, "peer", b"p" * 16, 1, CLAIMED)), more=False)
            peer.receive()
            sock.send_multipart([encode_header(m.Request(0, service, 60_000, 0)), b""])
            assert child.stdout.readline() == "stalled\n"
            peer.sock.settimeout(0.3)
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
                peer.sock.settimeout(0.3)
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
            sock.sndtimeo = 300
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
    """A connection that a thread reads, as libzmq would; what comes stays in memory, or fills these pages again."""

    def __init__(self, stack, listening=None, pages=None):
        self._pages = pages
        if listening is None:
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.listening, self.tcp_port = listening, listening.getsockname()[1]
        self.sending = stack.enter_context(socket.create_connection(listening.getsockname()[:2]))
        self.sock = stack.enter_context(listening.accept()[0])
        self.sending.settimeout(0.3)
        self.found, self.pieces, self.num_bytes = Kernel().came(self.sock.fileno()), [], 0
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        stack.callback(self._end)

    def _read(self):
        with suppress(ConnectionResetError):
            while True:
                left = memoryview(
                    self._pages or mmap.mmap(-1, 16 * MIB)
                )  # what the process has freed would be no growth
                self.pieces.append(left)
                while left:
                    num_bytes = self.sock.recv_into(left)
                    if not num_bytes:
                        return
                    left = left[num_bytes:]
                    self.num_bytes += num_bytes

    def _end(self):
        with suppress(OSError):  # it was ended
            self.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def known(self, guard):
        assert guard.know(self.sock.fileno(), self.found.inode, True, self.tcp_port, "")

    def send(self, num_mib):
        """Send so much, until no more of it comes in; whether it was all."""
        for _ in range(num_mib):
            left = memoryview(bytes(MIB))
            while left:
                before = self.num_bytes
                try:
                    left = left[self.sending.send(left) :]
                except TimeoutError:
                    if self.num_bytes == before:  # else the machine is busy
                        return False
        return True


@contextmanager
def guarded(most_mib=32, allowed_mib=8):
    with ExitStack() as stack:
        guard = open_guard(most_mib * MIB, allowed_mib * MIB)
        stack.callback(guard.close)
        yield guard, stack


@contextmanager
def fresh_pages(num_mib):
    """Memory that the process did not have before: what it has freed and kept is no growth."""
    with mmap.mmap(-1, num_mib * MIB) as pages:
        for at in range(0, len(pages), mmap.PAGESIZE):
            pages[at] = 1
        yield pages


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
    """An allowed peer may open as many connections as it likes; whoever has little goes on."""
    with guarded(16, 8) as (guard, stack):
        crowd, small = [Received(stack) for _ in range(40)], Received(stack)
        for each in [*crowd, small]:
            each.known(guard)
            each.sending.setblocking(False)
        applications = stack.enter_context(fresh_pages(40))
        assert asks(guard, 20.0)
        small.sending.send(bytes(MIB // 8))
        for _ in range(8 * 32):  # of all of them 4 times what they may have, if nobody were held back
            for each in crowd:
                with suppress(BlockingIOError):
                    each.sending.send(bytes(MIB // 32))
            time.sleep(0.002)
        assert guard.num_ever_paused > 20
        assert sum(each.num_bytes for each in crowd) < (16 + 8 * 8 + 100) * MIB
        small.sending.settimeout(5)
        small.sending.sendall(bytes(MIB // 8))
        eventually(lambda: small.num_bytes == MIB // 4, 5, "it is not held back")
        assert len(applications) == 40 * MIB


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
        lock_filter(one.sock)
        with pytest.raises(ConnectionError):
            one.send(500)
        eventually(lambda: guard.num_ever_paused == 1, 5, "it is counted")


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
        applications = stack.enter_context(fresh_pages(40))
        assert asks(guard, 20.0)
        for _ in range(20):  # less than is allowed, with what the memory has grown by
            if not guard.num_ever_paused and one.send(1):
                time.sleep(0.01)
        eventually(lambda: guard.num_ever_paused, 20, "it is held back")
        assert len(applications) == 40 * MIB


def test_connection_that_turns_out_to_be_another_nodes_is_let_go():
    """Two nodes with one address: the one that reads is told of a connection that was held back as the other's."""
    with guarded() as (stuck, stack), guarded() as (reads, _):
        one = Received(stack)
        one.known(stuck)
        other = Received(stack, one.listening)
        assert not one.send(300)
        assert not other.send(300)
        before, num_paused = other.num_bytes, stuck.num_paused
        other.known(reads)
        assert stuck.num_paused == num_paused - 1
        eventually(lambda: other.num_bytes > before, 5, "what was dropped comes again")
        stuck.looked(True, 0)
        assert (stuck.num_paused, reads.num_paused) == (0, 0)


def test_guard_that_can_look_after_nobody_any_more_holds_nobody_back():
    with guarded() as (guard, stack):
        one, late = Received(stack), Received(stack)
        one.known(guard)
        assert not one.send(500)
        before = one.num_bytes
        assert not guard.know(late.sock.fileno(), late.found.inode, False, late.tcp_port, "x" * 100)
        assert guard.num_paused == 0
        eventually(lambda: one.num_bytes > before, 5, "what was dropped comes again")
        late.sending.settimeout(10)
        assert late.send(100), "it is looked after still"


def statm_fds():
    with os.scandir("/proc/self/fd") as entries:
        for entry in entries:
            with suppress(OSError):
                if os.readlink(entry.path).endswith("statm"):
                    yield int(entry.name)


def test_descriptor_of_the_application_is_not_taken_for_the_guards():
    """It closes whatever it does not know, and has the number itself then."""
    with guarded() as (guard, stack):
        one = Received(stack)
        kept = list(statm_fds())
        assert kept
        with open(__file__, "rb") as file:
            for fd in kept:
                os.dup2(file.fileno(), fd)
            stack.callback(lambda: [os.close(fd) for fd in kept])  # fails if one is closed already
            one.known(guard)
            assert not asks(guard, 0.3)
            with fresh_pages(40):
                assert asks(guard, 20.0), "it looks by another one"
            guard.close()


def test_who_is_held_back_is_heard_to_acknowledge():
    """What we send goes on: more than its buffers hold, which needs its acknowledgements."""
    for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
        with guarded() as (guard, stack):
            try:
                listening = stack.enter_context(socket.create_server((host, 0), family=family))
            except OSError:  # no IPv6 here
                continue
            one = Received(stack, listening)
            one.known(guard)
            assert not one.send(500)
            assert guard.num_paused
            one.sock.settimeout(10)
            one.sending.settimeout(10)
            sender = threading.Thread(target=one.sock.sendall, args=(bytes(30 * MIB),))
            sender.start()
            try:
                came = 0
                while came < 30 * MIB:
                    came += len(one.sending.recv(MIB))
                assert guard.num_paused
            finally:
                guard.close()
                sender.join()


def lock_filter(sock):
    """As where the kernel allows no filters."""
    passes_all = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0xFFFFFFFF))
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(passes_all))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
    sock.setsockopt(socket.SOL_SOCKET, SO_LOCK_FILTER, 1)


def test_connection_that_nobody_has_told_it_of_is_not_ended():
    """It may be the application's."""
    with guarded() as (guard, stack):
        one = Received(stack)
        other = Received(stack, one.listening)
        one.known(guard)
        lock_filter(other.sock)
        assert not one.send(300)
        other.sending.settimeout(10)
        assert other.send(50), "it is neither held back nor ended"


@pytest.mark.parametrize("is_bound", [True, False], ids=["another address", "a socket that was closed"])
def test_guard_leaves_a_port_alone_that_is_the_applications_by_now(is_bound):
    with guarded() as (guard, stack):
        one = Received(stack)
        address = ("127.0.0.2", one.tcp_port) if is_bound else ("127.0.0.1", 0)
        applications = Received(stack, stack.enter_context(socket.create_server(address)))
        guard.know(one.sock.fileno(), one.found.inode, True, one.tcp_port, "127.0.0.1")
        if not is_bound:
            other = Received(stack, applications.listening)
            assert guard.know(other.sock.fileno(), other.found.inode, True, other.tcp_port, "127.0.0.1")
            guard.forget(True, other.tcp_port, "127.0.0.1")
        assert not one.send(300)
        applications.sending.settimeout(10)
        assert applications.send(100)


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
                with fresh_pages(40):
                    os._exit(0 if asks(own, 20.0) else 1)
            os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        assert not one.send(500)


def test_what_was_sent_without_an_end_is_told_by_the_look_that_follows():
    """A node whose handler is at work for a while: it holds the peer back, and ends it afterwards."""
    with server() as (child, endpoint), silent_peer(endpoint, 2, 1) as sock:
        sock.send_multipart([encode_header(m.Request(0, "nap", 60_000, 0)), b""])
        assert child.stdout.readline() == "stalled\n"
        with closing(zmtp.Plain(endpoint)) as peer:
            peer.sock.settimeout(0.3)
            assert send_without_end(peer, SENT_MIB * MIB) < SENT_MIB * MIB
            child.stdin.write("\n")
            child.stdin.flush()
            peer.sock.settimeout(10)
            with suppress(ConnectionResetError):
                while peer.sock.recv(4096):  # libzmq's beats
                    pass
