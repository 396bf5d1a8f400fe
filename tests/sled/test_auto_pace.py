"""Windows that pay: what confidences are worth, how long rounds are away, and what follows for the next draft."""

import math
import random
import time
from statistics import fmean

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench.macro._links_texts import DRAFTERS, LINKS, Drafter, confident
from bench.macro._links_world import FORWARDS, Cell, compare, rate_of
from sled.auto_pace import AutoPace
from sled.calibration import ANYWHERE, Calibration, rising
from sled.errors import ParameterError
from sled.learned import IDLE_ROUNDS, Learned
from sled.messages import MAX_WINDOW
from sled.pace import FixedPace, pace_for
from sled.proposal import SURE
from sled.turnaround import Turnaround
from sled.window import Window

confidences = st.floats(0.0, 1.0)
stated_confidences = st.floats(0.0, SURE)
rounds = st.lists(st.tuples(st.lists(confidences, max_size=8), st.integers(0, 8), st.floats(0.001, 1.0)), max_size=12)


def learned_from(told):
    """A device that has seen these rounds: confidences, how many were right, seconds away."""
    pace, now = AutoPace(Learned()), 0.0
    for round_, accepted, away_s in told:
        pace.drafted(max(len(round_), 1), 0.002 * max(len(round_), 1))
        now += away_s + 0.002 * len(round_)
        pace.told(round_, min(accepted, len(round_)), away_s, (), now=now)
    return pace


def steady(acceptance, away_s, draft_s, length, num_rounds=601):
    """A drafter of bare tokens that is right so often, and rounds of one length."""
    pace, now, chance = AutoPace(Learned()), 0.0, random.Random(5)
    for _ in range(num_rounds):
        drawn = [chance.random() < acceptance for _ in range(length)]
        now += away_s + length * draft_s
        pace.drafted(length, length * draft_s)
        for drafted in range(length):
            pace.more([1.0] * drafted, 1.0, ())
        pace.told([1.0] * length, [*drawn, False].index(False), away_s, (), now=now)
    return pace


# -- what a confidence is worth


def test_calibration_hand_worked():
    known = Calibration()
    share = 0.93 * (0.9 + 0.1 * 0.93)  # nothing known: a little less
    assert known.survival([0.93], 0) == pytest.approx((3 / (3 - math.log(share))) ** 3)
    for _ in range(500):
        known.told([0.93], 0)
    assert known.survival([0.93], 0) < 0.06
    assert known.survival([0.99], 0) > known.survival([0.93], 0)  # nothing was heard of it; its order is kept
    assert known.run == 0
    known.told([0.5, 0.5, 0.5], 3)
    assert known.run == 3
    known.told([0.5, 0.5], 1)
    assert known.run == 0
    assert known.survival([0.9, 0.9], 0) == known.chance(known.hazard([0.9], 0) + known.hazard([0.9], 1))


def test_tokens_of_a_text_are_right_together():
    # A share of a half is a hazard of .693. Over all texts four such tokens are right with (3 / (3 + 4 x .693)) ** 3,
    # .140, which is twice as likely as .5 ** 4: some texts are easy. In one that was as the shares say for long they
    # are right with little more than .5 ** 4.
    known = Calibration()
    assert known.chance(4 * math.log(2)) == pytest.approx(0.1404, abs=1e-4)
    known._wrong = known._feared = 30.0
    assert known.chance(4 * math.log(2)) == pytest.approx(0.5**4, rel=0.15)


def test_what_the_last_text_was_like_says_nothing_of_the_next():
    known, chance = Calibration(), random.Random(2)
    for _ in range(600):
        known.told([0.7], chance.random() < 0.5)
    for _ in range(30):
        known.told([0.7], 0)
    hard = known.survival([0.7] * 4, 0)
    known.answer()
    assert known.run == 0
    assert known.survival([0.7] * 4, 0) > 2 * hard
    for _ in range(6):
        known.told([0.7], 1)
    assert known.survival([0.7] * 4, 0) > 0.25  # six right tokens are enough to see an easy one


def test_looking_up_is_worth_more_in_a_run():
    known = Calibration()
    for _ in range(60):  # a look-up that fails at once, or goes on for ten tokens; it is always certain
        known.told([1.0] * 4, 0)
        known.told([1.0] * 4, 0)
        known.told([1.0] * 11, 10)
    assert known.survival([1.0], 0) == pytest.approx(1 / 3, abs=0.1)
    assert known.survival([1.0], 3) > 0.9


