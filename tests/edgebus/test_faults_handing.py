"""What comes between a request's being let in and its being handed out: it is handed out once, or refused."""

from __future__ import annotations

import signal
import time
from contextlib import contextmanager

import pytest

from edgebus import near, shm
from edgebus.answerer import Answerer
from edgebus.messages import Request
from tests.edgebus.duo import SMALL
from tests.edgebus.interrupting import Thing
from tests.edgebus.test_faults import Asked, alarm, reconcile
from tests.edgebus.test_near import near_of
from tests.edgebus.test_sharing import array, eventually, two_nodes

WAYS = {"small": (), "near": (200_000,), "whole": (9000,)}
"""By which it comes, and the bytes of its arrays."""


class Raising(Answerer):
    """What lets the first request in raises at once."""

    def let_in(self, arrived):
        if arrived is not None and self.fails:
            self.fails.pop()()
        return arrived

    def receive_small(self, *args):
        return self.let_in(super().receive_small(*args))

    def receive_new(self, *args):
        return self.let_in(super().receive_new(*args))


def fault():
    raise ZeroDivisionError("a fault of ours")


@contextmanager
def raising_server(way):
    """Two nodes and an inbox, whose server's answerer may raise: no request is resent meanwhile."""
    if way == "near" and not shm.available():
        pytest.skip("no shared memory here")
    with two_nodes(share_bytes=(64 << 20) * (way == "near")) as (server, device, link):
        inbox = server.serve("work")
        if way == "near":
            near_of(link)
            eventually(lambda: device._engine.sharing.in_order(link._dialled.attached), what="what went round is back")
        elif way == "whole":
            eventually(lambda: link.request("echo", b"", [array(1, 9000)]) and link._link.pace.proven_bytes > 9000)
        [attached] = server._engine.hub.links
        before = attached.link.answerer
        attached.link.answerer = answerer = Raising(before.limits, before.keyed, before.owner, before.counts)
        answerer.fails = []
        yield server, link, inbox, answerer, [array(1, size) for size in WAYS[way]]


@pytest.mark.net
@pytest.mark.parametrize("way", WAYS)
def test_request_in_which_a_fault_comes_once_it_is_let_in_is_handed_out(way, caplog):
    with raising_server(way) as (server, link, inbox, answerer, arrays):
        answerer.fails.append(fault)
        pending = link.send_request("work", b"x", arrays, timeout_s=10)
        inbox.get(10).reply(b"y")
        assert pending.result().payload == b"y"
        assert not answerer.fails
        assert inbox.drain() == []
        assert (link.stats().retries, answerer.counts.executed, answerer.on_hand) == (0, answerer.counts.answered, {})
        reconcile(server.stats().total)
    assert "ZeroDivisionError" in caplog.text
    caplog.clear()  # its error knows where it was raised, and so keeps the node


@pytest.mark.net
@pytest.mark.parametrize("way", WAYS)
def test_request_in_which_a_signal_handler_raises_once_it_is_let_in_is_handed_out(way):
    """And its memory stays as it is for as long as it is looked at: its message is taken in twice."""
    with raising_server(way) as (server, link, inbox, answerer, arrays), alarm() as fire:
        runner, thing = server._engine.runner, Thing()
        answerer.fails.append(fire)
        with pytest.raises(TimeoutError):
            runner.wait(Asked(runner, link, thing, arrays), time.monotonic() + 5)
        request = inbox.get(10)
        request.reply(b"y")
        assert thing.pending.result().payload == b"y"
        assert inbox.drain() == []
        assert (link.stats().retries, answerer.counts.executed, answerer.on_hand) == (0, answerer.counts.answered, {})
        for number in range(10):
            link.request("echo", b"", [array(100 + number, each.size) for each in arrays])
        assert all((view == each).all() for view, each in zip(request.arrays, arrays, strict=True))
        reconcile(server.stats().total)


def test_request_given_up_before_it_is_handed_out_is_refused_and_not_handed_out():
    answerer = Answerer(SMALL)
    assert answerer.receive_small(Request(3, "s", 1000, 0), b"", 0.0) is not None
    answerer.give_up(3)
    answerer.give_up(3)
    assert [message.header.code for message in answerer.headers_to_send()] == ["internal"]
    assert [type(event) for event in answerer.events()] == []
    assert not answerer.claim(3)


@pytest.mark.net
@pytest.mark.skipif(not shm.available(), reason="no shared memory here")
def test_near_message_in_which_a_signal_handler_raises_is_not_malformed(monkeypatch):
    def handler(number, frame):
        raise ValueError("of a signal handler")

    def decode(frame):
        signal.raise_signal(signal.SIGALRM)

    with two_nodes() as (_, device, link):
        lane = near_of(link)
        monkeypatch.setattr(near, "_decode_here", decode)
        monkeypatch.setattr(near, "decode_header", decode)
        before = signal.signal(signal.SIGALRM, handler)
        try:
            with pytest.raises(ValueError, match="of a signal handler"):
                near.decode_here(b"x")
            with device._engine.runner._lock, pytest.raises(ValueError, match="of a signal handler"):
                device._engine.near._receive(lane, lane.attached, b"x")
        finally:
            signal.signal(signal.SIGALRM, before)
