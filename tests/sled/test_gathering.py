"""Steps that wait for rounds which are about to come: whom for, how long, and what it is worth."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from bench.macro._goodput_world import STEP_TIMES, Drafter, Fixed, Fleet, Phase, World
from bench.macro.goodput import swarmed
from sled.gathering import Gathering
from sled.goodput import GoodputPolicy
from sled.server import FixedWindow, ServerLimits
from sled.survival import Survivals
from sled.types import Terms
from sled.window_plan import best_plan, roll_forward
from tests.sled.driving import PROMPT, Driver, session_id
from tests.sled.shell_fakes import asking, opening, shell
from tests.sled.test_goodput import COSTS, demand_of, weigh


def test_waits_once_for_what_is_expected_in_time_and_no_longer_than_it_is_late():
    gathering = Gathering()
    assert gathering.until(1.0, 0.1) == 1.0  # nobody is expected
    gathering.away(0, 1.04, 0.001, 0.05)
    gathering.away(1, 1.09, 0.001, 0.05)
    gathering.away(2, 1.20, 0.001, 0.05)  # beyond the patience
    assert gathering.until(1.0, 0.1) == pytest.approx(1.09 + 0.003 + 0.001)
    gathering.here(1)
    assert gathering.until(1.01, 0.1) == pytest.approx(1.04 + 0.003 + 0.001)
    assert gathering.until(1.05, 0.1) == 1.05  # the first one is late
    gathering.away(3, 1.099, 0.01, 0.05)
    assert gathering.until(1.05, 0.1) == pytest.approx(1.1)  # counted from when there was something to do
    assert gathering.until(1.1, 0.1) == 1.1
    gathering.began()
    assert gathering.until(1.15, 0.1) == pytest.approx(1.20 + 0.003 + 0.001)


def test_two_groups_that_alternate_are_worth_a_wait():
    """Sixteen of four drafts, 13 ms away, on fp32 steps: 86 ms for half of them, 114 ms for all."""
    cost, demand = COSTS["cpu_fp32"], demand_of([0.74] * 16, [(0.001, 0.003)] * 16, 4)
    plans = np.full((2, 16), 4)
    goodput, step_s = roll_forward(plans, demand, np.ones(16), cost, np.array([0.0, 0.4]))
    assert goodput[1] > 1.15 * goodput[0]
    assert step_s[1] == pytest.approx(STEP_TIMES["cpu_fp32"](80, 16), rel=0.1)
    plan = best_plan(demand, cost)
    assert plan.patience_s > 0.0
    assert plan.goodput == pytest.approx(goodput[1], rel=0.2)


def test_no_wait_where_it_does_not_pay():
    far = demand_of([0.8] * 4, [(0.150, 0.002)] * 4, 4)
    assert best_plan(far, COSTS["cpu_bf16"]).patience_s == 0.0
    alone = demand_of([0.8], [(0.002, 0.002)], 4)
    plan = best_plan(alone, COSTS["cpu_bf16"])
    assert plan.windows[0] > 0
    assert plan.patience_s == 0.0
    assert plan.goodput == pytest.approx(weigh(alone, COSTS["cpu_bf16"], tuple(plan.windows))[0])


@pytest.mark.parametrize(("sessions", "patience"), [(4, 0.4), (8, 0.15)])
def test_a_wait_for_rounds_that_scatter_is_not_thought_to_know_when_they_come(sessions, patience):
    scattered = replace(demand_of([0.724] * sessions, [(0.005, 1 / 55)] * sessions, 4), deviation=0.45)
    plans = np.full((2, sessions), 4)
    goodput, _ = roll_forward(plans, scattered, np.ones(sessions), COSTS["serving"], np.array([0.0, patience]))
    assert goodput[1] < 1.01 * goodput[0]


def test_steps_with_a_text_do_not_wait_and_scatter_those_that_step_together():
    sessions, every = 8, np.array([0.0, 0.4])
    boards = replace(demand_of([0.724] * sessions, [(0.005, 0.01)] * sessions, 2), deviation=0.1)
    shares = (0.0, 0.3, 1.0)
    plans = np.full((2, sessions), 2)
    found = [
        roll_forward(plans, replace(boards, texts=share), np.ones(sessions), COSTS["serving"], every)[0]
        for share in shares
    ]
    (alone, together), (_, some), (_, none) = found
    assert together > 1.05 * alone  # where waiting pays
    assert alone < some < 0.97 * together
    assert none == pytest.approx(alone)


def test_boards_that_draft_ahead_and_less_than_they_may_lose_little_to_waits_and_trials():
    """Half of their rounds come at once and half late; windows above four are one and the same to them."""
    ratios = [swarmed(sessions, seed)["ratio"] for sessions in (2, 16) for seed in range(3)]
    assert sum(ratios) / len(ratios) >= 0.97
    assert min(ratios) >= 0.94


def test_gathered_steps_commit_more_than_any_fixed_window():
    world = World(STEP_TIMES["cpu_fp32"], Fleet(((Drafter((0.74,), 0.003), 1.0),), 0.001), seed=5)
    phases = [Phase(16, 24.0, 12.0)]
    best = max(world.run(Fixed(window), phases).goodput[0] for window in (0, 2, 3, 4))
    assert world.run(GoodputPolicy(8), phases).goodput[0] >= 1.15 * best


def test_a_stream_that_may_draft_and_does_not_is_not_waited_for():
    policy, ids = GoodputPolicy(8), [bytes([number] * 8) for number in range(2)]
    policy.limit(b"", 0.0)  # times count from here
    for each in ids:
        policy.opened(each)
        row = policy._rows[each]
        policy._thinking[row], policy._limits[row] = (np.full(9, 0.01), 0.0), 4
    policy._planned_at, policy._changed = 100.0, 0  # no plan is made meanwhile

    def expected():
        return policy._gathering.until(0.5, 0.1) > 0.5

    policy.limit(ids[0], 0.5)
    assert not expected()  # opened: how long its prompt takes nobody knows
    policy.round(ids[0], 4, None)
    policy.verdict(ids[0], 4, 4)
    policy.limit(ids[0], 0.5)
    assert expected()
    policy.verdict(ids[0], 0, 0)  # a token without a round
    policy.limit(ids[0], 0.5)
    assert not expected()
    policy.round(ids[0], 4, None)
    policy.verdict(ids[0], 4, 4)
    policy.limit(ids[0], 0.5)
    assert expected()
    policy.closed(ids[0])
    assert not expected()


def test_a_device_that_drafts_less_than_it_may_is_expected_when_it_comes():
    policy, ids, now = GoodputPolicy(8), [bytes([number] * 8) for number in range(2)], 0.0
    for each in ids:
        policy.opened(each)
    for _ in range(80):
        for each in ids:
            policy.limit(each, now)
        row = policy._rows[ids[0]]
        policy._limits[row] = 8
        policy.round(ids[0], 2, 0.03)
        policy.round(ids[1], 2, 0.03)
        for each in ids:
            policy.verdict(each, 2, 2)
        policy.step(6, 2, 100, 0.05)
        now += 0.08
    policy._planned_at, policy._changed = 100.0, 0
    policy._limits[row] = 8
    assert policy.limit(ids[0], now) > 2
    at, _ = policy._gathering._expected[row]
    assert at - now == pytest.approx(0.03, rel=0.25)  # what it drafts is believed after some rounds


def test_a_stream_that_begins_is_not_waited_for_though_it_may_draft_again():
    policy = GoodputPolicy(4)
    driver = Driver(ServerLimits(), policy=policy)
    driver.open()
    driver.parts()
    row = policy._rows[session_id()]
    policy._thinking[row], policy._limits[row] = (np.full(9, 0.01), 0.0), 0
    policy._planned_at, policy._changed = 100.0, 0  # no plan is made meanwhile
    driver.ask(PROMPT, [1])
    ((_, verdict),) = driver.step()
    assert verdict.window_limit == 0
    policy._limits[row] = 4
    driver.stream([*PROMPT, *verdict.tokens])  # it does not know of the new limit
    assert policy._gathering.until(0.0, 0.1) == 0.0


def test_what_is_known_of_differences_between_sessions_does_not_fade_with_what_they_drafted():
    rng, table, rows = np.random.default_rng(3), Survivals(16, 4), np.arange(16)
    for _ in range(30):
        accepted = np.logical_and.accumulate(rng.random((16, 4)) < 0.7, axis=1).sum(axis=1)
        table.observe(rows, np.full(16, 4), accepted, np.full(16, 4))
    before = table.curves(rows)[0][:, -1].mean()
    table.relax(rows, 60.0)  # an eighth is left: too few rounds of each to see how they differ
    assert table.curves(rows)[0][:, -1].mean() == pytest.approx(before, rel=0.05)


class Patient(FixedWindow):
    """Begins at a given time."""

    at = 0.0

    def begins(self, now):
        return max(now, self.at)


def test_a_step_waits_as_long_as_the_policy_says_and_no_deadline_is_missed_for_it():
    policy = Patient(4)
    driver = Driver(ServerLimits(), policy=policy)
    driver.open(terms=Terms(rate=10.0))
    driver.parts()
    policy.at = 0.05
    assert driver.ask(PROMPT, [1]) is None
    assert driver.server.next_step(now=0.0) is None
    assert driver.server.waits_until == 0.05
    policy.at = 5.0  # the first token is due after 0.1 s
    assert driver.server.next_step(now=0.01) is None
    assert driver.server.waits_until == pytest.approx(0.1)
    driver.open(1)  # a text to be computed is not put off
    assert driver.server.next_step(now=0.02) is not None
    assert driver.server.waits_until == float("inf")


def test_a_prompt_that_was_found_computed_keeps_no_step_from_waiting():
    """Of two that open the same text at once, one computes it: for the other nothing is left to do before its round."""
    policy, prompt = Patient(4), [*range(2, 11)]
    driver = Driver(ServerLimits(), policy=policy, page_tokens=4)
    driver.open(0, prompt, owner="you", terms=Terms(rate=10.0))
    driver.open(1, prompt)
    driver.parts()
    for session in driver.server.sessions.values():
        assert session.cached == 8
    policy.at = 0.05
    assert driver.ask(prompt, [1], owner="you") is None
    assert driver.server.next_step(now=0.0) is None
    assert driver.server.waits_until == 0.05
    policy.at = 0.0
    assert driver.ask(prompt, [1], number=1) is None  # and its own round is answered as ever
    assert len(driver.step()) == 2


def test_a_step_that_waited_for_a_deadline_begins_though_it_is_looked_at_a_moment_late():
    policy = Patient(4)
    driver = Driver(ServerLimits(), policy=policy)
    driver.open(terms=Terms(rate=10.0))
    driver.parts()
    policy.at = 5.0
    assert driver.ask(PROMPT, [1]) is None
    assert driver.server.next_step(now=0.0) is None
    due = driver.server.waits_until
    assert due == pytest.approx(0.1)
    assert driver.server.next_step(now=due + 0.001) is not None
    assert driver.server.waits_until == float("inf")


def test_nobody_waits_for_whose_answer_has_ended():
    policy = GoodputPolicy(4)
    driver = Driver(ServerLimits(), policy=policy)
    driver.open(terms=Terms(max_tokens=4))
    driver.parts()
    row = policy._rows[session_id()]
    policy._thinking[row], policy._limits[row] = (np.full(9, 0.01), 0.0), 4
    policy._planned_at, policy._changed = 100.0, 0  # no plan is made meanwhile
    text = list(PROMPT)
    while True:
        assert driver.ask(text, [1]) is None
        ((_, verdict),) = driver.step()
        text += verdict.tokens
        if verdict.finish:
            break
        assert policy._gathering.until(0.0, 0.1) > 0.0
        policy._gathering.began()
    assert policy._gathering.until(0.0, 0.1) == 0.0


def test_a_round_is_timed_by_its_arrival_not_by_when_a_step_left_time_to_look_at_it():
    heard = []
    policy = Patient(4)
    policy.round = lambda session_id, drafted, think_s: heard.append(think_s)
    server = shell(None, opening(), policy=policy)
    server.handle(asking())
    while server.step():
        pass
    (session,) = server._machine.sessions.values()
    asked = asking(text=[*session.history.tokens])
    asked.arrived_at = session.told_at + 0.004
    time.sleep(0.02)  # a step
    server.handle(asked)
    assert heard == [None, pytest.approx(0.004, abs=1e-6)]


def test_the_shell_comes_back_to_a_step_that_waited():
    now, policy = [0.0], Patient(4)
    server = shell(None, opening(), clock=lambda: now[0], policy=policy)
    while server.step():
        pass
    policy.at = 0.02
    asked = asking()
    server.handle(asked)
    assert not server.step()
    assert server._idle_s() == pytest.approx(0.02)
    now[0] = 0.02
    assert server.step()
    assert asked.replies
    assert server._idle_s() == pytest.approx(0.2)
