"""Up, busy, wedged, down: each is found within two heartbeat intervals, on a virtual clock and with real processes."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

import edgebus
from edgebus import messages as m
from edgebus.config import Limits
from tests.edgebus.duo import Duo
from tests.processes import freeze

CHILD = Path(__file__).with_name("child_liveness.py")
BEAT_S = 2.0


class World:
    """A device and a server whose application may be stuck or busy."""

    def __init__(self):
        self.stalled_from = None
        self.lease_until = -1.0
        self.duo = Duo(
            Limits(heartbeat_s=BEAT_S, silence_s=2 * BEAT_S),
            server={
                "stalled_ms": lambda now: int(1000 * (now - self.stalled_from)) if self.stalled_from is not None else 0,
                "lease_until": lambda: self.lease_until,
            },
        )

    @property
    def health(self):
        return self.duo.link.health(self.duo.now)

    def found_after(self, wanted):
        """Seconds until the device says so; at most 10."""
        began = self.duo.now
        while self.health != wanted:
            assert self.duo.now < began + 10, f"still {self.health}"
            self.duo.advance(0.01)
        return self.duo.now - began


@pytest.mark.parametrize("offset_s", [0.0, 0.3, 1.0, 1.9])
def test_wedged_application_is_found_within_two_beats_and_its_end_too(offset_s):
    world = World()
    world.duo.advance(offset_s)
    world.duo.ask(b"x")
    world.duo.run()
    world.stalled_from = world.duo.now
    assert 1 * BEAT_S <= world.found_after("wedged") <= 2 * BEAT_S + 0.05
    world.stalled_from = None
    assert world.found_after("up") <= BEAT_S + 0.05


def test_service_that_hangs_is_found_although_others_of_its_node_answer():
    """The node is heard of all the time, so nothing but a ping in spite of that brings the news."""
    world = World()
    world.duo.ask(b"waits", timeout_s=60.0)
    world.duo.run()
    world.stalled_from = began = world.duo.now
    while world.health != "wedged":
        assert world.duo.now < began + 2 * BEAT_S + 0.15
        world.duo.ask(b"x")
        world.duo.run()
        world.duo.answer(world.duo.arrived[-1])
        world.duo.advance(0.1)


def test_wedged_application_is_named_when_the_deadline_is_over():
    world = World()
    world.duo.ask(b"x", timeout_s=9.0)
    world.duo.run()
    world.stalled_from = world.duo.now
    world.duo.advance(10.0)
    [settled] = world.duo.settled
    assert settled.outcome == "expired"
    assert "its application has left requests lying" in settled.detail


@pytest.mark.parametrize("told", [True, False], ids=["told", "the word is lost"])
def test_busy_application_is_found_and_not_taken_for_wedged(told):
    world = World()
    world.duo.ask(b"x", timeout_s=60.0)
    world.duo.run()
    world.stalled_from, world.lease_until = world.duo.now, world.duo.now + 30.0
    if told:
        [attached] = world.duo.server.links
        attached.link.tell_lease(now=world.duo.now)
        world.duo.touch_server()
        world.duo.run()
        assert world.health == "busy"
    assert world.found_after("busy") <= BEAT_S + 0.05
    world.duo.advance(20.0)
    assert world.health == "busy"
    world.duo.advance(15.0)
    assert world.health == "wedged", "the lease is over and it still does not look"


def test_resends_are_held_back_while_the_peer_is_busy():
    world = World()
    world.lease_until = 20.0
    [attached] = world.duo.server.links
    attached.link.tell_lease(now=0.0)
    world.duo.touch_server()
    world.duo.run()
    world.duo.ask(b"x", timeout_s=60.0)
    world.duo.advance(19.5)
    assert world.duo.count(m.Request) == 1
    assert world.duo.link.caller.retries == 0
    world.duo.advance(3.0)
    assert world.duo.count(m.Request) >= 2, "after the lease it is asked again"


def test_silence_of_a_peer_that_said_it_is_busy_is_no_end_before_the_lease_is():
    world = World()
    world.lease_until = 10.0
    [attached] = world.duo.server.links
    attached.link.tell_lease(now=0.0)
    world.duo.touch_server()
    world.duo.run()
    world.duo.loses = lambda from_device, lane, header: not from_device  # a process that computes and holds its GIL
    world.duo.advance(9.5)
    assert world.health == "busy"
    assert world.duo.link.state == "up"
    world.duo.advance(1.0)
    assert world.health == "down"


def test_lease_and_stall_of_an_earlier_life_say_nothing_of_the_next_one():
    world = World()
    world.lease_until, world.stalled_from = 1000.0, 0.0
    world.duo.advance(3.0)
    assert world.health == "busy"
    world.lease_until, world.stalled_from = -1.0, None
    world.duo.restart_server()
    world.duo.loses = lambda from_device, lane, header: isinstance(header, m.Pong)  # which would say so
    world.duo.reconnect()
    assert world.health == "up"
    world.duo.loses = lambda from_device, lane, header: not from_device
    assert world.found_after("down") <= 2 * BEAT_S + 0.05


@pytest.mark.parametrize("offset_s", [0.0, 0.7, 1.99])
def test_silent_peer_is_down_within_two_beats(offset_s):
    world = World()
    world.duo.advance(10.0 + offset_s)
    world.duo.loses = lambda from_device, lane, header: not from_device
    assert world.found_after("down") <= 2 * BEAT_S + 0.05


def test_any_traffic_counts_as_a_beat():
    world = World()
    world.duo.loses = lambda from_device, lane, header: isinstance(header, m.Pong)
    for _ in range(10):
        world.duo.ask(b"x")
        world.duo.run()
        world.duo.answer(world.duo.arrived[-1])
        world.duo.advance(1.5)
        assert world.health == "up"


def test_round_trip_is_measured():
    world = World()
    world.duo.advance(3 * BEAT_S)
    assert world.duo.link.liveness.round_trip_s == world.duo.link.liveness.idle_round_trip_s == 0.0


def test_a_ping_that_a_request_may_have_delayed_says_nothing_of_an_idle_link():
    """A device on a slow uplink took the time of its own upload for the round trip."""
    world = World()
    world.duo.ask(b"x")
    world.duo.advance(3 * BEAT_S)
    assert world.duo.link.liveness.round_trip_s == 0.0
    assert math.isnan(world.duo.link.liveness.idle_round_trip_s)
    world.duo.answer(world.duo.arrived[-1])
    world.duo.advance(3 * BEAT_S)
    assert world.duo.link.liveness.idle_round_trip_s == 0.0


def test_peer_of_version_1_says_nothing_of_its_application_and_is_up():
    duo = Duo(server={"versions": (1, 1), "stalled_ms": lambda now: 60_000})
    duo.ask(b"x")
    duo.advance(10.0)
    assert duo.link.health(duo.now) == "up"


# -- real processes --------------------------------------------------------------------------------------

REAL_BEAT_S = 0.25
REAL = Limits(heartbeat_s=REAL_BEAT_S, silence_s=2 * REAL_BEAT_S, resend_s=0.2)


@contextmanager
def child_and_link(endpoint="tcp://127.0.0.1:0"):
    command = [sys.executable, str(CHILD), str(REAL_BEAT_S), endpoint]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        with edgebus.Node("device", insecure=True, limits=REAL) as device:
            yield child, device.connect(child.stdout.readline().strip())
    finally:
        child.kill()
        child.wait(5)
        child.stdin.close()
        child.stdout.close()


def tell(child, *words):
    child.stdin.write(" ".join(words) + "\n")
    child.stdin.flush()
    assert child.stdout.readline().strip() == words[0]


def found_within(link, wanted, seconds):
    """The device looks at the link, and so does what a user would: within two beats and a little for the machine."""
    began = looked_at = time.monotonic()
    within_s = seconds + 0.5
    while link.health != wanted:
        now = time.monotonic()
        within_s += now - looked_at - 0.005  # what this thread was late the others were, too
        assert now - began < within_s, f"still {link.health} after {within_s:.2f} s"
        looked_at = now
        time.sleep(0.005)


@pytest.mark.net
@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_stopped_process_is_down_and_up_again_when_it_goes_on(transport, tmp_path):
    """Over ipc libzmq keeps the connection for much longer than the link takes to notice."""
    with child_and_link("tcp://127.0.0.1:0" if transport == "tcp" else f"ipc://{tmp_path}/s") as (child, link):
        assert link.request("work").payload == b"done"
        freeze(child)
        pending = link.send_request("work", timeout_s=10.0)
        found_within(link, "down", 2 * REAL_BEAT_S)
        os.kill(child.pid, signal.SIGCONT)
        found_within(link, "up", 4 * REAL_BEAT_S + 1.0)
        assert pending.result().payload == b"done"


@pytest.mark.net
@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_killed_process_is_down(transport, tmp_path):
    with child_and_link("tcp://127.0.0.1:0" if transport == "tcp" else f"ipc://{tmp_path}/s") as (child, link):
        child.kill()
        found_within(link, "down", 2 * REAL_BEAT_S)
        with pytest.raises(edgebus.DeadlineExceeded, match="never sent"):
            link.request("work", timeout_s=0.1)


@pytest.mark.net
def test_application_that_takes_no_requests_is_wedged_while_its_node_answers():
    with child_and_link() as (child, link):
        tell(child, "sleep", "1.5")
        pending = link.send_request("work", timeout_s=10.0)
        found_within(link, "wedged", 2 * REAL_BEAT_S)
        assert link.request("edgebus.ping", timeout_s=1.0).payload == b""
        assert pending.result().payload == b"done"
        found_within(link, "up", 2 * REAL_BEAT_S)


@pytest.mark.net
def test_declared_lease_is_busy_also_while_the_process_holds_its_interpreter():
    """C code that does not let go of the GIL for 1.2 s is longer than the silence that would end the link."""
    with child_and_link() as (child, link):
        tell(child, "busy", "3", "hog", "1.2")
        found_within(link, "busy", 2 * REAL_BEAT_S)
        pending = link.send_request("work", timeout_s=10.0)
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            assert link.health == "busy"
            time.sleep(0.02)
        assert link.stats().retries == 0
        assert pending.result().payload == b"done"
        found_within(link, "up", 2 * REAL_BEAT_S)
        assert link.stats().reconnects == 0


@pytest.mark.net
def test_lease_ends_when_the_application_says_so():
    with edgebus.Node("server", insecure=True, limits=REAL) as server, edgebus.Node("d", insecure=True) as device:
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        server.busy(60.0, "prefill")
        found_within(link, "busy", 2 * REAL_BEAT_S)
        server.busy(0)
        found_within(link, "up", 2 * REAL_BEAT_S)


@pytest.mark.net
def test_what_lay_there_during_a_lease_is_not_held_against_who_is_back_from_it():
    around = {"insecure": True, "limits": REAL}
    with edgebus.Node("server", **around) as server, edgebus.Node("device", **around) as device:
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        inbox = server.serve("work")
        server.busy(60.0, "prefill")
        found_within(link, "busy", 2 * REAL_BEAT_S)
        asked = [link.send_request("work", timeout_s=20.0) for _ in range(2)]
        time.sleep(1.5 * REAL_BEAT_S)
        server.busy(0)
        while link.health == "busy":
            time.sleep(0.001)
        assert link.health == "up"
        found_within(link, "wedged", 2 * REAL_BEAT_S)  # but it does not look now either
        inbox.get().reply()
        inbox.get().reply()
        found_within(link, "up", 2 * REAL_BEAT_S)
        assert [pending.result().payload for pending in asked] == [b"", b""]
