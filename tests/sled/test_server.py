"""The server machine against a target that checks every chunk it is given."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sled.messages import Open
from sled.server import Refusal, ServerLimits
from sled.types import Sampling
from tests.sled.driving import PROMPT, SAMPLED, Driver, session_id


def test_round_hand_worked():
    driver = Driver()
    right = driver.target.plain_answer(PROMPT, SAMPLED, 4)
    driver.open()
    wrong = (right[1] + 1) % 50
    verdict = driver.round(PROMPT, [right[0], wrong, right[2]])
    assert verdict.tokens == right[:2]  # one draft accepted, then the target's own token
    assert verdict.accepted == 1
    verdict = driver.round(PROMPT + right[:2], right[2:3])
    assert verdict.tokens == right[2:4]  # all accepted, and the bonus token
    assert verdict.accepted == 1


@settings(max_examples=60, deadline=None)
@given(data=st.data(), temperature=st.sampled_from([0.0, 0.8]), seed=st.integers(0, 2**64 - 1))
def test_any_drafts_give_the_plain_answer(data, temperature, seed):
    """Whatever several devices draft, and however their rounds meet in a batch, each gets the target's own answer."""
    sampling = Sampling(temperature=temperature, seed=seed)
    driver = Driver()
    prompts = [data.draw(st.lists(st.integers(1, 49), min_size=1, max_size=20)) for _ in range(3)]
    right = [driver.target.plain_answer(p, sampling, 12) for p in prompts]
    texts = [list(p) for p in prompts]
    for number, prompt in enumerate(prompts):
        driver.open(number, prompt, sampling)
    for _ in range(60):
        open_ones = [n for n in range(3) if len(texts[n]) < len(prompts[n]) + len(right[n])]
        if not open_ones:
            break
        asking = data.draw(st.lists(st.sampled_from(open_ones), min_size=1, unique=True))
        for n in asking:
            left = right[n][len(texts[n]) - len(prompts[n]) :]
            good = data.draw(st.integers(0, min(len(left), 5)))
            junk = data.draw(st.lists(st.integers(0, 49), max_size=4))
            driver.ask(texts[n], left[:good] + junk, n, ticket=str(n))
        done = 0
        while done < len(asking):
            for tickets, verdict in driver.step():
                texts[int(tickets[0])] += verdict.tokens
                done += 1
    for n in range(3):
        answer = texts[n][len(prompts[n]) :]
        assert answer[: len(right[n])] == right[n]


def test_all_waiting_rounds_share_one_forward():
    driver = Driver()
    for n in range(8):
        driver.open(n)
        assert driver.ask(PROMPT, [1] * n, n, ticket=str(n)) is None
    answers = driver.step()
    assert [a[0] for a in answers] == [[str(n)] for n in range(8)]
    assert {a[1].batch for a in answers} == {8}
    assert len(driver.target.steps) == 1


def test_rounds_feed_only_new_tokens():
    """The cache is kept between rounds: a round costs its draft and one token, not the text again."""
    driver = Driver()
    text = list(range(1, 40))
    driver.open(prompt=text)
    text += driver.round(text).tokens
    text += driver.round(text, [1, 2]).tokens
    driver.round(text, [3])
    assert [len(step[0].tokens) for step in driver.target.steps[1:]] == [3, 2]


def test_repeated_round_gets_the_same_verdict():
    driver = Driver()
    driver.open()
    first = driver.round(PROMPT, [1, 2])
    assert driver.ask(PROMPT, [1, 2]) == first
    assert driver.ask(PROMPT, [3]) == first  # another draft, the same text: the same answer
    assert driver.server.next_step(now=0.0) is None


def test_retry_while_waiting_joins_the_round():
    driver = Driver()
    driver.open()
    driver.ask(PROMPT, [1], ticket="a")
    driver.ask(PROMPT, [1], ticket="b")
    answers = driver.steps()
    assert [a[0] for a in answers] == [["a", "b"]]


