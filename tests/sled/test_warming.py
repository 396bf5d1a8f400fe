"""What a target computes before its server takes sessions."""

from __future__ import annotations

import numpy as np
import pytest

from sled.errors import OutOfMemory, UnknownModel
from sled.goodput import GoodputPolicy
from sled.run.warming import Forecast, measure_rounds, measure_steps, warm_up
from sled.testing import ToyTarget


class Timed(ToyTarget):
    """A step takes 64 ms and a millisecond for each token, by its own clock; the first of a size ten times as long."""

    def __init__(self, **more):
        super().__init__(**more)
        self.now, self.sizes, self.most_tokens = 0.0, [], 1 << 20
        self.slower, self.first = 1.0, 10

    def verify(self, chunks, rounds):
        size = (sum(len(chunk.tokens) for chunk in chunks), len(rounds))
        if size[0] > self.most_tokens:
            raise OutOfMemory("too much")
        seconds = self.slower * (64 + size[0]) / 1000
        self.now += seconds if size in self.sizes else self.first * seconds
        self.sizes.append(size)
        return super().verify(chunks, rounds)

    def clock(self):
        return self.now


def measured(target, **more):
    told = []
    count = measure_steps(target, lambda *each: told.append(each), clock=target.clock, **more)
    assert count == len(told)
    return told


def test_warming_up_computes_one_step():
    target = ToyTarget()
    warm_up(target)
    assert len(target.steps) == 1


def test_a_model_whose_first_logits_are_no_numbers_is_refused_by_name():
    class Broken(ToyTarget):
        def row(self, tokens):
            return np.full_like(super().row(tokens), np.nan)

    with pytest.raises(UnknownModel, match=r"toy \(float32\).*not-a-number"):
        warm_up(Broken())


def test_steps_are_measured_without_drafts_first_and_not_by_their_first_time():
    told = measured(Timed(), at_most_s=100.0, most_rounds=5)
    assert [(tokens, rounds) for tokens, rounds, _ in told] == [(1, 1), (2, 2), (4, 4), (5, 1), (10, 2), (20, 4)]
    assert [round(1000 * took_s) for *_, took_s in told] == [65, 66, 68, 69, 74, 84]


def test_measuring_ends_with_memory_and_with_pages():
    target = Timed()
    target.most_tokens = 4
    assert [tokens for tokens, *_ in measured(target, at_most_s=100.0)] == [1, 2, 4]
    few = measured(Timed(num_pages=3, page_tokens=2, max_window=2), at_most_s=100.0)
    assert [(tokens, rounds) for tokens, rounds, _ in few] == [(1, 1), (2, 2), (3, 1)]


@pytest.mark.parametrize("first", [1, 10])
@pytest.mark.parametrize("measure", [measure_steps, measure_rounds])
def test_no_forward_is_begun_that_would_end_too_late(measure, first):
    """The first of a size may take ten times as long as the next: both are thought of, from the sizes before."""
    counts, in_vain = [], 0
    for at_most_s in (0.8 + 0.1 * i for i in range(60)):
        target = Timed()
        target.first = first
        counts.append(measure(target, lambda *_: None, clock=target.clock, at_most_s=at_most_s))
        assert target.now <= at_most_s
        in_vain += len(target.sizes) > 2 * counts[-1]
    assert counts == sorted(counts)
    assert in_vain <= 1  # of 60: a size that was computed once only
    assert counts[0] == 1 or first == 1
    assert counts[18] >= 2  # and what there is time for, 2.6 s, is measured
    assert counts[-1] >= 5


def test_what_rounds_took_is_known_when_steps_begin():
    target = Timed()
    target.slower = 20.0  # a token takes 1.3 s, the first time 13 s: nothing was known of it
    known = Forecast()
    assert measure_rounds(target, lambda *_: None, clock=target.clock, at_most_s=1.0, known=known) == 0
    assert len(target.sizes) == 1
    assert measure_steps(target, lambda *_: None, clock=target.clock, at_most_s=2.0, known=known) == 0
    assert len(target.sizes) == 1


def test_a_forecast_grows_as_sizes_did_hand_worked():
    known = Forecast()
    assert known.of(1, 1) == (0.0, 0.0)
    known.took(4, 4, 1.0)
    known.took(4, 4, 0.1)
    assert known.of(4, 4) == (0.1, 0.1)
    assert known.of(2, 1) == known.of(6, 2) == pytest.approx((0.1 + 1.5 * 0.9, 0.1))  # as if compiled anew
    assert known.of(8, 4) == pytest.approx((0.15 + 1.5 * 0.9, 0.15))  # half of it is the same for all
    known.took(8, 4, 0.5)  # of its second time the other size tells more
    assert known.of(8, 4) == (0.5, 0.5)
    known.took(8, 4, 0.14)
    assert known.of(12, 4) == pytest.approx((0.18 + 1.5 * 0.36, 0.18))  # 0.01 a token
    assert known.of(7, 3)[1] == pytest.approx(0.14)  # no more than what is larger
    known.took(4, 4, 0.1)  # asked for once more: it tells nothing of first times
    assert known.of(12, 4) == pytest.approx((0.18 + 1.5 * 0.36, 0.18))
    known.took(10, 4, 0.5)  # a jump: what it is to go on with is in proportion at most
    assert known.of(20, 5)[1] == pytest.approx(1.0)
    known.took(11, 4, 0.1)  # chance
    assert known.of(29, 5)[1] == pytest.approx(0.1)
    assert known.of(29, 1)[1] == pytest.approx(0.5)  # nothing like it is known: the longest
    few = Forecast()
    few.took(10, 1, 0.1)
    few.took(2, 2, 0.2)
    assert few.of(5, 5)[1] == pytest.approx(0.35)  # more tokens of fewer rounds are no bound


def test_a_policy_that_was_told_knows_what_the_server_does_alone_and_drafts_at_once():
    def first(policy):
        ids = [bytes([i] * 8) for i in range(8)]
        for each in ids:
            policy.opened(each)
        for _ in range(3):  # texts are computed; nobody was decided yet
            policy.step(30, 0, 0, 0.094)
        return {policy.limit(each, 1.0) for each in ids}

    policy, target = GoodputPolicy(8), Timed()
    measured(target, at_most_s=100.0, most_rounds=16)
    measure_steps(target, policy.measured, clock=target.clock, at_most_s=100.0, most_rounds=16)
    assert policy.cost.predict(8, 8) > 0.07
    assert min(first(policy)) > 0
    assert first(GoodputPolicy(8)) == {0}  # one that knows nothing has the server decode first, to find out
