"""A node over real sockets, when all goes well and when the application does not."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest

import edgebus
from edgebus.stats import LinkStats

pytestmark = pytest.mark.net


def test_echo_over_tcp_and_curve_tells_who_asks(pair, ring):
    _, _, link, echo = pair
    assert link.request("echo", b"hello").payload == b"hello"
    [request] = echo.seen
    assert request.peer.key == ring.public("device")
    assert request.peer.name == "device"
    assert len(request.peer.id) == 32
    assert request.service == "echo"
    assert link.peer_name == "server"


@pytest.mark.parametrize("code", ["f4", "f2", "i4", "i8", "u1", "u2", "u4", "i1", "i2", "f8", "u8"])
def test_arrays_come_back_equal_and_read_only(pair, code):
    _, _, link, _ = pair
    sent = [np.arange(24).astype(code).reshape(2, 3, 4), np.array(7).astype(code), np.zeros((0, 5), code)]
    reply = link.request("echo", b"", sent)
    assert len(reply.arrays) == 3
    for mine, back in zip(sent, reply.arrays, strict=True):
        np.testing.assert_array_equal(back, mine, strict=True)
        assert not back.flags.writeable


def test_array_views_and_byte_orders_travel_as_values(pair):
    _, _, link, _ = pair
    grid = np.arange(12, dtype=">i4").reshape(3, 4)
    [back] = link.request("echo", b"", [grid.T[::2]]).arrays
    np.testing.assert_array_equal(back, grid.T[::2])
    assert back.dtype == np.dtype("<i4")


def test_array_may_be_overwritten_after_send(pair):
    _, _, link, _ = pair
    array = np.ones(100_000, "f4")
    pendings = []
    for value in range(5):
        array[:] = value
        pendings.append(link.send_request("echo", b"", [array]))
    array[:] = -1
    assert [float(p.result().arrays[0].mean()) for p in pendings] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("array", [np.array([object()]), np.array(["text"]), np.zeros(2, "c8"), np.zeros(2, bool)])
def test_array_that_does_not_travel_is_refused_before_sending(pair, array):
    _, _, link, _ = pair
    with pytest.raises(TypeError, match="does not travel"):
        link.request("echo", b"", [array])
    with pytest.raises(ValueError, match="9 dimensions"):
        link.request("echo", b"", [np.zeros((1,) * 9)])
    assert link.stats().started == 0


def test_many_threads_share_a_link(pair):
    _, _, link, _ = pair
    wrong = []

    def work(n):
        for i in range(50):
            payload = b"%d/%d" % (n, i)
            if link.request("echo", payload).payload != payload:
                wrong.append(payload)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []
    stats = link.stats()
    assert (stats.started, stats.answered, stats.outstanding) == (400, 400, 0)
    assert stats.retries == 0, "a resend here is a wake-up that got lost"


def test_no_wake_up_is_lost_between_threads():
    """A lost one is final here: without links nothing else wakes the node's thread."""
    failures = []

    def work(node):
        try:
            for _ in range(1000):
                node.stats()
        except edgebus.NodeClosed as error:
            failures.append(error)

    with edgebus.Node("idle") as node:
        threads = [threading.Thread(target=work, args=(node,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert failures == []


def test_counters_of_both_sides_reconcile(pair):
    server, device, link, _ = pair
    for _ in range(10):
        link.request("echo", bytes(100))
    with pytest.raises(edgebus.Refused):
        link.request("nothing")
    stats = link.stats()
    assert (stats.answered, stats.refused, stats.started, stats.retries, stats.reconnects) == (10, 1, 11, 0, 0)
    [seen] = server.stats().peers.values()
    assert (seen.messages_received, seen.bytes_received) == (stats.messages_sent, stats.bytes_sent)
    assert (seen.messages_sent, seen.bytes_sent) == (stats.messages_received, stats.bytes_received)
    assert stats.name == "server"
    assert device.stats().total == LinkStats() + stats
    link.close()
    assert device.stats().peers == {}
    assert device.stats().total.answered == 10


def test_refusal_carries_code_detail_and_info(ring):
    with edgebus.Node("a", insecure=True) as server, edgebus.Node("b", insecure=True) as device:
        inbox = server.serve("x")
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        pending = link.send_request("x")
        request = inbox.get(5)
        assert not pending.done()
        request.refuse("unknown_session", "session 7 is not here", b"\x07")
        with pytest.raises(edgebus.AlreadyAnswered):
            request.reply(b"")
        with pytest.raises(edgebus.Refused, match="session 7 is not here") as caught:
            pending.result()
        assert (caught.value.code, caught.value.info) == ("unknown_session", b"\x07")
        assert pending.outcome == "refused"
        assert pending.done()


def test_two_threads_answer_once(ring):
    with edgebus.Node("a", insecure=True) as server, edgebus.Node("b", insecure=True) as device:
        inbox = server.serve("x")
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        for _ in range(20):
            pending = link.send_request("x")
            request = inbox.get(5)
            late = []
            start = threading.Barrier(4)

            def answer(request=request, late=late, start=start):
                start.wait(5)
                try:
                    request.reply(b"")
                except edgebus.AlreadyAnswered as error:
                    late.append(error)

            threads = [threading.Thread(target=answer) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(5)
            assert len(late) == 3
            assert pending.result().payload == b""


def test_dropped_request_is_refused(ring):
    with edgebus.Node("a", insecure=True) as server, edgebus.Node("b", insecure=True) as device:
        inbox = server.serve("x")
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        for drop in ("del", "close"):
            pending = link.send_request("x")
            request = inbox.get(5)
            if drop == "close":
                request.close()
            del request
            gc.collect()
            with pytest.raises(edgebus.Refused) as caught:
                pending.result()
            assert caught.value.code == "dropped"


def test_unknown_service_says_what_is_served(pair):
    _, _, link, _ = pair
    with pytest.raises(edgebus.Refused, match="served: echo") as caught:
        link.request("sled.verify")
    assert caught.value.code == "unknown_service"


def test_full_inbox_refuses_busy_and_drain_empties_it():
    with edgebus.Node("a", insecure=True) as server, edgebus.Node("b", insecure=True) as device:
        inbox = server.serve("x", depth=3)  # of which one peer may hold two
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        kept = [link.send_request("x", b"%d" % n) for n in range(2)]
        with pytest.raises(edgebus.Refused) as caught:
            link.request("x")
        assert caught.value.code == "busy"
        requests = inbox.drain()
        assert [request.payload for request in requests] == [b"0", b"1"]
        assert inbox.drain() == []
        assert inbox.get(0.01) is None
        for request in requests:
            request.reply(b"done")
        assert [pending.result().payload for pending in kept] == [b"done", b"done"]


def test_deadline_is_kept_and_late_requests_never_reach_the_handler():
    with edgebus.Node("a", insecure=True) as server, edgebus.Node("b", insecure=True) as device:
        inbox = server.serve("x")
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        began = time.monotonic()
        with pytest.raises(edgebus.DeadlineExceeded, match=r"deadline of 0\.1 s"):
            link.request("x", timeout_s=0.1)
        assert 0.1 <= time.monotonic() - began < 1.0
        assert link.stats().expired == 1
        time.sleep(0.2)  # the server counts what was left from when the request came
        assert inbox.get(0.01) is None
        pending = link.send_request("x", timeout_s=5)
        request = inbox.get(5)
        assert 4 < request.remaining_s() <= 5
        request.reply()
        pending.result()


@pytest.mark.parametrize("timeout_s", [0, -1, 86_401, float("nan")])
def test_impossible_timeout_is_a_value_error(pair, timeout_s):
    with pytest.raises(ValueError, match="timeout_s"):
        pair[2].request("echo", timeout_s=timeout_s)


def test_cancelled_request_is_withdrawn_at_the_server():
    with edgebus.Node("a", insecure=True) as server, edgebus.Node("b", insecure=True) as device:
        inbox = server.serve("x")
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        taken, waiting = link.send_request("x", b"taken"), link.send_request("x", b"waiting")
        request = inbox.get(5)
        for pending in (taken, waiting):
            pending.cancel()
            with pytest.raises(edgebus.RequestCancelled):
                pending.result()
        link.request("edgebus.ping")  # what was sent before it has arrived before it
        assert request.remaining_s() == 0
        request.reply(b"nobody waits for this")
        assert inbox.get(0.01) is None
        assert link.stats().cancelled == 2
        taken.cancel()  # again: nothing happens


def test_too_large_is_found_before_sending():
    small = edgebus.Limits(max_frame_bytes=1000, max_frames=3)
    with edgebus.Node("a", insecure=True, limits=small) as server, edgebus.Node("b", insecure=True) as device:
        inbox = server.serve("x")
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        with pytest.raises(edgebus.MessageTooLarge, match="frame of 1001 B, the peer accepts 1000 B"):
            link.request("x", bytes(1001))
        with pytest.raises(edgebus.MessageTooLarge, match="4 frames, the peer accepts 3"):
            link.request("x", b"", [np.zeros(1)] * 2)
        pending = link.send_request("x", bytes(1000))
        assert len(inbox.get(5).payload) == 1000
        with pytest.raises(edgebus.Refused):
            pending.result()
        assert link.stats().started == 1


def test_reply_that_is_too_large_can_still_be_refused():
    small = edgebus.Limits(max_frame_bytes=1000)
    with edgebus.Node("a", insecure=True) as server, edgebus.Node("b", insecure=True, limits=small) as device:
        inbox = server.serve("x")
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        pending = link.send_request("x")
        request = inbox.get(5)
        with pytest.raises(edgebus.MessageTooLarge):
            request.reply(bytes(1001))
        request.refuse("too_large", "1001 B")
        with pytest.raises(edgebus.Refused, match="1001 B"):
            pending.result()


def test_inbox_close_refuses_what_waits_and_ends_get(pair):
    server, _, link, _ = pair
    inbox = server.serve("x")
    with pytest.raises(edgebus.ConfigError, match="served already"):
        server.serve("y", "x")
    pending = link.send_request("x")
    link.request("edgebus.ping")
    inbox.close()
    with pytest.raises(edgebus.Refused) as caught:
        pending.result()
    assert caught.value.code == "closing"
    assert inbox.get(5) is None
    assert inbox.closed
    with pytest.raises(edgebus.Refused) as caught:
        link.request("x")
    assert caught.value.code == "unknown_service"
    server.serve("x")


def test_node_that_never_bound_or_dialled_closes():
    with edgebus.Node("idle"):
        pass


def test_ipc_is_secure_like_tcp(ring, tmp_path):
    endpoint = f"ipc://{tmp_path}/bus"
    with edgebus.Node("a") as bare, pytest.raises(edgebus.InsecureError):
        bare.bind(endpoint)
    with ring.server() as server, ring.device() as device:
        assert server.bind(endpoint) == endpoint
        link = device.connect(endpoint, ring.public("server"))
        assert link.request("edgebus.ping", b"x").payload == b"x"


def test_contradictions_are_config_errors(ring):
    with pytest.raises(edgebus.ConfigError, match="one or the other"):
        edgebus.Node("a", keys=ring.keys("device"), insecure=True)
    with pytest.raises(edgebus.ConfigError, match="name"):
        edgebus.Node("")
    with pytest.raises(edgebus.ConfigError, match="heartbeat_s"):
        edgebus.Limits(heartbeat_s=9)
    with pytest.raises(edgebus.ConfigError, match="max_peers"):
        edgebus.Limits(max_peers=0)
    with ring.device() as node:
        with pytest.raises(edgebus.ConfigError, match="nobody could connect"):
            node.bind("tcp://127.0.0.1:0")
        with pytest.raises(edgebus.InsecureError, match="server_key"):
            node.connect("tcp://127.0.0.1:1")
        with pytest.raises(edgebus.ConfigError, match="40 characters"):
            node.connect("tcp://127.0.0.1:1", "short")
        for endpoint in ("udp://x", "127.0.0.1:80"):
            with pytest.raises(edgebus.ConfigError, match="endpoint"):
                node.connect(endpoint, ring.public("server"))
        for endpoint in ("tcp://127.0.0.1", "tcp://127.0.0.1:" + "9" * 5000, "tcp://127.0.0.1:\u0663"):
            with pytest.raises(edgebus.ConfigError, match="has no port"):
                node.connect(endpoint, ring.public("server"))
        with pytest.raises(edgebus.ConfigError, match="not UTF-8"):
            node.connect("tcp://\udce9:80", ring.public("server"))


def test_taken_port_is_a_bind_error():
    with edgebus.Node("a", insecure=True) as one, edgebus.Node("b", insecure=True) as other:
        endpoint = one.bind("tcp://127.0.0.1:0")
        with pytest.raises(edgebus.BindError, match="choose another port"):
            other.bind(endpoint)
        assert other.bind("tcp://127.0.0.1:0") != endpoint
