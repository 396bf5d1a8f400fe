"""What goes into a forward, by hand and by property; and that the server comes to rest."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sled.scheduler import Promise, Queue, Share, plan
from sled.server import ServerLimits
from sled.types import Terms
from tests.sled.driving import PROMPT, SAMPLED, Driver, session_id


@dataclass
class Work:
    uncached: int
    num_drafts: int | None = None
    due: float = 0.1
    cached: int = 100
    interval_s: float = 0.1


class PerToken:
    """A millisecond for each token."""

    def predict(self, tokens: int, rounds: int, context: int) -> float:
        return tokens / 1000


def test_plan_hand_worked():
    ready, behind = [Work(1, 2)], [Work(300, 1), Work(50)]
    shares = plan(ready, behind, budget=512, prefill_beside_rounds=100)
    assert shares == [
        Share(ready[0], 1, True),  # a round: its last committed token and two drafts
        Share(behind[0], 100, False),  # a waiting round whose text is far behind gets the whole share of prefill
    ]
    behind[0].uncached = 80
    shares = plan(ready, behind, budget=512, prefill_beside_rounds=100)
    assert shares == [Share(ready[0], 1, True), Share(behind[0], 80, True), Share(behind[1], 19, False)]


def test_prefill_takes_the_whole_budget_when_no_round_waits():
    work = Work(1000)
    assert plan([], [work], budget=512, prefill_beside_rounds=100) == [Share(work, 512, False)]


def test_prefill_share_keeps_the_deadline_hand_worked():
    """A round of 5 tokens that is due in 60 ms leaves 55 tokens for others at a millisecond each."""
    ready, behind = [Work(1, 4, due=10.06)], [Work(1000)]
    shares = plan(ready, behind, budget=512, prefill_beside_rounds=100, now=10.0, cost=PerToken())
    assert shares[1] == Share(behind[0], 55, False)
    ready[0].due = 9.0  # late already: only what keeps the other one from starving
    shares = plan(ready, behind, budget=512, prefill_beside_rounds=100, now=10.0, cost=PerToken())
    assert shares[1] == Share(behind[0], 12, False)
    ready[0].due = 11.0  # early: but the next round may be due in a token's time
    shares = plan(ready, behind, budget=512, prefill_beside_rounds=100, now=10.0, cost=PerToken())
    assert shares[1] == Share(behind[0], 95, False)


@pytest.mark.parametrize("cost", [None, PerToken()])
def test_no_piece_of_prefill_is_above_a_small_budget(cost):
    """Where memory is short, forwards are smaller than the least prefill there is otherwise."""
    behind = [Work(1000)]
    limits = {"budget": 8, "prefill_beside_rounds": 100, "cost": cost}
    assert plan([], behind, **limits) == [Share(behind[0], 8, False)]
    assert plan([Work(1, 2)], behind, **limits)[1].committed <= 8


def test_a_round_whose_text_was_found_computed_is_not_put_off_for_its_drafts():
    """A round is never split: one that is more than the budget, or what prefill may take, would wait for ever."""
    found = Work(1, 9)
    assert plan([], [found], budget=4, prefill_beside_rounds=100) == [Share(found, 1, True)]
    late = Work(1, 4, due=-1.0)
    assert Share(found, 1, True) in plan([late], [found], budget=512, prefill_beside_rounds=8, cost=PerToken())


def test_prefill_alone_leaves_room_for_rounds_to_come():
    """Devices that draft meanwhile would wait for the whole forward."""
    behind = [Work(1000)]
    limits = {"budget": 512, "prefill_beside_rounds": 100, "cost": PerToken()}
    assert plan([], behind, **limits, away_s=0.05) == [Share(behind[0], 50, False)]
    assert plan([], behind, **limits) == [Share(behind[0], 512, False)]


class SlowStart:
    """A step takes 64 units of time and one for each token."""

    def predict(self, tokens: int, rounds: int, context: int) -> float:
        return (64 + tokens) / 1024


def test_prefill_alone_is_no_less_than_a_step_is_worth():
    """Where a step takes more than the time there is, it would compute few tokens, and the text be long in coming."""
    behind = [Work(1000)]
    limits = {"budget": 512, "prefill_beside_rounds": 80, "cost": SlowStart()}
    assert plan([], behind, **limits, away_s=0.2) == [Share(behind[0], 140, False)]
    # what a step of the least prefill takes, 64 + 10 units, twice
    assert plan([], behind, **limits, away_s=0.05) == [Share(behind[0], 84, False)]


READY = st.builds(Work, st.integers(1, 32), st.integers(0, 16), st.floats(-1.0, 1.0))
BEHIND = st.builds(Work, st.integers(33, 400), st.none() | st.integers(0, 16))
COSTS = st.sampled_from([None, PerToken()])


@given(st.lists(READY, max_size=30), st.lists(BEHIND, max_size=30), st.integers(1, 300), st.integers(1, 100), COSTS)
def test_plan_properties(ready, behind, budget, beside, cost):
    shares = plan(ready, behind, budget=budget, prefill_beside_rounds=beside, cost=cost)
    assert len({id(share.work) for share in shares}) == len(shares)
    taken = [share for share in shares if share.work in ready and share.work.uncached <= 32]
    assert [share.work for share in taken] == ready[: len(taken)], "in the order of their deadlines"
    for share in shares:
        if share.verify:
            assert share.work.num_drafts is not None
            assert share.committed == share.work.uncached
        else:
            assert 0 < share.committed < share.work.uncached
    others = [share for share in shares if share.work.uncached > 32]
    if taken and cost is None:
        assert sum(share.committed for share in others) <= beside
    if ready:
        assert taken, "a round that waits always gets on"
    if behind:
        assert others, "a text that is behind always gets on"
        floor = max(1, beside // 8)
        assert sum(w.work.uncached + w.work.num_drafts for w in taken[:-1]) < max(1, budget - floor)
    if not behind:
        used = sum(share.work.uncached + share.work.num_drafts for share in taken)
        assert len(taken) == len(ready) or used >= budget, "no round is left out while there is room"


def test_deadlines_hand_worked():
    """Ten tokens a second from time 5 on: the third is due at 5.3."""
    promise = Promise(rate=10.0, began_at=5.0)
    assert promise.due(2, now=5.0) == pytest.approx(5.3)
    assert promise.due(2, now=5.9) == pytest.approx(5.4)  # late: it makes up for half a second, not for more
    assert promise.due(3, now=5.9) == pytest.approx(5.5)
    assert promise.due(30, now=6.0) == pytest.approx(7.0)  # far ahead: it is put off for a second, not for more


def test_queue_orders_by_deadline_then_arrival():
    queue = Queue()
    for due, number in ((3.0, 1), (1.0, 5), (1.0, 2), (2.0, 3)):
        queue.add(due, number, number)
    assert list(queue) == [2, 5, 3, 1]
    queue.remove(1.0, 5)
    assert (list(queue), list(reversed(queue)), len(queue)) == ([2, 3, 1], [1, 3, 2], 3)


def test_busy_devices_do_not_shut_out_a_new_one():
    driver = Driver(ServerLimits(max_sessions_per_owner=100))
    texts = {n: list(PROMPT) for n in range(64)}
    for n in texts:
        driver.open(n)
    new = [1 + i % 40 for i in range(195)]
    driver.open(99, new)
    driver.ask(new, number=99, ticket="new")
    for _ in range(30):
        for n in texts:
            session = driver.server.sessions[session_id(n)]
            if session.round is None and not session.finish:
                driver.ask(session.history.tokens, [1] * 16, n, ticket=str(n))
        if any("new" in tickets for tickets, _ in driver.step()):
            return
    raise AssertionError("no verdict for the new session in 30 forwards")


def test_round_whose_text_another_one_computed_is_answered_while_memory_is_short():
    driver, text, told = Driver(ServerLimits(max_sessions_per_owner=100)), [1 + i % 40 for i in range(161)], []
    for number in range(2):
        driver.open(number, text)
        driver.ask(text, [1] * 16, number, ticket=str(number))
    while step := driver.server.next_step(now=0.0, at_most=16):
        told += [ticket for answer in driver.compute(step) for ticket in answer.tickets]
    assert told == ["0", "1"]


@pytest.mark.parametrize("ended", ["finished", "silent"])
def test_sessions_that_ended_or_fell_silent_do_not_keep_prefill_small(ended):
    """Nobody drafts there: a long prompt is not to be computed in pieces for their sake."""
    driver = Driver(ServerLimits(max_sessions_per_owner=100), cost=SlowStart())
    driver.open(0, terms=Terms(max_tokens=1 if ended == "finished" else 0))
    driver.round(list(PROMPT))
    driver.now = 0.1 if ended == "finished" else 5.0
    driver.open(1, [1 + i % 40 for i in range(400)], now=driver.now)
    assert driver.server.next_step(now=driver.now).num_tokens == 399


def test_prefill_is_small_while_a_device_drafts():
    driver = Driver(ServerLimits(max_sessions_per_owner=100), cost=SlowStart())
    driver.open(0)
    driver.round(list(PROMPT))
    driver.now = 0.1
    driver.open(1, [1 + i % 40 for i in range(400)], now=driver.now)
    assert driver.server.next_step(now=driver.now).num_tokens == 96  # twice what one of 16 takes


def test_server_comes_to_rest_when_nobody_asks():
    """Sessions over the cache budget must not push each other out for ever."""
    driver = Driver(page_tokens=4, num_pages=15)
    for n in range(4):
        driver.open(n, [n + 1] * 29, now=float(n), owner=f"device {n}")
    for _ in range(20):
        driver.step()
    assert driver.server.next_step(now=0.0) is None


def test_cache_budget_holds_with_many_waiting_rounds():
    driver = Driver(ServerLimits(batch_tokens=1000, prefill_beside_rounds=500), page_tokens=8, num_pages=25)
    texts = {n: [n + 1] * 60 for n in range(8)}
    right = {n: driver.target.plain_answer(text, SAMPLED, 3) for n, text in texts.items()}
    answers = {n: [] for n in texts}
    for n, text in texts.items():
        driver.open(n, text, now=float(n))
    for _ in range(3):
        for n, text in texts.items():
            driver.ask(text + answers[n], [1, 2], n, ticket=str(n), now=100.0 + n)
        for _ in range(50):
            for tickets, verdict in driver.step():
                answers[int(tickets[0])] += verdict.tokens
            if driver.server.idle:
                break
    assert all(answers[n][:3] == right[n][: len(answers[n][:3])] and answers[n] for n in texts)


def test_only_the_latest_text_of_a_device_is_computed_ahead():
    driver = Driver()
    for n in range(3):
        driver.open(n, [n + 1] * 30)
    driver.step()
    assert driver.server.next_step(now=0.0) is None
    assert [driver.server.sessions[session_id(n)].cached for n in range(3)] == [0, 0, 29]


def test_long_prompt_is_computed_in_small_pieces_while_other_devices_draft():
    driver = Driver(cost=PerToken())
    driver.open(0)
    driver.round(PROMPT)
    driver.open(1, [1] * 2000, owner="you")
    driver.step()
    assert len(driver.target.steps[-1][0].tokens) == 100  # a tenth of a second, what a token may take
    driver.server.close("me", session_id(0))
    driver.step()
    assert len(driver.target.steps[-1][0].tokens) == 512
