"""An exception of a signal handler at any line of the short way: the link goes on, and no room is lost for good.

Compiled modules show no lines: test_compiled.py has this file run as plain Python.
"""

from __future__ import annotations

import sys
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

import edgebus
from edgebus import express as express_module
from edgebus.answerer import Answerer
from edgebus.config import Limits
from edgebus.messages import Request
from edgebus.requests import Caller
from tests.edgebus.duo import Duo
from tests.edgebus.interrupting import Interrupt, interrupted
from tests.edgebus.test_express_large import open_lane

_MODULES = (
    "express", "express_sending", "requests", "link", "link_receiving", "link_sending", "bulk", "pace", "hub",
    "hub_collecting",
)  # fmt: skip
LINES_OF = frozenset(f"edgebus.{name}" for name in _MODULES)
PLAIN = str(express_module.__file__).endswith(".py")


@pytest.mark.skipif(not PLAIN, reason="compiled: its lines are not shown")
def test_interrupt_at_any_line_of_a_large_request_costs_no_room(monkeypatch):
    clock, at, going = SimpleNamespace(now=0.0), 0, True
    monkeypatch.setattr(express_module, "_now", lambda: clock.now)
    while going:
        at += 1
        assert at < 1000
        duo = open_lane(clock)
        going = interrupted(lambda duo=duo: duo.ask_large((1, 30_000)), at, LINES_OF.__contains__)
        for _ in range(40):
            duo.answer_oldest(0)
            duo.advance(1.0)
        caller, sender = duo.link.caller, duo.link.sender
        assert (caller.outstanding, caller.outstanding_bytes) == ({}, 0), f"at line {at}"
        assert (sender.in_flight_bytes, duo.far.answerer.pending_bytes) == (0, 0), f"at line {at}"
        ids = [request_id for request_id, _, _ in duo.taken]
        assert len(ids) == len(set(ids)), f"executed twice, at line {at}"
        duo.ask_large((1, 60_000))
        duo.advance(1.0)
        duo.answer_oldest(0)
        duo.advance(1.0)
        assert duo.pendings[-1].outcome == "answered", f"at line {at}"
    assert at > 60


def test_window_that_an_exception_left_too_small_is_counted_anew():
    """As an exception between two counters leaves it: nothing would ever go again that needs the whole window."""
    duo = Duo().prove()
    duo.ask(b"p", bytes(1 << 20))
    duo.run()
    duo.answer(duo.arrived.pop())
    duo.run()
    duo.ask(b"p", bytes(1 << 20))
    duo.link.sender.in_flight_bytes += 1 << 40
    duo.run()
    duo.ask(b"p", bytes(1 << 20))
    duo.advance(2.0)
    assert len(duo.arrived) == 2
    for arrived in duo.arrived:
        duo.answer(arrived)
    duo.advance(1.0)
    assert duo.link.sender.in_flight_bytes == 0


def test_answer_that_an_exception_left_half_kept_does_not_stop_what_comes_after_it():
    """Counting the bytes of an answer is plain Python, where a signal handler may raise: it is set and not listed."""
    duo = Duo()
    for number in range(4):
        duo.ask(b"%d" % number)
        duo.run()
        answerer = duo.arrived[-1].answerer
        duo.answer(duo.arrived.pop())
        if number == 1:
            answerer._answered.pop(1)
        duo.run()
    assert len(duo.settled) == 4
    assert answerer.num_pending == 0


def test_request_whose_start_was_interrupted_ends_at_its_deadline():
    """The factor of its resends comes from plain Python, where a signal handler may raise."""
    going = [True]

    def jitter():
        if going[0]:
            return 1.0
        raise Interrupt

    caller = Caller(Limits(), jitter)
    caller.set_up(True, now=0.0)
    going[0] = False
    with pytest.raises(Interrupt):
        caller.start("s", (), (b"abc",), deadline_at=5.0, ref=None, now=0.0)
    going[0] = True
    assert caller.next_timer() == 5.0
    caller.handle_timer(now=5.0)
    assert (caller.outstanding, caller.outstanding_bytes) == ({}, 0)


@pytest.mark.skipif(not PLAIN, reason="compiled: its lines are not shown")
def test_request_that_a_signal_handler_starts_in_the_middle_of_another_has_its_timer():
    at, going = 0, True
    while going:
        at += 1
        assert at < 100
        caller = Caller(Limits())
        caller.set_up(True, now=0.0)
        start_small(caller, "first")
        caller.answered_small(0)  # its timer is still there
        going = called_within(
            Caller.start_sent,
            at,
            lambda caller=caller: start_small(caller, "outer", deadline_at=9.0),
            lambda caller=caller: caller.start("s", (), (b"",), deadline_at=5.0, ref="inner", now=0.0),
        )
        caller.handle_timer(now=5.0)
        assert "inner" in [event.ref for event in caller.events()] or not going, at
        caller.handle_timer(now=9.0)
        assert "outer" in [event.ref for event in caller.events()], at


def start_small(caller, ref, deadline_at=9.0):
    header = caller.small_header("s", b"", deadline_at, 0.0)
    caller.start_sent(header, (b"",), 0, deadline_at, ref, 0.0)


