"""Who is let in, who comes first, and who is told to wait for how long."""

from __future__ import annotations

import math
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sled.errors import ParameterError
from sled.server import Refusal, ServerLimits
from sled.server.owners import Bucket, Owners
from sled.step_cost import StepCost
from sled.types import Constraint, Terms
from tests.sled.driving import PROMPT, SAMPLED, Driver, session_id
from tests.sled.test_scheduler import PerToken


def refused(attempt) -> Refusal:
    with pytest.raises(Refusal) as refusal:
        attempt()
    return refusal.value


def test_draining_server_takes_no_new_sessions_and_finishes_the_others():
    driver = Driver()
    driver.open(0)
    driver.ask(PROMPT)
    driver.server.drain()
    refusal = refused(lambda: driver.open(1))
    assert refusal.code == "draining"
    assert refusal.info > 0
    assert not driver.server.idle
    assert driver.steps()
    assert driver.server.idle
    driver.open(0)  # a retry of what is open already
    assert driver.server.gauges().draining


def test_busy_says_when_to_try_again():
    driver = Driver(ServerLimits(max_waiting=2, batch_tokens=10))
    for number in range(3):
        driver.open(number, [number + 1] * 30)
    driver.compute(driver.server.next_step(now=0.0), took_s=2.0)
    driver.ask([1] * 30, number=0, now=2.0)
    driver.ask([2] * 30, number=1, now=2.0)
    refusal = refused(lambda: driver.ask([3] * 30, number=2, now=2.0))
    assert refusal.code == "busy"
    assert refusal.info == pytest.approx(2.0 * (1 + 60 // 10))  # a step takes 2 s, and 60 tokens wait
    assert driver.ask([1] * 30, number=0, now=2.0) is None, "a retry is no further round"
    assert refused(lambda: driver.open(9)).code == "busy"
    assert driver.parts()
    assert driver.ask([3] * 30, number=2, now=3.0) is None


def test_a_full_server_gives_up_who_fell_silent_for_who_comes():
    """The sessions of devices that vanished: theirs first whose owner has too many, else the longest unused of all."""
    driver = Driver(ServerLimits(max_sessions=4, max_sessions_per_owner=2, spare_s=10.0))
    for number, owner in enumerate(("a", "b", "b", "c")):
        driver.open(number, owner=owner, now=float(number))
    driver.parts()
    assert refused(lambda: driver.open(4, owner="b", now=10.9)).code == "busy"  # b's first was heard 9.9 s ago
    assert len(driver.server.sessions) == 4
    driver.open(4, owner="b", now=11.5)
    assert [*driver.server.sessions] == [session_id(number) for number in (0, 2, 3, 4)]
    driver.open(5, owner="c", now=11.6)
    assert [*driver.server.sessions] == [session_id(number) for number in (2, 3, 4, 5)]
    assert refused(lambda: driver.ask(PROMPT, number=0, owner="a", now=12.0)).code == "session_unknown"
    driver.open(0, owner="a", now=12.5)  # and its device opens it again, in the place of another
    assert session_id(2) not in driver.server.sessions
    assert driver.server.gauges().pages_held == sum(len(s.table.pages) for s in driver.server.sessions.values())


def test_who_waits_or_was_just_answered_is_not_given_up():
    driver = Driver(ServerLimits(max_sessions=3, spare_s=10.0))
    for number in range(3):
        driver.open(number, owner=str(number))
    driver.parts()
    driver.ask(PROMPT, number=0, owner="0", now=1.0)
    driver.now = 19.0  # after a long queue
    driver.steps()
    driver.stream(PROMPT, 1, owner="1")
    driver.ask(PROMPT, number=2, owner="2", now=19.0)
    driver.now = 60.0
    assert refused(lambda: driver.open(3, owner="3", now=28.0)).code == "busy"
    driver.open(3, owner="3", now=30.0)
    assert session_id(0) not in driver.server.sessions
    assert refused(lambda: driver.open(4, owner="4", now=35.0)).code == "busy"
    driver.parts()  # the round of the third is answered at 60, and the stream of the second ends
    assert driver.server.sessions[session_id(1)].is_idle
    driver.open(4, owner="4", now=61.0)
    assert session_id(3) not in driver.server.sessions
    assert refused(lambda: driver.open(5, owner="5", now=69.9)).code == "busy"
    driver.open(5, owner="5", now=70.1)


def test_nobody_is_given_up_for_one_who_is_refused_anyway():
    driver = Driver(ServerLimits(max_sessions=1, max_promised_rate=15.0, rate=10.0, spare_s=10.0))
    driver.open(0)
    assert refused(lambda: driver.open(1, terms=Terms(rate=20.0), now=100.0)).code == "busy"
    bias = msgspec.structs.replace(SAMPLED, bias=((10**6, 1.0),))
    assert refused(lambda: driver.open(1, sampling=bias, now=100.0)).code == "invalid"
    assert [*driver.server.sessions] == [session_id(0)]
    form = msgspec.structs.replace(SAMPLED, constraint=Constraint("regex", "("))  # only found when it is made
    assert refused(lambda: driver.open(1, sampling=form, now=100.0)).code == "invalid"
    assert [*driver.server.sessions] == [session_id(0)]
    driver.open(1, terms=Terms(rate=12.0), now=100.0)  # what the first was promised is free
    driver.server.drain()
    assert refused(lambda: driver.open(2, now=200.0)).code == "draining"
    assert [*driver.server.sessions] == [session_id(1)]


def test_promised_rates_are_bounded():
    driver = Driver(ServerLimits(max_promised_rate=25.0, rate=10.0, max_rate=12.0))
    driver.open(0)
    driver.open(1, terms=Terms(rate=1000.0))  # gets 12
    refusal = refused(lambda: driver.open(2))
    assert (refusal.code, refusal.detail) == (
        "busy", "22 of 25 tokens/s are promised, no 10 more; ask for a lower rate or wait",
    )  # fmt: skip
    driver.open(2, terms=Terms(rate=3.0))
    driver.server.close("me", session_id(0))
    driver.open(3)
    assert driver.server.gauges().promised_rate == pytest.approx(25.0)


@pytest.mark.parametrize("rate", [5e-324, 1e-300, 1e6])
def test_absurd_rates_do_not_upset_the_order_of_work(rate):
    driver = Driver()
    texts = [[5, 6, number + 1, *[3] * (number + 1)] for number in range(4)]
    for number, text in enumerate(texts):
        driver.open(number, text[:3], answer=text[3:], terms=Terms(rate=rate))
        driver.ask(text, number=number, ticket=str(number), now=1.0)
    assert all(math.isfinite(session.due) for session in driver.server.sessions.values())
    driver.server.withdraw(lambda ticket: ticket == "2")
    assert sorted(tickets[0] for tickets, _ in driver.steps()) == ["0", "1", "3"]


def test_earliest_deadline_comes_first_hand_worked():
    """The third session asked last, and was promised ten times the rate."""
    driver = Driver(ServerLimits(batch_tokens=2, rate=1.0))
    for number, rate in ((0, 0.0), (1, 2.0), (2, 20.0)):
        driver.open(number, owner=str(number), terms=Terms(rate=rate))
    driver.parts()
    for number in range(3):
        driver.ask(PROMPT, [1], number, owner=str(number), ticket=str(number))
    assert [tickets[0] for _ in range(3) for tickets, _ in driver.step()] == ["2", "1", "0"]


def test_session_that_was_idle_for_long_does_not_push_others_back():
    """Back after a minute it makes up for half a second: then the other one, due by then, has its turn."""
    driver = Driver(ServerLimits(batch_tokens=1, rate=10.0), vocab_size=2000)
    right = driver.target.plain_answer(PROMPT, SAMPLED, 30)
    for number in range(2):
        driver.open(number, owner=str(number))
    driver.parts()
    driver.now, served, done = 60.0, [], {0: 0, 1: 0}
    driver.server.sessions[session_id(1)].promise.began_at = 60.0
    while len(served) < 30:
        for number in range(2):
            text = PROMPT + right[: done[number]]
            if driver.server.sessions[session_id(number)].round is None:
                driver.ask(text, number=number, owner=str(number), ticket=str(number), now=driver.now)
        for tickets, verdict in driver.step():
            served.append(int(tickets[0]))
            done[served[-1]] += len(verdict.tokens)
        driver.now += 0.01
    assert served[:5] == [0] * 5
    assert served.index(1) <= 7
    assert served[7:].count(1) >= 10


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_nobody_starves(seed, measured):
    """Whatever the others ask, promised whatever rates, every round is answered within bounded time."""
    rng = random.Random(seed)
    limits = ServerLimits(batch_tokens=20, prefill_beside_rounds=64, max_rate=1000.0, rejected_per_s=1e9)
    driver = Driver(limits, cost=PerToken() if measured else None, vocab_size=500, page_tokens=4, num_pages=60)
    texts, asked = {}, {}
    for number in range(8):
        texts[number] = [1 + rng.randrange(40) for _ in range(rng.choice((3, 60)))]
        driver.open(number, texts[number], owner=str(number), terms=Terms(120, (), -1, rng.choice((0.1, 10.0, 1000.0))))
    for _ in range(200):
        driver.now += 0.02
        for number, text in texts.items():
            if number not in asked and not driver.server.sessions[session_id(number)].finish and rng.random() < 0.8:
                draft = [rng.randrange(500) for _ in range(rng.randrange(5))]
                driver.ask(text, draft, number, owner=str(number), ticket=str(number), now=driver.now)
                asked[number] = driver.now
        for tickets, verdict in driver.step():
            texts[int(tickets[0])] += verdict.tokens
            del asked[int(tickets[0])]
        assert all(driver.now - at < 3.0 for at in asked.values()), "150 forwards"


def test_device_without_budget_is_not_verified_drafts_and_loses_nothing():
    driver = Driver(ServerLimits(rejected_burst=8, rejected_per_s=4.0), vocab_size=2000)
    right = driver.target.plain_answer(PROMPT, SAMPLED, 20)
    driver.open(0)
    driver.open(1, owner="you")
    verdict = driver.round(PROMPT, [0] * 9)
    assert (verdict.tokens, verdict.window_limit) == (right[:1], 0)
    verdict = driver.round(PROMPT + right[:1], right[1:5])
    assert (verdict.tokens, verdict.accepted) == (right[1:2], 0)  # cut, not refused
    assert driver.server.totals.cut_drafts == 4
    driver.ask(PROMPT, right[:4], 1, owner="you")
    assert driver.steps()[0][1].tokens == right[:5]  # it is not another one's budget
    driver.now = 1.0  # a quarter of the budget is back, and what was owed
    driver.ask(PROMPT + right[:2], number=0, now=1.0)
    assert driver.steps()[0][1].window_limit == 16


def test_reopening_does_not_refill_the_budget():
    driver = Driver(ServerLimits(rejected_burst=8, rejected_per_s=4.0))
    driver.open(0)
    driver.round(PROMPT, [0] * 9)
    driver.server.close("me", session_id(0))
    assert driver.open(1).window_limit == 0
    assert driver.open(2, owner="you").window_limit == 16


def test_devices_that_owe_nothing_are_forgotten():
    owners = Owners(8, 4.0)
    for number in range(1000):
        owners.add_session(str(number), now=number)
        owners[str(number)].bucket.take(9 if number == 900 else 0, now=number)
        owners.remove_session(str(number), None)
    assert len(owners._owners) < 200


def test_bucket_owes_its_burst_at_most():
    bucket = Bucket(8, 4.0)
    bucket.take(1000, now=0.0)
    assert bucket.shut(now=2.0)
    assert not bucket.shut(now=3.0)


@pytest.mark.parametrize(
    "bad", [{"max_sessions": 0}, {"rate": 0.0}, {"batch_tokens": -1}, {"max_promised_rate": -1}, {"share": "some"}]
)
def test_limits_that_let_nothing_through_are_refused(bad):
    with pytest.raises(ParameterError, match=next(iter(bad))):
        ServerLimits(**bad)


class Listener:
    """Writes down what a policy is told."""

    def __init__(self):
        self.heard = []

    cost = StepCost()

    def limit(self, session_id, now):
        return 99

    def begins(self, now):
        return now

    def __getattr__(self, name):
        return lambda *args: self.heard.append((name, *args))


def test_policy_is_told_everything_and_its_limit_is_bounded():
    policy = Listener()
    driver = Driver(policy=policy)
    right = driver.target.plain_answer(PROMPT, SAMPLED, 4)
    assert driver.open().window_limit == 16
    driver.compute(driver.server.next_step(now=0.0), took_s=0.125)
    driver.ask(PROMPT, [*right[:2], 49], now=0.5)
    driver.ask(PROMPT, [*right[:2], 49], now=0.5)
    driver.now = 1.0
    driver.compute(driver.server.next_step(now=0.5), took_s=0.25)
    driver.ask(PROMPT + right[:3], [], now=1.5)
    driver.server.close("me", session_id())
    assert policy.heard == [
        ("opened", session_id(), 10.0, "me"),
        ("step", 2, 0, 0, 0.125),
        ("round", session_id(), 3, None),
        ("verdict", session_id(), 3, 2),
        ("step", 4, 1, 2, 0.25),
        ("round", session_id(), 0, 0.5),
        ("closed", session_id()),
    ]


def test_totals_and_gauges_hand_worked():
    driver = Driver()
    right = driver.target.plain_answer(PROMPT, SAMPLED, 4)
    driver.open()
    driver.parts()
    driver.round(PROMPT, [*right[:2], (right[2] + 1) % 50])
    driver.ask(PROMPT + right[:3], now=2.0)
    totals, gauges = driver.server.totals, driver.server.gauges()
    assert (totals.sessions, totals.rounds, totals.tokens, totals.drafted, totals.accepted) == (1, 1, 3, 3, 2)
    assert list(totals.acceptance())[:4] == [1.0, 1.0, 0.0, 0.0]
    assert (totals.steps, totals.step_tokens, totals.prefill_tokens) == (2, 6, 2)
    assert (gauges.sessions, gauges.waiting_rounds, gauges.queued_tokens, gauges.pages_held) == (1, 1, 1, 1)
    assert (gauges.kv_bytes, gauges.mean_window_limit, gauges.queue_age_s) == (64, 16.0, 0.0)
    driver.server.next_step(now=5.0)
    assert driver.server.gauges().queue_age_s == 3.0
