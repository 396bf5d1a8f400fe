"""Batches and the fair queue: bounds, fairness, deadlines, and an end for every request."""

from __future__ import annotations

import math
import random

import pytest

from qpart.batching import LEAST_RETRY_S, MOST_RETRY_S, Batch, Batcher, BatchLimits, Job
from qpart.errors import RequestError
from qpart.fair import MAX_IDLE, FairQueue


def job(ticket="a", owner="device", group="net", *, samples=1, items=10, cost=1.0, at=0.0, deadline=100.0) -> Job[str]:
    return Job(ticket, owner, group, samples, items, cost, at, deadline)


def tickets(batch) -> list[str]:
    return [each.ticket for each in batch.jobs]


def reconciled(batcher) -> bool:
    t = batcher.totals
    ended = t.answered + t.failed + t.expired + t.withdrawn
    return t.accepted == ended + len(batcher) + batcher.running


def test_what_waits_is_computed_together_and_at_once():
    """By hand: three requests of two devices, two samples in one of them; nothing waits for a fuller batch."""
    batcher = Batcher[str](BatchLimits(max_batch=8))
    assert batcher.next_batch(now=0.0) is None
    for each in (job("a1", "a"), job("a2", "a"), job("b1", "b", samples=2)):
        assert batcher.offer(each) is None
    batch = batcher.next_batch(now=0.0)
    assert tickets(batch) == ["a1", "b1", "a2"]
    assert (batch.samples, batch.items) == (4, 30)
    batcher.done(batch, took_s=0.1)
    assert batcher.totals.answered == 3
    assert reconciled(batcher)


def test_groups_do_not_mix_and_take_turns():
    batcher = Batcher[str]()
    for i in range(4):
        batcher.offer(job(f"x{i}", "a", "x"))
    batcher.offer(job("y", "b", "y"))
    assert tickets(batcher.next_batch(now=0.0)) == ["x0", "x1", "x2", "x3"]
    assert tickets(batcher.next_batch(now=0.0)) == ["y"]


@pytest.mark.parametrize(("limits", "expected"), [({"max_batch": 3}, [3, 3, 1]), ({"max_items": 25}, [2, 2, 2, 1])])
def test_a_forward_is_bounded(limits, expected):
    batcher = Batcher[str](BatchLimits(**limits))
    for i in range(7):
        batcher.offer(job(str(i)))
    sizes = []
    while (batch := batcher.next_batch(now=0.0)) is not None:
        sizes.append(len(batch.jobs))
    assert sizes == expected


def test_max_batch_1_is_no_batching_and_a_large_request_is_computed_alone():
    batcher = Batcher[str](BatchLimits(max_batch=1))
    for each in (job("one"), job("large", samples=50), job("two")):
        batcher.offer(each)
    assert [tickets(batcher.next_batch(now=0.0)) for _ in range(3)] == [["one"], ["large"], ["two"]]


def test_expired_and_withdrawn_requests_are_not_computed():
    batcher = Batcher[str]()
    for each in (job("late", deadline=1.0), job("gone"), job("here")):
        batcher.offer(each)
    assert [each.ticket for each in batcher.sweep(now=1.0, gone=lambda ticket: ticket == "gone")] == ["late", "gone"]
    assert tickets(batcher.next_batch(now=1.0)) == ["here"]
    assert (batcher.totals.expired, batcher.totals.withdrawn) == (1, 1)
    assert reconciled(batcher)


def test_a_full_queue_says_when_to_come_back():
    batcher = Batcher[str](BatchLimits(max_waiting=2, max_batch=1))
    assert batcher.offer(job("1", "a")) is None
    assert batcher.offer(job("2", "a")) == LEAST_RETRY_S, "one device holds half of the places at most"
    assert batcher.offer(job("3", "b")) is None
    batch = batcher.next_batch(now=0.0)
    batcher.done(batch, took_s=3.0)
    assert batcher.offer(job("4", "a")) is None
    assert batcher.offer(job("5", "c")) == 3.0, "two that take 3 s each wait: half of them is done then"
    assert batcher.totals.busy == 2
    for each in (1e9, 1e-9):
        batcher.done(Batch([job(cost=1.0)]), took_s=each)
        assert LEAST_RETRY_S <= batcher.retry_after_s() <= MOST_RETRY_S


def test_numbers_that_wait_are_bounded_but_one_request_always_may():
    batcher = Batcher[str](BatchLimits(max_waiting_items=100))
    assert batcher.offer(job("huge", items=1000)) is None
    assert batcher.offer(job("small", items=1)) is not None
    batcher.next_batch(now=0.0)
    assert batcher.offer(job("small", items=1)) is None


def test_one_device_cannot_take_all_the_numbers_that_may_wait():
    batcher = Batcher[str](BatchLimits(max_waiting_items=100))
    taken = [batcher.offer(job(str(i), "flood", items=25)) is None for i in range(6)]
    assert taken == [True, True, False, False, False, False], "half of them"
    assert batcher.offer(job("other", "other", items=25)) is None
    while batcher.next_batch(now=0.0) is not None:
        pass
    assert batcher.offer(job("large", "flood", items=90)) is None, "one request always may"
    assert batcher.offer(job("small", "flood", items=1)) is not None