def test_stale_base_names_committed_length():
    driver = Driver()
    driver.open()
    text = PROMPT + driver.round(PROMPT).tokens
    text += driver.round(text).tokens
    with pytest.raises(Refusal) as refusal:
        driver.ask(PROMPT)
    assert (refusal.value.code, refusal.value.info) == ("stale_base", len(text))


def test_round_ahead_of_the_text_is_refused():
    driver = Driver()
    driver.open()
    with pytest.raises(Refusal) as refusal:
        driver.ask([*PROMPT, 1])
    assert (refusal.value.code, refusal.value.info) == ("stale_base", len(PROMPT))


def test_another_text_is_refused():
    driver = Driver()
    driver.open()
    with pytest.raises(Refusal, match="differs"):
        driver.ask([5, 6, 8])


def test_session_of_another_owner_is_unknown():
    driver = Driver()
    driver.open()
    for attempt in (
        lambda: driver.ask(PROMPT, owner="you"),
        lambda: driver.server.close("you", session_id()),
    ):
        with pytest.raises(Refusal) as refusal:
            attempt()
        assert refusal.value.code == "session_unknown"


def test_open_twice_changes_nothing_and_other_text_is_refused():
    driver = Driver()
    assert driver.open() == driver.open()
    with pytest.raises(Refusal) as refusal:
        driver.open(prompt=[9])
    assert refusal.value.code == "session_exists"


def test_reopened_session_goes_on_with_the_same_answer():
    driver = Driver()
    right = driver.target.plain_answer(PROMPT, SAMPLED, 8)
    driver.open(1, answer=right[:5])
    assert driver.round(PROMPT + right[:5], number=1).tokens == right[5:6]


@pytest.mark.parametrize("answer", [[], [4]])
def test_an_answer_to_no_prompt_is_refused(answer):
    with pytest.raises(Refusal, match="the prompt is empty"):
        Driver().open(prompt=[], answer=answer)


def test_answer_ends_at_the_stop_token():
    driver = Driver(vocab_size=4)
    right = driver.target.plain_answer([3], SAMPLED, 200)
    assert right[-1] == 0
    driver.open(prompt=[3])
    text = [3]
    while len(text) < len(right):  # up to where only the stop token is left
        text += driver.round(text, right[len(text) - 1 : -1][:8]).tokens
    if len(text) == len(right):
        verdict = driver.round(text, [0, 1, 2])
        assert (verdict.tokens, verdict.accepted, verdict.finish) == ([0], 1, "stop")
        text += verdict.tokens
    assert text == [3, *right]
    again = driver.ask(text)
    assert again is not None
    assert (again.tokens, again.finish) == ([], "stop")
    assert driver.server.next_step(now=0.0) is None


def test_drafts_beyond_the_stop_token_are_not_counted_as_accepted():
    """The stop token was drafted, and so was what the model would say after it."""
    driver = Driver(vocab_size=4)
    right = driver.target.plain_answer([3], SAMPLED, 200)
    start = [3, *right[:-1]]
    driver.open(1, prompt=start)
    after = driver.target.plain_answer([*start, 0], SAMPLED, 1)
    verdict = driver.round(start, [0, *after], number=1)
    assert (verdict.tokens, verdict.accepted, verdict.finish) == ([0], 1, "stop")


def test_reopened_finished_answer_stays_finished():
    driver = Driver(vocab_size=4)
    right = driver.target.plain_answer([3], SAMPLED, 200)
    driver.open(prompt=[3], answer=right)
    verdict = driver.ask([3, *right])
    assert verdict is not None
    assert verdict.finish == "stop"


def test_reopened_session_that_is_behind_catches_up():
    """The device went on at another server and came back."""
    driver = Driver()
    right = driver.target.plain_answer(PROMPT, SAMPLED, 8)
    driver.open()
    assert driver.round(PROMPT).tokens == right[:1]
    driver.open(answer=right[:6])
    assert driver.round(PROMPT + right[:6]).tokens == right[6:7]


