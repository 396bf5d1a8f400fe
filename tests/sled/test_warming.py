"""What a target computes before its server takes sessions."""

from __future__ import annotations

from sled.errors import OutOfMemory
from sled.goodput import GoodputPolicy
from sled.run.warming import measure_steps, warm_up
from sled.testing import ToyTarget


class Timed(ToyTarget):
    """A step takes 64 ms and a millisecond for each token, by its own clock; the first of a size ten times as long."""

    def __init__(self, **more):
        super().__init__(**more)
        self.now, self.sizes, self.most_tokens = 0.0, [], 1 << 20

    def verify(self, chunks, rounds):
        size = (sum(len(chunk.tokens) for chunk in chunks), len(rounds))
        if size[0] > self.most_tokens:
            raise OutOfMemory("too much")
        seconds = (64 + size[0]) / 1000
        self.now += seconds if size in self.sizes else 10 * seconds
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


def test_steps_are_measured_without_drafts_first_and_not_by_their_first_time():
    told = measured(Timed(), at_most_s=100.0, most_rounds=5)
    assert [(tokens, rounds) for tokens, rounds, _ in told] == [(1, 1), (2, 2), (4, 4), (5, 1), (10, 2), (20, 4)]
    assert [round(1000 * took_s) for *_, took_s in told] == [65, 66, 68, 69, 74, 84]


def test_measuring_ends_in_time_with_memory_and_with_pages():
    assert len(measured(Timed(), at_most_s=2.0)) == 2  # 0.72 and 0.73 s, and a third begins, whose time is not told
    target = Timed()
    target.most_tokens = 4
    assert [tokens for tokens, *_ in measured(target, at_most_s=100.0)] == [1, 2, 4]
    few = measured(Timed(num_pages=3, page_tokens=2, max_window=2), at_most_s=100.0)
    assert [(tokens, rounds) for tokens, rounds, _ in few] == [(1, 1), (2, 2), (3, 1)]


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