def test_waiting_for_company_is_bounded_by_time_by_a_full_batch_and_by_deadlines():
    batcher = Batcher[str](BatchLimits(wait_s=0.5, max_batch=3))
    assert batcher.next_timer() == math.inf
    batcher.offer(job("1", at=10.0))
    assert batcher.next_batch(now=10.4) is None
    assert batcher.next_timer() == 10.5
    batcher.offer(job("2", at=10.4, deadline=10.45))
    assert batcher.next_timer() == 10.45
    batcher.offer(job("3", at=10.4))
    assert len(batcher.next_batch(now=10.4).jobs) == 3


def test_a_failed_batch_is_halved_until_it_is_known_whose_it_is():
    batch = Batch([job(str(i)) for i in range(5)])
    parts, single = [batch], []
    while parts:
        part = parts.pop()
        if len(part.jobs) == 1:
            single.append(part.jobs[0].ticket)
        else:
            parts += part.halves()[::-1]
    assert single == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("bad", [{"max_batch": 0}, {"max_items": 0}, {"max_waiting": -1}, {"wait_s": 2.0}])
def test_limits_are_checked(bad):
    with pytest.raises(RequestError, match=next(iter(bad))):
        BatchLimits(**bad)


@pytest.mark.parametrize("seed", range(5))
def test_every_request_has_exactly_one_end(seed):
    """A random crowd: whatever comes, expires, fails or is given up, the counters reconcile and nothing is lost."""
    chance, now = random.Random(seed), 0.0
    batcher = Batcher[str](BatchLimits(max_batch=6, max_waiting=12, max_items=300))
    accepted, ended = set(), []

    def seventh(ticket):
        return ticket.endswith("7")

    def nobody(ticket):
        return False

    for i in range(1000):
        now += chance.random() * 0.01
        one = job(
            str(i), f"device {chance.randrange(4)}", f"net {chance.randrange(2)}", samples=chance.randint(1, 8),
            items=chance.randint(1, 200), cost=chance.random() * 10, at=now, deadline=now + chance.random() * 0.2,
        )  # fmt: skip
        if batcher.offer(one) is None:
            accepted.add(one.ticket)
        if chance.random() < 0.3:
            gone = chance.random() < 0.1
            ended += [each.ticket for each in batcher.sweep(now=now, gone=seventh if gone else nobody)]
            batch = batcher.next_batch(now=now)
            if batch is not None:
                assert len({each.group for each in batch.jobs}) == 1
                assert len(batch.jobs) == 1 or (batch.samples <= 6 and batch.items <= 300)
                assert all(each.deadline_at > now for each in batch.jobs)
                ended += tickets(batch)
                batcher.failed(batch) if chance.random() < 0.1 else batcher.done(batch, took_s=0.01)
        assert reconciled(batcher)
    ended += [each.ticket for each in batcher.give_up()]
    assert sorted(ended) == sorted(accepted)
    assert reconciled(batcher)
    assert len(batcher) == batcher.running == 0


def test_a_flood_delays_others_by_one_batch_at_most():
    batcher = Batcher[str](BatchLimits(max_batch=4, max_waiting=100))
    for i in range(50):
        batcher.offer(job(f"flood {i}", "flood"))
    served = []
    for i in range(5):
        batcher.offer(job(f"other {i}", "other"))
        served.append(tickets(batcher.next_batch(now=0.0)))
    assert all(f"other {i}" in batch for i, batch in enumerate(served))


def test_cost_is_shared_not_requests():
    """One device's requests cost ten times as much: over a long time both are given about the same."""
    queue, given = FairQueue[str](1000), {"heavy": 0.0, "light": 0.0}
    costs = {"heavy": 10.0, "light": 1.0}
    for owner in ("heavy", "light"):
        queue.add(owner, owner, costs[owner])
    for _ in range(500):
        owner = queue.pop()
        given[owner] += costs[owner]
        queue.add(owner, owner, costs[owner])  # each asks again only when it is answered
    assert abs(given["heavy"] - given["light"]) <= 20


def test_owners_that_left_are_forgotten():
    queue = FairQueue[int](10)
    for i in range(3 * MAX_IDLE):
        queue.add(f"device {i}", i, 1.0)
        assert queue.pop() == i
    assert len(queue._marks) <= 2 * MAX_IDLE + 1
    assert len(queue) == 0


def test_removed_jobs_cost_nothing_and_others_keep_their_order():
    queue = FairQueue[str](10)
    for each in "abcd":
        queue.add("one", each, 1.0)
    assert queue.remove(lambda each: each in "bc") == ["b", "c"]
    assert list(queue) == ["a", "d"]
    queue.charge("one", 5.0)
    queue.add("two", "x", 1.0)
    assert [queue.pop() for _ in range(4)] == ["x", "a", "d", None]