@pytest.mark.parametrize("change", [{"sampling": Sampling()}, {"owner": "you"}])
def test_open_of_a_taken_id_with_other_sampling_or_owner_is_refused(change):
    driver = Driver()
    driver.open()
    with pytest.raises(Refusal) as refusal:
        driver.open(**change)
    assert refusal.value.code == "session_exists"


def test_open_for_another_target_is_refused():
    driver = Driver()
    message = Open(session_id(), SAMPLED, PROMPT, False, [], b"another")
    with pytest.raises(Refusal) as refusal:
        driver.server.open("me", message, PROMPT, now=0.0)
    assert refusal.value.code == "target_changed"


def test_repeated_round_with_another_text_is_refused():
    driver = Driver()
    driver.open()
    driver.round(PROMPT)
    with pytest.raises(Refusal) as refusal:
        driver.ask([5, 6, 8])
    assert refusal.value.code == "prefix_mismatch"


def test_rounds_keep_a_session_from_expiring():
    driver = Driver(ServerLimits(idle_s=10))
    driver.open(now=0.0)
    driver.ask(PROMPT, now=9.0)
    driver.steps()
    driver.server.expire(now=15.0)
    assert session_id() in driver.server.sessions
    driver.open(1, now=30.0)  # opening looks for idle ones too
    assert session_id() not in driver.server.sessions


def test_rounds_nobody_waits_for_are_not_computed():
    driver = Driver()
    driver.open()
    driver.step()
    driver.ask(PROMPT, ticket="gone")
    driver.ask(PROMPT, ticket="there")
    driver.server.withdraw(lambda ticket: ticket == "gone")
    assert driver.steps()[0][0] == ["there"]
    driver.ask(driver.server.sessions[session_id()].history.tokens, ticket="gone")
    driver.server.withdraw(lambda ticket: ticket == "gone")
    assert driver.server.next_step(now=0.0) is None


def test_context_end_finishes_with_length():
    driver = Driver(max_positions=6)
    right = driver.target.plain_answer(PROMPT, SAMPLED, 3)
    assert 0 not in right
    driver.open()
    verdict = driver.round(PROMPT, [*right, 1, 1, 1])
    assert verdict.tokens == right
    assert verdict.finish == "length"


@pytest.mark.parametrize(("prompt", "code"), [([], "invalid"), ([1] * 4096, "prompt_too_long"), ([50], "invalid")])
def test_bad_prompt_is_refused(prompt, code):
    with pytest.raises(Refusal) as refusal:
        Driver().open(prompt=prompt)
    assert refusal.value.code == code


@pytest.mark.parametrize(("draft", "code"), [([50], "invalid"), ([1] * 17, "window_too_long")])
def test_bad_draft_is_refused_and_the_session_lives(draft, code):
    driver = Driver()
    driver.open()
    with pytest.raises(Refusal) as refusal:
        driver.ask(PROMPT, draft)
    assert refusal.value.code == code
    assert driver.round(PROMPT).tokens == driver.target.plain_answer(PROMPT, SAMPLED, 1)


def test_too_many_sessions_are_refused():
    driver = Driver(ServerLimits(max_sessions=3, max_sessions_per_owner=2))
    driver.open(0)
    driver.open(1)
    with pytest.raises(Refusal, match="close one or wait"):
        driver.open(2)
    driver.open(3, owner="you")
    with pytest.raises(Refusal):
        driver.open(4, owner="she")
    driver.server.close("me", session_id(0))
    driver.open(4, owner="she")


def test_idle_sessions_are_forgotten_and_waiting_ones_kept():
    driver = Driver(ServerLimits(idle_s=10))
    driver.open(0)
    driver.open(1)
    driver.ask(PROMPT, number=1)
    driver.server.expire(now=11.0)
    assert list(driver.server.sessions) == [session_id(1)]


