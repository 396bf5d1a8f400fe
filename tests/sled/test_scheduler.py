"""What goes into a forward, by hand and by property; and that the server comes to rest."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from sled.scheduler import Share, plan
from sled.server import ServerLimits
from tests.sled.test_server import PROMPT, SAMPLED, Driver, session_id


@dataclass
class Work:
    uncached: int
    waiting_draft: list[int] | None = None
    prefill_ahead: bool = True


def test_plan_hand_worked():
    work = [Work(1, [7, 8]), Work(300, [9]), Work(50), Work(1), Work(50, prefill_ahead=False)]
    shares = plan(work, budget=512, prefill_beside_rounds=100)
    assert shares == [
        Share(0, 1, True),  # a round: its last committed token and two drafts
        Share(1, 100, False),  # a waiting round whose text is far behind gets the whole share of prefill
    ]
    work[1].uncached = 80
    shares = plan(work, budget=512, prefill_beside_rounds=100)
    assert shares == [Share(0, 1, True), Share(1, 80, True), Share(2, 49, False)]


def test_prefill_takes_the_whole_budget_when_no_round_waits():
    assert plan([Work(1000)], budget=512, prefill_beside_rounds=100) == [Share(0, 512, False)]


WORK = st.builds(Work, st.integers(1, 400), st.none() | st.lists(st.integers(0, 9), max_size=16), st.booleans())


@given(st.lists(WORK, max_size=30), st.integers(1, 300), st.integers(1, 100))
def test_plan_properties(work, budget, beside):
    shares = plan(work, budget=budget, prefill_beside_rounds=beside)
    assert len({share.index for share in shares}) == len(shares)
    rounds = [share for share in shares if share.verify]
    prefill = [share for share in shares if not share.verify]
    for share in rounds:
        assert work[share.index].waiting_draft is not None
        assert share.committed == work[share.index].uncached
    for share in prefill:
        assert 0 < share.committed < work[share.index].uncached
    if rounds:
        assert sum(share.committed for share in prefill) <= beside
    behind = [w for w in work if w.uncached > max(1, beside) and w.waiting_draft is not None]
    assert not behind or prefill, "a waiting session that is behind always gets on"
    if any(w.waiting_draft is not None for w in work):
        assert shares


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


def test_server_comes_to_rest_when_nobody_asks():
    """Sessions over the cache budget must not push each other out for ever."""
    driver = Driver(ServerLimits(max_cached_tokens=60))
    for n in range(4):
        driver.open(n, [n + 1] * 29, now=float(n), owner=f"device {n}")
    for _ in range(20):
        driver.step()
    assert driver.server.next_step() is None


def test_cache_budget_holds_with_many_waiting_rounds():
    driver = Driver(ServerLimits(max_cached_tokens=200, batch_tokens=1000, prefill_beside_rounds=500))
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
            assert sum(len(kept) for kept in driver.target.kept.values()) <= 200
            if driver.server.next_step() is None:
                break
    assert all(answers[n][:3] == right[n][: len(answers[n][:3])] and answers[n] for n in texts)


def test_only_the_latest_text_of_a_device_is_computed_ahead():
    driver = Driver()
    for n in range(3):
        driver.open(n, [n + 1] * 30)
    driver.step()
    assert driver.server.next_step() is None
    assert [len(driver.target.kept.get(session_id(n), ())) for n in range(3)] == [0, 0, 29]
