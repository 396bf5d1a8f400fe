"""Whose turn it is: no owner waits for more than one thing of each other one."""

from __future__ import annotations

from collections import defaultdict, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebus.turns import Turns


def all_of(turns):
    taken = []
    while turns.waiting:
        taken.append(turns.take())
    return taken


def test_owners_have_turns_and_each_its_oldest_first():
    turns = Turns()
    for number in range(3):
        turns.put("greedy", number, f"g{number}")
    turns.put("other", 0, "o0")
    turns.put("third", 0, "t0")
    assert (turns.num("greedy"), turns.num("other"), turns.num("nobody"), turns.num_owners()) == (3, 1, 0, 3)
    assert turns.oldest() == ["g0", "o0", "t0"]
    assert all_of(turns) == ["g0", "o0", "t0", "g1", "g2"]


def test_owner_that_comes_anew_is_the_last_of_those_who_wait():
    turns = Turns()
    for owner in "ab":
        turns.put(owner, 0, f"{owner}0")
        turns.put(owner, 1, f"{owner}1")
    assert turns.take() == "a0"
    turns.put("c", 0, "c0")
    assert all_of(turns) == ["b0", "a1", "c0", "b1"]


def test_what_is_dropped_has_no_turn():
    turns = Turns()
    turns.put("a", 0, "a0")
    turns.put("b", 0, "b0")
    assert (turns.drop("a", 0), turns.drop("a", 0), turns.drop("b", 7)) == ("a0", None, None)
    assert all_of(turns) == ["b0"]
    with pytest.raises(IndexError):
        turns.take()
    turns.put("a", 0, "a0")
    turns.clear()
    assert not turns.waiting


@given(st.lists(st.one_of(st.sampled_from("abcd"), st.none()), max_size=60))
def test_turns_are_those_of_queues_in_a_ring(steps):
    """Each letter puts a thing of that owner, None takes one; against the same in two lines."""
    turns, ring, queues = Turns(), deque(), defaultdict(deque)
    for number, owner in enumerate(steps):
        if owner is not None:
            turns.put(owner, number, number)
            queues[owner].append(number)
            if owner not in ring:
                ring.append(owner)
        elif ring:
            first = ring.popleft()
            assert turns.take() == queues[first].popleft()
            if queues[first]:
                ring.append(first)
        assert (turns.waiting, turns.num_owners()) == (bool(ring), len(ring))
