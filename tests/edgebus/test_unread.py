"""What comes while nobody reads a node's sockets is bounded in bytes, whoever sends it, and costs nobody his connection."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import zmq

from edgebus import messages as m
from edgebus.messages import encode_header
from tests.edgebus.child_flooded import LIMITS, MIB
from tests.edgebus.test_floods import CLAIMED, rss_bytes, watched

pytestmark = pytest.mark.net
CHILD = Path(__file__).with_name("child_stuck.py")
HEADER = encode_header(m.Reply(1))


@contextmanager
def chosen_server():
    """A server of raw messages; its endpoint, and how it greets who dials."""
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

        yield sock, f"tcp://127.0.0.1:{sock.bind_to_random_port('tcp://127.0.0.1')}", greet


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
def test_chosen_server_that_floods_a_device_which_does_not_read_costs_a_bounded_amount(num_frames):
    content = [bytes(MIB)] * num_frames
    with chosen_server() as (sock, endpoint, greet), stuck_device(endpoint, greet) as (child, route):
        before, peaks, sent = rss_bytes(child.pid), [0], 0
        with watched(child.pid, peaks), suppress(zmq.Again):
            for _ in range(1000 // num_frames):
                sock.send_multipart([route, HEADER, *content], copy=False)
                sent += num_frames
        print(sent, (max(peaks) - before) / MIB)
        assert max(peaks) - before < 256 * MIB
