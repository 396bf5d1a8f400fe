"""What goes wrong over real sockets: keys, hostile peers, processes that die, stop and come back."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import contextmanager

import pytest
import zmq

import edgebus
from edgebus import messages as m
from edgebus.messages import decode_header, encode_header
from tests.processes import freeze

pytestmark = pytest.mark.net
LIMITS = m.WireLimits(65536, 2**20, 64)


@contextmanager
def within(seconds):
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def test_key_not_allowed_is_said_at_once(ring):
    with ring.server() as server, ring.device("stranger") as stranger:
        endpoint = server.bind("tcp://127.0.0.1:0")
        with within(2), pytest.raises(edgebus.KeyNotAllowed, match="edgebus allow"):
            stranger.connect(endpoint, ring.public("server"), timeout_s=10)
        eventually(lambda: server.stats().rejected_handshakes == 1)
        assert server.stats().peers == {}


def test_wrong_server_key_is_said_well_before_the_timeout(ring):
    with ring.server() as server, ring.device() as device:
        endpoint = server.bind("tcp://127.0.0.1:0")
        with within(3), pytest.raises(edgebus.WrongServerKey, match="another key"):
            device.connect(endpoint, ring.public("stranger"), timeout_s=10)
        until = time.monotonic() + 2  # the device has heard of the cut before the server has counted it
        while server.stats().rejected_handshakes < 3 and time.monotonic() < until:
            time.sleep(0.01)
        assert server.stats().rejected_handshakes >= 3


def test_plaintext_and_curve_do_not_mix_either_way(ring):
    with ring.server() as secure, edgebus.Node("plain", insecure=True) as plain, ring.device() as device:
        secure_at, plain_at = secure.bind("tcp://127.0.0.1:0"), plain.bind("tcp://127.0.0.1:0")
        with within(2), pytest.raises(edgebus.WrongServerKey, match="looks like CURVE"):
            plain.connect(secure_at, timeout_s=10)
        with within(2), pytest.raises(edgebus.WrongServerKey, match="plaintext"):
            device.connect(plain_at, ring.public("server"), timeout_s=10)


def test_nobody_listening_is_unreachable_after_the_timeout(ring):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with ring.device() as device, within(2), pytest.raises(edgebus.PeerUnreachable, match="nobody listens"):
        device.connect(f"tcp://127.0.0.1:{port}", ring.public("server"), timeout_s=0.3)


def test_listener_that_never_speaks_is_unreachable(ring):
    with socket.create_server(("127.0.0.1", 0)) as mute, ring.device() as device:
        endpoint = f"tcp://127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(edgebus.PeerUnreachable, match="never speaks ZMTP"):
            device.connect(endpoint, ring.public("server"), timeout_s=2.5)


def test_server_that_starts_later_is_found(ring):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
    with ring.device() as device:
        with pytest.raises(edgebus.PeerUnreachable):
            device.connect(endpoint, ring.public("server"), timeout_s=0.1)
        with ring.server() as server:
            server.bind(endpoint)
            assert device.connect(endpoint, ring.public("server")).request("edgebus.ping").payload == b""


@pytest.mark.parametrize("change", ["allow", "plain"])
def test_fatal_change_after_a_reconnect_fails_pending_requests(ring, change, tmp_path):
    with ring.device() as device:
        server = ring.server()
        endpoint = server.bind("tcp://127.0.0.1:0")
        link = device.connect(endpoint, ring.public("server"))
        server.close()
        pending = link.send_request("x", timeout_s=30)
        options = {
            "allow": {"allow": edgebus.AllowList.from_file(tmp_path / "missing")},
            "plain": {"keys": None, "allow": None, "insecure": True},
        }[change]
        expected = edgebus.KeyNotAllowed if change == "allow" else edgebus.WrongServerKey
        with ring.server(**options) as changed:
            changed.bind(endpoint)
            with within(10), pytest.raises(expected):
                pending.result()
            with within(2), pytest.raises(expected):
                link.request("x")


def test_link_outlives_a_listener_that_only_cuts(ring):
    """A proxy whose backend is down accepts and closes: no reason to distrust a key that was right."""
    with ring.device() as device:
        with ring.server() as server:
            endpoint = server.bind("tcp://127.0.0.1:0")
            link = device.connect(endpoint, ring.public("server"))
        port = int(endpoint.rpartition(":")[2])
        with socket.create_server(("127.0.0.1", port)) as proxy:
            proxy.settimeout(5)
            for _ in range(4):
                proxy.accept()[0].close()
        pending = link.send_request("edgebus.ping", b"x", timeout_s=15)
        with ring.server() as server:
            server.bind(endpoint)
            assert pending.result().payload == b"x"


def test_allow_list_is_read_again_without_a_restart(ring, tmp_path):
    file = tmp_path / "allowed"
    with ring.server(allow=edgebus.AllowList.from_file(file)) as server, ring.device() as device:
        endpoint = server.bind("tcp://127.0.0.1:0")
        with pytest.raises(edgebus.KeyNotAllowed):
            device.connect(endpoint, ring.public("server"))
        edgebus.add_to_allow_list(file, ring.public("device"))
        device.connect(endpoint, ring.public("server"))


def test_any_key_is_authenticated_and_told(ring):
    with ring.server(allow=edgebus.AllowList.any()) as server, ring.device("stranger") as stranger:
        inbox = server.serve("x")
        link = stranger.connect(server.bind("tcp://127.0.0.1:0"), ring.public("server"))
        pending = link.send_request("x")
        request = inbox.get(5)
        assert request.peer.key == ring.public("stranger")
        request.reply()
        pending.result()


# -- processes -----------------------------------------------------------------------------------------


def test_server_killed_in_the_middle_is_a_lost_link_within_the_deadline(child):
    process, endpoint = child("hold")
    with edgebus.Node("device", insecure=True) as device:
        link = device.connect(endpoint)
        pending = link.send_request("work", timeout_s=1.5)
        assert process.stdout.readline() == "got\n"
        process.kill()
        with within(2), pytest.raises(edgebus.LinkLost, match="outcome unknown"):
            pending.result()
        assert link.stats().unknown == 1
        with within(2), pytest.raises(edgebus.DeadlineExceeded, match="never sent"):
            link.request("work", timeout_s=0.2)


def test_restarted_server_answers_the_outstanding_request(child):
    process, endpoint = child("hold")
    with edgebus.Node("device", insecure=True) as device:
        link = device.connect(endpoint)
        pending = link.send_request("work", b"1", timeout_s=30)
        assert process.stdout.readline() == "got\n"
        process.kill()
        process.wait(5)
        child("echo", endpoint)
        assert pending.result().payload == b"echo:1"
        assert (link.stats().reconnects, link.stats().retries) == (1, 1)


def test_stopped_server_is_noticed_and_welcomed_back(child):
    limits = edgebus.Limits(heartbeat_s=0.2, silence_s=0.5)
    process, endpoint = child("echo")
    with edgebus.Node("device", insecure=True, limits=limits) as device:
        link = device.connect(endpoint)
        assert link.request("work", b"1").payload == b"echo:1"
        freeze(process)
        with pytest.raises(edgebus.LinkLost):
            link.request("work", b"2", timeout_s=1.5)
        pending = link.send_request("work", b"3", timeout_s=30)
        os.kill(process.pid, signal.SIGCONT)
        assert pending.result().payload == b"echo:3"


# -- hostile peers -------------------------------------------------------------------------------------


def eventually(condition):
    """For what another thread learns a moment later than this one."""
    pause = threading.Event()
    assert any(condition() or pause.wait(0.02) for _ in range(250))


@contextmanager
def raw_peer(endpoint):
    context = zmq.Context()
    peer = context.socket(zmq.DEALER)
    try:
        peer.setsockopt(zmq.LINGER, 0)
        peer.setsockopt(zmq.RCVTIMEO, 5000)
        peer.connect(endpoint)
        yield peer
    finally:
        peer.close()
        context.term()


def greet(peer, **changes):
    fields = {"version_min": 1, "version_max": 1, "name": "raw", "incarnation": bytes(16), "greeting": 1}
    peer.send(encode_header(m.Hello(**(fields | {"limits": LIMITS} | changes))))
    return decode_header(peer.recv_multipart()[0])


def serve_echo(inbox):
    while (request := inbox.get(None)) is not None:
        request.reply(request.payload)


def is_welcome(peer):
    try:
        return isinstance(greet(peer, incarnation=b"1" * 16), m.Welcome)
    except zmq.Again:
        return False


GARBAGE = [
    [b""],
    [b"\xff" * 100],
    [b"\x93" * 60_000],
    [b"x" * 70_000],
    [b"GET / HTTP/1.1\r\n\r\n"],
    [b"\xdd\xff\xff\xff\xff"],
    [b"", b"", b""],
    [b"x"] * 100,
    [encode_header(m.Ping()), b"too many"],
]


def test_garbage_from_a_zmq_peer_is_counted_and_others_are_served():
    with edgebus.Node("a", insecure=True) as server, edgebus.Node("b", insecure=True) as device:
        endpoint = server.bind("tcp://127.0.0.1:0")
        link = device.connect(endpoint)
        with raw_peer(endpoint) as peer:
            for frames in GARBAGE:
                peer.send_multipart(frames)
            assert isinstance(greet(peer), m.Welcome)
            assert server.stats().malformed == len(GARBAGE)
            for frames in GARBAGE:
                peer.send_multipart(frames)
            bad = m.Request(5, "x", 1000, 0, (m.ArraySpec("f4", (2**40, 2**40)),))
            peer.send_multipart([encode_header(bad), b"", b"1234"])
            refused = decode_header(peer.recv_multipart()[0])
            assert (refused.id, refused.code) == (5, "malformed")
            peer.send_multipart([encode_header(m.Request(6, "edgebus.ping", 1000, 0)), b"fine"])
            assert peer.recv_multipart()[1] == b"fine"
        assert server.stats().malformed == 2 * len(GARBAGE) + 1
        assert link.request("edgebus.ping", b"x").payload == b"x"
        assert link.stats().reconnects == 0


def test_request_without_a_greeting_is_reset():
    with edgebus.Node("a", insecure=True) as server, raw_peer(server.bind("tcp://127.0.0.1:0")) as peer:
        peer.send_multipart([encode_header(m.Request(0, "edgebus.ping", 1000, 0)), b""])
        assert decode_header(peer.recv()) == m.Reset()
        assert server.stats().peers == {}


def test_peer_of_another_version_is_told(ring):
    with edgebus.Node("a", insecure=True) as server, raw_peer(server.bind("tcp://127.0.0.1:0")) as peer:
        goodbye = greet(peer, version_min=3, version_max=4)
        assert goodbye.code == "version"
        assert "speaks 1..2, the peer 3..4" in goodbye.detail


def test_server_of_another_version_is_a_version_mismatch():
    context = zmq.Context()
    server = context.socket(zmq.ROUTER)
    try:
        server.setsockopt(zmq.LINGER, 0)
        server.setsockopt(zmq.RCVTIMEO, 5000)
        port = server.bind_to_random_port("tcp://127.0.0.1")
        with edgebus.Node("a", insecure=True) as device:

            def answer():
                route = server.recv_multipart()[0]
                server.send_multipart([route, encode_header(m.Goodbye("version", "this node speaks 2..3"))])

            thread = threading.Thread(target=answer)
            thread.start()
            with within(3), pytest.raises(edgebus.VersionMismatch, match=r"2\.\.3"):
                device.connect(f"tcp://127.0.0.1:{port}")
            thread.join(5)
    finally:
        server.close()
        context.term()


def test_duplicate_is_answered_from_memory_and_executed_once():
    with edgebus.Node("a", insecure=True) as server, raw_peer(server.bind("tcp://127.0.0.1:0")) as peer:
        inbox = server.serve("x")
        greet(peer)
        message = [encode_header(m.Request(0, "x", 5000, 0)), b""]
        peer.send_multipart(message)
        peer.send_multipart(message)
        request = inbox.get(5)
        assert inbox.get(0.1) is None  # the second has come too
        request.reply(b"once")
        assert peer.recv_multipart()[1] == b"once"
        peer.send_multipart(message)
        assert peer.recv_multipart()[1] == b"once"
        assert inbox.get(0.01) is None
        peer.send_multipart([encode_header(m.Request(1, "x", 0, 0)), b""])
        assert decode_header(peer.recv_multipart()[0]).code == "expired"


def test_oversize_frame_cuts_only_its_sender():
    limits = edgebus.Limits(max_frame_bytes=100_000)
    with edgebus.Node("a", insecure=True, limits=limits) as server, edgebus.Node("b", insecure=True) as device:
        endpoint = server.bind("tcp://127.0.0.1:0")
        link = device.connect(endpoint)
        thread = threading.Thread(target=serve_echo, args=(server.serve("echo"),))
        thread.start()
        with raw_peer(endpoint) as peer:
            greet(peer)
            peer.send_multipart([encode_header(m.Request(0, "echo", 9000, 0)), bytes(100_001)])
            # The connection is cut and made anew; what was sent meanwhile went down with it.
            peer.setsockopt(zmq.RCVTIMEO, 200)
            eventually(lambda: is_welcome(peer))
        assert link.request("echo", bytes(100_000)).payload == bytes(100_000)
    thread.join(5)


def test_raw_tcp_garbage_is_cut_and_others_are_served(ring):
    with ring.server() as server, ring.device() as device:
        endpoint = server.bind("tcp://127.0.0.1:0")
        port = int(endpoint.rpartition(":")[2])
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", bytes(64), b"\xff" * 4096, os.urandom(4096)):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as raw:
                raw.sendall(garbage)
                try:
                    while raw.recv(4096):
                        pass
                except ConnectionResetError:
                    pass
        with socket.create_connection(("127.0.0.1", port), timeout=5) as silent:
            link = device.connect(endpoint, ring.public("server"))
            assert link.request("edgebus.ping", b"x").payload == b"x"
            assert silent.recv(1) != b"x"
        eventually(lambda: server.stats().rejected_handshakes >= 1)


def test_too_many_peers_are_told_busy_and_quiet_ones_make_room():
    limits = edgebus.Limits(max_peers=2)
    with edgebus.Node("a", insecure=True, limits=limits) as server:
        endpoint = server.bind("tcp://127.0.0.1:0")
        with raw_peer(endpoint) as one, raw_peer(endpoint) as two, raw_peer(endpoint) as three:
            assert isinstance(greet(one, incarnation=b"1" * 16), m.Welcome)
            assert isinstance(greet(two, incarnation=b"2" * 16), m.Welcome)
            assert greet(three, incarnation=b"3" * 16).code == "busy"
            one.send(encode_header(m.Goodbye("closing", "")))
            one.send(encode_header(m.Ping()))  # ignored, the link is closed; nothing comes back
            two.send(encode_header(m.Ping()))
            assert decode_header(two.recv()) == m.Pong()
            welcomes = 0
            for _ in range(50):  # `one` and `three` are not ordered: the goodbye may come a little later
                if isinstance(greet(three, incarnation=b"3" * 16), m.Welcome):
                    welcomes += 1
                    break
            assert welcomes == 1
