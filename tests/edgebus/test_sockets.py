"""What a signal handler interrupts between libzmq and whoever is told comes once more."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager, suppress

import pytest
import zmq

import edgebus
from edgebus.readiness import MessageTaker
from edgebus.sockets import Sockets
from edgebus.zap import ZAP_ENDPOINT

pytestmark = pytest.mark.net


class Interrupt(BaseException):
    """What a signal handler raises."""


class Told:
    """A receiver that is interrupted the first `times` times that it is told something."""

    def __init__(self, times):
        self._left, self.events, self.asked = times, [], []

    def _told(self, list_, what):
        list_.append(what)
        self._left -= 1
        if self._left >= 0:
            raise Interrupt

    def on_monitor(self, socket_id, event, value):
        self._told(self.events, event)

    def on_zap(self, frames):
        self._told(self.asked, list(frames))
        return [b"1.0", frames[1], b"200", b"OK", b"somebody", b""]

    def on_frames(self, route, frames, key):
        raise AssertionError

    def defer(self, function, *args, if_closed=lambda: None):
        function(*args)


class NoMessages(MessageTaker):
    """None is expected."""

    def take(self, opened, event):
        return False


@contextmanager
def opened(times):
    told = Told(times)
    sockets = Sockets(edgebus.Limits(), told)
    sockets.messages = NoMessages()
    try:
        yield told, sockets
    finally:
        sockets.shut(0)


def take_until(sockets, condition):
    until = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < until
        with suppress(Interrupt):
            sockets.take(sockets.poll(0.01))
        with suppress(Interrupt):
            sockets.take_touched()


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        ({}, 60),
        ({"forget_s": 20.0}, 20),
        ({"forget_s": 86_400.0}, 60),
        ({"forget_s": math.inf}, 60),
        ({"forget_s": 1.0}, 10),
        ({"silence_s": 40.0}, 100),
    ],
)
def test_connection_that_was_left_ends_although_its_peer_is_remembered_for_long(limits, seconds):
    """Each that a device leaves without a word, one after the other, would keep its descriptor for so long."""
    with edgebus.Node("s", insecure=True, limits=edgebus.Limits(**limits)) as node:
        node.bind("tcp://127.0.0.1:0")
        [listening] = node._engine.runner.sockets.by_id.values()
        assert listening.sock.getsockopt(zmq.HEARTBEAT_TIMEOUT) == 1000 * seconds


def test_event_of_a_transport_is_told_again_after_an_interrupt():
    with opened(2) as (told, sockets), zmq.Context() as context, context.socket(zmq.ROUTER) as there:
        there.linger = 0
        port = there.bind_to_random_port("tcp://127.0.0.1")
        sockets.dial(f"tcp://127.0.0.1:{port}", None, None)
        take_until(sockets, lambda: "HANDSHAKE_SUCCEEDED" in told.events)
        assert told.events == ["CONNECT_DELAYED"] * 3 + ["CONNECTED", "HANDSHAKE_SUCCEEDED"]


def test_rest_of_an_event_that_was_interrupted_in_the_middle_is_passed_over():
    """As pyzmq leaves it, where nothing is compiled."""
    with opened(0) as (told, sockets), zmq.Context() as context, context.socket(zmq.ROUTER) as there:
        there.linger = 0
        port = there.bind_to_random_port("tcp://127.0.0.1")
        socket_id = sockets.dial(f"tcp://127.0.0.1:{port}", None, None)
        assert sockets._monitors[socket_id].poll(5000)
        sockets._monitors[socket_id].recv()
        take_until(sockets, lambda: "HANDSHAKE_SUCCEEDED" in told.events)
        assert told.events == ["CONNECTED", "HANDSHAKE_SUCCEEDED"]


def test_who_wants_in_is_answered_although_the_question_was_interrupted():
    """Without an answer nobody would be let in any more."""
    with opened(1) as (told, sockets):
        sockets._open_zap()
        with sockets._context.socket(zmq.REQ) as asking:
            asking.linger, asking.rcvtimeo = 0, 5000
            asking.connect(ZAP_ENDPOINT)
            for number, times in ((b"1", 2), (b"2", 3)):
                question = [b"1.0", number, b"edgebus", b"127.0.0.1", b"", b"CURVE", bytes(32)]
                asking.send_multipart(question)
                take_until(sockets, lambda times=times: len(told.asked) == times)
                assert asking.recv_multipart()[1:3] == [number, b"200"]
        assert told.asked[0] == told.asked[1]


def test_any_port_cannot_be_dialled_and_the_error_says_so():
    with (
        edgebus.Node("device", insecure=True) as node,
        pytest.raises(edgebus.ConfigError, match=r"cannot dial tcp://.*:\*"),
    ):
        node.connect("tcp://127.0.0.1:*")
