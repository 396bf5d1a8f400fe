"""Step times are learned from what steps took: tables, jumps, spikes, changes; and rise with the work."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench.macro._goodput_world import CPU_TOKENS, H100_ROUNDS, H100_WIDTHS, STEP_TIMES
from sled.step_cost import StepCost

POINTS = {
    "h100": [(int(b * q), int(b), int(b) * 512) for b in H100_ROUNDS for q in H100_WIDTHS],
    "cpu_bf16": [(int(t), max(1, int(t) // 3), 200) for t in CPU_TOKENS],
    "cpu_fp32": [(int(t), max(1, int(t) // 3), 200) for t in CPU_TOKENS],
}


@pytest.mark.parametrize("table", POINTS)
def test_measured_tables_are_learned_within_a_tenth_despite_noise_and_spikes(table):
    cost, rng = StepCost(), np.random.default_rng(0)
    for repeat in range(12):
        for tokens, rounds, context in POINTS[table]:
            took = STEP_TIMES[table](tokens, rounds) * (1.0 + 0.05 * rng.standard_normal())
            spike = repeat == 0 or rng.random() < 0.01  # every shape is slow when it first runs
            cost.observe(tokens, rounds, context, took * 30.0 if spike else took)
    for tokens, rounds, context in POINTS[table]:
        assert cost.predict(tokens, rounds, context) == pytest.approx(STEP_TIMES[table](tokens, rounds), rel=0.1)


def test_steps_between_two_that_are_known_rise_evenly():
    cost = StepCost()
    for _ in range(20):
        cost.observe(1, 1, 0, 0.010)
        cost.observe(101, 1, 0, 0.110)
    assert cost.predict(51, 1) == pytest.approx(0.060, rel=0.2)


def test_a_lasting_change_wins_and_a_single_slow_step_does_not():
    cost = StepCost()
    for _ in range(50):
        cost.observe(8, 8, 0, 0.02)
    cost.observe(8, 8, 0, 2.0)
    assert cost.predict(8, 8) == pytest.approx(0.02, rel=0.02)
    for _ in range(400):
        cost.observe(8, 8, 0, 0.04)
    assert cost.predict(8, 8) == pytest.approx(0.04, rel=0.05)


def test_work_that_was_left_is_remembered():
    cost = StepCost()
    for _ in range(30):
        cost.observe(4, 4, 0, 0.02)
    for _ in range(300):
        cost.observe(400, 100, 0, 0.5)
    assert cost.predict(4, 4) == pytest.approx(0.02, rel=0.1)


STEPS = st.lists(
    st.tuples(st.integers(1, 6000), st.integers(0, 300), st.integers(0, 1 << 20), st.floats(1e-4, 10.0)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@example([(1, 1, 0, 1.0), (2, 1, 0, 2.0)], 2.0, 1.0, 1.0)  # rounds that carry drafts grow fewer as others come
@given(STEPS, st.floats(1, 6000), st.floats(0, 300), st.floats(1, 500))
def test_predictions_are_positive_and_rise_with_tokens_rounds_and_context(steps, tokens, rounds, more):
    cost = StepCost()
    for step in steps:
        cost.observe(*step)
    base = cost.predict(tokens, rounds, 100.0)
    assert 0.0 < base < math.inf
    for other in ((tokens + more, rounds, 100.0), (tokens, rounds + more, 100.0), (tokens, rounds, 100.0 + more)):
        if other[1] == rounds or tokens >= rounds + more:  # a step has at least a token for each round
            assert cost.predict(*other) >= base * (1.0 - 1e-9)
    many = cost.lines()(np.array([tokens]), np.array([rounds]), np.array([100.0]))
    assert float(many[0]) == pytest.approx(base)


@pytest.mark.parametrize(
    "step", [(0, 0, 0, 0.1), (5, 1, 0, 0.0), (5, 1, 0, -1.0), (5, 1, 0, math.inf), (5, 1, 0, math.nan)]
)
def test_what_cannot_be_a_step_teaches_nothing(step):
    cost = StepCost()
    cost.observe(4, 2, 0, 0.02)
    before = cost.predict(4, 2)
    cost.observe(*step)
    assert cost.predict(4, 2) == before
    assert cost.observations == 1


def test_before_any_step_more_tokens_are_thought_cheap():
    cost = StepCost()
    assert 0.0 < cost.predict(1, 1) < cost.predict(64, 8) < 2.0 * cost.predict(1, 1)
    assert not cost.seen(1, 1)


def test_a_server_that_was_stopped_for_a_day_goes_on_predicting():
    """A step of a new size may take 10^8 times as long as others: the process was stopped in the middle of it."""
    cost = StepCost()
    for tokens in (1, 2, 3, 5, 9, 17, 33, 70, 140, 300):
        for rounds in (0, 1, tokens):
            for took_s in (0.0005, 0.0006):
                cost.observe(tokens, rounds, 100 * rounds, took_s)
    cost.observe(500, 30, 9000, 86400.0)
    known = [cost.predict(tokens, 1) for tokens in (1, 8, 64, 512)]
    assert all(map(math.isfinite, known))
    assert known == sorted(known)
    assert known[0] < 0.01