@settings(max_examples=40)
@example([], 0.875, SURE, 0)
@given(rounds, stated_confidences, stated_confidences, st.integers(0, 20))
def test_acceptance_never_falls_with_confidence(told, one, other, run):
    """Bare tokens, whose confidence is exactly 1, are a class of their own."""
    known = Calibration()
    for round_, accepted, _ in told:
        known.told(round_, min(accepted, len(round_)))
    low, high = sorted([one, other])
    assert 0.0 <= known.survival([low], run) <= known.survival([high], run) <= 1.0
    assert 0.0 <= known.chance(known.next_hazard(ANYWHERE, run)) <= 1.0


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.1, 10)), min_size=1, max_size=12))
def test_rising_keeps_the_mean_and_never_falls(pairs):
    values, weights = zip(*pairs, strict=True)
    found = rising(values, weights)
    assert found == sorted(found)
    total = sum(v * w for v, w in pairs)
    assert sum(v * w for v, w in zip(found, weights, strict=True)) == pytest.approx(total)


def test_calibration_follows_a_drafter_that_changes():
    known = Calibration()
    for _ in range(2000):
        known.told([0.9], 0)
    for _ in range(600):
        known.told([0.9], 1)
    assert known.survival([0.9], 1) > 0.6


# -- how long rounds are away


def test_turnaround_hand_worked_with_a_step():
    away = Turnaround()
    for _ in range(40):
        for length, took_s in ((0, 0.030), (1, 0.031), (2, 0.050), (3, 0.051)):
            away.told(length, took_s)
    assert [round(1e3 * away.of(length)) for length in range(4)] == pytest.approx([30, 31, 50, 51], abs=2)
    assert away.rise(1, 1) == pytest.approx(0.019, abs=0.003)
    assert away.rise(MAX_WINDOW, 5) == 0.0


def test_lengths_behind_a_step_are_thought_worth_a_try():
    away = Turnaround()
    for _ in range(40):
        for length, took_s in ((0, 0.060), (1, 0.110)):
            away.told(length, took_s)
    assert away.rise(1, 7) < 0.010  # not seven times the step from 0 to 1


def test_a_length_between_two_that_were_tried_is_on_the_line_between_them():
    away = Turnaround()
    for _ in range(40):
        away.told(0, 0.060)
        away.told(8, 0.140)
    # As good as 60 ms each of them would have to be tried before it is known that 8 drafts are no step behind 7.
    assert [round(1e3 * away.of(length)) for length in (2, 4, 6)] == pytest.approx([80, 100, 120], abs=4)
    assert away.rise(8, 8) < 0.010  # what is longer than all is worth a try


def test_turnaround_follows_a_slower_link_at_once():
    away = Turnaround()
    for _ in range(100):
        away.told(2, 0.030)
        away.told(4, 0.034)
    for _ in range(20):
        away.told(2, 0.180)
    assert away.of(2) == pytest.approx(0.180, rel=0.1)
    for _ in range(40):
        away.told(4, 0.184)
        away.told(2, 0.180)
    assert away.rise(2, 2) == pytest.approx(0.004, abs=0.003)


def test_one_stall_does_not_change_the_turnaround_much():
    away = Turnaround()
    for _ in range(100):
        away.told(2, 0.030)
    away.told(2, 30.0)
    assert away.of(2) < 0.060


@given(st.lists(st.tuples(st.integers(0, MAX_WINDOW), st.floats(0.0001, 10.0), st.booleans()), min_size=1, max_size=40))
def test_a_longer_round_is_never_thought_shorter_away(told):
    away = Turnaround()
    for length, took_s, queued in told:
        (away.told_queued if queued else away.told)(length, took_s)
    assert all(away.rise(length, 1) >= 0.0 for length in range(MAX_WINDOW))
    assert away.of(0) >= 0.0


def test_a_text_that_goes_better_than_the_shares_say_is_trusted_further_and_a_worse_one_less():
    known, chance = Calibration(), random.Random(1)
    for _ in range(400):
        known.told([0.7], chance.random() < 0.5)
    usual = known.survival([0.7], 0)
    assert usual == pytest.approx(0.5, abs=0.15)
    for _ in range(20):
        known.told([0.7], 1)
    assert known.survival([0.7], 0) > usual + 0.1
    for _ in range(24):
        known.told([0.7], 0)
    assert known.survival([0.7], 0) < usual - 0.1


# -- the next draft


