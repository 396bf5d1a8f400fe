"""What is learned of a device: survival by position, how far it drafts, and its time between rounds."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sled.survival import FIRST_ROUNDS, HOPE, SETTLED_ROUNDS, START, Survival, Survivals, ThinkTime, ThinkTimes


def feed(survival: Survival, passes: list[float], rounds: int, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(rounds):
        alive = rng.random(len(passes)) < passes
        survival.observe(len(passes), int(np.logical_and.accumulate(alive).sum()))


def test_a_shape_that_is_not_geometric_is_learned_by_position():
    survival = Survival(4)
    feed(survival, [0.9, 0.3, 0.8, 0.8], 3000)
    assert survival.at(0) == 1.0
    assert survival.at(1) == pytest.approx(0.9, abs=0.05)
    assert survival.at(2) == pytest.approx(0.27, abs=0.06)
    assert survival.expected(2) == pytest.approx(1.0 + survival.at(1) + survival.at(2))
    assert survival.expected(4) == pytest.approx(1 + 0.9 + 0.27 + 0.216 + 0.173, rel=0.08)


def test_a_change_of_text_is_followed():
    survival = Survival(2)
    feed(survival, [0.9, 0.9], 500)
    feed(survival, [0.1, 0.1], 700)
    assert survival.at(1) < 0.2


def test_positions_never_tried_follow_the_one_before():
    good, bad = Survival(8), Survival(8)
    feed(good, [0.95], 300)
    feed(bad, [0.1], 300)
    assert good.at(3) / good.at(2) > 0.75
    assert bad.at(2) < 0.1
    assert good.at(2) > 0.75


def test_a_device_that_drafts_less_than_it_may_sends_and_gains_less():
    survival = Survival(4)
    for _ in range(300):
        survival.observe(1, 1, limit=4)
    assert survival.sent(4) == pytest.approx(1.0, abs=0.1)
    assert survival.expected(4) == pytest.approx(2.0, abs=0.1)
    assert survival.sent(1) == pytest.approx(1.0, abs=0.05)


def test_what_is_known_of_a_session_that_does_not_draft_fades_to_the_population():
    table = Survivals(2, 2)
    for _ in range(200):  # one accepts all, one nothing
        table.observe(np.array([0, 1]), np.array([2, 2]), np.array([2, 0]), np.array([2, 2]))
    junk = table.curves(np.array([1]))[0][0, 1]
    table.relax(np.array([1]), 600.0)
    again = table.curves(np.array([1]))[0][0, 1]
    assert junk < 0.1
    assert 0.4 < again < 0.6  # what the two have in common


def test_a_new_session_is_hoped_for_until_it_was_heard():
    table, row = Survivals(1, 4), np.array([0])
    assert START < table.curves(row)[0][0, 1] <= 1.0
    for accepted in (0, 4) * 100:
        table.observe(row, np.array([4]), np.array([accepted]), np.array([4]))
    assert table.curves(row)[0][0, 1] == pytest.approx(0.5, abs=0.02)


def test_hope_is_of_the_tokens_of_a_round_and_does_not_add_up_over_its_drafts():
    """0, 1, 3 and 8 accepted in turn: a mean of 4 tokens, from which a round deviates by 3.1."""
    table, row = Survivals(1, 8), np.array([0])
    for accepted in (0, 1, 3, 8) * 10:
        table.observe(row, np.array([8]), np.array([accepted]), np.array([8]))
    error = 3.1 / np.sqrt(40.0)
    expected = float(table.curves(row)[0].sum())
    assert 4.0 + 0.5 * error < expected < 4.0 + HOPE * (1.0 - np.sqrt(40.0 / SETTLED_ROUNDS)) * error


def test_a_bad_start_is_hoped_to_be_one():
    """Rounds that fell short by chance also show less deviation than there is: what is plausible counts."""
    rng, short = np.random.default_rng(3), 0
    gain = float(np.cumprod(np.full(8, 0.74)).sum()) + 1.0
    for _ in range(200):
        table, rows = Survivals(1, 8), np.zeros(1, np.int64)
        accepted = np.logical_and.accumulate(rng.random((40, 8)) < 0.74, axis=1).sum(axis=1)
        for count in range(0, 40, 4):
            table.observe(rows.repeat(4), np.full(4, 8), accepted[count : count + 4], np.full(4, 8))
            if count >= 8 and table.curves(rows)[0].sum() < 0.95 * gain:
                short += 1
                break
    assert short <= 14  # 19 with the deviation of what was seen alone


def test_in_the_very_first_rounds_of_all_each_draft_is_hoped_for_alone():
    """So a server that knows nothing hears long drafts first, whatever the drafts at hand did; once only."""
    table, other = Survivals(2, 8), np.array([1])
    expected = [table.curves(other)[0].sum()]
    for _ in range(int(FIRST_ROUNDS)):
        table.observe(np.array([0]), np.array([8]), np.array([2]), np.array([8]))
        expected.append(table.curves(other)[0].sum())
    assert expected[0] > 8.0
    assert expected[-1] < 0.85 * expected[-2]
    table.reset(0)
    assert table.curves(np.array([0]))[0].sum() == pytest.approx(expected[-1])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=40), st.floats(0, 1e4))
def test_survival_never_rises_with_the_position(rounds, elapsed):
    survival = Survival(6)
    for drafted, accepted in rounds:
        survival.observe(drafted, min(drafted, accepted))
    survival.relax(elapsed)
    curve, drafts = survival.curves(8)
    assert curve[0] == drafts[0] == 1.0
    assert all(1.0 >= a >= b >= 0.0 for a, b in pairwise(curve))
    assert all(a >= b for a, b in pairwise(drafts))
    assert survival.expected(6) == pytest.approx(sum(curve[:7]))


@pytest.mark.parametrize(("drafted", "accepted"), [(2, 3), (-1, 0), (2, -1)])
def test_impossible_rounds_are_refused(drafted, accepted):
    with pytest.raises(ValueError, match="give 0 <= accepted <= drafted"):
        Survival().observe(drafted, accepted)


def test_think_time_tells_link_from_drafting():
    think = ThinkTime()
    for drafted in [4, 2, 4, 8, 4, 1] * 10:
        think.observe(drafted, 0.040 + 0.005 * drafted)
    assert think.predict(0) == pytest.approx(0.040, rel=0.05)
    assert think.predict(8) == pytest.approx(0.080, rel=0.05)


def test_a_short_draft_after_a_long_one_tells_the_link():
    think = ThinkTime()
    think.observe(8, 0.064)  # all of it is thought drafting, and a draft of one to take an eighth
    think.observe(1, 0.043)
    assert think.predict(0) == pytest.approx(0.040, rel=0.1)
    assert think.predict(8) == pytest.approx(0.064, rel=0.05)


def test_with_one_length_of_draft_all_the_time_is_thought_drafting():
    think = ThinkTime()
    for _ in range(10):
        think.observe(4, 0.060)
    assert think.predict(4) == pytest.approx(0.060, rel=0.01)
    assert think.predict(2) == pytest.approx(0.030, rel=0.2)


def test_a_pause_of_the_user_counts_little_and_a_new_link_wins():
    think = ThinkTime()
    for drafted in [1, 4] * 20:
        think.observe(drafted, 0.01 + 0.001 * drafted)
    think.observe(4, 300.0)
    assert think.predict(4) < 0.02
    for drafted in [1, 4] * 60:
        think.observe(drafted, 0.1 + 0.001 * drafted)
    assert think.predict(0) == pytest.approx(0.1, rel=0.1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.floats(0, 100)), max_size=30))
def test_think_time_is_never_negative_and_rises_with_the_draft(rounds):
    think = ThinkTime()
    for drafted, took in rounds:
        think.observe(drafted, took)
    assert 0.0 <= think.predict(0) <= think.predict(3) <= think.predict(8)


def test_a_session_without_rounds_is_like_the_others():
    table = ThinkTimes(3)
    for drafted in (1.0, 5.0, 3.0):
        table.observe(np.array([0, 1]), np.array([drafted] * 2), np.array([0.02 + 0.004 * drafted] * 2))
    z0, z1, _ = table.lines(np.array([2]))
    assert float(z0[0] + 5 * z1[0]) == pytest.approx(0.04, rel=0.1)


@pytest.mark.parametrize("took", [-1.0, float("nan")])
def test_impossible_think_times_are_refused(took):
    with pytest.raises(ValueError, match="give numbers of 0 and more"):
        ThinkTime().observe(1, took)


def test_a_few_rounds_of_a_new_session_do_not_count_as_punctual():
    rng, table = np.random.default_rng(5), ThinkTimes(2)
    for _ in range(60):  # half of the rounds at once, half after drafting
        table.observe(np.zeros(1, np.int64), np.array([4.0]), np.array([0.005 if rng.random() < 0.5 else 0.075]))
    table.observe(np.ones(1, np.int64), np.array([4.0]), np.array([0.005]))
    z0, z1, deviation = table.lines(np.arange(2))
    assert z0[1] + 4 * z1[1] > 0.015
    assert deviation[1] > 0.3 * (z0[1] + 4 * z1[1])


def test_a_first_round_after_a_pause_tells_little_of_its_session_and_of_others():
    table = ThinkTimes(32)
    for _ in range(20):
        table.observe(np.arange(16), np.full(16, 4.0), np.full(16, 0.05))
    table.observe(np.array([20]), np.array([4.0]), np.array([599.0]))  # the phone was in a pocket
    z0, z1, _ = table.lines(np.array([21]))
    assert z0[0] + 4 * z1[0] < 0.06
    for _ in range(40):
        table.observe(np.array([20]), np.array([4.0]), np.array([0.05]))
    z0, z1, _ = table.lines(np.array([20]))
    assert z0[0] + 4 * z1[0] < 0.1


def test_what_became_of_late_drafts_is_not_forgotten_by_rounds_that_made_none():
    table, rows = Survivals(64, 8), np.arange(64)
    for _ in range(20):  # all that was drafted was accepted
        table.observe(rows, np.full(64, 8), np.full(64, 8), np.full(64, 8))
    table.reset(0)  # a session that only knows of late drafts what all others do, and is hoped nothing of
    for _ in range(250):
        table.observe(rows, np.full(64, 1), np.full(64, 1), np.full(64, 1))
    assert table.curves(np.array([0]))[0][0, 8] > 0.9


def after_others(*, most):
    """Survival and drafting of a new session: after devices of which no third draft was any good (or made, beyond
    `most`), and after others that may draft two.
    """
    table, rows, rng = Survivals(64, 8), np.arange(64), np.random.default_rng(0)
    for limit in (8, 2):
        for _ in range(40 if limit == 8 else 100):
            accepted = (rng.random((64, 2)) < 0.9).cumprod(axis=1).sum(axis=1)
            table.observe(rows, np.full(64, min(limit, most)), accepted, np.full(64, limit))
        table.reset(0)
        yield tuple(float(curve[0, 3]) for curve in table.curves(np.array([0])))


def test_late_drafts_that_were_bad_are_thought_of_anew_where_nobody_makes_any():
    """Else windows that end before them would keep for good what was true of devices that are gone."""
    (bad, _), (anew, _) = after_others(most=8)
    assert bad < 0.1
    assert anew > 0.6


def test_that_devices_draft_little_is_forgotten_where_they_may_not_draft_more():
    (_, little), (_, anew) = after_others(most=2)
    assert little < 0.6
    assert anew > 0.9
