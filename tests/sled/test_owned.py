"""What is kept of a device between its sessions: the next one starts from it, others do not, and it is bounded."""

from __future__ import annotations

import numpy as np
import pytest

from sled.goodput import GoodputPolicy
from sled.owned import FADE_S, KEPT_S, LEAST_ALIKE, MOST_ALIKE, THINK_ROUNDS, Owned
from sled.survival import Survivals, ThinkTimes

POSITIONS = 4
SUMS = np.array([10.0, 40.0, 160.0, 0.2, 0.8, 0.0])  # ten rounds of four drafts in 20 ms each


def counts(rounds: float, share: float) -> np.ndarray:
    """What a session of so many rounds leaves, of which this share had their first draft accepted."""
    tried = np.zeros((2, POSITIONS))
    tried[:, 0] = rounds
    return np.stack([tried, tried * np.array([[share], [1.0]])])


class Load:
    """Eight devices before one server: all but the last draft well, the last one's drafts are rejected."""

    def __init__(self, owner: str) -> None:
        self.policy, self.now, self.generation = GoodputPolicy(8), 0.0, 0
        self.last_is_good = False
        for size in (1, 2, 4, 8, 16, 32, 64):
            self.policy.measured(size, size, self.step_s(size))
        self.policy.limit(b"", 0.0)
        self.ids = [self.open(f"good {number}") for number in range(7)]
        self.ids.append(self.open(owner))

    @staticmethod
    def step_s(tokens: int) -> float:
        return 0.020 + 0.001 * tokens

    def open(self, owner: str) -> bytes:
        self.generation += 1
        session = self.generation.to_bytes(8, "little")
        self.policy.opened(session, owner=owner)
        return session

    def again(self, owner: str) -> None:
        """The last one's answer has ended, and a device with this key begins one."""
        self.policy.closed(self.ids.pop())
        self.ids.append(self.open(owner))

    def drafted(self, steps: int) -> int:
        """Drafts of the last one in so many steps: all are rejected, unless it is good."""
        limits = [self.policy.limit(session, self.now) for session in self.ids]
        drafted = 0
        for step in range(steps):
            took = self.step_s(sum(limits) + 8)
            self.now += took
            for number, (session, limit) in enumerate(zip(self.ids, limits, strict=True)):
                good = number < 7 or self.last_is_good
                right = limit - (step % 4 == number % 4 and limit > 0) if good else 0
                self.policy.round(session, limit, 0.005 + 0.002 * limit)
                self.policy.verdict(session, limit, right)
            self.policy.step(sum(limits) + 8, 8, 8 * 100, took)
            drafted += limits[7]
            limits = [self.policy.limit(session, self.now) for session in self.ids]
        return drafted


def test_the_second_answer_of_a_poor_device_costs_fewer_rejected_drafts():
    load, stranger = Load("poor"), Load("")
    first = load.drafted(60)
    assert first == stranger.drafted(60) >= 10
    load.again("poor")
    stranger.again("")
    second = load.drafted(60)
    assert second <= first / 2
    assert second < stranger.drafted(60)


def test_another_key_is_unaffected():
    load, without = Load("poor"), Load("")
    for each in (load, without):
        each.drafted(60)
    load.again("new")
    without.again("new")
    assert load.drafted(60) == without.drafted(60)


def test_a_device_that_became_good_is_found_out():
    load = Load("device")
    for _ in range(5):
        load.drafted(60)
        load.again("device")
    assert load.drafted(60) <= 20
    load.last_is_good = True
    for _ in range(30):
        load.again("device")
        if load.drafted(60) > 200:
            break
    assert load.drafted(60) > 200


def test_a_session_starts_from_its_owners_past_and_soon_knows_better():
    table, owned = Survivals(2, POSITIONS), Owned()
    owned.ended("poor", counts(40, 0.0), SUMS, 0.0)
    table.reset(0, owned.past("poor", 0.0)[0])
    poor, stranger = table.curves(np.arange(2))[0][:, 1]
    assert poor < 0.4
    assert stranger > 0.6
    for _ in range(80):
        table.observe(np.array([0]), np.array([1]), np.array([1]), np.array([1]))
    assert table.curves(np.array([0]))[0][0, 1] > 0.7
    assert table.learned(0)[0, 0, 0] == pytest.approx((1 - 0.996**80) / 0.004)
    table.reset(0)
    assert np.ptp(table.curves(np.arange(2))[0], axis=0).max() < 1e-12


def test_devices_that_share_a_key_and_differ_tell_little_of_the_next():
    alike, different = Owned(), Owned()
    for number in range(12):
        alike.ended("key", counts(30, 0.5), SUMS, 0.0)
        different.ended("key", counts(30, 0.97 if number % 2 else 0.03), SUMS, 0.0)
    assert alike.past("key", 0.0)[0][0, 0, 0] == pytest.approx(MOST_ALIKE)
    assert LEAST_ALIKE <= different.past("key", 0.0)[0][0, 0, 0] < 6.0


def test_it_fades_and_is_bounded_in_number_and_age():
    owned = Owned(most=3)
    for number in range(20):
        owned.ended(f"{number}", counts(8, 0.5), SUMS, 0.0)
        assert len(owned) <= 3
    assert owned.past("16", 0.0) is None
    assert owned.past("17", FADE_S)[0][0, 0, 0] == pytest.approx(4.0)
    assert owned.past("17", FADE_S)[1][0] == pytest.approx(5.0)
    owned.ended("other", counts(8, 0.5), SUMS, FADE_S)
    assert owned.past("18", FADE_S) is None  # "17" was asked for since
    assert owned.past("17", FADE_S) is not None
    assert owned.past("17", FADE_S + KEPT_S + 1.0) is None
    assert len(owned) == 0


def test_think_times_start_from_the_owners_too():
    table, owned = ThinkTimes(2), Owned()
    for _ in range(30):
        table.observe(np.array([0, 1]), np.array([4.0, 4.0]), np.array([0.2, 0.02]))
    owned.ended("far", np.zeros((2, 2, POSITIONS)), table.learned(0), 0.0)
    sums = owned.past("far", 0.0)[1]
    assert sums[0] == pytest.approx(THINK_ROUNDS)
    table.reset(1, sums)
    assert (table.lines(np.array([1]))[0] + 4 * table.lines(np.array([1]))[1])[0] == pytest.approx(0.2, rel=0.2)
    assert table.learned(1).tolist() == [0.0] * 6


def test_sessions_that_made_no_round_leave_nothing():
    policy = GoodputPolicy(8)
    for number in range(100):
        policy.opened(bytes([number] * 8), owner=f"{number}")
        policy.closed(bytes([number] * 8))
    assert len(policy._owned) == 0
    policy.opened(b"drafting", owner="a")
    policy.opened(b"no owner")
    for session in (b"drafting", b"no owner"):
        policy.verdict(session, 4, 2)
        policy.closed(session)
    assert len(policy._owned) == 1
