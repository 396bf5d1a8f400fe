"""An exception of a signal handler at any line that opens, moves or closes something: the node goes on as before.

The lines are those of the modules that are always plain, and of pyzmq: a handler runs in the middle of compiled ones
only where they call these.
"""

from __future__ import annotations

import errno
import gc
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest

import edgebus
from edgebus import link as link_module
from edgebus.dialling import Once
from edgebus.handshake import HandshakeWatch, Verdict
from edgebus.link_states import State
from edgebus.messages import Message, Request, Welcome
from tests.edgebus.duo import Duo
from tests.edgebus.interrupting import Interrupt, Thing, interrupted
from tests.edgebus.test_interrupts import PLAIN
from tests.edgebus.test_sharing import eventually

pytestmark = [
    pytest.mark.net,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # sockets of pyzmq, interrupted at birth
]
MODULES = ("dialling", "greeting", "handshake", "local", "node")


def is_ours(name):
    return name.startswith("zmq.sugar") or (name.startswith("edgebus.") and name.partition(".")[2] in MODULES)


def faults(node):
    """What does not fit together in a node's tables."""
    engine = node._engine
    runner, sockets, hub, by_socket = engine.runner, engine.runner.sockets, engine.hub, engine.dialling.by_socket
    own = {runner._wake_read.fileno()} | ({sockets._guard.fileno()} if sockets._guard is not None else set())
    with runner._lock:
        ours = {key for key, dialled in by_socket.items()}
        listening = {key for key, opened in sockets.by_id.items() if opened.port.is_router}
        dialled = [attached for attached in hub.links if attached.hello_id is None]
        found = {
            "sockets that nobody knows": set(sockets.by_id) - listening - ours,
            "sockets that are not there": {key for key in ours if key > 0} - set(sockets.by_id),
            "local ones that nobody knows": set(sockets._local._diallers) - ours,
            "monitors": set(sockets._monitors) ^ set(sockets.by_id),
            "descriptors": (set(sockets._fds.values()) | own) ^ set(sockets._takers),
            "links that nobody dialled": [each for each in dialled if each.route[0] not in ours],
            "links without a route": [
                each for each in by_socket.values() if hub.by_route.get((each.socket_id, b"")) is not each.attached
            ],
            "depth": runner._depth,
        }
    return {what: which for what, which in found.items() if which}


def free(runner):
    """Whether another thread gets the locks, and nobody is thought to be driving who is not."""
    got = []

    def take():
        with runner._lock, runner._who:
            got.append(runner._following)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(5)
    return got == [[]]


@contextmanager
def world(transport):
    places = {
        "tcp": ("tcp://127.0.0.1:0", "tcp://127.0.0.1:0"),
        "inproc": ("inproc://interrupted-1", "inproc://interrupted-2"),
    }[transport]
    limits = edgebus.Limits(share_bytes=0)  # no descriptors of shared memory
    with (
        edgebus.Node("server", insecure=True, limits=limits) as server,
        edgebus.Node("device", insecure=True, limits=limits) as device,
    ):
        server.handle("echo", lambda request: request.reply(request.payload, request.arrays))
        yield server, device, [server.bind(place) for place in places]


def each_line(act, check, most=3000):
    """Do something again and again, interrupted one line later each time."""
    at, going = 0, True
    while going:
        at += 1
        assert at < most
        going = interrupted(act, at, is_ours)
        check(at)
    return at


@pytest.mark.parametrize("transport", ["tcp", "inproc"])
def test_move_that_is_interrupted_at_any_line_leaves_a_link_that_works(transport):
    with world(transport) as (_, device, endpoints):
        link = device.connect(endpoints[0])
        number = [0]

        def move():
            number[0] += 1
            link.move(endpoints[number[0] % 2])

        def check(at):
            assert link.request("echo", b"%d" % at, timeout_s=5).payload == b"%d" % at, at
            assert faults(device) == {}, at
            assert free(device._engine.runner), at

        assert each_line(move, check) > 20


