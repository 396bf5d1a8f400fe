"""The server by itself: what a stream and drafts bring, on the same text, and which of both an answer takes."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.macro._links_texts import DRAFTERS, LINKS, Drafter, Text, confident
from bench.macro._links_world import FORWARDS, Cell, World, compare, rate_of
from sled.auto_pace import AutoPace
from sled.by_itself import FIRST_TOKENS, TRIAL_TOKENS, ByItself
from sled.learned import Learned
from sled.pace import FixedPace
from sled.shadow import LEAST_TOKENS, Shadow
from sled.turnaround import Turnaround
from sled.window import Window

LAN, WIFI, LTE, BAD = LINKS


def after(num_rounds, tokens, away_s, length=3):
    """What is known after so many rounds of so many tokens each."""
    turnaround = Turnaround()
    other = ByItself(turnaround)
    for _ in range(num_rounds):
        turnaround.told(length, away_s)
        other.told(away_s, away_s, 1)
        other.count(tokens, away_s, tokens, away_s)
    return other


def stream(other, num_tokens, first_s, each_s, now=1e4, *, waited=True):
    """A stream that brings so many tokens."""
    other.begun(now)
    for number in range(num_tokens):
        now += each_s if number else first_s
        other.streamed(1, now, 1, waited=waited)
    return now


# -- which of both


def test_hand_worked_long_link():
    # Rounds of 3 tokens take 210 ms: 14.3 tokens/s. The link takes 150 of them, so a token alone 60: 16.7 by itself;
    # 64 of them take 150 + 64 * 60 ms: 16.0 tokens/s, which is 1.12 times as much.
    other = after(40, 3.0, 0.210)
    assert other.draft_rate == pytest.approx(3 / 0.210, rel=1e-3)
    assert other.begins(200, 0.150)
    assert not other.begins(10, 0.150)  # its first turnaround would not be earned again
    stream(other, 20, 0.210, 0.060)
    assert other.token_s == pytest.approx(0.060)
    assert other.link_s == pytest.approx(0.150, rel=0.05)
    assert other.stays(200, 30.0)


def test_a_ping_that_was_too_long_costs_a_trial_and_no_more():
    # The pings of a busy server say 150 ms, but a token takes 100 ms by itself.
    other = after(40, 3.0, 0.210)
    assert other.begins(200, 0.150)
    stream(other, 3, 0.210, 0.100)
    assert not other.stays(200, 30.0)
    assert not other.begins(200, 0.150)  # the ping is asked no more


def test_without_a_ping_nothing_but_a_trial_is_begun():
    other = after(8, 1.1, 0.210)
    assert not other.begins(200, math.nan)
    for _ in range(2000):
        other.told(0.210, 0.210, 1)
    assert other.begins(200, math.nan)
    stream(other, TRIAL_TOKENS, 0.210, 0.060)
    assert other.stays(200, 4.0)


def test_nothing_is_tried_with_an_answer_that_is_nearly_over():
    other = after(40, 1.0, 0.210)
    assert not other.begins(7, 0.150)


def test_nothing_known_yet():
    other = ByItself(Turnaround())
    assert not other.begins(100, 0.005)
    assert not other.begins(100, math.nan)
    assert other.begins(100, 0.150)
    stream(other, FIRST_TOKENS - 1, 0.2, 0.05)
    assert other.stays(100, 0.0)
    stream(other, FIRST_TOKENS, 0.2, 0.05)
    assert not other.stays(100, 0.0)  # no round was compared meanwhile: drafts are to show what they bring


def test_a_first_stream_that_is_lost_with_a_round_in_its_shadow_is_asked_for_again():
    pace = AutoPace(Learned())
    assert pace.streams(100, 0.150)
    pace.stream_begun(0.0)
    pace.streamed(1, 0.2)  # no second one, so nobody knows what a token takes
    assert pace.shadows()
    pace.drafted(2, 0.004)
    pace.shadowing([0.9, 0.9], 0)
    pace.lost()
    assert pace.streams(99, 0.150)
    assert not pace.streams(99, 0.005)


def test_a_crowd_asks_for_a_higher_gain():
    alone, crowded = after(40, 3.0, 0.210), after(40, 3.0, 0.210)
    for _ in range(100):
        crowded.told(0.210, 0.210, 6)
    for other in (alone, crowded):
        assert other.begins(200, 0.150)  # the crowded one as a trial
        stream(other, TRIAL_TOKENS, 0.210, 0.060)
    assert alone.stays(200, 30.0)
    assert not crowded.stays(200, 30.0)


def test_tokens_that_waited_for_a_draft_are_not_thought_slow():
    # 5 ms a token; the device drafts for 20 ms and finds four of them.
    other, now = after(40, 1.0, 0.010), 0.010
    other.begun(0.0)
    other.streamed(1, now, 1, waited=True)
    for _ in range(8):
        now += 0.020
        for _ in range(3):
            other.streamed(1, now, 1, waited=False)
        now += 0.005
        other.streamed(2, now, 1, waited=True)
    assert other.token_s == pytest.approx(0.005)


def test_drafts_are_rated_over_the_link_as_it_is_now():
    other = after(40, 3.0, 0.210)
    stream(other, 20, 0.210, 0.060)
    assert other.stays(200, 30.0)
    stream(other, 2, 0.061, 0.060)  # the same server over a short link
    assert other.draft_rate == pytest.approx(3 / 0.061, rel=0.2)
    assert not other.stays(200, 40.0)


@settings(max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("round"), st.floats(1, 17), st.floats(1e-4, 5), st.integers(0, 40)),
            st.tuples(st.just("stream"), st.integers(1, 9), st.floats(1e-4, 5), st.floats(1e-5, 1)),
            st.tuples(st.just("answer"), st.just(0), st.just(0.0), st.just(0)),
            st.tuples(st.just("shadow"), st.floats(1, 17), st.floats(1e-4, 5), st.just(0)),
        ),
        max_size=25,
    ),
    st.integers(1, 500),
    st.floats(0, 1) | st.just(math.nan),
)
def test_any_history_gives_an_answer(history, remaining, ping_s):
    turnaround = Turnaround()
    other, now = ByItself(turnaround), 0.0
    for kind, tokens, seconds, more in history:
        if kind == "round":
            now += seconds
            turnaround.told(int(tokens) - 1, seconds)
            other.told(seconds, seconds, int(more))
            other.count(tokens, seconds, tokens, seconds)
        elif kind == "stream":
            now = stream(other, tokens, seconds, more, now, waited=tokens % 2 == 0)
        elif kind == "shadow":
            other.shadowing(tokens, seconds)
        else:
            other.answer()
        assert other.draft_rate >= 0.0
        assert other.token_s >= 0.0
        assert 0.3 <= other.overlap <= 1.3
        if other.begins(remaining, ping_s):
            assert other.begins(remaining, ping_s)  # asking changes nothing
        other.stays(remaining, 20.0)


# -- rounds in the shadow


class Noted(FixedPace):
    """Notes what it is told of rounds in the shadow."""

    def __init__(self, size):
        super().__init__(Window(size))
        self.heard = []

    def shadowed(self, drafts, accepted, size):
        self.heard.append((len(drafts), accepted, size))


def fed(pace, size, tokens, text):
    """A round in the shadow of these tokens, and the text as it comes; how much of it was needed."""
    round_ = Shadow(pace, 10)
    for token in tokens:
        assert round_.wants(size)
        round_.add(token, 0.9)
    if round_.wants(size):
        round_.end()
    for count in range(1, len(text) + 1):
        if round_.compared(text[:count]):
            return count
    return None


def test_shadow_hand_worked():
    pace = Noted(3)
    assert fed(pace, 3, [1, 2, 3], [1, 2, 3, 4]) == 4  # all right, and the target's own behind them
    assert fed(pace, 3, [1, 2, 3], [1, 9, 3, 4]) == 2
    assert fed(pace, 3, [1], [1, 2]) == 2  # the drafter had no more to say
    assert fed(pace, 3, [], [7]) == 1
    assert fed(pace, 3, [1, 2, 3], [1, 2, 3]) is None
    assert pace.heard == [(3, 3, 3), (3, 1, 3), (1, 1, 1), (0, 0, 0)]


def test_a_shadow_drafts_some_tokens_although_none_would_be_sent():
    pace = Noted(0)
    round_ = Shadow(pace, 0)
    for token in range(LEAST_TOKENS):
        assert round_.wants(16)
        round_.add(token, 0.9)
    assert not round_.wants(16)
    assert round_.compared([0, 9])
    assert pace.heard == [(LEAST_TOKENS, 1, 0)]


# -- beside fixed windows, window 0 among them, on a virtual clock


@pytest.mark.parametrize("forward", ["flat 15 ms", "steps 28 ms", "jump 60 ms"])
@pytest.mark.parametrize("drafter", [0, 2, 4, 5])
def test_auto_keeps_up_with_a_stream_over_a_long_link(drafter, forward):
    cell = Cell(DRAFTERS[drafter], BAD, FORWARDS[forward])
    learned = Learned()
    first, later = (
        rate_of(cell, lambda: AutoPace(learned), 16, tokens=100, answers=answers, seed=seed)
        for answers, seed in ((2, 77), (8, 1))
    )
    of_first, of_later = (
        max(
            rate_of(cell, lambda n=n: FixedPace(Window(n)), n, tokens=100, answers=answers, seed=seed)
            for n in (0, 8, 16)
        )
        for answers, seed in ((2, 77), (8, 1))
    )
    assert first >= 0.88 * of_first
    assert later >= 0.94 * of_later


@pytest.mark.parametrize(("drafter", "forward"), [(1, "flat 60 ms"), (3, "flat 15 ms"), (0, "jump 60 ms")])
def test_streams_are_hardly_tried_where_drafts_bring_more(drafter, forward, monkeypatch):
    cell = Cell(DRAFTERS[drafter], LAN, FORWARDS[forward])

    def rate():
        learned = Learned()
        return rate_of(cell, lambda: AutoPace(learned), 16, tokens=150, answers=6, seed=23)

    with_streams = rate()
    monkeypatch.setattr(ByItself, "begins", lambda *_: False)
    assert with_streams >= 0.98 * rate()


def mixed(link, forward, pace, limit):
    """Tokens per second on texts that are easy, hard, and neither, in turn."""
    texts = [Drafter("t", 0.002, confident(ease, 2.0, 1.2)) for ease in (4.0, -0.3, 1.6, -0.3, 4.0, 1.6)]
    done, spent_s = 0, 0.0
    for number, drafter in enumerate(texts):
        cell = Cell(drafter, link, FORWARDS[forward])
        world = World(cell, Text.of(drafter, 260, 31 + number), pace(), 60, limit, 31 + number)
        world.run()
        done, spent_s = done + world.done, spent_s + world.now
    return done / spent_s


@pytest.mark.parametrize("link", LINKS, ids=lambda link: link.name)
def test_each_text_gets_what_is_best_for_it(link):
    learned = Learned()
    auto = mixed(link, "steps 28 ms", lambda: AutoPace(learned), 16)
    best = max(mixed(link, "steps 28 ms", lambda n=n: FixedPace(Window(n)), n) for n in (0, 2, 4, 8, 16))
    assert auto >= 0.95 * best


@pytest.mark.parametrize("ping", [0.0, 3.0, math.nan])
def test_wrong_pings_cost_little(ping):
    for link, forward, least in ((LAN, "jump 60 ms", 0.93), (BAD, "steps 28 ms", 0.7)):
        cell = Cell(DRAFTERS[0], link, FORWARDS[forward], ping=ping)
        auto, _, of_it = compare(cell, tokens=150, answers=3, seed=25, sizes=(0, 2, 4, 8, 16))
        assert auto >= least * of_it


def test_there_is_a_way_back_from_a_long_link_and_from_a_short_one():
    learned, rates = Learned(), []
    for link in (LAN, BAD, LAN, BAD):
        cell = Cell(DRAFTERS[0], link, FORWARDS["flat 15 ms"])
        rates.append(rate_of(cell, lambda: AutoPace(learned), 16, tokens=150, answers=2, seed=24))
    assert rates[2] >= 0.9 * rates[0]
    assert rates[3] >= 0.9 * rates[1]


def test_a_user_without_a_drafter_gets_a_stream_where_one_is_faster():
    silent = Drafter("none", 0.001, lambda _: lambda: (1.0, False, False))
    cell = Cell(silent, LTE, FORWARDS["flat 15 ms"])
    auto, best, of_it = compare(cell, tokens=100, answers=3, seed=1, sizes=(0, 1))
    assert best == 0
    assert auto >= 0.95 * of_it


@pytest.mark.parametrize("draft_s", [0.1, 0.2, 0.5])
def test_a_drafter_slower_than_the_stream_drafts_little_beside_it(draft_s):
    # No share of right drafts makes up for it, so a device must not draft all day to find that out again.
    learned, now, drafting_s = Learned(), 0.0, []
    for _ in range(40):  # answers
        pace, round_, text, came = AutoPace(learned), None, [], now + 0.18
        pace.begin()
        began, spent = now, 0.0
        assert pace.streams(100, 0.15)
        pace.stream_begun(now)
        while len(text) < 100:
            waited = came > now
            if waited and round_ is None and pace.shadows():
                round_, base = Shadow(pace, 0), len(text)
            if waited and round_ is not None and round_.wants(16):
                pace.drafted(1, draft_s)
                now, spent = now + draft_s, spent + draft_s
                round_.add(2, 0.7)
                continue
            now, came = max(now, came), came + 0.03
            text.append(1)
            pace.streamed(1, now, waited=waited)
            if round_ is not None and round_.compared(text[base:]):
                round_ = None
        drafting_s.append(spent / (now - began))
    assert 0.0 < sum(drafting_s[20:]) / 20 <= 0.12
