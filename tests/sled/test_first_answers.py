"""First answers: what the server tells of its forwards, and what devices that know nothing make of it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bench.macro._links_texts import DRAFTERS, LINKS, Text
from bench.macro._links_world import FORWARDS, Cell, World
from bench.macro._windows_cold import first_answers, seconds
from sled.auto_pace import AutoPace
from sled.by_itself import ByItself
from sled.calibration import Calibration
from sled.foresight import best_round, forwards
from sled.learned import Learned
from sled.messages import FORWARD_SIZES, MAX_WINDOW
from sled.pace import FixedPace
from sled.proposal import stated
from sled.run.warming import measure_rounds
from sled.server.windows import FixedWindow, forward_s
from sled.step_cost import StepCost
from sled.testing import ToyTarget
from sled.turnaround import Turnaround
from sled.window import Window

DRAFTER = {each.name: each for each in DRAFTERS}
LINK = {each.name: each for each in LINKS}
TOLD = [0.060, 0.105, 0.106, 0.108, 0.112, 0.135]


# -- what is told


def test_forwards_are_lines_between_the_sizes_told_and_never_fall():
    each = forwards(TOLD)
    assert len(each) == MAX_WINDOW + 1
    assert [each[size - 1] for size in FORWARD_SIZES] == pytest.approx(TOLD)
    assert each[3] == pytest.approx(0.107)
    assert each[64] == pytest.approx(0.135 + 48 * 0.023 / 8)
    falling = forwards([0.05, 0.04, 0.06, 0.05, 0.07, 0.07])
    assert falling == sorted(falling)


@pytest.mark.parametrize(
    "told",
    [
        [],
        TOLD[:-1],
        [*TOLD, 1.0],
        [0.0, *TOLD[1:]],
        [-each for each in TOLD],
        [math.nan] * 6,
        [*TOLD[:-1], math.nan],
        [math.inf] * 6,
        [*TOLD[:-1], 1e308],
        [1e6] * 6,
    ],
)
def test_what_is_no_time_is_as_if_nothing_was_told(told):
    assert forwards(told) == []
    pace = AutoPace(Learned())
    pace.opened(told)
    pace.begin()
    pace.streams(30, 0.001)
    assert pace.learned.rate == 0.0
    assert pace.learned.turnaround.of(4) == 0.0


def test_a_server_tells_only_what_it_has_timed_and_more_when_others_are_there():
    cost = StepCost()
    cost.observe(300, 0, 0, 0.5)
    assert forward_s(cost, 10, 0) == []  # a text was computed, no round
    for size in FORWARD_SIZES:
        cost.observe(size, 1, 0, 0.030 + 0.002 * size)
    alone, crowded = forward_s(cost, 0, 0), forward_s(cost, 0, 7)
    assert alone == pytest.approx([0.030 + 0.002 * size for size in FORWARD_SIZES], rel=0.15)
    assert all(more > less for more, less in zip(crowded, alone, strict=True))


def test_the_rounds_that_are_told_of_are_measured_before_there_are_sessions():
    target, policy, now = ToyTarget(max_window=16), FixedWindow(16), [0.0]

    def clock():
        now[0] += 0.01
        return now[0]

    assert measure_rounds(target, policy.measured, at_most_s=10.0, clock=clock) == len(FORWARD_SIZES)
    assert len(forward_s(policy.cost, 0, 0)) == len(FORWARD_SIZES)
    short = ToyTarget(max_window=2)
    assert measure_rounds(short, policy.measured, at_most_s=10.0, clock=clock) == 3
    assert measure_rounds(target, policy.measured, at_most_s=0.05, clock=clock) < len(FORWARD_SIZES)


@pytest.mark.parametrize("is_measured", [True, False])
def test_a_device_is_told_when_its_answer_is_opened(served, is_measured):
    policy = FixedWindow(8)
    if is_measured:
        for size in FORWARD_SIZES:
            policy.measured(size, 1, 0.01 + 0.001 * size)
    with served.serving(policy=policy) as endpoint, served.device(endpoint, "ngram") as device:
        stream = device.generate([5, 6, 7], max_tokens=3, window=Window.auto())
        heard = []
        stream._pace.opened = heard.append
        stream.answer()
    assert [len(each) for each in heard] == [len(FORWARD_SIZES) if is_measured else 0]


# -- what is made of it


def test_turnarounds_begin_as_told_and_keep_the_told_shape_where_nothing_was_tried():
    away = Turnaround()
    away.expect([0.040 + each for each in forwards(TOLD)])
    assert [away.of(length) for length in (0, 1, 8)] == pytest.approx([0.100, 0.145, 0.152])
    for _ in range(3):
        away.told(0, 0.200)  # the link is longer than its pings said
    assert away.of(0) == pytest.approx(0.200, rel=0.02)
    assert away.rise(0, 1) == pytest.approx(0.045, rel=0.1)  # nobody has to run into the step
    assert away.rise(1, 7) == pytest.approx(0.007, rel=0.1)
    with pytest.raises(ValueError, match="2 lengths, expected 65"):
        away.expect([0.1, 0.2])


def test_the_round_thought_best_is_long_where_tokens_cost_nothing_and_empty_where_drafts_cost_all():
    known = Calibration()
    free, dear = [0.2] * (MAX_WINDOW + 1), [0.2 + 0.2 * size for size in range(MAX_WINDOW + 1)]
    tokens, took_s = best_round(known, free, 1e-4)
    assert tokens > 2.5
    assert took_s == pytest.approx(0.2016)
    assert best_round(known, dear, 0.01) == (1.0, 0.2)


def test_a_drafter_of_bare_tokens_is_not_believed_to_be_always_right():
    known = Calibration()
    assert known.survival([1.0] * 8, 0) < 0.3 < known.survival([0.999] * 8, 0)
    for _ in range(60):
        known.told([1.0] * 4, 4)
    assert known.survival([1.0] * 8, 0) > 0.8  # it is learned all the same


@given(
    st.lists(st.floats(width=64), max_size=8) | st.lists(st.floats(5e-324, 60.0), min_size=6, max_size=6), st.floats()
)
@example([1.0] * 6, math.inf)
def test_whatever_is_told_a_device_asks_for_windows_in_bounds(told, ping_s):
    learned = Learned()
    for _ in range(2):
        pace, now = AutoPace(learned), 0.0
        pace.opened(told)
        pace.begin()
        pace.streams(40, ping_s)
        pace.stream_begun(now)
        for took_s in (0.2, 0.06, 0.06):
            now += took_s
            pace.shadows()
            pace.streamed(1, now)
            pace.stays(30)
        for size in (0, 3, 8, 1):
            round_ = [0.5 + 0.05 * i for i in range(size)]
            pace.another(round_, (), None)
            pace.more(round_, 0.9, ())
            pace.drafted(size, 0.002 * size)
            now += 0.15
            pace.told(round_, size // 2, 0.15, (), now=now)
            pace.streams(20, ping_s)
        known = (learned.rate, learned.by_itself.draft_rate, learned.by_itself.token_s, learned.turnaround.of(3))
        assert all(math.isfinite(each) and each >= 0.0 for each in known)
        assert 0.0 <= learned.turnaround.rise(0, MAX_WINDOW) < math.inf
        assert learned.by_itself.token_s <= 0.2


@pytest.mark.parametrize("times", [1e-6, 0.05, 20.0, 500.0])
def test_what_was_told_and_is_not_so_is_soon_forgotten(times):
    """Another load than at the opening, or a server that tells stories."""
    known = {}
    for told in ([], [min(times * each, 60.0) for each in TOLD]):
        learned = Learned()
        pace, now = AutoPace(learned), 0.0
        pace.opened(told)
        pace.begin()
        pace.streams(200, 0.02)
        for _ in range(16):
            now += 0.150
            pace.told([0.9, 0.9], 2, 0.150, (), now=now)
        known[len(told)] = learned
        assert learned.by_itself.token_s <= 0.150  # no token takes longer than a round that is there and back
    assert known[6].rate == pytest.approx(known[0].rate, rel=0.2)
    assert known[6].by_itself.draft_rate == pytest.approx(known[0].by_itself.draft_rate, rel=0.2)
    assert known[6].turnaround.of(2) == pytest.approx(0.150, rel=0.02)


def test_a_told_token_is_not_believed_against_those_that_come():
    other = ByItself(Turnaround())
    other.expect(1e-6, 0.04, (3.0, 0.2))
    now = 0.0
    other.begun(now)
    for _ in range(6):
        now += 0.060
        other.streamed(1, now, 1, waited=True)
    assert other.token_s == pytest.approx(0.060, rel=0.35)


def test_the_first_round_of_an_answer_in_which_the_server_reads_does_not_make_the_link_longer():
    away = Turnaround()
    away.told(0, 0.300, reads=True)  # nothing better is known
    assert away.of(0) == pytest.approx(0.300)
    away.told(0, 0.160)  # more than half of it, and still the truth
    assert away.of(0) == pytest.approx(0.160)
    away.told(0, 0.400, reads=True)
    assert away.of(0) == pytest.approx(0.160)
    away.told(0, 0.060, reads=True)  # so quick although it has read
    assert away.of(0) == pytest.approx(0.060, rel=0.1)


@pytest.mark.parametrize("by_stream", [False, True])
def test_a_device_counts_no_reading_as_a_turnaround(by_stream):
    learned, now = Learned(), 0.0
    for _ in range(3):
        pace = AutoPace(learned)
        pace.begin()
        if by_stream:
            pace.stream_begun(now)
            for took_s in (0.350, 0.060, 0.060):
                now += took_s
                pace.streamed(1, now)
            pace.stream_begun(now)
            now += 0.100
            pace.streamed(1, now)
        else:
            for took_s in (0.350, 0.100, 0.100):
                now += took_s
                pace.told((), 0, took_s, (), now=now)
    assert learned.turnaround.of(0) == pytest.approx(0.100, rel=0.02)
    if not by_stream:
        assert learned.by_itself.draft_rate == pytest.approx(10.0, rel=0.05)


def test_rounds_without_drafts_before_a_stream_do_not_call_it_back_when_drafts_have_ended_it():
    away = Turnaround()
    away.told(0, 0.100)
    other = ByItself(away)
    other.expect(0.060, 0.040, (3.0, 0.2))
    for _ in range(2):
        other.sent(silent=True)
        other.count(1.0, 0.100, 1.0, 0.100)
    assert other.begins(60, 0.040)
    now = 0.0
    other.begun(now)
    for took_s in (0.100, 0.060, 0.060):
        now += took_s
        other.streamed(1, now, 1, waited=True)
    for _ in range(8):
        other.shadowed()
        other.count(17.0, 0.110, 17.0, 0.110)
    assert not other.stays(57, 20.0)
    assert not other.begins(56, 0.040)


def test_a_drafter_that_knows_probabilities_never_states_what_bare_tokens_do():
    assert stated(1.0) < 1.0
    assert stated(0.25) == 0.25
    known = Calibration()
    assert known.survival([stated(1.0)] * 8, 0) > 2 * known.survival([1.0] * 8, 0)


# -- on a virtual clock, in the mean over texts (docs/spec/sled-windows.md)


@pytest.mark.parametrize(
    ("drafter", "link", "forward", "least", "at_least_better"),
    [
        ("distilled, slow", "lte", "flat 5 ms", 0.95, 1.3),  # a stream is best, and a ping alone does not say so
        ("low-bit", "lte", "flat 5 ms", 0.92, 1.3),
        ("junk, slow", "lte", "flat 15 ms", 0.95, 1.05),
        ("distilled", "wifi", "jump 60 ms", 0.98, 0.98),
        ("n-gram", "lan", "flat 60 ms", 0.95, 0.98),
    ],
)
def test_a_first_answer_is_hardly_slower_than_with_the_best_window(drafter, link, forward, least, at_least_better):
    found = first_answers(Cell(DRAFTER[drafter], LINK[link], FORWARDS[forward]), seed=2, texts=12)
    assert found.auto >= least * found.fixed
    assert found.auto >= at_least_better * found.untold
    assert 0.5 < found.luck <= 1.0


@pytest.mark.parametrize(("link", "told", "least"), [("lte", True, 0.97), ("lte", False, 0.92), ("lan", False, 1.0)])
def test_a_drafter_with_nothing_to_say_does_not_go_on_with_rounds_of_a_token_each(link, told, least):
    """The server reads a prompt before the first token, and no ping has come by then."""
    cell = Cell(DRAFTER["n-gram"], LINK[link], FORWARDS["jump 60 ms"], prefill_s=0.15)

    def of(new, limit):
        spent_s, bare = 0.0, 0
        for seed in range(8):
            kept = Learned()
            for number in range(3):
                pace = new(kept)
                if told and isinstance(pace, AutoPace):
                    pace.opened([cell.forward_s(size) for size in FORWARD_SIZES])
                here = cell if number else replace(cell, ping=math.nan)
                text = Text.of(cell.drafter, 240, seed * 1000 + number)
                world = World(here, text, pace, 40, limit, seed * 1000 + number)
                world.run()
                spent_s += world.now
                bare += world.bare_rounds
        return spent_s, bare

    auto_s, bare = of(AutoPace, 16)
    assert min(of(lambda _, size=size: FixedPace(Window(size)), size)[0] for size in (0, 2, 4, 8, 16)) >= least * auto_s
    if link == "lte":
        assert bare <= 0.1 * 8 * 3 * 40


def test_bare_tokens_do_not_begin_with_rounds_of_sixteen():
    cell = Cell(DRAFTER["bare tokens"], LINK["lan"], FORWARDS["steps 50 ms"])
    found = first_answers(cell, seed=2, texts=12)
    assert found.untold > 0.8 * found.fixed  # .68 if they were believed


def test_texts_of_first_answers_are_the_same_for_all():
    cell = Cell(DRAFTER["junk"], LINK["lan"], FORWARDS["flat 15 ms"])
    one, other = (seconds(cell, lambda: AutoPace(Learned()), 16, tokens=8, texts=3, seed=5) for _ in range(2))
    assert one == other
