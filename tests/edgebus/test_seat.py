"""Where a node's own thread rests, compiled and plain: it comes back when it is called or is to look, not before."""

import ctypes
import functools
import math
import operator
import subprocess
import sys
import threading
import time

import pytest

from edgebus.seat import ASLEEP_S, LOOKS, NOBODY, OWN, PlainSeat, open_seat

SEATS = list(dict.fromkeys([PlainSeat, open_seat]))
GRACE_S = 0.005
LONG_S = 30.0  # nobody waits for so long here
SOMEBODY = 12345


@pytest.fixture(params=SEATS)
def seat(request):
    return request.param()


class Resting:
    """A thread that rests once."""

    def __init__(self, seat, grace_s, asleep=False):
        self._rests = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(seat, grace_s, asleep), daemon=True)
        self._thread.start()
        assert self._rests.wait(10)

    def _run(self, seat, grace_s, asleep):
        self._rests.set()
        seat.rest(grace_s, asleep)

    def is_over(self, wait_s=0.0):
        self._thread.join(wait_s)
        return not self._thread.is_alive()


def timed(seat, grace_s, asleep=False):
    begun = time.monotonic()
    seat.rest(grace_s, asleep)
    return time.monotonic() - begun


def test_seat_is_nobodys_at_first(seat):
    assert (seat.driver, seat.leads, seat.left_at) == (NOBODY, 0, -math.inf)
    seat.driver, seat.leads, seat.left_at = 2**63 - 1, 7, 1.5
    assert (seat.driver, seat.leads, seat.left_at) == (2**63 - 1, 7, 1.5)
    seat.driver = OWN
    assert seat.driver == OWN


@pytest.mark.parametrize("asleep", [False, True])
@pytest.mark.parametrize("driver", [NOBODY, SOMEBODY])
def test_call_ends_a_rest(seat, driver, asleep):
    seat.driver = driver
    resting = Resting(seat, LONG_S, asleep)
    assert not resting.is_over(0.01)
    seat.call()
    assert resting.is_over(ASLEEP_S / 2)


@pytest.mark.parametrize("asleep", [False, True])
@pytest.mark.parametrize("num_calls", [1, 3])
def test_calls_that_came_before_end_one_rest(seat, num_calls, asleep):
    for _ in range(num_calls):
        seat.call()
    assert timed(seat, LONG_S, asleep) < ASLEEP_S / 2
    resting = Resting(seat, LONG_S, asleep)
    assert not resting.is_over(0.02)
    seat.call()
    assert resting.is_over(ASLEEP_S / 2)


def test_rest_is_over_when_nobody_has_driven_for_the_time_of_grace(seat):
    assert GRACE_S <= timed(seat, GRACE_S) < LONG_S
    seat.left_at = time.monotonic() + 0.02
    seat.rest(GRACE_S, False)
    assert time.monotonic() >= seat.left_at + GRACE_S


def test_rest_is_over_when_somebody_has_left_meanwhile_and_nobody_came(seat):
    seat.driver, seat.leads = SOMEBODY, 1
    resting = Resting(seat, 0.02)
    seat.left_at = left_at = time.monotonic()
    seat.driver = NOBODY
    assert resting.is_over(LONG_S)
    assert time.monotonic() >= left_at + 0.02


def test_rest_goes_on_while_drivers_come_and_go(seat):
    seat.driver = SOMEBODY
    resting = Resting(seat, GRACE_S)
    until, longest, before = time.monotonic() + 3 * LOOKS * GRACE_S, 0.0, time.monotonic()
    while time.monotonic() < until:
        seat.leads += 1
        longest, before = max(longest, time.monotonic() - before), time.monotonic()
        time.sleep(GRACE_S / 10)
    assert not resting.is_over() or longest > LOOKS * GRACE_S  # else this thread itself was kept waiting
    seat.call()
    assert resting.is_over(LONG_S)


def test_rest_is_over_when_one_driver_stays(seat):
    seat.driver, seat.leads = SOMEBODY, 3
    assert LOOKS * GRACE_S <= timed(seat, GRACE_S) < LONG_S


def test_who_is_asleep_looks_at_nobody_and_comes_back_after_a_second(seat):
    assert 0.9 * ASLEEP_S < timed(seat, GRACE_S, True) < LONG_S, "nobody drives, but it was told that he calls"


def test_call_that_comes_as_the_rest_is_over_ends_no_other_one(seat):
    """The time is over, and whoever calls has Python's lock just then."""
    resting = Resting(seat, 0.03)
    time.sleep(0.01)
    keep_lock = functools.partial(ctypes.PyDLL(None).usleep, 60_000)
    list(map(operator.methodcaller("__call__"), [keep_lock, seat.call]))  # and nothing in between
    assert resting.is_over(LONG_S)
    for _ in range(2):  # neither the call, nor what it has left
        seat.call()
        seat.rest(LONG_S, True)
        resting = Resting(seat, LONG_S, True)
        assert not resting.is_over(0.02)
        seat.call()
        assert resting.is_over(ASLEEP_S / 2)


def test_call_is_never_lost(seat):
    """However calls and the end of the time meet: what was set before a call is seen when the rest is over."""
    wanted, seen = [0], []

    def run():
        while len(seen) < 100:
            seat.rest(0.0001, False)
            seen.append(wanted[0])
        while wanted[0] != -1:
            seat.rest(LONG_S, False)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while len(seen) < 100 and thread.is_alive():
        wanted[0] += 1
        seat.call()
    wanted[0] = -1
    seat.call()
    thread.join(LONG_S / 2)
    assert not thread.is_alive()


@pytest.mark.parametrize("asleep", [False, True])
def test_process_ends_while_somebody_rests(asleep):
    script = f"""
import threading
from edgebus import seat
place = seat.open_seat()
threading.Thread(target=lambda: [place.rest(0.0005, {asleep}) for _ in range(100_000)], daemon=True).start()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
