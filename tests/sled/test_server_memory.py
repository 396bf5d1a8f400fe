"""Pages in the machine: prefixes are shared, rejected drafts cost nothing, and too little room is only slow."""

from __future__ import annotations

import pytest

from sled.acceptance import Decision
from sled.server import Refusal, ServerLimits
from sled.types import Terms
from tests.sled.driving import PROMPT, SAMPLED, Driver, session_id

LONG = [1 + i % 40 for i in range(41)]
LIMITS = ServerLimits(batch_tokens=64)


def computed(driver) -> int:
    return sum(len(chunk.tokens) for step in driver.target.steps for chunk in step)


def test_second_session_with_the_same_prompt_computes_its_last_token_only():
    driver = Driver(page_tokens=8)
    driver.open(0, LONG)
    driver.parts()
    before = computed(driver)
    driver.open(1, LONG, owner="you")
    driver.round(LONG, number=0)
    driver.ask(LONG, number=1, owner="you")
    driver.steps()
    assert computed(driver) - before == 2
    assert driver.server.gauges().pages_shared == 5
    assert driver.server.totals.found_tokens == 40


@pytest.mark.parametrize(("share", "shared"), [("all", 5), ("owner", 0), ("none", 0)])
def test_share_says_who_shares(share, shared):
    driver = Driver(ServerLimits(share=share), page_tokens=8)
    driver.open(0, LONG)
    driver.parts()
    driver.open(1, LONG, owner="you")
    assert driver.server.gauges().pages_shared == shared
    driver.open(2, LONG)
    assert driver.server.gauges().pages_shared == (0 if share == "none" else 5)


def test_sessions_that_come_together_compute_a_common_prompt_once():
    driver = Driver(ServerLimits(batch_tokens=200, max_sessions_per_owner=99), page_tokens=8)
    for number in range(20):
        driver.open(number, [*LONG, number + 1])
        driver.ask([*LONG, number + 1], number=number, ticket=str(number))
    assert len(driver.parts()) == 20
    assert computed(driver) == len(LONG) + 1 + 19 * 2  # 40 of its 42 tokens are found by all but the first


def test_rejected_drafts_give_their_pages_back():
    driver = Driver(page_tokens=1)
    driver.open()
    driver.ask(PROMPT, [1] * 16)
    driver.server.next_step(now=0.0)
    assert driver.server.gauges().pages_held == len(PROMPT) + 16
    driver = Driver(page_tokens=1)
    driver.open()
    text = PROMPT + driver.round(PROMPT, [1] * 16).tokens
    assert driver.server.gauges().pages_held == len(text)


def test_evicted_session_finds_what_is_left_of_its_text():
    """Its pages are reused from the end, so the beginning is still there."""
    driver = Driver(page_tokens=4, num_pages=16)
    driver.open(0, LONG)
    text = LONG + driver.round(LONG).tokens
    driver.open(1, [41 + i % 7 for i in range(35)], owner="you", now=1.0)
    driver.parts()
    assert driver.server.totals.evictions == 1
    before = computed(driver)
    text += driver.round(text).tokens
    assert 1 < computed(driver) - before < 30
    assert text == LONG + driver.target.plain_answer(LONG, SAMPLED, 2)


def test_idle_sessions_are_evicted_longest_idle_first():
    driver = Driver(page_tokens=4, num_pages=18)
    prompts = {n: [n + 1] * 20 for n in range(4)}
    for n in range(3):
        driver.open(n, prompts[n], owner=str(n))
        driver.parts()
    driver.ask(prompts[0], number=0, owner="0")
    driver.parts()
    driver.open(3, prompts[3], owner="3")
    driver.parts()
    held = [len(driver.server.sessions[session_id(n)].table.pages) for n in range(4)]
    assert held == [5, 0, 5, 5]