def test_window_hand_worked(monkeypatch):
    monkeypatch.setattr("sled.calibration.TEXT_PRIOR", 1e9)  # the shares alone
    # 40 ms away whatever its length, 5 ms a draft, 4 of 5 right: tokens/s by window are 25, 40, 48.8, 53.7, 56.0, 56.8,
    # 56.4: five drafts are best. At that rate a draft costs 0.284 tokens; the fifth brings 0.8 ** 5 = 0.328, and the
    # sixth 0.262.
    pace = steady(0.8, 0.040, 0.005, 5)
    pace.learned.tokens, pace.learned.seconds = 56.8, 1.0
    pace.learned.calibration.run = 0
    assert [pace.another([1.0] * length, (), None) for length in (0, 3, 4, 6, 8)] == [True, True, True, False, False]


def test_what_is_drafted_already_is_sent_although_drafting_it_would_not_have_paid():
    pace = steady(0.8, 0.040, 0.005, 5)
    pace.learned.tokens, pace.learned.seconds = 56.8, 1.0
    assert not pace.another([1.0] * 7, (), None)
    assert pace.more([1.0] * 7, 1.0, ())


def test_free_drafts_are_made_while_a_round_is_away_and_dear_ones_are_not():
    pace = steady(0.2, 0.010, 0.020, 1)  # a draft takes twice the time that a round is away, and is mostly wrong
    assert not pace.another((), [1.0], 0.0, hop=True)
    pace = steady(0.2, 0.200, 0.020, 1)
    assert pace.another((), [1.0], 0.0, hop=True)
    assert not pace.another((), [1.0], 0.195, hop=True)  # the verdict is nearly here


@settings(max_examples=40)
@given(rounds, st.lists(confidences, max_size=6), confidences, confidences)
def test_more_is_monotone_in_confidence(told, round_, one, other):
    low, high = sorted([one, other])
    assert learned_from(told).more(round_, low, ()) <= learned_from(told).more(round_, high, ())


@settings(max_examples=40)
@given(rounds, st.lists(confidences, max_size=70), st.lists(confidences, max_size=70), st.none() | st.floats(0, 2))
def test_any_history_gives_an_answer(told, round_, hoped, waited_s):
    pace = learned_from(told)
    for hop in (False, True):
        assert pace.another(round_, hoped, waited_s, hop=hop) in (True, False)
    assert pace.more(round_, 0.5, hoped) in (True, False)
    assert pace.send(round_, hoped) in (True, False)


def test_hope_is_sent_if_it_is_likely():
    pace = steady(0.8, 0.1, 0.002, 4)
    assert pace.send([1.0], [1.0] * 3)
    assert not pace.send([1.0], [1.0] * 20)
    assert not steady(0, 0.1, 0.002, 2).send([1.0], [1.0])


def test_a_drafter_that_was_useless_is_tried_again():
    pace, now, tried = steady(0, 0.030, 0.002, 1), 1e4, 0
    assert not pace.another((), (), None)
    for _ in range(4 * IDLE_ROUNDS):
        wanted = pace.another((), (), None)
        if wanted:
            tried += 1
            pace.drafted(1, 0.002)
        now += 0.030
        pace.told([1.0] if wanted else [], int(wanted), 0.030, (), now=now)  # by now it is always right
    assert tried >= 2
    for _ in range(1500):
        wanted = pace.another((), (), None)
        if wanted:
            pace.drafted(1, 0.002)
        now += 0.030
        pace.told([1.0] if wanted else [], int(wanted), 0.030, (), now=now)
    assert pace.another((), (), None)


def test_what_is_hoped_for_was_wrong_teaches_too():
    pace, now = steady(0.9, 0.030, 0.002, 1), 1e4
    assert pace.another((), (), None)
    for _ in range(1000):
        now += 0.030
        pace.drafted(1, 0.002)
        pace.told([], 0, 0.030, (), now=now, hop=(1.0, False))
    assert not pace.another((), (), None)


def test_other_lengths_than_the_usual_are_tried():
    pace, now, lengths = steady(0.8, 0.040, 0.005, 5), 1e4, []
    for _ in range(120):
        length = 0
        while pace.another([1.0] * length, (), None) and pace.more([1.0] * length, 1.0, ()):
            length += 1
        pace.drafted(length, length * 0.005)
        lengths.append(length)
        now += 0.040 + length * 0.005
        pace.told([1.0] * length, min(length, 3), 0.040, (), now=now)
    assert min(lengths) < max(set(lengths), key=lengths.count) < max(lengths)


