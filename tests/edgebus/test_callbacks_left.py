"""Callbacks and handlers that are left behind are told to whoever drives, also where a signal handler is in between."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from functools import partial

import pytest

import edgebus
from edgebus.messages import Message, Reset
from edgebus.runner_calling import SLICE_S
from tests.edgebus.interrupting import Interrupt, Thing
from tests.edgebus.test_sharing import eventually

SOON_S, LONG_S = 0.5, 3.0


def sleeps(runner, thread_id):
    """Whether a thread sleeps in poll and the node's own has nothing more to tell it."""
    own_is_done = runner._own_asleep or runner._own_polls
    return runner._seat.driver == thread_id and own_is_done and not runner._woken and runner._sleeps_until > 0


@pytest.fixture
def runner():
    with edgebus.Node("n", insecure=True) as node:
        yield node._engine.runner


@pytest.fixture
def driver(runner):
    """Another thread of the application, which sleeps in poll."""
    thing = Thing()
    thread = threading.Thread(target=runner.wait, args=(thing, time.monotonic() + 20))
    thread.start()
    eventually(lambda: sleeps(runner, thread.ident), 5, "that it drives")
    yield thread
    thing.come()
    runner._wake()
    thread.join(5)
    assert not thread.is_alive()


@pytest.fixture
def in_poll(runner):
    """Have a function called by a signal handler while this thread sleeps in poll; returns for how long it slept."""

    def sleep(function, thing):
        before = signal.signal(signal.SIGALRM, lambda *_: function())
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            began = time.perf_counter()
            runner.wait(thing, time.monotonic() + LONG_S)
            return time.perf_counter() - began
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    return sleep


def spin():
    until = time.perf_counter() + 2 * SLICE_S
    while time.perf_counter() < until:
        pass


def test_what_the_last_round_of_a_turn_brings_to_send_does_not_wait_for_a_beat(runner, driver):
    """A turn has 16 rounds; what a socket brings in the last one is sent in the next turn, and there has to be one."""
    reading, writing = os.pipe()
    hub, num_taken = runner._hub, []

    def take(event):
        num_taken.append(event)
        hub.outbox.append(((99, b"nobody"), None, Message(Reset())))
        return len(num_taken) < 16

    def touch():
        runner.sockets.watch_fd(reading, take)
        runner.sockets.touched.add(reading)

    try:
        runner.do(touch)
        eventually(lambda: hub.unroutable == 16, SOON_S, "that all were sent")
    finally:
        runner.do(runner.sockets.unwatch_fd, reading)
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("kind", ["callbacks", "handlers"])
def test_what_an_interrupted_callback_leaves_is_called_by_who_drives(runner, driver, kind):
    """It lay there until the next message or beat."""
    told, this = threading.Event(), threading.get_ident()

    def interrupt():
        if threading.get_ident() == this:
            raise Interrupt

    with runner._lock:
        for callback in (interrupt, told.set):
            if kind == "callbacks":
                runner.soon(callback)
            else:
                runner.serve_soon("a", callback)
    with pytest.raises(Interrupt):
        runner.run_callbacks()
    assert told.wait(SOON_S)


def test_handlers_that_a_signal_handler_leaves_are_called_by_the_thread_it_interrupted(runner, in_poll):
    thing, called = Thing(), []

    def serve():
        called.append(spin())
        if len(called) == 5:
            thing.come()

    def ask():
        with runner._lock:
            for _ in range(5):
                runner.serve_soon("a", partial(serve))
        runner.do(lambda: None)

    assert in_poll(ask, thing) < SOON_S
    assert len(called) == 5


@pytest.mark.parametrize("way", ["section", "callback", "wait"])
def test_what_comes_while_a_signal_handler_works_the_node_is_seen_by_the_thread_it_interrupted(runner, in_poll, way):
    thing, inner = Thing(), Thing()

    def arrive():
        thing.come()
        runner.stirred = True

    def both():
        inner.come()
        arrive()

    def work():
        if way == "section":
            runner.do(arrive)
        elif way == "callback":
            runner.do(runner.soon, thing.come)
        else:
            timer = threading.Timer(0.05, runner.do, [both])
            timer.start()
            runner.wait(inner, time.monotonic() + LONG_S)
            timer.join()

    assert in_poll(work, thing) < SOON_S


def test_callback_that_is_interrupted_as_it_comes_back_from_a_wait_leaves_the_turn_to_who_has_it(runner, driver):
    """It gave back what another thread had taken: two called back at once."""
    followed, slow, order = Thing(), threading.Event(), []

    def long():
        followed.come()
        slow.wait(5)
        order.append("long")

    def waits():
        timer = threading.Timer(0.05, runner.do, [runner.soon, long])
        timer.start()
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            runner.wait(followed, time.monotonic() + LONG_S)
        except Interrupt:
            order.append("interrupted")
        timer.join()

    def interrupt(*_):
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with runner._lock:
            runner.soon(waits)
            runner.soon(lambda: order.append("next"))
        helper = threading.Timer(0.4, slow.set)
        helper.start()
        runner.run_callbacks()
        helper.join()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    eventually(lambda: "long" in order and "next" in order, 5, "that all were called")
    eventually(lambda: runner._calls == 0 and not runner._calling.locked(), 5, "that nobody is at them")


def test_handler_that_is_cancelled_ends_neither_its_thread_nor_the_nodes():
    """asyncio.CancelledError is no Exception: it ended the node's own thread, and with it the node."""

    def cancelled(request):
        raise asyncio.CancelledError

    with edgebus.Node("server", insecure=True) as server, edgebus.Node("device", insecure=True) as device:
        server.handle("cancelled", cancelled)
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        for _ in range(2):
            with pytest.raises(edgebus.Refused, match="internal"):
                link.request("cancelled", timeout_s=2)
        assert link.request("edgebus.ping", b"on").payload == b"on"
