"""Threads of one node that wait at the same time: handlers that wait, and exceptions as somebody comes back from it."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, contextmanager

import pytest

import edgebus
from tests.edgebus.interrupting import Interrupt, Thing, alarms, raising
from tests.edgebus.test_sharing import eventually

SOON_S, LONG_S = 0.5, 5.0


@pytest.fixture
def runner():
    with edgebus.Node("n", insecure=True) as node:
        yield node._engine.runner


@contextmanager
def thread(function, *args):
    started = threading.Thread(target=function, args=args)
    started.start()
    try:
        yield started
    finally:
        started.join(2 * LONG_S)
        assert not started.is_alive()


@contextmanager
def waiting(runner, things, *, drives):
    """Another thread that waits for a thing, as the driver or behind one."""
    thing = Thing()
    things.append(thing)
    with thread(runner.wait, thing, time.monotonic() + LONG_S) as started:
        if drives:
            eventually(lambda: runner._seat.driver == started.ident and runner._sleeps_until > 0, 5, "that it drives")
        else:
            eventually(lambda: bool(runner._following), 5, "that it follows")
        try:
            yield started
        finally:
            for each in things:
                each.come()
            runner._wake()


@pytest.mark.parametrize("first", ["follows", "drives"])
def test_handler_that_has_what_it_waited_for_goes_on_while_another_one_waits(runner, first):
    """It waited for the turn of handlers until the other one had what it waited for, or its deadline was over."""
    answers, order, things = [Thing(), Thing()], [], []

    def handler(number):
        order.append(f"{number} waits")
        runner.wait(answers[number], time.monotonic() + LONG_S)
        order.append(f"{number} goes on")

    def call(number):
        with runner._lock:
            runner.soon(lambda: handler(number))
        runner.run_callbacks()

    with waiting(runner, things, drives=True), thread(call, 0):  # it follows
        eventually(lambda: "0 waits" in order and runner._calls == 0, 5, "that it waits")
        with runner._lock:
            runner.soon(lambda: handler(1))
        runner._wake()  # whoever drives calls it, and goes on driving in it
        eventually(lambda: "1 waits" in order, 5, "that the other one waits")
        free = 0 if first == "follows" else 1
        began = time.monotonic()
        answers[free].come()
        runner._wake()
        try:
            eventually(lambda: f"{free} goes on" in order, LONG_S, "that it goes on")
            assert time.monotonic() - began < SOON_S
        finally:
            for answer in answers:
                answer.come()
            runner._wake()
    eventually(lambda: len(order) == 4 and not runner._calling.locked(), 5, "that both are done")
    assert runner._calls == 0


@contextmanager
def taken(lock):
    """Somebody else has a lock."""
    has, done = threading.Event(), threading.Event()

    def hold():
        with lock:
            has.set()
            done.wait(LONG_S)

    with thread(hold):
        has.wait(LONG_S)
        try:
            yield
        finally:
            done.set()


class Interrupted(Thing):
    """A thing whose wait a signal handler ends, as does one more while its thread comes back from that."""

    def __init__(self, within):
        super().__init__()
        self._within = within

    def follow(self, wait_s):
        self._within()
        raise Interrupt


@pytest.mark.timeout(60, method="thread")  # the other one has the timer that is used here
def test_who_is_interrupted_as_it_comes_back_from_a_wait_is_no_follower_any_more(runner):
    """It was counted for ever: whoever left the sockets woke the node's own thread for it each time."""
    things = []
    with waiting(runner, things, drives=True):
        with ExitStack() as stack, alarms(raising, 0.1, once=True):
            thing = Interrupted(lambda: stack.enter_context(taken(runner._who)))
            with pytest.raises(Interrupt):
                runner.wait(thing, time.monotonic() + LONG_S)
        assert runner._following == []


@pytest.mark.timeout(60, method="thread")  # likewise
def test_who_leaves_the_sockets_waits_for_no_lock_in_which_a_signal_handler_might_raise(runner):
    """The node's own thread was not woken then: it slept on for up to a second, and so did all who waited."""
    with taken(runner._who), alarms(raising, 0.2, once=True):
        runner._leave()
