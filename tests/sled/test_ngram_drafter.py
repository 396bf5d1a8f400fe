"""Drafts by lookup: longest matches, confidence that learns, ends that are taken back, long texts."""

from __future__ import annotations

import gc
import sys
from itertools import islice

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sled.drafters.following import LOOK_BACK, agreed, agreeing
from sled.drafters.ngram import NgramDrafter, TextIndex
from sled.types import Sampling
from tests.sled.drafting import drafts, proposals

FEW = st.lists(st.integers(0, 3), max_size=60)


def started(num_prompt=0):
    drafter = NgramDrafter()
    drafter.start(Sampling(), num_prompt)
    return drafter


def longest_match(text):
    """By the definition: the longest end that stood before, the latest of several, and what followed it."""
    best = (0, -1)
    for at in range(1, len(text)):
        length = 0
        while length < min(at, 32) and text[at - 1 - length] == text[len(text) - 1 - length]:
            length += 1
        best = max(best, (length, at))
    return best


@given(st.lists(st.integers(0, 6), max_size=24))
def test_index_finds_the_longest_match(text):
    index = TextIndex()
    for token in text:
        index.push(token)
    length, at = longest_match(text)
    found = index.find()
    if length < 2:
        assert found is None
    else:
        assert (found.length, found.token) == (length, text[at])


@given(FEW, FEW, FEW)
def test_an_index_that_forgot_is_one_that_never_knew(text, lost, more):
    rolled, fresh = TextIndex(), TextIndex()
    for token in text + lost:
        rolled.push(token)
    assert [rolled.pop() for _ in lost] == lost[::-1]
    for token in more:
        rolled.push(token)
    for token in text + more:
        fresh.push(token)
    assert (rolled.tokens, rolled._tables) == (fresh.tokens, fresh._tables)


@given(FEW, st.lists(st.tuples(st.integers(0, 12), FEW), max_size=6))
@example([1, 1, 1], [(0, [1, 0, 0, 0])])  # a draft within the prompt
def test_a_drafter_whose_text_rolls_back_is_one_that_sees_it_first(text, changes):
    """Confidence too: what a lost end seemed to confirm is taken back."""
    rolled = started(4)
    for lost, more in changes:
        list(islice(rolled.draft(text, 5), 3))  # whoever asks stops early
        text = text[: max(0, len(text) - lost)] + more
    assert proposals(rolled, text, 6) == proposals(started(4), text, 6)


def test_confidence_by_hand():
    """A match of two tokens has held .42 of the time; with six more tries of which none held: 6 * .42 / 12."""
    (first,) = proposals(started(99), [1, 2, 3, 1, 2], 1)
    assert first.confidence == pytest.approx(0.42)
    text = []
    for other in range(6):
        text += [1, 2, 10 + other, 20 + other]  # each time something else follows
    drafter = started(4)
    (second,) = proposals(drafter, [*text, 30, 31, 32, 30, 31], 1)
    assert (second.token, drafter._held[0], drafter._tried[0]) == (32, 0, 5)
    assert second.confidence == pytest.approx(6 * 0.42 / 11)


def test_earlier_places_that_agree_make_it_surer_and_others_less():
    alone, same, divided = [1, 2, 3], [1, 2, 3, 9, 1, 2, 3], [1, 2, 4, 9, 1, 2, 3]
    sure = [proposals(started(99), [*text, 8, 1, 2], 1)[0].confidence for text in (alone, same, divided)]
    assert sure[2] < sure[0] < sure[1]


def test_a_generator_left_behind_says_nothing_more():
    drafter = started()
    old = iter(drafter.draft([1, 2, 3, 1, 2], 4))
    assert next(old).token == 3
    assert drafts(drafter, [1, 2, 3, 1, 2, 3], 2) == [1, 2]
    assert list(old) == []
    assert drafts(drafter, [1, 2, 3, 1, 2, 3], 2) == [1, 2]


def test_another_answer_whose_text_begins_alike_keeps_the_index():
    drafter = started()
    list(drafter.draft([1, 2, 3, 4, 5, 1, 2], 2))
    drafter.start(Sampling(), 4)
    assert drafts(drafter, [1, 2, 3, 9, 1, 2], 2) == [3, 9]
    drafter.start(Sampling(), 4)
    assert drafts(drafter, [9, 2, 3, 9, 1, 2], 2) == []


def test_an_earlier_answer_is_no_experience_with_another():
    """The first answer broke every expectation; the second, whose prompt it became, begins with none."""
    text = [1, 2, 3, 1, 2, 4, 1, 2, 5, 1, 2]
    drafter, fresh = started(3), started(len(text))
    for end in range(3, len(text) + 1):
        list(drafter.draft(text[:end], 1))
    drafter.start(Sampling(), len(text))
    assert proposals(drafter, text, 3) == proposals(fresh, text, 3)


def test_a_long_text_is_not_read_again():
    """The work of a call in lines of Python, which no other process can disturb, is the same at any length."""
    counts = []
    for length in (2_000, 32_000):
        drafter = started(length)
        text = [*range(length), 5, 6, 7]
        list(drafter.draft(text, 4))
        counts.append(lines_run(lambda drafter=drafter, text=text: list(drafter.draft([*text, 8], 4))))
    assert counts[0] == counts[1] < 2000


@pytest.mark.parametrize("period", [1, 3, 50])
def test_a_text_that_repeats_itself_costs_little_a_token(period):
    text = [number % period for number in range(1000)]
    assert lines_run(lambda: list(started().draft(text, 4))) < 150 * len(text)


def lines_run(work):
    """Lines of Python that it runs; not those of what a garbage collection in the middle of it ends."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    gc.collect()
    gc.disable()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
        gc.enable()
    return count


@given(FEW, FEW, st.booleans())
def test_agreed_is_what_two_texts_share(seen, text, whole):
    shared = 0
    while shared < min(len(seen), len(text)) and seen[shared] == text[shared]:
        shared += 1
    assert agreed(seen, text, whole=whole) == agreeing(seen, text) == shared


def test_ends_longer_than_the_look_are_found_too():
    seen = [0] * 10 + [1] * (3 * LOOK_BACK)
    assert agreed(seen, [0] * 10 + [2] * (4 * LOOK_BACK), whole=False) == 10
    assert agreed(seen, tuple(seen[:-1]), whole=False) == len(seen) - 1