def test_waiting_rounds_that_do_not_fit_together_are_served_one_after_the_other():
    driver = Driver(LIMITS, page_tokens=4, num_pages=12)
    prompts = {n: [n + 1] * 40 for n in range(5)}
    for n, prompt in prompts.items():
        driver.open(n, prompt, owner=str(n), now=n / 100)
        driver.ask(prompt, [1, 1, 1], n, owner=str(n), ticket=str(n), now=n / 100)
    answers = driver.parts(100)
    assert [answer.tickets[0] for answer in answers] == ["0", "1", "2", "3", "4"]
    for n, answer in enumerate(answers):
        right = driver.target.plain_answer(prompts[n], SAMPLED, 4)
        assert answer.verdict.tokens == right[: len(answer.verdict.tokens)]


def test_less_urgent_stream_gives_way_and_comes_back():
    driver = Driver(LIMITS, page_tokens=4, num_pages=12)
    driver.open(0, [1] * 24)
    driver.now = 1.0
    driver.stream([1] * 24, max_tokens=10)
    driver.step()
    driver.step()
    driver.open(1, [2] * 40, owner="you", now=0.0)
    driver.ask([2] * 40, number=1, owner="you", now=1.0)
    driver.server.sessions[session_id(1)].promise.began_at = 0.0
    answers = driver.parts(100)
    streamed = [token for answer in answers if answer.tickets == ["s"] for token in answer.verdict.tokens]
    assert driver.server.totals.evictions >= 1
    assert streamed[-8:] == driver.target.plain_answer([1] * 24, SAMPLED, 10)[-8:]
    assert ["t"] in [answer.tickets for answer in answers]


def test_more_urgent_text_keeps_its_pages_though_its_turn_comes_later():
    """A round is placed before a text that is behind, but what is due later takes nothing from what is due first."""
    driver = Driver(ServerLimits(batch_tokens=48), page_tokens=4, num_pages=12)
    driver.open(0, PROMPT, terms=Terms(rate=0.1))
    driver.parts()
    driver.open(1, [2] * 44, owner="you", terms=Terms(rate=100.0))
    driver.step()
    driver.ask([2] * 44, number=1, owner="you", ticket="urgent")
    assert driver.server.sessions[session_id(1)].cached == 43
    driver.ask(PROMPT, [1] * 10, number=0, ticket="later")
    driver.server.sessions[session_id(1)].cached = 4  # as if it were in the middle of its prefill
    driver.server._agenda.put(driver.server.sessions[session_id(1)])
    step = driver.server.next_step(now=0.0)
    assert [session.id for session in step.sessions] == [session_id(1)]


def test_prompt_over_all_pages_is_too_long():
    driver = Driver(page_tokens=4, num_pages=4)
    driver.open(0, [1] * 15)
    with pytest.raises(Refusal, match="16 tokens, the target takes 15") as refusal:
        driver.open(1, [1] * 16)
    assert refusal.value.code == "prompt_too_long"


def test_answer_that_has_outgrown_another_server_is_not_told_to_shorten_its_prompt():
    driver = Driver(page_tokens=4, num_pages=4)
    with pytest.raises(Refusal, match="prompt and answer have 16 tokens by now, this server takes 15") as refusal:
        driver.open(0, [1] * 3, answer=[2] * 13)
    assert refusal.value.code == "prompt_too_long"
    with pytest.raises(Refusal, match="shorten the prompt"):
        driver.open(0, [1] * 16, answer=[2])


def test_text_that_outgrows_all_pages_is_out_of_memory():
    driver = Driver(page_tokens=4, num_pages=4, vocab_size=2000)
    right = driver.target.plain_answer(PROMPT, SAMPLED, 20)
    driver.open()
    text = PROMPT + driver.round(PROMPT, right[:9]).tokens
    assert len(text) == 13
    text += driver.round(text, right[10:14]).tokens  # drafts beyond the last page are cut
    assert text == PROMPT + right[: len(text) - 3]
    assert len(text) == 17
    for attempt in (driver.ask, driver.stream):
        with pytest.raises(Refusal, match="another server") as refusal:
            attempt(text)
        assert refusal.value.code == "out_of_memory"