@pytest.mark.parametrize(("right", "shortest"), [(12, 9), (1, 1)])
def test_a_round_that_is_shortened_to_learn_is_no_dear_one(right, shortest):
    # Of 12 drafts all are right, and a round of 2 would cost ten tokens, or only the first is.
    pace, now = AutoPace(Learned()), 0.0
    for _ in range(4):
        for drafted in range(12):
            pace.more([1.0] * drafted, 1.0, ())
        now += 0.066
        pace.drafted(12, 0.006)
        pace.told([1.0] * 12, right, 0.060, (), now=now)
    pace.told([1.0] * 12, right, 0.060, (), now=now + 0.066)  # after the fifth one another length is tried
    length = 0
    while pace.another([1.0] * length, (), None) and pace.more([1.0] * length, 1.0, ()):
        length += 1
    assert length >= shortest
    assert length < 12 or right == 12


def test_what_is_hoped_for_teaches_without_being_sent():
    pace, now = steady(0, 0.030, 0.002, 1), 1e4
    for _ in range(300):
        now += 0.030
        pace.drafted(1, 0.002)
        pace.told([], 0, 0.030, (), now=now, hop=(1.0, True))
    assert pace.another((), (), None)


def test_a_device_keeps_what_it_learned():
    pace = steady(0.8, 0.040, 0.005, 5)
    following = pace_for(Window.auto(), pace.learned)
    assert isinstance(following, AutoPace)
    assert following.learned.rate == pace.learned.rate > 0
    assert isinstance(pace_for(Window(3), pace.learned), FixedPace)


def test_a_draft_costs_little():
    pace = steady(0.8, 0.040, 0.005, 5)
    began = time.process_time()
    for _ in range(1000):
        pace.another([0.9] * 8, [0.9] * 8, None)
        pace.more([0.9] * 8, 0.9, [0.9] * 8)
    assert time.process_time() - began < 1000 * 200e-6  # some 20 microseconds; ten times that on a bad day


def test_auto_is_bounded_by_the_server():
    window = Window.auto()
    assert window.is_auto
    assert window.limit(server_limit=5, remaining=100) == 5
    assert window.limit(server_limit=16, remaining=3) == 2
    with pytest.raises(ParameterError):
        Window(65)


# -- beside fixed windows, on a virtual clock


@pytest.mark.parametrize(
    ("drafter", "link", "forward"),
    [(0, 0, "flat 15 ms"), (1, 0, "jump 60 ms"), (3, 3, "flat 60 ms"), (4, 3, "steps 50 ms"), (5, 1, "flat 5 ms")],
)
def test_auto_keeps_up_with_the_best_fixed_window(drafter, link, forward):
    cell = Cell(DRAFTERS[drafter], LINKS[link], FORWARDS[forward])
    auto, best, of_it = compare(cell, tokens=150, answers=2, seed=21, sizes=(0, 1, 2, 4, 8, 16))
    assert auto >= 0.95 * of_it, f"{auto:.1f} tokens/s, window {best} has {of_it:.1f}"


def test_an_easy_text_is_noticed_within_few_rounds():
    # A drafter that is nearly always right and does not say so; window 16 is the best one by far.
    humble = Drafter("humble", 0.002, confident(5.0, 1.0, 0.3))
    cell, cold, warm = Cell(humble, LINKS[0], FORWARDS["flat 60 ms"]), [], []
    for seed in range(30, 36):
        learned = Learned()
        best = max(
            rate_of(cell, lambda size=size: FixedPace(Window(size)), size, tokens=40, answers=1, seed=seed)
            for size in (4, 8, 16)
        )
        for found in (cold, warm):  # the second answer begins with what the first one taught
            rate = rate_of(cell, lambda known=learned: AutoPace(known), 16, tokens=40, answers=1, seed=seed)
            found.append(rate / best)
    assert fmean(cold) >= 0.8
    assert fmean(warm) >= 0.95


def test_an_easy_text_of_a_confident_drafter_is_followed_from_the_first_answer_on():
    cell, found = Cell(DRAFTERS[1], LINKS[0], FORWARDS["steps 50 ms"]), []
    for seed in range(30, 46):
        best = max(
            rate_of(cell, lambda size=size: FixedPace(Window(size)), size, tokens=64, answers=1, seed=seed)
            for size in (4, 8, 16)
        )
        learned = Learned()
        rate = rate_of(cell, lambda known=learned: AutoPace(known), 16, tokens=64, answers=1, seed=seed)
        found.append(rate / best)
    assert fmean(found) >= 0.95, found


