"""A link of the virtual network takes what a link over sockets takes, and means the same by it."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import numpy as np
import pytest

from edgebus.config import Limits
from edgebus.errors import DeadlineExceeded, LinkLost, QueueFull, Refused
from edgebus.links import Link
from edgebus.testing import Script, SimLink, SimNetwork, at, for_seeds, half_open, heal

ONLY_REAL = {"close", "move"}  # the guide says so


def public(of):
    """Public methods and properties of a class, each with its parameters: of its source, since links are compiled."""
    source = Path(importlib.import_module(of.__module__).__file__).parents[0] / "links.py"
    [tree] = [node for node in ast.parse(source.read_text()).body if getattr(node, "name", "") == of.__name__]
    return {
        node.name: (ast.unparse(node.args), bool(node.decorator_list))
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }


def test_virtual_link_takes_what_a_real_one_takes():
    real, virtual = public(Link), public(SimLink)
    assert {"request", "send_request", "send", "stream", "health", "loan", "has_room", "stats"} <= set(real)
    for name in set(real) - ONLY_REAL:
        assert virtual[name] == real[name], name


class Meter:
    """A server that adds up; memory outlives its crashes."""

    def __init__(self):
        self.total = 0

    def __call__(self, request):
        self.total += int(request.payload)
        request.reply(b"%d" % self.total)


def confirm(link, number, key):
    """A device that asks again until it was told."""
    for _ in range(20):
        try:
            link.request("meter", b"1", timeout_s=2, key=key)
        except (LinkLost, DeadlineExceeded):
            continue
        return
    raise AssertionError(f"{number} was never confirmed")


@pytest.mark.parametrize("keyed", [True, False])
def test_key_counts_once_what_a_way_back_that_is_cut_makes_a_device_repeat(keyed):
    script = Script(at(1.0, half_open("server", "device")), at(5.0, heal("server", "device")))
    wrong = []

    @for_seeds(20)
    def trial(seed):
        meter = Meter()
        with SimNetwork(seed, script=script) as net:
            link = net.connect(net.node("device"), net.node("server", meter))
            for number in range(15):
                confirm(link, number, b"reading %d" % number if keyed else b"")
                net.run(0.2)
        wrong.append(meter.total != 15)

    trial()
    assert any(wrong) != keyed  # without a key the same device counts twice


def test_sequence_drops_what_is_older():
    with SimNetwork(1) as net:
        link = net.connect(net.node("device"), net.node("server", lambda request: request.reply()))
        link.request("pose", sequence=(1, 8))
        with pytest.raises(Refused, match="stale"):
            link.request("pose", sequence=(1, 7))


def test_one_way_is_answered_once_the_handler_has_it():
    came = []
    with SimNetwork(1) as net:
        link = net.connect(net.node("device"), net.node("server", lambda request: came.append(request.payload)))
        pending = link.send("log", b"hello", [np.arange(3)])
        assert pending.outcome is None
        pending.result()
        assert came == [b"hello"]


def test_who_waits_for_a_pending_request_lets_virtual_time_pass():
    with SimNetwork(1) as net:
        server = net.node("server", lambda request: server.call_later(3.0, request.reply))
        link = net.connect(net.node("device"), server)
        pending = link.send_request("slow", timeout_s=10)
        began = net.clock.now
        assert not pending.wait(1.0)
        assert net.clock.now == pytest.approx(began + 1.0)
        assert pending.wait(5.0)
        assert 3.0 <= net.clock.now - began < 4.0
        assert pending.result().payload == b""


def test_health_is_down_behind_a_partition():
    with SimNetwork(1) as net:
        device, server = net.node("device"), net.node("server", lambda request: request.reply())
        link = net.connect(device, server)
        link.request("any")
        assert link.health == "up"
        net.partition(device, server)
        net.run(5.0)
        assert link.health == "down"


@pytest.mark.parametrize("on_full", ["refuse", "drop_oldest", "wait"])
def test_bound_of_what_waits_is_kept_as_over_sockets(on_full):
    with SimNetwork(1) as net:
        device = net.node("device", limits=Limits(max_outstanding_bytes=1000, on_full=on_full))
        server = net.node("server", lambda request: request.reply())
        net.partition(device, server)
        link = net.connect(device, server)
        first = link.send_request("keep", bytes(600), timeout_s=3)
        assert not link.has_room(600)
        began = net.clock.now
        if on_full == "refuse":
            with pytest.raises(QueueFull, match="600 B more are over 1000"):
                link.send_request("keep", bytes(600), timeout_s=3)
            assert first.outcome is None
        elif on_full == "drop_oldest":
            link.send_request("keep", bytes(600), timeout_s=3)
            net.run(0.01)
            with pytest.raises(Refused, match="queue_full"):
                first.result()
        else:
            link.send_request("keep", bytes(600), timeout_s=5)  # there is room once the first has expired
            assert first.outcome == "expired"
            assert net.clock.now - began == pytest.approx(3.0, abs=0.1)
