"""A fork, a signal or an interrupt in the middle of anything: the node is usable afterwards, or says why not."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

import edgebus
from tests.edgebus.interrupting import alarms

pytestmark = pytest.mark.net


def in_child(function):
    """What a function returns in a forked child, which then ends without any clean-up; within 5 s."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(5)
            os.write(writer, json.dumps(function()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        content = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0, "the child hung"
    return json.loads(content)


def test_every_entry_point_says_so_in_a_forked_child_and_the_parent_goes_on():
    with edgebus.Node("server", insecure=True) as server, edgebus.Node("device", insecure=True) as device:
        inbox = server.serve("work", "numbers")
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        pending = link.send_request("work", b"of the parent")
        request = inbox.get(5)
        stream = link.stream("numbers")
        streamed = inbox.get(5)
        entries = {
            "bind": lambda: server.bind("tcp://127.0.0.1:0"),
            "serve": lambda: server.serve("more"),
            "handle": lambda: server.handle("more", print),
            "connect": lambda: device.connect(link.endpoint),
            "node.stats": server.stats,
            "services": server.services,
            "busy": lambda: server.busy(1),
            "tap": lambda: server.tap(print),
            "publish": lambda: server.publish("topic", "key", b"value"),
            "request": lambda: link.request("work"),
            "large request": lambda: link.request("work", bytes(100_000)),
            "send_request": lambda: link.send_request("work", key=b"k"),
            "send": lambda: link.send("work"),
            "stream": lambda: link.stream("work"),
            "move": lambda: link.move(link.endpoint),
            "result": pending.result,
            "stream.get": lambda: stream.get(1),
            "inbox.get": lambda: inbox.get(1),
            "inbox.drain": inbox.drain,
            "push": lambda: streamed.push(b"x"),
        }
        silent = {
            "cancel": pending.cancel,
            "reply": lambda: request.reply(b"of the child"),
            "inbox.close": inbox.close,
            "link.close": link.close,
            "node.close": lambda: (server.close(), device.close()),
        }

        def child():
            said = {}
            for name, entry in (entries | silent).items():
                try:
                    entry()
                    said[name] = "nothing"
                except edgebus.NodeClosed as error:
                    said[name] = "says so" if "fork" in str(error) else str(error)
                except BaseException as error:
                    said[name] = repr(error)
            return said

        assert in_child(child) == dict.fromkeys(entries, "says so") | dict.fromkeys(silent, "nothing")
        request.reply(b"of the parent")
        assert pending.result().payload == b"of the parent"
        streamed.push(b"part")
        assert stream.get(5).payload == b"part"
        streamed.reply()
        assert server.stats().total.executed == 2


def test_forked_child_makes_a_node_of_its_own():
    with edgebus.Node("server", insecure=True) as server, edgebus.Node("device", insecure=True) as device:
        server.handle("work", lambda request: request.reply(request.payload, request.arrays))
        endpoint = server.bind("tcp://127.0.0.1:0")
        device.connect(endpoint).request("work")

        def child():
            with edgebus.Node("child", insecure=True) as node:
                reply = node.connect(endpoint).request("work", b"hello", [np.ones(50_000, np.float32)])
                return [reply.payload.decode(), float(reply.arrays[0].sum())]

        assert in_child(child) == ["hello", 50_000.0]
        assert device.connect(endpoint).request("work", b"x").payload == b"x"


@contextmanager
def pair():
    with edgebus.Node("server", insecure=True) as server, edgebus.Node("device", insecure=True) as device:
        server.handle("work", lambda request: request.reply(request.payload, request.arrays))
        yield server, device, device.connect(server.bind("tcp://127.0.0.1:0"))


def test_signal_handlers_that_do_nothing_disturb_nothing():
    calls = []
    with pair() as (server, device, link):
        with alarms(lambda *_: calls.append(1), every_s=0.0005):
            for number in range(1500):
                assert link.request("work", b"%d" % number).payload == b"%d" % number
        assert len(calls) > 20
        assert link.stats().retries == 0
        assert server.stats().malformed == device.stats().malformed == 0


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_requests_from_a_signal_handler_in_the_middle_of_a_loop_of_requests(large):
    """Whatever the loop was doing, the handler's request is answered, and so are all of the loop's."""
    array = [np.arange(40_000, dtype=np.float32)] if large else []
    pendings = []
    with pair() as (server, device, link):

        def handler(*_):
            if len(pendings) < 150:
                pendings.append(link.send_request("work", b"from the handler", array, timeout_s=10.0))

        with alarms(handler):
            until = time.monotonic() + (1.2 if not large else 1.5)
            number = 0
            while time.monotonic() < until:
                number += 1
                reply = link.request("work", b"%d" % number, array, timeout_s=10.0)
                assert reply.payload == b"%d" % number
                assert not large or (reply.arrays[0] == array[0]).all()
        assert len(pendings) > 20
        for pending in pendings:
            assert pending.result().payload == b"from the handler"
        assert server.stats().malformed == device.stats().malformed == 0
        stats = link.stats()
        assert (stats.started, stats.outstanding) == (number + len(pendings), 0)
        assert stats.retries == 0


def test_handler_that_waits_for_an_answer_gets_it_or_is_told_that_it_cannot_wait_there():
    answers, told, inside = [], [], []
    with pair() as (_, _, link):

        def handler(*_):
            if inside:
                return  # it came while it waited
            inside.append(True)
            try:
                answers.append(link.request("work", b"of the handler", timeout_s=5.0).payload)
            except edgebus.LocalError as error:
                told.append(str(error))
            finally:
                inside.clear()

        with alarms(handler, every_s=0.005):
            until = time.monotonic() + 1.0
            while time.monotonic() < until:
                assert link.request("work", b"x", timeout_s=5.0).payload == b"x"
        assert len(answers) > 10
        assert set(answers) == {b"of the handler"}
        assert all("take the result after it has returned" in text for text in told)


@pytest.mark.parametrize("attempt", range(6))
def test_close_from_a_signal_handler_in_the_middle_of_a_loop(attempt):
    """The loop ends with NodeClosed, not with a hang and not with anything else."""
    with pair() as (server, device, link):

        def handler(*_):
            signal.setitimer(signal.ITIMER_REAL, 0)
            device.close(0.2)

        def loop():
            while time.monotonic() - began < 5:
                link.request("work", b"x", timeout_s=3.0)

        began = time.monotonic()
        with alarms(handler, every_s=0.05 + 0.0007 * attempt), pytest.raises(edgebus.NodeClosed):
            loop()
        assert device._engine.runner.join(3.0), "it closes as soon as the handler has returned"
        assert time.monotonic() - began < 3
        assert server.stats().malformed == 0


def test_interrupt_while_waiting_for_a_result_leaves_the_node_usable():
    class Interrupted(KeyboardInterrupt):
        pass

    def handler(*_):
        raise Interrupted

    with edgebus.Node("server", insecure=True) as server, edgebus.Node("device", insecure=True) as device:
        inbox = server.serve("slow")
        server.handle("work", lambda request: request.reply(request.payload))
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        pending = link.send_request("slow", b"x", timeout_s=20.0)
        request = inbox.get(5)
        for _ in range(20):
            with pytest.raises(Interrupted), alarms(handler, every_s=0.01):
                pending.result()
        assert link.request("work", b"still").payload == b"still"
        threading.Timer(0.1, request.reply, [b"late"]).start()
        assert pending.result().payload == b"late"


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError, ValueError])
@pytest.mark.parametrize("way", ["small", "keyed", "array", "pool"])
def test_request_that_is_interrupted_is_nobodys_and_so_is_given_up(error, way):
    class Interrupted(error):
        pass

    def handler(*_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise Interrupted

    with edgebus.Node("server", insecure=True) as server, edgebus.Node("device", insecure=True) as device:
        inbox = server.serve("slow")
        endpoint = server.bind("tcp://127.0.0.1:0")
        link = device.connect(endpoint)
        with edgebus.Pool(device, [(endpoint, None)], service="slow") as pool:
            pool.wait_ready(5)
            ask = {
                "small": lambda: link.request("slow", b"x", timeout_s=20.0),
                "keyed": lambda: link.request("slow", b"x", timeout_s=20.0, key=b"k"),
                "array": lambda: link.request("slow", b"x", [np.zeros(3)], timeout_s=20.0),
                "pool": lambda: pool.request("slow", b"x", timeout_s=20.0),
            }[way]
            with pytest.raises(Interrupted), alarms(handler, every_s=0.05):
                ask()
            until = time.monotonic() + 5
            while device.stats().total.outstanding or not server.stats().total.withdrawn:
                assert time.monotonic() < until, "nobody waits for it, and it is still wanted"
                time.sleep(0.005)
            assert inbox.get(0) is None
            assert device.stats().total.cancelled == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pyzmq, in the middle of a dealloc
def test_interrupts_in_the_middle_of_anything_leave_the_node_usable():
    """100 interrupts at any moment of a loop of requests; after each the next one gets its own answer."""

    class Interrupted(KeyboardInterrupt):
        pass

    armed = [False]

    def handler(*_):
        if armed[0]:
            armed[0] = False
            raise Interrupted

    interrupted = 0
    with pair() as (_, _, link), alarms(handler, every_s=0.0037):
        until = time.monotonic() + 10
        while interrupted < 100 and time.monotonic() < until:
            try:
                armed[0] = True
                for _ in range(100):
                    link.request("work", b"x", timeout_s=5.0)
            except Interrupted:
                interrupted += 1
            armed[0] = False
            began = time.monotonic()
            assert link.request("work", b"after", timeout_s=5.0).payload == b"after"
            assert time.monotonic() - began < 2.5
        assert interrupted == 100
