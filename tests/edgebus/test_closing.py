"""Closing a node or link while it works, and what a forked child sees."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time

import pytest

import edgebus
from tests.edgebus.test_sharing import eventually

pytestmark = pytest.mark.net


def test_close_with_pending_requests_ends_them_on_both_sides():
    with edgebus.Node("b", insecure=True) as device:
        server = edgebus.Node("a", insecure=True)
        inbox = server.serve("x")
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        first, second = link.send_request("x"), link.send_request("x")
        held = inbox.get(5)
        link.request("edgebus.ping")  # the second has arrived too; in flight it would wait for a new server
        server.close()
        for pending in (first, second):
            with pytest.raises(edgebus.Refused) as caught:
                pending.result()
            assert caught.value.code == "closing"
        held.reply(b"too late, and harmless")
        third = link.send_request("x")
        device.close()
        with pytest.raises(edgebus.NodeClosed):
            third.result()
        with pytest.raises(edgebus.NodeClosed):
            link.request("x")
        device.close()


def test_answers_given_just_before_a_close_all_arrive():
    """libzmq loses this tail with ZMQ_IMMEDIATE on the dialling socket."""
    for _ in range(20):
        with edgebus.Node("b", insecure=True) as device, edgebus.Node("a", insecure=True) as server:
            inbox = server.serve("x")
            link = device.connect(server.bind("tcp://127.0.0.1:0"))
            pendings = [link.send_request("x", timeout_s=5) for _ in range(20)]
            for _ in pendings:
                inbox.get(5).reply(b"just in time")
            server.close()
            assert {pending.result().payload for pending in pendings} == {b"just in time"}


def test_close_does_not_wait_for_a_server_that_is_gone():
    with edgebus.Node("b", insecure=True) as device:
        with edgebus.Node("a", insecure=True) as server:
            link = device.connect(server.bind("tcp://127.0.0.1:0"))
        pending = link.send_request("x")
        began = time.monotonic()
        device.close(linger_s=5)
        assert time.monotonic() - began < 2
        with pytest.raises(edgebus.NodeClosed):
            pending.result()


def test_closed_link_refuses_requests_and_leaves_the_node_alone(pair, ring):
    server, device, link, _ = pair
    [endpoint] = [link.endpoint]
    link.close()
    link.close()
    with pytest.raises(edgebus.NodeClosed):
        link.request("echo")
    with device.connect(endpoint, ring.public("server")) as again:
        assert again.request("echo", b"x").payload == b"x"
    assert server.stats().malformed == 0


def test_fork_says_to_make_a_new_node(pair):
    _, device, link, _ = pair
    link.request("echo")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            link.request("echo")
        except edgebus.NodeClosed as error:
            device.close()  # must return at once, and leave the parent's sockets alone
            status = 0 if "make a new Node" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert link.request("echo", b"still").payload == b"still"


def test_inbox_of_a_forked_child_says_to_make_a_new_node():
    with edgebus.Node("a", insecure=True) as node:
        inbox = node.serve("x")
        pid = os.fork()
        if pid == 0:
            status = 0
            try:
                for take in (lambda: inbox.get(0.1), lambda: inbox.get(None), inbox.drain):
                    with contextlib.suppress(edgebus.NodeClosed):
                        take()
                        status = 1
                inbox.close()
            except BaseException:
                status = 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.fixture
def switchy():
    """Threads change places so often that races show."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def test_requests_that_race_a_close_end_at_once(switchy):
    with edgebus.Node("s", insecure=True) as server:
        endpoint = server.bind("tcp://127.0.0.1:0")
        for _ in range(15):
            device = edgebus.Node("c", insecure=True)
            link = device.connect(endpoint)
            ended = []

            def work(link=link, ended=ended):
                while True:
                    try:
                        link.request("edgebus.ping", b"x", timeout_s=20)
                    except edgebus.EdgebusError as error:
                        ended.append(type(error))
                        return

            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            device.close(0.2)
            began = time.monotonic()
            for thread in threads:
                thread.join(30)
            assert time.monotonic() - began < 5
            assert ended == [edgebus.NodeClosed] * 4


def test_what_comes_after_the_close_is_refused_and_what_was_deferred_is_told():
    with edgebus.Node("s", insecure=True) as server:
        device = edgebus.Node("c", insecure=True)
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        runner, told = device._engine.runner, []
        pending = link.send_request("edgebus.ping", timeout_s=30)
        pending.result()
        waiting = link.send_request("nowhere", timeout_s=30, sequence=(1, 1))

        def close_in_the_middle():
            runner.defer(told.append, "executed", if_closed=lambda: told.append("given up"))
            device._engine.shut_down(0.0)

        runner.do(close_in_the_middle)
        with pytest.raises((edgebus.NodeClosed, edgebus.Refused)):
            waiting.result()
        for late in (device.stats, lambda: link.send_request("edgebus.ping")):
            with pytest.raises(edgebus.NodeClosed):
                late()
        device.close()
        assert runner.join(2)
        assert told == ["given up"]
        runner.defer(told.append, "executed", if_closed=lambda: told.append("late"))
        assert told == ["given up", "late"]


def test_inbox_registered_while_the_node_closes_is_shut(monkeypatch):
    node = edgebus.Node("a", insecure=True)
    seen = []
    runner = node._engine.runner

    class ThatCloses:
        def __getattr__(self, name):
            return getattr(runner, name)

        def do(self, function, *arguments):
            result = runner.do(function, *arguments)
            if not seen:
                seen.extend(arguments)
                node.close()
            return result

    monkeypatch.setattr(node._engine, "runner", ThatCloses())
    with pytest.raises(edgebus.NodeClosed):
        node.serve("x")
    [inbox] = seen
    assert inbox.closed
    assert inbox.get(None) is None


@pytest.mark.parametrize("what", ["node", "link"])
def test_one_way_messages_that_a_close_gives_up_are_told_of(what, caplog):
    """Nobody waits for them, mostly: they were withdrawn without a word."""
    with edgebus.Node("a", insecure=True) as server, edgebus.Node("b", insecure=True) as device:
        inbox = server.serve("log", "audit")
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        pendings = [link.send(service, b"line") for service in ("log", "log", "audit")]
        link.request("edgebus.ping")  # they lie in the inbox
        {"node": device, "link": link}[what].close(0.1)
        assert [pending.outcome for pending in pendings] == ["cancelled"] * 3
        [record] = [record for record in caplog.records if "one-way" in record.message]
        assert "3 one-way message(s) were taken over there (audit, log)" in record.message
        eventually(lambda: server.stats().total.withdrawn == 3, 5.0, "that they are withdrawn")
        assert inbox.drain() == [], "what was given up is not taken afterwards"
        total = server.stats().total
        assert (total.executed, total.served, total.pending) == (4, 1, 0)  # the ping


def test_one_way_messages_that_arrive_before_the_end_are_not_told_of(caplog):
    with edgebus.Node("a", insecure=True) as server:
        lines = []
        server.handle("log", lambda request: lines.append(request.payload))
        with edgebus.Node("b", insecure=True) as device:
            link = device.connect(server.bind("tcp://127.0.0.1:0"))
            for number in range(20):
                link.send("log", b"%d" % number)
        assert lines == [b"%d" % number for number in range(20)]
    assert not [record for record in caplog.records if "one-way" in record.message]
