"""An exception of a signal handler at any line that opens, moves or closes something: the node goes on, nothing is lost.

The lines are those of plain modules and of pyzmq's own: compiled ones show none, and no handler runs in the middle of
them. test_compiled.py has this file run as plain Python, where each shows its own.
"""

from __future__ import annotations

import gc
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

import edgebus
from tests.edgebus.interrupting import interrupted

pytestmark = [
    pytest.mark.net,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # sockets of pyzmq, interrupted at birth
]
MODULES = ("dialling", "greeting", "handshake", "local", "node", "sockets", "links")


def is_ours(name):
    return name.startswith("zmq.sugar") or (name.startswith("edgebus.") and name.partition(".")[2] in MODULES)


def faults(node):
    """What does not fit together in a node's tables."""
    engine = node._engine
    runner, sockets, hub, by_socket = engine.runner, engine.runner.sockets, engine.hub, engine.dialling.by_socket
    with runner._lock:
        ours = {key for key, dialled in by_socket.items()}
        listening = {key for key, opened in sockets.by_id.items() if opened.port.is_router}
        dialled = [attached for attached in hub.links if attached.hello_id is None]
        found = {
            "sockets that nobody knows": set(sockets.by_id) - listening - ours,
            "sockets that are not there": {key for key in ours if key > 0} - set(sockets.by_id),
            "local ones that nobody knows": set(sockets._local._diallers) - ours,
            "monitors": set(sockets._monitors) ^ set(sockets.by_id),
            "descriptors": (set(sockets._fds.values()) | {runner._wake_read.fileno()}) ^ set(sockets._takers),
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
            got.append(runner._followers)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(5)
    return got == [0]


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

        def check(at):
            links[0].close()
            assert faults(device) == {}, at
            assert device._engine.dialling.by_socket == {}, at
            assert free(device._engine.runner), at
            links[0] = device.connect(endpoints[0])

        assert each_line(lambda: links[0].close(), check) > 5


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
