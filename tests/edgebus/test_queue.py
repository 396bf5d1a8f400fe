"""Requests that wait for the link: bounded in bytes, by the chosen policy, each with one outcome that is counted."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgebus
from edgebus import messages as m
from edgebus.config import Limits
from edgebus.requests import Caller
from edgebus.testing import Proxy

pytestmark = pytest.mark.net


def offer(caller, size_bytes, ref=None, now=0.0):
    """As the engine does; False if there is no room."""
    if caller.room_fault(size_bytes):
        return False
    caller.start("s", (), (bytes(size_bytes),), deadline_at=now + 10.0, ref=ref, now=now)
    return True


def outcomes(caller):
    return [(event.ref, event.outcome, event.code) for event in caller.events()]


def test_refusing_queue_worked_by_hand():
    caller = Caller(Limits(max_outstanding_bytes=1000))
    assert [offer(caller, 400) for _ in range(4)] == [True, True, False, False]
    assert offer(caller, 200)
    assert caller.outstanding_bytes == 1000
    assert "1000 B are waiting" in caller.room_fault(1)


def test_dropping_queue_gives_the_oldest_unsent_their_outcome():
    caller = Caller(Limits(max_outstanding_bytes=1000, on_full="drop_oldest"))
    for number in range(5):
        assert offer(caller, 400, number)
    assert outcomes(caller) == [(number, "refused", "queue_full") for number in range(3)]
    assert not offer(caller, 1001), "what can never fit drops nothing"
    assert outcomes(caller) == []


def test_what_was_sent_is_never_dropped():
    caller = Caller(Limits(max_outstanding_bytes=1000, on_full="drop_oldest"))
    offer(caller, 900, "sent")
    caller.set_up(True, now=0.0)
    caller.headers_to_send()
    caller.set_up(False, now=0.1)
    assert offer(caller, 100, "waits")
    assert offer(caller, 100, "newer")
    assert outcomes(caller) == [("waits", "refused", "queue_full")]
    assert not offer(caller, 200)


@given(
    st.sampled_from(["refuse", "drop_oldest"]),
    st.lists(
        st.tuples(st.sampled_from(["ask", "answer", "cancel", "up", "down", "wait"]), st.integers(0, 500)), max_size=60
    ),
)
def test_bytes_are_bounded_and_counters_reconcile(on_full, steps):
    caller = Caller(Limits(max_outstanding_bytes=1000, on_full=on_full))
    now, settled = 0.0, 0
    for what, number in steps:
        match what:
            case "ask":
                offer(caller, number, now=now)
            case "answer" if caller.outstanding:
                caller.receive(m.Message(m.Reply(list(caller.outstanding)[number % len(caller.outstanding)]), (b"",)))
            case "cancel" if caller.outstanding:
                caller.cancel(list(caller.outstanding)[number % len(caller.outstanding)])
            case "up" | "down":
                caller.set_up(what == "up", now=now)
            case "wait":
                now += number / 100
                caller.handle_timer(now=now)
        settled += len(caller.events())
        assert caller.outstanding_bytes == sum(entry.size_bytes for entry in caller.outstanding.values()) <= 1000
        assert (
            caller.started == settled + caller.num_outstanding == sum(caller.outcomes.values()) + caller.num_outstanding
        )


@pytest.fixture
def offline():
    """Makes a device whose link is down, with a policy; the way back is `proxy`."""
    nodes = []
    with edgebus.Node("server", insecure=True) as server:
        server.handle("echo", lambda request: request.reply(request.payload[:1]))
        with Proxy(server.bind("tcp://127.0.0.1:0")) as proxy:

            def start(**limits):
                device = edgebus.Node("device", insecure=True, limits=Limits(heartbeat_s=0.2, silence_s=0.4, **limits))
                nodes.append(device)
                link = device.connect(proxy.endpoint)
                proxy.refuse()
                proxy.cut()
                wait_until(lambda: link.health == "down")
                return link

            yield start, proxy
            for node in nodes:
                node.close(0)


def wait_until(condition, seconds=5.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "never happened"
        time.sleep(0.005)


def reconciles(link):
    stats = link.stats()
    ended = stats.answered + stats.refused + stats.expired + stats.unknown + stats.cancelled
    assert stats.started == ended + stats.outstanding
    return stats


def test_offline_requests_wait_and_are_answered_when_the_link_is_back(offline):
    start, proxy = offline
    link = start(max_outstanding_bytes=10_000)
    pendings = [link.send_request("echo", bytes([number]) * 900) for number in range(11)]
    with pytest.raises(edgebus.QueueFull, match="max_outstanding_bytes"):
        link.send_request("echo", bytes(900))
    assert link.stats().bytes_outstanding == 9900
    proxy.accept()
    assert [pending.result().payload for pending in pendings] == [bytes([number]) for number in range(11)]
    stats = reconciles(link)
    assert (stats.started, stats.answered, stats.bytes_outstanding) == (11, 11, 0)


def test_dropping_queue_keeps_the_newest(offline):
    start, proxy = offline
    link = start(max_outstanding_bytes=5000, on_full="drop_oldest")
    pendings = [link.send_request("echo", bytes([number]) * 1000) for number in range(12)]
    for pending in pendings[:7]:
        with pytest.raises(edgebus.Refused) as caught:
            pending.result()
        assert caught.value.code == "queue_full"
    proxy.accept()
    assert [pending.result().payload for pending in pendings[7:]] == [bytes([number]) for number in range(7, 12)]
    stats = reconciles(link)
    assert (stats.refused, stats.answered) == (7, 5)


def test_waiting_caller_goes_on_when_there_is_room(offline):
    start, proxy = offline
    link = start(max_outstanding_bytes=2000, on_full="wait")
    first = link.send_request("echo", b"a" * 1500)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(link.request("echo", b"b" * 1500).payload))
    thread.start()
    time.sleep(0.05)
    assert link.stats().started == 1
    proxy.accept()
    thread.join(8)
    assert answers == [b"b"]
    assert first.result().payload == b"a"
    assert reconciles(link).answered == 2


def test_waiting_caller_gives_up_at_its_deadline(offline):
    start, _ = offline
    link = start(max_outstanding_bytes=2000, on_full="wait")
    link.send_request("echo", bytes(1500), timeout_s=5.0)
    began = time.monotonic()
    with pytest.raises(edgebus.QueueFull, match="no room"):
        link.request("echo", bytes(1500), timeout_s=0.2)
    assert 0.15 < time.monotonic() - began < 1.5
    assert reconciles(link).started == 1


# -- one-way messages: what "delivered" means -----------------------------------------------------------


def test_one_way_is_answered_when_the_application_took_it_and_not_before():
    with edgebus.Node("server", insecure=True) as server, edgebus.Node("device", insecure=True) as device:
        inbox = server.serve("log")
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        pending = link.send("log", b"line")
        assert not pending.wait(0.15), "it lies in the inbox, nobody has it"
        request = inbox.get(5)
        assert (request.payload, request.is_one_way, request.answered) == (b"line", True, True)
        assert pending.result().payload == b""
        assert pending.outcome == "answered"
        request.reply(b"nobody wants it")  # nothing, and no error
        assert server.stats().total.served == 1
        assert pending.result().payload == b""


def test_one_way_that_nobody_takes_is_expired_or_refused():
    with edgebus.Node("server", insecure=True) as server, edgebus.Node("device", insecure=True) as device:
        inbox = server.serve("log", depth=2)
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        waits = link.send("log", b"1", timeout_s=0.3)
        full = link.send("log", b"2")
        unknown = link.send("nothing", b"3")
        for pending, code in ((full, "busy"), (unknown, "unknown_service")):
            with pytest.raises(edgebus.Refused) as caught:
                pending.result()
            assert caught.value.code == code
        with pytest.raises(edgebus.DeadlineExceeded):
            waits.result()
        time.sleep(0.02)
        assert inbox.drain() == [], "what is reported expired is never taken afterwards"
        total = server.stats().total
        assert total.executed == total.served + total.withdrawn + total.pending


def test_one_way_is_unknown_if_the_server_is_gone_before_it_said():
    with edgebus.Node("server", insecure=True) as server, edgebus.Node("device", insecure=True) as device:
        server.serve("log")
        with Proxy(server.bind("tcp://127.0.0.1:0")) as proxy:
            link = device.connect(proxy.endpoint)
            pending = link.send("log", b"1", timeout_s=0.6)
            wait_until(lambda: server.stats().total.received == 1)
            proxy.refuse()
            proxy.cut()
            with pytest.raises(edgebus.LinkLost):
                pending.result()
            assert pending.outcome == "unknown"
