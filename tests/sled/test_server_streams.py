"""Decode streams: the server decodes on its own, and the device can lose parts, stop, and draft again."""

from __future__ import annotations

import pytest

from sled.acceptance import Decision
from sled.messages import MAX_WINDOW
from sled.server import FixedWindow, Refusal
from sled.types import Logprob, Sampling, Terms
from tests.sled.driving import PROMPT, SAMPLED, Driver, session_id


class Moody(FixedWindow):
    """A limit that a test sets."""

    def set(self, limit):
        self._limit = limit


def told(answers):
    return [token for answer in answers for token in answer.verdict.tokens]


def test_stream_decodes_a_token_a_step_until_its_end():
    driver = Driver()
    right = driver.target.plain_answer(PROMPT, SAMPLED, 5)
    driver.open()
    driver.stream(PROMPT, max_tokens=5)
    answers = driver.parts()
    assert [answer.verdict.tokens for answer in answers] == [[token] for token in right]
    assert [answer.verdict.base for answer in answers] == [3, 4, 5, 6, 7]
    assert [answer.last for answer in answers] == [False] * 4 + [True]
    assert {(answer.verdict.finish, answer.verdict.accepted) for answer in answers} == {("", 0)}
    assert driver.server.idle
    assert driver.round(PROMPT + right).tokens == driver.target.plain_answer(PROMPT, SAMPLED, 6)[5:]


def test_stream_ends_with_the_answer():
    driver = Driver(vocab_size=4)
    right = driver.target.plain_answer([3], SAMPLED, 200)
    driver.open(prompt=[3])
    driver.stream([3])
    answers = driver.parts()
    assert told(answers) == right
    assert (answers[-1].verdict.finish, answers[-1].last) == ("stop", True)
    driver.stream([3, *right], ticket="again")
    (answer,) = driver.server.take_answers()
    assert (answer.tickets, answer.verdict.tokens, answer.verdict.finish, answer.last) == (["again"], [], "stop", True)


def test_streams_and_rounds_share_forwards():
    driver = Driver()
    driver.open(0)
    driver.open(1, owner="you")
    driver.step()
    driver.stream(PROMPT, 0)
    driver.ask(PROMPT, [1, 2], 1, owner="you")
    driver.step()
    assert [len(chunk.tokens) for chunk in driver.target.steps[-1]] == [1, 3]


def test_paused_stream_is_not_decoded_and_others_are():
    driver = Driver()
    driver.open(0)
    driver.open(1)
    driver.stream(PROMPT, 0, ticket="slow", max_tokens=3)
    driver.server.pause("slow")
    driver.stream(PROMPT, 1, ticket="fast", max_tokens=3)
    assert {answer.tickets[0] for answer in driver.parts()} == {"fast"}
    assert not driver.server.idle
    driver.server.resume("slow")
    assert told(driver.parts()) == driver.target.plain_answer(PROMPT, SAMPLED, 3)


def test_lost_parts_are_told_again_in_parts_of_bounded_size():
    driver = Driver(vocab_size=2000)
    right = driver.target.plain_answer(PROMPT, SAMPLED, 150)
    assert 0 not in right
    driver.open()
    driver.stream(PROMPT, max_tokens=140)
    driver.parts()
    text = PROMPT + right[:2]
    verdict = driver.ask(text, right[2:4])  # by a round, or by a stream
    assert (verdict.tokens, verdict.accepted) == (right[2 : 2 + MAX_WINDOW + 1], 2)
    driver.stream(text, max_tokens=148)
    answers = driver.parts()
    assert [len(answer.verdict.tokens) for answer in answers] == [65, 65, 8] + [1] * 10
    assert told(answers) == right[2:150]


def test_stream_before_the_last_stretch_is_stale():
    driver = Driver()
    right = driver.target.plain_answer(PROMPT, SAMPLED, 9)
    driver.open()
    text = PROMPT + driver.round(PROMPT).tokens
    text += driver.round(text).tokens
    with pytest.raises(Refusal) as refusal:
        driver.stream(PROMPT)
    assert (refusal.value.code, refusal.value.info) == ("stale_base", len(text))
    driver.stream(PROMPT + right[:1], max_tokens=3)  # the last round's verdict was lost, say
    assert told(driver.parts()) == right[1:4]


def test_stream_with_another_text_or_owner_is_refused():
    driver = Driver()
    driver.open()
    for text, owner, code in (([5, 6, 8], "me", "prefix_mismatch"), (PROMPT, "you", "session_unknown")):
        with pytest.raises(Refusal) as refusal:
            driver.stream(text, owner=owner)
        assert refusal.value.code == code
    assert driver.server.idle