def called_within(method, at, function, other):
    """Call a function, and another one at the at-th line of a method in there; True if it has so many."""
    left = [at]

    def trace(frame, event, _):
        if frame.f_code is not method.__code__:
            return None
        left[0] -= event == "line"
        if event == "line" and left[0] == 0:
            sys.settrace(None)
            other()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return left[0] <= 0


@pytest.mark.skipif(not PLAIN, reason="compiled: its calls are not shown")
@pytest.mark.parametrize("arrive", [Answerer.receive_small, Answerer.receive_plain])
def test_request_is_not_known_when_a_signal_handler_raises_as_it_is_let_in(arrive):
    """Where Python runs them: on the way into a function, and after one in C. Known, it would never be handed out."""
    at, going = 0, True
    while going:
        at += 1
        assert at < 100
        answerer, left = Answerer(Limits()), [at]

        def profile(frame, event, function, left=left):
            ours = frame.f_globals.get("__name__") == "edgebus.answerer"
            left[0] -= ours and event in ("call", "c_return")
            if left[0] == 0:
                sys.setprofile(None)
                left[0] = -1
                raise Interrupt

        content, before = b"x" if arrive is Answerer.receive_small else (b"x",), sys.getprofile()
        sys.setprofile(profile)
        try:
            arrive(answerer, Request(7, "s", 1000, 0), content, 0.0)
        except Interrupt:
            assert not answerer.knows(7), at
            assert (answerer.counts.received, answerer.pending_bytes) == (0, 0), at
        finally:
            going = left[0] < 0
            sys.setprofile(before)
    assert at > 4
    assert answerer.knows(7)


@contextmanager
def server_and_link():
    with edgebus.Node("server", insecure=True) as server, edgebus.Node("device", insecure=True) as device:
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        link.request("edgebus.ping", b"")
        yield server, link


@pytest.mark.net
@pytest.mark.skipif(not PLAIN, reason="compiled: its lines are not shown")
@pytest.mark.parametrize("what", ["inbox", "handler"])
def test_request_that_is_interrupted_at_any_line_as_it_is_handed_out_is_not_handed_out_twice(what):
    with server_and_link() as (server, _):
        engine, runner, handed = server._engine, server._engine.runner, []
        [attached] = engine.hub.links
        inbox = server.serve("inbox")
        server.handle("handler", handed.append)
        at, going = 0, True
        while going:
            at += 1
            assert at < 200
            for deliver in (engine.express.deliver, engine.arrived):
                header = Request(at * 2 + (deliver == engine.arrived) + 1000, what, 60_000, 0)
                with runner._lock:
                    arrived = attached.link.answerer.receive_small(header, b"x", time.monotonic())
                    going = interrupted(
                        lambda deliver=deliver, arrived=arrived: deliver(attached, arrived),
                        at,
                        {"edgebus.inbox", "edgebus.turns"}.__contains__,
                    )
                runner.do(list)
                handed += inbox.drain()
                assert [request._id for request in handed] == [header.id], at
                handed.pop().reply(b"")
                assert not arrived.answerer.handed
        assert at > 10


@pytest.mark.net
@pytest.mark.skipif(not PLAIN, reason="compiled: its lines are not shown")
@pytest.mark.parametrize("what", ["inbox", "handler"])
def test_request_that_is_interrupted_at_any_line_of_the_short_way_is_handed_out_once(what):
    """From its header on; its message comes again, as whoever has read it keeps it until it is done with."""
    ours = {"edgebus.express", "edgebus.answerer", "edgebus.inbox", "edgebus.turns"}.__contains__
    with server_and_link() as (server, _):
        engine, runner, handed = server._engine, server._engine.runner, []
        [attached] = engine.hub.links
        inbox = server.serve("inbox")
        server.handle("handler", handed.append)
        at, going = 0, True
        while going:
            at += 1
            assert at < 200
            header = Request(at + 1000, what, 60_000, 0, (), b"x")
            take = lambda header=header: engine.express.receive_header(attached, header, 10)  # noqa: E731
            with runner._lock:
                going = interrupted(take, at, ours)
                if going:
                    runner._interrupted()
                    if not attached.link.answerer.knows(header.id):
                        take()
            runner.do(list)
            handed += inbox.drain()
            assert [request._id for request in handed] == [header.id], at
            handed.pop().reply(b"")
            assert not attached.link.answerer.on_hand
            assert not attached.link.answerer.handed
        assert at > 30


@pytest.mark.net
@pytest.mark.skipif(not PLAIN, reason="compiled: its methods cannot be replaced")
@pytest.mark.parametrize(("method", "work"), [("_exit", "do"), ("close_section", "do_small")])
def test_interrupt_on_the_way_out_of_the_lock_leaves_nobody_in_there(method, work, monkeypatch):
    with server_and_link() as (server, link):
        runner = server._engine.runner
        leave, left, main = getattr(runner, method), [True], threading.get_ident()

        def interrupted_once():
            if left and threading.get_ident() == main:
                left.clear()
                raise Interrupt
            return leave()

        monkeypatch.setattr(runner, method, interrupted_once)
        with pytest.raises(Interrupt):
            getattr(runner, work)(lambda: True)
        assert not runner.is_mine
        other = threading.Thread(target=runner.do, args=(list,), daemon=True)
        other.start()
        other.join(5)
        assert not other.is_alive()
        assert getattr(runner, work)(lambda: True)
        assert link.request("edgebus.ping", b"y", timeout_s=5).payload == b"y"
