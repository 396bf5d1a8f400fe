"""Locks and pollers, compiled and plain: they do the same."""

import itertools
import os
import signal
import threading
import time

import pytest

from edgebus.locks import PlainLock, open_lock
from edgebus.port import PlainPoller, open_poller
from tests.edgebus.interrupting import interrupted

LOCKS = list(dict.fromkeys([PlainLock, open_lock]))
POLLERS = list(dict.fromkeys([PlainPoller, open_poller]))


class Alarm(Exception):
    """What a signal handler raises."""


@pytest.fixture
def alarm():
    def ring(*_):
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    yield lambda wait_s: signal.setitimer(signal.ITIMER_REAL, wait_s)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=LOCKS)
def lock(request):
    return request.param()


def held_by_another(lock, released):
    """A thread that has the lock until it is told to let go, and then ends."""
    has_it = threading.Event()

    def hold():
        with lock:
            has_it.set()
            released.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert has_it.wait(10)
    return thread


def taken_elsewhere(lock, wait_s=0.05):
    """Whether another thread cannot have the lock now."""
    got = threading.Event()

    def take():
        with lock:
            got.set()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    return not got.wait(wait_s)


def take_and_release(lock):
    try:
        lock.acquire()
    finally:
        lock.release()


def take_by_with(lock):
    with lock:
        pass


def restore(lock, depth):
    lock._acquire_restore(depth)
    time.sleep(0)  # a handler may come as late as this


def test_owner_may_take_a_lock_again_and_has_it_until_it_gave_it_back_as_often(lock):
    with lock:
        lock.acquire()
        lock.release()
        assert taken_elsewhere(lock)
    assert not taken_elsewhere(lock, 10)


@pytest.mark.parametrize("num_threads", [2, 5])
def test_one_thread_at_a_time_is_inside(lock, num_threads):
    inside, most, done = [0], [0], [0]

    def work():
        for number in range(300):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                if number % 10 == 0:
                    time.sleep(0.0001)
                before = done[0]
                if number % 7 == 0:
                    time.sleep(0)
                done[0] = before + 1
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (most[0], done[0]) == (1, 300 * num_threads)


def test_release_by_another_thread_does_nothing(lock):
    released = threading.Event()
    thread = held_by_another(lock, released)
    lock.release()
    assert taken_elsewhere(lock)
    released.set()
    thread.join(10)
    assert not taken_elsewhere(lock, 10)


def test_exception_of_a_signal_handler_while_waiting_leaves_the_lock_as_it_was(lock, alarm):
    released = threading.Event()
    thread = held_by_another(lock, released)
    alarm(0.05)
    with pytest.raises(Alarm):
        take_and_release(lock)
    assert taken_elsewhere(lock)
    released.set()
    thread.join(10)
    with lock:
        assert taken_elsewhere(lock)
    assert not taken_elsewhere(lock, 10)


def test_condition_sleeps_with_a_lock_that_was_taken_twice(lock):
    filled, items = threading.Condition(lock), []

    def fill():
        with lock:
            items.append(1)
            filled.notify()

    with lock, lock:
        thread = threading.Thread(target=fill)
        thread.start()
        assert filled.wait_for(lambda: items, 10)
        assert taken_elsewhere(lock)
    thread.join(10)
    assert not taken_elsewhere(lock, 10)


def test_condition_has_its_lock_again_whatever_a_signal_handler_raises_meanwhile(lock, alarm):
    lock.acquire()
    depth = lock._release_save()
    released = threading.Event()
    thread = held_by_another(lock, released)
    threading.Timer(0.15, released.set).start()
    alarm(0.05)
    with pytest.raises(Alarm):
        restore(lock, depth)
    assert lock._is_owned()  # else a condition forgets who waits at it, and wakes somebody who is gone
    lock.release()
    thread.join(10)
    assert not taken_elsewhere(lock, 10)


@pytest.mark.parametrize("take", [take_and_release, take_by_with])
def test_plain_lock_is_free_whatever_is_raised_at_any_line_of_its_own(take):
    """A handler that raises on the way into `release` would leave it taken for ever."""
    lock, at, going = PlainLock(), 0, True
    while going:
        at += 1
        going = interrupted(lambda: take(lock), at, {"edgebus.locks"}.__contains__)
        assert not taken_elsewhere(lock, 10), f"at line {at}"


def test_plain_lock_is_free_after_alarms_at_any_time(alarm):
    lock, rung = PlainLock(), 0
    for number in range(200):
        try:
            alarm(1e-5 + number % 20 * 2e-6)
            for _ in range(100_000):
                take_and_release(lock)
        except Alarm:
            rung += 1
        assert not lock.is_mine()
    assert rung == 200


def test_exception_as_soon_as_a_lock_is_entered_leaves_it_as_it_was():
    class Interrupted(PlainLock):
        def acquire(self, **options):
            super().acquire(**options)
            raise Alarm

    lock = Interrupted()
    with pytest.raises(Alarm):
        lock.enter()
    assert not lock.is_mine()


@pytest.fixture(params=POLLERS)
def poller(request):
    poller = request.param()
    yield poller
    poller.close()


@pytest.fixture
def pipe():
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_poller_tells_what_is_readable_until_it_is_read(poller, pipe):
    poller.register(pipe[0])
    assert poller.poll(0.0) == []
    os.write(pipe[1], b"x")
    for timeout_s in (0.0, 1.0, float("inf")):
        [(fd, event)] = poller.poll(timeout_s)
        assert fd == pipe[0]
        assert event
    os.read(pipe[0], 1)
    assert poller.poll(0.0) == []
    os.write(pipe[1], b"x")
    poller.unregister(pipe[0])
    assert poller.poll(0.0) == []


def test_poller_sleeps_as_long_as_it_is_told_and_a_signal_does_not_end_that(poller):
    rings = itertools.count()
    before = signal.signal(signal.SIGALRM, lambda *_: next(rings))
    began = time.monotonic()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        assert poller.poll(0.3) == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert 0.29 < time.monotonic() - began < 5
    assert next(rings) >= 3


def test_exception_of_a_signal_handler_ends_a_sleep(poller, alarm):
    alarm(0.05)
    with pytest.raises(Alarm):
        poller.poll(float("inf"))


def test_poller_says_that_a_descriptor_cannot_be_watched_or_that_it_is_closed(poller, pipe):
    with pytest.raises(OSError, match="Bad file"):
        poller.register(987_654)
    poller.close()
    with pytest.raises((OSError, ValueError)):
        poller.poll(0.0)


def test_entering_is_refused_to_who_has_the_lock_and_after_its_time_to_others(lock):
    assert lock.enter()
    assert not lock.enter(), "a signal handler would come into the middle of what its own thread does"
    lock.release()
    released = threading.Event()
    thread = held_by_another(lock, released)
    begun = time.monotonic()
    assert not lock.enter(0.02)
    assert time.monotonic() - begun >= 0.02
    assert not lock.enter(0.0)
    threading.Timer(0.02, released.set).start()
    assert lock.enter(5.0)
    thread.join(5)
    lock.release()
    assert lock.enter(0.0)
    lock.release()


def test_exception_of_a_signal_handler_while_entering_leaves_the_lock_as_it_was(lock, alarm):
    released = threading.Event()
    thread = held_by_another(lock, released)
    alarm(0.05)
    with pytest.raises(Alarm):
        lock.enter(5.0)
    assert not lock.is_mine()
    released.set()
    thread.join(5)
    assert lock.enter(1.0)
    lock.release()