@pytest.mark.parametrize("transport", ["tcp", "inproc"])
def test_connect_that_is_interrupted_at_any_line_leaves_no_link(transport):
    with world(transport) as (_, device, endpoints):
        made = []

        def check(at):
            for link in made:
                link.close()
            made.clear()
            device._engine.runner.do(list)  # what was left for later
            assert faults(device) == {}, at
            assert device._engine.dialling.by_socket == {}, at
            assert free(device._engine.runner), at

        assert each_line(lambda: made.append(device.connect(endpoints[0])), check) > 20
        assert device.connect(endpoints[0]).request("echo", b"x").payload == b"x"


@pytest.mark.parametrize("transport", ["tcp", "inproc"])
def test_link_whose_close_is_interrupted_at_any_line_is_closed(transport):
    with world(transport) as (_, device, endpoints):
        links = [device.connect(endpoints[0])]

        def close():
            links[0].close()

        def check(at):
            close()
            assert faults(device) == {}, at
            assert device._engine.dialling.by_socket == {}, at
            assert free(device._engine.runner), at
            links[0] = device.connect(endpoints[0])

        assert each_line(close, check) > 5


def test_lane_whose_opening_is_interrupted_at_any_line_is_opened(monkeypatch):
    with world("tcp") as (_, device, endpoints):
        array = [np.zeros(300_000, np.uint8)]
        links = [device.connect(endpoints[0])]
        dialling = device._engine.dialling

        def open_lane():
            device._engine.runner.do(dialling.open_lane, links[0]._dialled)

        def check(at):
            assert links[0].request("echo", b"", array, timeout_s=5).arrays[0].size == 300_000, at
            device._engine.runner.do(dialling.open_lane, links[0]._dialled)
            assert faults(device) == {}, at
            links[0].close()
            links[0] = device.connect(endpoints[0])

        assert each_line(open_lane, check) > 5


def test_node_whose_close_is_interrupted_at_any_line_ends():
    """Also if nobody closes it again."""
    with edgebus.Node("server", insecure=True) as server:
        endpoint = server.bind("tcp://127.0.0.1:0")
        nodes = []

        def close():
            nodes[-1].close(0.2)

        def fresh():
            node = edgebus.Node("device", insecure=True)
            node.bind("tcp://127.0.0.1:0")
            node.serve("work")
            node.connect(endpoint)
            nodes.append(node)

        def check(at):
            if not nodes[-1]._closed:  # interrupted before it began
                nodes[-1].close()
            assert nodes[-1]._engine.runner.join(5), at
            fresh()

        fresh()
        assert each_line(close, check) > 5
        nodes.pop().close()
        gc.collect()


def test_bind_that_is_interrupted_at_any_line_keeps_no_address(tmp_path):
    with edgebus.Node("server", insecure=True) as server:
        endpoint, bound, number = f"ipc://{tmp_path}/s", [], [0]

        def bind():
            number[0] += 1
            bound.append(server.bind(f"{endpoint}{number[0]}"))

        def check(at):
            before = len(bound)
            assert faults(server) == {}, at
            assert len(server._engine.runner.sockets.by_id) == before, at

        assert each_line(bind, check) > 5


def test_link_that_is_moved_to_what_is_no_address_stays_where_it_was():
    with world("tcp") as (_, device, endpoints):
        link = device.connect(endpoints[0])
        for number in range(3):
            with pytest.raises(edgebus.ConfigError):
                link.move("ipc://" + "x" * 200)  # too long for a path of a socket
            assert link.endpoint == endpoints[0]
            assert link.request("echo", b"%d" % number).payload == b"%d" % number
        assert faults(device) == {}
        assert link._link.num_ups == 1


def test_key_that_was_about_to_be_tried_is_not_forgotten(monkeypatch):
    with world("tcp") as (_, device, endpoints):
        link = device.connect(endpoints[0])
        dialling, dialled = device._engine.dialling, link._dialled
        dialled.other_keys, dialled.server_key = ("B" * 40, "C" * 40), "A" * 40
        dial_socket, left = dialling._dial_socket, [Interrupt()]

        def interrupted_once(*args, **options):
            if left:
                raise left.pop()
            dial_socket(*args, **options)

        monkeypatch.setattr(dialling, "_dial_socket", interrupted_once)

        def doubtful():
            dialling._judged(dialled, Verdict("doubtful"), time.monotonic())

        with pytest.raises(Interrupt):
            device._engine.runner.do(doubtful)
        assert (dialled.server_key, dialled.other_keys) == ("A" * 40, ("B" * 40, "C" * 40))
        device._engine.runner.do(doubtful)
        assert (dialled.server_key, dialled.other_keys) == ("B" * 40, ("C" * 40, "A" * 40))
        assert faults(device) == {}


