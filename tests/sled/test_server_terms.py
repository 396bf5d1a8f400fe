"""When an answer ends, what it must look like, and what goes along to the target."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sled.acceptance import Decision
from sled.server import Refusal
from sled.types import Constraint, Sampling, SparseLaw, Terms
from tests.sled.driving import PROMPT, SAMPLED, Driver
from tests.sled.world import right_answer

FORMED = Sampling(temperature=1.0, seed=9, constraint=Constraint("regex", "a"))


def run(driver, text, right, windows) -> tuple[list[int], str]:
    """The answer with windows of these sizes in turn, all drafts right."""
    answer = []
    for number in range(100):
        window = windows[number % len(windows)]
        verdict = driver.round(text + answer, right[len(answer) :][:window])
        answer += verdict.tokens
        assert verdict.accepted <= len(verdict.tokens)
        if verdict.finish:
            return answer, verdict.finish
    raise AssertionError("no end")


def test_answer_ends_at_max_tokens():
    driver = Driver()
    right = driver.target.plain_answer(PROMPT, SAMPLED, 9)
    driver.open(terms=Terms(max_tokens=6))
    assert run(driver, PROMPT, right, [4]) == (right[:6], "length")
    verdict = driver.ask(PROMPT + right[:6])
    assert (verdict.tokens, verdict.finish) == ([], "length")


def test_stop_text_over_two_tokens_hand_worked():
    driver = Driver()
    right = driver.target.plain_answer(PROMPT, SAMPLED, 9)
    stop = f"{right[3]}><{right[4]}"  # the toy's tokens read <7><12>
    driver.open(terms=Terms(stop=("never", stop)))
    assert run(driver, PROMPT, right, [8]) == (right[:5], "stop")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=4), st.integers(0, 50), st.integers(0, 12), st.booleans())
def test_windows_do_not_matter_for_the_end(windows, seed, max_tokens, takeover):
    driver, sampling = Driver(vocab_size=12), Sampling(temperature=1.0, seed=seed)
    terms = Terms(max_tokens=max_tokens, stop=(f"<{1 + seed % 11}>", f"{1 + seed % 7}><{1 + seed % 5}>"))
    right, finish = right_answer(driver.target, PROMPT, sampling, terms)
    driver.open(terms=terms, sampling=sampling)
    assert run(driver, PROMPT, driver.target.plain_answer(PROMPT, sampling, 100), windows) == (right, finish)
    if takeover and len(right) > 1:  # in the middle of a stop text, maybe
        half = len(right) // 2
        driver.open(1, terms=terms, sampling=sampling, answer=right[:half])
        verdict = driver.ask(PROMPT + right[:half], right[half:][:8], 1) or driver.steps()[0][1]
        assert verdict.tokens == right[half : half + len(verdict.tokens)]


def test_finished_answer_that_is_opened_again_is_finished():
    driver = Driver()
    right = driver.target.plain_answer(PROMPT, SAMPLED, 4)
    for number, terms in enumerate((Terms(max_tokens=4), Terms(stop=(f"<{right[3]}>",)))):
        driver.open(number, terms=terms, answer=right)
        assert driver.ask(PROMPT + right, number=number).finish == ("length", "stop")[number]


def test_stop_texts_without_the_tokens_bytes_are_refused():
    driver = Driver()
    object.__setattr__(driver.server.shape, "pieces", ())
    with pytest.raises(Refusal, match="bytes"):
        driver.open(terms=Terms(stop=("x",)))


def test_bias_of_a_token_outside_the_vocabulary_is_refused():
    with pytest.raises(Refusal, match="vocabulary of 50"):
        Driver().open(sampling=Sampling(bias=((50, 1.0),)))


def test_open_again_with_other_terms_is_refused():
    driver = Driver()
    driver.open(terms=Terms(max_tokens=5))
    with pytest.raises(Refusal) as refusal:
        driver.open(terms=Terms(max_tokens=6))
    assert refusal.value.code == "session_exists"


def test_text_so_far_goes_along_for_penalties():
    driver = Driver()
    driver.open()
    text = PROMPT + driver.round(PROMPT).tokens
    driver.ask(text, [1, 2])
    (rows,) = driver.server.next_step(now=0.0).rounds
    assert (list(rows.text), rows.num_prompt, rows.position, rows.draft) == (text, 3, 4, (1, 2))


class Even:
    """A form of even tokens that is finished after so many."""

    def __init__(self, constraint, length=4):
        self.left, self.committed = length, []

    @property
    def finished(self):
        return self.left <= 0

    def allowed(self, draft):
        if 13 in draft:
            raise RuntimeError("an unlucky\nnumber")
        return np.full((len(draft) + 1, 2), 0x55555555, np.uint32)

    def commit(self, tokens):
        for token in tokens:
            if token % 2:
                raise ValueError(f"{token} is odd")
            self.committed.append(token)
            self.left -= 1


def test_form_is_committed_with_what_is_committed_and_ends_the_answer():
    driver = Driver(form_of=Even)
    driver.open(sampling=FORMED)
    driver.ask(PROMPT, [2, 4, 6])
    step = driver.server.next_step(now=0.0)
    assert step.rounds[0].allowed.shape == (4, 2)
    (answer,) = driver.server.complete(step, [Decision(1, 8)], now=0.0)
    form = driver.server.sessions[bytes(8)].form
    assert (answer.verdict.tokens, form.committed) == ([2, 8], [2, 8])
    driver.ask([*PROMPT, 2, 8], [10, 12, 14])
    (answer,) = driver.server.complete(driver.server.next_step(now=0.0), [Decision(3, 16)], now=0.0)
    assert (answer.verdict.tokens, answer.verdict.accepted, answer.verdict.finish) == ([10, 12], 2, "stop")


def test_form_goes_on_from_a_taken_over_answer():
    driver = Driver(form_of=Even)
    driver.open(sampling=FORMED, answer=[2, 4, 6])
    driver.ask([*PROMPT, 2, 4, 6])
    (answer,) = driver.server.complete(driver.server.next_step(now=0.0), [Decision(0, 8)], now=0.0)
    assert answer.verdict.finish == "stop"
    with pytest.raises(Refusal, match="breaks its form: 3 is odd"):
        driver.open(1, sampling=FORMED, answer=[2, 3])


def test_constraint_that_cannot_be_is_refused_with_its_reason():
    def form_of(constraint):
        raise ValueError("unbalanced\nparenthesis")

    with pytest.raises(Refusal, match="unbalanced parenthesis"):
        Driver(form_of=form_of).open(sampling=FORMED)
    with pytest.raises(Refusal, match="takes no constraints"):
        Driver().open(sampling=FORMED)


def test_form_that_fails_costs_its_own_round_only():
    driver = Driver(form_of=Even)
    driver.open(0, sampling=FORMED)
    driver.open(1, owner="you")
    driver.ask(PROMPT, [13], 0, ticket="bad")
    driver.ask(PROMPT, [13], 1, owner="you", ticket="good")
    step = driver.server.next_step(now=0.0)
    answers = driver.server.complete(step, [Decision(0, 2), Decision(0, 2)], now=0.0)
    assert [(answer.tickets, answer.refusal and answer.refusal.code) for answer in answers] == [
        (["bad"], "target_failed"),
        (["good"], None),
    ]
    assert "unlucky number" in answers[0].refusal.detail


def test_drafts_that_are_too_much_work_for_a_form_are_left_out():
    """The answer goes on with those before them, and is the same."""
    from sled.errors import FormBroken

    class Costly(Even):
        def allowed(self, draft):
            if len(draft) > 2:
                raise FormBroken("too much work", 2)
            return super().allowed(draft)

    driver, right = Driver(form_of=Even), []
    driver.open(sampling=FORMED)
    for _ in range(4):
        right += driver.round(PROMPT + right).tokens
    costly = Driver(form_of=Costly)
    costly.open(sampling=FORMED)
    assert costly.round(PROMPT, right[:4]).tokens == right[:3]  # two drafts, and the token after them


def test_target_that_breaks_the_form_is_told_so():
    driver = Driver(form_of=Even)
    driver.open(sampling=FORMED)
    driver.ask(PROMPT)
    (answer,) = driver.server.complete(driver.server.next_step(now=0.0), [Decision(0, 3)], now=0.0)
    assert answer.refusal.code == "target_failed"
    assert driver.server.gauges().pages_held == 0


def law(*laws) -> SparseLaw:
    ids, probabilities = zip(*(pair for each in laws for pair in each), strict=True) if any(laws) else ((), ())
    return SparseLaw(
        [len(each) for each in laws],
        np.array(ids, "<i4").tobytes(),
        np.array(probabilities, "<f4").tobytes(),
    )


REJECTION = Sampling(temperature=1.0, rule="rejection")
GOOD = [(1, 0.25), (4, 0.75)]


def test_law_goes_along_with_its_drafts_and_is_cut_with_them():
    driver = Driver()
    driver.open(sampling=REJECTION, terms=Terms(max_tokens=2))
    assert driver.ask(PROMPT, [4, 1], law=law(GOOD, [(1, 1.0)])) is None
    (rows,) = driver.server.next_step(now=0.0).rounds
    assert (rows.draft, rows.law) == ((4,), law(GOOD))


def test_law_of_a_coupled_session_is_left_out():
    driver = Driver()
    driver.open()
    driver.ask(PROMPT, [4], law=law([(7, 1.0)]))
    assert driver.server.next_step(now=0.0).rounds[0].law is None


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (law(GOOD), "one for each draft"),
        (law(GOOD, GOOD, GOOD), "one for each draft"),
        (SparseLaw([2, 2], law(GOOD).ids, law(GOOD).probabilities), "32 bytes|16 bytes"),
        (SparseLaw([2, 1], law(GOOD).ids + b"123", law(GOOD).probabilities), "12 bytes"),
        (law(GOOD, [(4, 0.5), (1, 0.5)]), "rise"),
        (law(GOOD, [(4, 0.5), (4, 0.5)]), "rise"),
        (law(GOOD, [(4, 0.5), (50, 0.5)]), "rise within 0 .. 49"),
        (law(GOOD, [(-1, 0.5), (4, 0.5)]), "rise within"),
        (law(GOOD, [(4, float("nan"))]), "above 0 and finite"),
        (law(GOOD, [(4, float("inf"))]), "above 0 and finite"),
        (law(GOOD, [(1, -0.5), (4, 1.5)]), "above 0 and finite"),
        (law(GOOD, [(1, 0.0), (4, 1.0)]), "above 0 and finite"),
        (law(GOOD, [(4, 0.9)]), "sum to 0.9"),
        (law(GOOD, [(3, 1.0)]), "not among"),
    ],
)
def test_law_that_is_none_is_refused_and_the_session_lives(bad, match):
    driver = Driver()
    driver.open(sampling=REJECTION)
    with pytest.raises(Refusal, match=match) as refusal:
        driver.ask(PROMPT, [4, 4], law=bad)
    assert refusal.value.code == "invalid"
    assert driver.ask(PROMPT, [4, 4], law=law(GOOD, GOOD)) is None


def test_law_of_no_drafts_is_fine():
    driver = Driver()
    driver.open(sampling=REJECTION)
    assert driver.ask(PROMPT, [], law=law()) is None