def test_before_anything_is_known_a_draft_must_be_worth_its_time():
    quick, slow = AutoPace(Learned()), AutoPace(Learned())
    for pace, draft_s in ((quick, 0.002), (slow, 0.030)):
        assert not pace.streams(100, 0.001)
        assert pace.another((), (), None)  # nobody knows what a draft takes
        pace.drafted(1, draft_s)
    # Thought of: 31 ms away. 2 tokens / 33 ms x 2 ms = 0.12, less than the 0.2 asked in any case; 2 / 61 x 30 = 0.98.
    assert quick.another([0.5], (), None)
    assert not slow.another([0.9], (), None)


def test_a_text_is_judged_from_when_its_answer_begins():
    learned = Learned()
    one, two = AutoPace(learned), AutoPace(learned)
    one.begin()
    for _ in range(20):
        one.told([0.9] * 4, 0, 0.03, (), now=0.0)
    one.told([0.9] * 4, 4, 0.03, (), now=0.0)
    known = learned.calibration.survival([0.9], 4)
    AutoPace(learned)
    assert learned.calibration.run == 4
    assert learned.calibration.survival([0.9], 4) == known
    two.begin()
    assert learned.calibration.run == 0
    assert learned.calibration.survival([0.9], 4) > known


def test_a_prompt_is_read_while_the_first_round_is_away_although_no_draft_pays():
    pace = steady(0, 0.070, 0.002, 1)  # never right
    pace.read(100, 0.030)
    assert not pace.another((), (), None, unread=31)
    assert pace.another((), (), 0.010, hop=True, unread=31)  # 9 ms of 60
    assert not pace.another((), (), 0.065, hop=True, unread=31)
    assert not pace.another((), (), 0.010, hop=True, unread=1000)


def test_an_easy_text_behind_a_hard_one_is_noticed_within_few_rounds():
    # A forward of one token is much cheaper than one of two, so no drafts pay for a hard text.
    hard, easy = (
        Drafter(name, 0.002, confident(ease, spread, 0.5))
        for name, ease, spread in (("hard", -0.5, 1.0), ("easy", 4.0, 1.0))
    )
    found = []
    for seed in range(30, 42):
        worlds = [Cell(each, LINKS[0], FORWARDS["jump 60 ms"]).with_prompt(31) for each in (hard, easy)]
        best = max(
            rate_of(worlds[1], lambda size=size: FixedPace(Window(size)), size, tokens=40, answers=1, seed=seed)
            for size in (4, 8, 12, 16)
        )
        learned = Learned()
        for world in worlds:
            rate = rate_of(
                world,
                lambda known=learned: AutoPace(known),
                16,
                tokens=64 if world is worlds[0] else 40,
                answers=1,
                seed=seed,
            )
        found.append(rate / best)
    assert fmean(found) >= 0.8, found


def test_no_first_stream_is_tried_after_a_round_or_two():
    pace, now = AutoPace(Learned()), 0.0
    for number in range(4):  # no draft is right, so a trial costs nothing
        assert pace.streams(100, 0.001) == (number >= 3)
        pace.drafted(1, 0.002)
        now += 0.062
        pace.told([0.5], 0, 0.060, (), now=now)


@pytest.mark.parametrize(("confidence", "stays"), [(0.98, False), (0.4, True)])
def test_a_first_stream_is_left_for_drafts_that_promise_much_before_they_are_decided(confidence, stays):
    # 40 tokens of 60 ms each over a link of 150 ms. Of 12 drafts, 24 ms, one has proved right: a round, 234 ms, would
    # bring 11.3 tokens if the others are as sure as .98, and 2.7 if as .4; a stream brings 3.9 in that time.
    pace = AutoPace(Learned())
    assert pace.streams(40, 0.150)
    pace.stream_begun(0.0)
    pace.streamed(1, 0.210)
    assert pace.stays(39)
    pace.drafted(12, 0.024)
    pace.streamed(1, 0.270)
    pace.shadowing([confidence] * 12, 1)
    assert pace.stays(38) == stays


def test_auto_follows_a_link_that_changes():
    lan, bad = (Cell(DRAFTERS[0], link, FORWARDS["flat 15 ms"]) for link in (LINKS[0], LINKS[3]))
    learned = Learned()
    for cell in (lan, bad, lan):
        auto = rate_of(cell, lambda: AutoPace(learned), 16, tokens=150, answers=1, seed=22)
    alone = rate_of(lan, lambda: AutoPace(Learned()), 16, tokens=150, answers=1, seed=22)
    assert auto >= 0.9 * alone