def test_stream_that_outgrows_all_pages_is_refused_after_its_last_part():
    driver = Driver(page_tokens=4, num_pages=4, vocab_size=2000)
    driver.open()
    driver.stream(PROMPT)
    *parts, last = driver.parts()
    assert [token for part in parts for token in part.verdict.tokens] == driver.target.plain_answer(PROMPT, SAMPLED, 14)
    assert (last.refusal.code, last.last, last.tickets) == ("out_of_memory", True, ["s"])
    assert driver.server.idle


def test_session_closed_during_its_forward_keeps_its_pages_until_the_end():
    driver = Driver()
    driver.open()
    driver.ask(PROMPT)
    step = driver.server.next_step(now=0.0)
    assert driver.server.close("me", session_id()) == ["t"]
    assert driver.server.gauges().pages_held == 1
    driver.open()  # the same id again, meanwhile
    assert driver.compute(step) == []
    assert driver.server.gauges().pages_held == 0
    assert driver.round(PROMPT).tokens == driver.target.plain_answer(PROMPT, SAMPLED, 1)


def test_numbers_that_are_none_cost_their_own_round_and_pages_only():
    driver = Driver(page_tokens=2)
    driver.open(0)
    driver.open(1, [8, 9, 10], owner="you")
    driver.parts()
    driver.ask(PROMPT, number=0, ticket="bad")
    driver.ask([8, 9, 10], number=1, owner="you", ticket="good")
    step = driver.server.next_step(now=0.0)
    answers = driver.server.complete(step, [Decision(0, 0, finite=False), Decision(0, 7)], now=0.0)
    assert [(answer.tickets, answer.verdict.tokens) for answer in answers] == [(["bad"], []), (["good"], [7])]
    assert answers[0].refusal.code == "target_failed"
    assert "not-a-number" in answers[0].refusal.detail
    assert answers[1].refusal is None
    gauges = driver.server.gauges()
    assert (gauges.pages_held, gauges.pages_cached) == (2, 0), "its pages are not found again"
    assert driver.round(PROMPT).tokens == driver.target.plain_answer(PROMPT, SAMPLED, 1)


def test_text_that_fails_until_it_is_forgotten_leaves_nothing_to_be_found():
    driver = Driver(ServerLimits(batch_tokens=16, prefill_beside_rounds=16), page_tokens=4)
    driver.open(0, LONG)
    for _ in range(3):
        driver.ask(LONG)
        for _ in range(100):
            step = driver.server.next_step(now=0.0)
            if any(step.verify):
                break
            driver.compute(step)
        assert driver.server.fail(step) == ["t"]
    assert not driver.server.sessions
    gauges = driver.server.gauges()
    assert (gauges.pages_held, gauges.pages_cached) == (0, 0), "what was computed is not trusted"


def test_forward_out_of_memory_gives_all_pages_back():
    driver = Driver()
    for number in range(3):
        driver.open(number, owner=str(number))
        driver.ask(PROMPT, number=number, owner=str(number), ticket=str(number))
    parts = driver.server.isolate(driver.server.next_step(now=0.0))
    assert driver.server.fail(parts[0], "out_of_memory") == ["0"]
    assert [answer.tickets for part in parts[1:] for answer in driver.compute(part)] == [["1"], ["2"]]
    assert driver.server.totals.failed_steps == {"out_of_memory": 1}
    assert driver.server.gauges().pages_held == 2


def test_evicted_session_whose_text_is_still_there_does_not_queue_behind_long_prompts():
    driver = Driver(ServerLimits(batch_tokens=64, prefill_beside_rounds=8), page_tokens=8)
    driver.open(0, LONG)
    driver.parts()
    driver.server._agenda.evict(driver.server.sessions[session_id(0)])
    driver.open(1, [2] * 2000, owner="you")
    driver.ask([2] * 2000, number=1, owner="you")
    driver.ask(LONG, number=0)
    assert driver.step()[0][1].tokens == driver.target.plain_answer(LONG, SAMPLED, 1)