def test_round_ends_the_stream_where_it_is():
    driver = Driver()
    driver.open()
    driver.stream(PROMPT)
    text = PROMPT + told(driver.compute(driver.server.next_step(now=0.0)))
    driver.ask(text, ticket="round")
    answers = driver.parts()
    assert [(answer.tickets, answer.verdict.tokens == [], answer.last) for answer in answers] == [
        (["s"], True, True),
        (["round"], False, True),
    ]


def test_round_that_arrives_during_the_streams_forward_gets_its_token():
    driver = Driver()
    right = driver.target.plain_answer(PROMPT, SAMPLED, 2)
    driver.open()
    driver.stream(PROMPT)
    step = driver.server.next_step(now=0.0)
    driver.ask(PROMPT, right, ticket="round")
    answers = driver.compute(step)
    assert [answer.tickets for answer in answers] == [["s"], ["round"]]
    assert (answers[1].verdict.tokens, answers[1].verdict.accepted) == (right[:1], 1)


def test_second_stream_takes_over_from_the_first():
    driver = Driver()
    driver.open()
    driver.stream(PROMPT, ticket="first")
    driver.stream(PROMPT, ticket="second", max_tokens=2)
    answers = driver.parts()
    assert [(answer.tickets[0], answer.last) for answer in answers] == [
        ("first", True), ("second", False), ("second", True),
    ]  # fmt: skip


def test_stream_ends_when_drafting_pays_again():
    policy = Moody(0)
    driver = Driver(policy=policy)
    assert driver.open().window_limit == 0
    driver.stream(PROMPT)
    assert not driver.compute(driver.server.next_step(now=0.0))[-1].last
    policy.set(3)
    answers = driver.parts()
    assert [(answer.verdict.tokens == [], answer.verdict.window_limit, answer.last) for answer in answers] == [
        (False, 3, False),
        (True, 3, True),
    ]


def test_device_that_may_draft_and_does_not_is_not_sent_back():
    driver = Driver()
    driver.open()
    driver.stream(PROMPT, max_tokens=10)
    assert len(driver.parts()) == 10


def test_withdrawn_and_closed_streams_are_over():
    driver = Driver()
    driver.open(0)
    driver.open(1)
    driver.stream(PROMPT, 0, ticket="gone")
    driver.stream(PROMPT, 1, ticket="closed")
    driver.server.withdraw(lambda ticket: ticket == "gone")
    assert driver.server.close("me", session_id(1)) == ["closed"]
    assert driver.parts() == []
    assert driver.server.idle


def test_stream_keeps_its_session_from_expiring():
    driver = Driver()
    driver.open()
    driver.stream(PROMPT)
    driver.server.expire(now=1e6)
    assert list(driver.server.sessions) == [session_id()]


def test_logprobs_go_along_and_are_told_again():
    driver = Driver()
    driver.open(terms=Terms(logprobs=1), sampling=Sampling())
    driver.stream(PROMPT, max_tokens=3)
    told_first = []
    for number in range(3):
        step = driver.server.next_step(now=0.0)
        assert step.rounds[0].num_logprobs == 1
        decision = Decision(0, 7 + number, logprobs=(Logprob(-0.5 - number, [(7, -0.5)]),))
        told_first += driver.server.complete(step, [decision], now=0.0)
    assert [answer.verdict.logprobs[0].value for answer in told_first] == [-0.5, -1.5, -2.5]
    verdict = driver.ask([*PROMPT, 7])
    assert (verdict.tokens, [entry.value for entry in verdict.logprobs]) == ([8, 9], [-1.5, -2.5])


def test_text_taken_up_further_on_during_the_streams_forward_stands():
    """What the forward decides is for a text that is behind: the device has those tokens from elsewhere."""
    driver = Driver()
    right = driver.target.plain_answer(PROMPT, SAMPLED, 8)
    driver.open()
    driver.stream(PROMPT, max_tokens=8)
    step = driver.server.next_step(now=0.0)
    driver.open(answer=right[:5])
    answers = [*driver.compute(step), *driver.parts()]
    assert told(answers) == right


def test_logprobs_of_a_token_computed_for_a_stream_given_up_meanwhile_are_told_again_with_those_before_it():
    driver = Driver()
    driver.open(terms=Terms(logprobs=1), sampling=Sampling())
    driver.stream(PROMPT, max_tokens=9, ticket="gone")
    for number in range(3):
        step = driver.server.next_step(now=0.0)
        if number == 2:
            driver.server.withdraw(lambda ticket: ticket == "gone")
        decision = Decision(0, 7 + number, logprobs=(Logprob(-0.5 - number, [(7, -0.5)]),))
        driver.server.complete(step, [decision], now=0.0)
    verdict = driver.ask([*PROMPT, 7])
    assert (verdict.tokens, [entry.value for entry in verdict.logprobs]) == ([8, 9], [-1.5, -2.5])