def test_cuts_of_a_handshake_are_not_counted_twice():
    with world("tcp") as (_, device, endpoints):
        dialled = device.connect(endpoints[0])._dialled
        dialling, judged = device._engine.dialling, []

        class Watch(HandshakeWatch):
            def handle(self, event, value):
                verdict = super().handle(event, value)
                judged.append(self._cut)
                if len(judged) == 1:
                    raise Interrupt
                return verdict

        dialled.watch = Watch(endpoints[0], secure=True, proven=True)
        for _ in range(2):
            with suppress(Interrupt):
                dialling.on_monitor(dialled.socket_id, "HANDSHAKE_FAILED_NO_DETAIL", errno.EPIPE)
        assert judged == [1, 1]


def test_what_was_left_for_later_and_is_interrupted_is_run_again():
    """A connection within the process that was let in, say."""
    with edgebus.Node("n", insecure=True) as node:
        runner, calls = node._engine.runner, []

        def late():
            calls.append(threading.get_ident())
            if len(calls) == 1:
                raise Interrupt

        with pytest.raises(Interrupt):
            runner.do(runner.defer, late)
        runner.do(list)
        assert len(calls) == 2


def test_callback_that_is_interrupted_while_another_one_waits_leaves_nobody_waiting():
    with edgebus.Node("n", insecure=True) as node:
        runner, driven, followed = node._engine.runner, Thing(), Thing()
        driver = threading.Thread(target=runner.wait, args=(driven, time.monotonic() + 20))
        driver.start()
        eventually(lambda: runner._seat.driver == driver.ident, 5, "that it drives")

        def interrupt():
            raise Interrupt

        with runner._lock:
            runner._callbacks.extend([lambda: runner.wait(followed, time.monotonic() + 5), interrupt])
            with pytest.raises(Interrupt):
                runner.run_callbacks()
        assert (runner._following, runner._calls) == ([], 0)
        assert runner._calling.acquire(blocking=False)
        runner._calling.release()
        runner._callbacks.clear()  # it would be called once more
        driven.come()
        runner.nudge()
        driver.join(5)
        assert not driver.is_alive()


@pytest.mark.parametrize("error", [TimeoutError, ConnectionError, Interrupt])
def test_exception_of_a_signal_handler_while_a_driver_is_woken_is_not_taken_for_a_full_pipe(error):
    class Pipe:
        def __init__(self, what):
            self._what = what

        def send(self, content):
            raise self._what

        def fileno(self):
            return 3

    with edgebus.Node("n", insecure=True) as node:
        runner = node._engine.runner
        with runner._lock:
            pipe, runner._woken = runner._wake_write, False
            try:
                runner._wake_write = Pipe(error())
                with pytest.raises(error):
                    runner._wake()
                assert not runner._woken
                runner._wake_write = Pipe(BlockingIOError())
                runner._wake()
                assert runner._woken
            finally:
                runner._wake_write = pipe
                runner._woken = False