def test_cache_over_budget_is_dropped_and_computed_again():
    driver = Driver(page_tokens=4, num_pages=15)
    texts = {n: [n + 1, *range(1, 29)] for n in range(3)}
    right = {n: driver.target.plain_answer(text, SAMPLED, 4) for n, text in texts.items()}
    for n in range(3):
        driver.open(n, texts[n], now=float(n))
        texts[n] += driver.round(texts[n], number=n).tokens
    assert driver.server.totals.evictions
    for _ in range(3):
        for n in range(3):
            texts[n] += driver.round(texts[n], number=n).tokens
    assert all(texts[n][29:] == right[n] for n in range(3))


def test_long_prompt_does_not_hold_up_rounds():
    """While 2,000 tokens are prefilled in pieces, another session's rounds go on with every step."""
    driver = Driver(ServerLimits(batch_tokens=100, prefill_beside_rounds=50))
    driver.open(0)
    text = PROMPT + driver.round(PROMPT).tokens
    driver.open(1, [1] * 2000)
    for _ in range(10):
        assert driver.ask(text) is None
        answers = driver.step()
        assert len(answers) == 1
        assert sum(len(chunk.tokens) for chunk in driver.target.steps[-1]) <= 51
        text += answers[0][1].tokens


def test_every_round_is_verified_when_rounds_exceed_the_budget():
    driver = Driver(ServerLimits(batch_tokens=10))
    for n in range(8):
        driver.open(n)
        driver.ask(PROMPT, [1, 1, 1], n, ticket=str(n))
    answered = []
    for _ in range(8):
        answered += [tickets[0] for tickets, _ in driver.step()]
    assert sorted(answered) == [str(n) for n in range(8)]
    assert answered == sorted(answered)  # in order of arrival


def test_failed_forward_gives_up_rounds_and_keeps_sessions():
    driver = Driver()
    right = driver.target.plain_answer(PROMPT, SAMPLED, 3)
    driver.open()
    text = PROMPT + driver.round(PROMPT).tokens
    driver.ask(text, [1], ticket="a")
    step = driver.server.next_step(now=0.0)
    assert driver.server.fail(step) == ["a"]
    assert driver.server.gauges().pages_held + driver.server.gauges().pages_cached == 0
    assert driver.server.next_step(now=0.0) is None, "a text that made the forward fail is not tried unasked"
    assert driver.round(text).tokens == right[1:2]


def test_session_that_keeps_failing_is_forgotten_and_others_are_served():
    driver = Driver()
    driver.open(0)
    driver.open(1, owner="you")
    driver.step()
    driver.ask(PROMPT, ticket="bad")
    driver.ask(PROMPT, number=1, owner="you", ticket="good")
    parts = driver.server.isolate(driver.server.next_step(now=0.0))
    assert [len(part.chunks) for part in parts] == [1, 1]
    assert driver.server.fail(parts[0]) == ["bad"]
    (answer,) = driver.compute(parts[1])
    assert answer.tickets == ["good"]
    for _ in range(2):
        driver.ask(PROMPT, ticket="bad")
        driver.server.fail(driver.server.next_step(now=0.0))
    with pytest.raises(Refusal) as refusal:
        driver.ask(PROMPT)
    assert refusal.value.code == "session_unknown"


def test_failures_count_only_in_a_row():
    """A long answer may meet passing faults; only a text that always fails is given up."""
    driver = Driver()
    driver.open()
    text = list(PROMPT)
    for _ in range(5):
        driver.ask(text, ticket="unlucky")
        step = driver.server.next_step(now=0.0)
        assert driver.server.fail(step) == ["unlucky"]
        text += driver.round(text).tokens
    assert text[3:] == driver.target.plain_answer(PROMPT, SAMPLED, 5)


def test_stopping_server_gives_back_all_tickets_and_caches():
    driver = Driver()
    driver.open(0)
    driver.open(1)
    driver.ask(PROMPT, ticket="a")
    assert driver.server.give_up() == ["a"]
    assert driver.server.gauges().pages_held == 0
    assert driver.server.next_step(now=0.0) is None
