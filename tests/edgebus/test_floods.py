"""One allowed peer that asks without end and never reads: the server's memory stays within the bounds of `Limits`."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import zmq

import edgebus
from edgebus import messages as m
from edgebus import port
from edgebus.messages import encode_header
from edgebus.queues import most_sending_bytes, most_unread
from tests.edgebus.callbacks import stacked
from tests.edgebus.child_flooded import LIMITS, MIB
from tests.edgebus.test_sharing import eventually

pytestmark = pytest.mark.net
CHILD = Path(__file__).with_name("child_flooded.py")
CLAIMED = m.WireLimits(65536, 16 * MIB, 64, 1 << 40)  # a receiver that says it takes everything
NUM_REQUESTS, REQUEST = 1200, bytes(MIB)
SLACK_BYTES = 16 * MIB


def bound_bytes():
    """What one peer may make the server keep: docs/spec/bus-security.md."""
    limits = edgebus.Limits(**LIMITS)
    unread_bytes = most_unread(limits) * len(REQUEST)
    kept_bytes = limits.max_pending_bytes + limits.max_outstanding_bytes + limits.cache_bytes
    return kept_bytes + unread_bytes + most_sending_bytes(limits) + SLACK_BYTES


def rss_bytes(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))


@contextmanager
def server():
    child = subprocess.Popen([sys.executable, str(CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield child, child.stdout.readline().strip()
    finally:
        child.stdin.close()
        child.wait(20)
        child.stdout.close()


@contextmanager
def silent_peer(endpoint, version, num_waiting=1000):
    """A socket that has greeted, from which nothing is read, and in which so many messages wait to go."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as sock:
        sock.linger, sock.sndtimeo, sock.rcvtimeo, sock.rcvhwm, sock.rcvbuf = 0, 10_000, 10_000, 1, 65536
        sock.sndhwm = num_waiting
        sock.connect(endpoint)
        sock.send(encode_header(m.Hello(1, version, "silent", bytes(16), 1, CLAIMED)))
        sock.recv_multipart()
        yield sock


@contextmanager
def watched(pid, peaks):
    done = threading.Event()

    def watch():
        while not done.wait(0.005):
            peaks.append(rss_bytes(pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.skipif(port.open_port is port.PlainPort, reason="what libzmq has to send is counted by the compiled port")
@pytest.mark.parametrize("version", [1, 2])
def test_peer_that_never_reads_its_answers_costs_no_more_than_the_bounds(version):
    with server() as (child, endpoint), silent_peer(endpoint, version) as sock:
        peaks = [rss_bytes(child.pid)]
        with watched(child.pid, peaks):
            for number in range(NUM_REQUESTS):
                sock.send(encode_header(m.Request(number, "work", 60_000, 0)), zmq.SNDMORE)
                sock.send(REQUEST)
            with edgebus.Node("other", insecure=True) as other:
                began = time.monotonic()
                assert other.connect(endpoint).request("work", b"hi", timeout_s=10).payload == b"echo:hi"
                assert time.monotonic() - began < 5
        cost_bytes = max(peaks) - peaks[0]
        assert cost_bytes < bound_bytes(), f"{cost_bytes / MIB:.0f} of {bound_bytes() / MIB:.0f} MiB"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_peer_that_sends_while_nobody_can_read_costs_a_bounded_number_of_its_messages():
    """A handler holds Python's lock until all has been sent, or no more of it is taken."""
    size, bound = MIB, most_unread(edgebus.Limits(**LIMITS)) * MIB + SLACK_BYTES
    with server() as (child, endpoint), silent_peer(endpoint, 2, 1) as sock:
        sock.send_multipart([encode_header(m.Request(0, "stall", 60_000, 0)), b""])
        assert child.stdout.readline() == "stalled\n"
        sock.sndtimeo = 500
        before = rss_bytes(child.pid)
        with suppress(zmq.Again):
            for number in range(1, bound // size + 20):
                sock.send_multipart([encode_header(m.Request(number, "work", 60_000, 0)), bytes(size)])
        cost_bytes = rss_bytes(child.pid) - before
        assert size < cost_bytes < bound, f"{cost_bytes / MIB:.0f} of {bound / MIB:.0f} MiB"


def test_peer_that_is_read_late_is_not_cut_and_loses_nothing():
    """libzmq's beat hears nothing over a connection that is full."""
    limits, count = edgebus.Limits(heartbeat_s=0.1, silence_s=0.2), 900
    assert most_unread(limits) < count
    with edgebus.Node("s", insecure=True, limits=limits) as node:
        node.handle("work", lambda request: request.reply(request.payload))
        with silent_peer(node.bind("tcp://127.0.0.1:0"), 2) as sock:
            with node._engine.runner._lock:
                for number in range(count):
                    sock.send(encode_header(m.Request(number, "work", 60_000, 0, (), b"%d" % number)))
                time.sleep(1.0)  # twice what a bulk lane may be silent for
            answers = set()
            while len(answers) < count:
                header = m.decode_header(sock.recv_multipart()[0])
                if isinstance(header, m.Reply):
                    answers.add(header.inline)
    assert len(answers) == count


@pytest.mark.skipif(port.open_port is port.PlainPort, reason="what libzmq has to send is counted by the compiled port")
def test_closing_gives_back_what_a_peer_that_never_reads_has_left():
    node = edgebus.Node("s", insecure=True, limits=edgebus.Limits(**LIMITS))
    try:
        node.handle("work", lambda request: request.reply(bytes(2 * MIB)))
        with silent_peer(node.bind("tcp://127.0.0.1:0"), 1) as sock:
            for number in range(20):
                sock.send_multipart([encode_header(m.Request(number, "work", 60_000, 0)), b"x"])
            eventually(lambda: port.take_back() > 0)
            began = time.monotonic()
            node.close(0.2)
            eventually(lambda: port.take_back() == 0)
            assert time.monotonic() - began < 3
    finally:
        node.close(0)


def test_callbacks_that_answer_do_not_stand_on_top_of_each_other():
    """Each would keep its request until all that came behind it had been answered."""
    with edgebus.Node("s", insecure=True) as node, edgebus.Node("d", insecure=True) as device:
        answers, deepest = stacked(node, device, lambda request: request.reply(bytes(100_000)))
    assert {len(answer.payload) for answer in answers} == {100_000}
    assert deepest == 1
