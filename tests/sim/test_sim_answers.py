"""The real loops of device and servers under everything that may go wrong; `bench/macro/sim_answers.py` has more."""

from __future__ import annotations

from collections import Counter

import pytest

from bench.macro import _sim_mutants, _sim_world
from bench.macro._sim_plan import plan
from edgebus.testing import check_seeds

NUM_ANSWERS = 120


def test_answers_under_every_fault_are_the_undisturbed_ones():
    happened = {}

    def run(seed):
        for what, count in _sim_world.run(seed).items():
            happened[what] = happened.get(what, 0) + count

    check_seeds(run, range(NUM_ANSWERS))
    # What it is about did happen: takeovers, deaths of the device, text that was shown and taken back.
    assert all(happened[what] > 0 for what in ("ServerLost", "crashed", "Unverified", "Retracted")), happened


def test_every_trouble_comes_while_an_answer_is_under_way():
    happened = Counter()
    for seed in range(60):
        happened.update(_sim_world.run(seed))
    kinds = ("crash", "partition", "half_open", "reset", "freeze", "clock")
    troubles = (
        "with loss",
        "with duplicates",
        "with reordering",
        "taken over",
        *(f"in time: {kind}" for kind in kinds),
    )
    assert not [trouble for trouble in troubles if not happened[trouble]]


def test_a_seed_replays_exactly():
    seed = next(seed for seed in range(100) if plan(seed).device_dies_at)
    assert _sim_world.run(seed) == _sim_world.run(seed)


def mutant_is_found(name, seeds):
    assert _sim_mutants.found(name, seeds) is not None


def test_noise_by_round_is_found_out():
    mutant_is_found("noise by round", range(20))


def test_pages_without_rollback_are_found_out():
    mutant_is_found("no rollback", range(20))


def test_stale_verdicts_are_found_out():
    mutant_is_found("stale verdicts", range(20))


def test_drafts_taken_for_the_answer_are_found_out():
    mutant_is_found("drafts are kept", range(20))


def test_text_that_is_never_retracted_is_found_out():
    seeds = [seed for seed in range(400) if plan(seed).on_loss == "release"]
    mutant_is_found("never retracts", seeds)


def test_guesses_saved_as_the_answer_are_found_out():
    seeds = [seed for seed in range(400) if plan(seed).device_dies_at or plan(seed).breaks_off_after]
    mutant_is_found("saves guesses", seeds)


@pytest.mark.parametrize("seed", [5216])
def test_answers_that_were_not_right_once(seed):
    """5216: released text waited for a server without a pause between looks, and for ever."""
    _sim_world.run(seed)