def test_signal_that_ends_the_process_does_so_also_in_the_middle_of_a_handler():
    """SIGTERM with sys.exit(), as many a service has it, was logged as a fault of the handler, and nothing ended."""
    code = (
        "import edgebus, os, signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "node = edgebus.Node('n', insecure=True)\n"
        "node.handle('stop', lambda request: os.kill(os.getpid(), signal.SIGTERM))\n"
        "with node, node.connect(node.bind('inproc://itself')) as link:\n"
        "    try:\n"
        "        link.request('stop', timeout_s=5)\n"
        "    except edgebus.Refused as error:\n"
        "        print(error.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (7, ""), done.stderr


def test_handler_that_ends_its_thread_does_not_end_the_nodes():
    with edgebus.Node("server", insecure=True) as server, edgebus.Node("device", insecure=True) as device:
        server.handle("exit", lambda request: sys.exit(1))
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        for _ in range(2):
            with pytest.raises(edgebus.Refused, match="internal"):
                link.request("exit", timeout_s=5)


@pytest.mark.parametrize("what", ["Up", "Down"])
def test_link_that_is_interrupted_as_it_comes_up_or_goes_down_does_so_when_it_is_told_again(what, monkeypatch):
    """It was up for its state and down for its requests: none of them was ever sent."""
    left, original = [Interrupt()], getattr(link_module, what)

    def interrupted_once(*args, **options):
        if left:
            raise left.pop()
        return original(*args, **options)

    machine = Duo().link
    ups = machine.num_ups
    if what == "Up":
        machine.disconnected(now=1.0)
        machine.connected(now=1.0)
    monkeypatch.setattr(link_module, what, interrupted_once)
    welcome = Welcome(2, "far", machine.peer_incarnation, machine._greeting, machine.peer_limits)

    def tell():
        if what == "Up":
            machine.receive(Message(welcome), now=1.0)
        else:
            machine.disconnected(now=1.0)

    with pytest.raises(Interrupt):
        tell()
    assert not left
    machine.headers_to_send()
    tell()
    assert (machine.state is State.UP, machine.num_ups) == (what == "Up", ups + (what == "Up"))
    assert [type(event) for event in machine.events()].count(original) == 1
    machine.caller.start("s", (), (b"x",), deadline_at=9.0, ref=None, now=1.0)
    assert any(type(message.header) is Request for message in machine.headers_to_send()) == (what == "Up")


def test_dialler_that_is_let_in_twice_keeps_its_first_connection():
    """It knocked again, as a signal handler had raised just behind its first knock."""
    with world("inproc") as (server, device, endpoints):
        link = device.connect(endpoints[0])
        there, here = server._engine.runner.sockets._local, device._engine.runner.sockets._local
        [listener] = [each for each in there._listening.values() if each.name == "interrupted-1"]
        [dialler] = here._diallers.values()
        listener.knocking.add(dialler)
        server._engine.runner.do(there._let_in, listener, dialler)
        for number in range(3):
            assert link.request("echo", b"%d" % number, timeout_s=5).payload == b"%d" % number
        eventually(lambda: len(there._ends) == 1, 5.0, "that the second one is given up")
        assert list(here._ends.values()) == [dialler.end]
        assert link._link.num_ups == 1


def test_what_comes_once_may_come_twice():
    once = Once()
    once.follow(0.0)
    assert not once.ready
    thread = threading.Thread(target=once.follow, args=(20.0,))
    thread.start()
    once.come()
    once.come()
    thread.join(5)
    assert once.ready
    assert not thread.is_alive()
    once.follow(20.0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # one in a finalizer is only told of
@pytest.mark.timeout(60, method="thread")  # the other one has the timer that is used here
@pytest.mark.skipif(PLAIN, reason="plain Python shows a signal handler between any two steps")
@pytest.mark.parametrize("transport", ["tcp", "inproc"])
def test_signals_while_links_are_dialled_moved_and_closed(transport):
    source, armed, hits = random.Random(5), [False], [0]

    def interrupt(*_):
        if armed[0]:
            armed[0] = False
            hits[0] += 1
            raise Interrupt

    def life(device, endpoints, links):
        armed[0] = True
        link = device.connect(endpoints[0])
        links.append(link)
        for endpoint in reversed(endpoints):
            link.move(endpoint)
            link.request("echo", b"x", timeout_s=5)
        link.close()
        armed[0] = False

    before = signal.signal(signal.SIGALRM, interrupt)
    called, gc.callbacks[:] = gc.callbacks[:], []  # what is raised there is only told of
    try:
        with world(transport) as (_, device, endpoints):
            for number in range(150):
                links = []
                signal.setitimer(signal.ITIMER_REAL, source.uniform(0.0002, 0.006))
                with suppress(Interrupt):
                    life(device, endpoints, links)
                armed[0] = False
                signal.setitimer(signal.ITIMER_REAL, 0)
                for link in links:
                    if link._dialled.socket_id in device._engine.dialling.by_socket:
                        assert link.request("echo", b"y", timeout_s=5).payload == b"y", number
                    link.close()
                device._engine.runner.do(list)
                assert faults(device) == {}, number
                assert device._engine.dialling.by_socket == {}, number
            assert hits[0] > 10
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.callbacks[:] = called
