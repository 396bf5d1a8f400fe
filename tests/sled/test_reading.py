"""A drafter that has much to read: what is learned of it, what is done meanwhile, and that nobody waits for it."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest

from bench.macro._links_texts import DRAFTERS, LINKS
from bench.macro._links_world import FORWARDS, Cell, compare
from sled.auto_pace import AutoPace
from sled.device import Generation
from sled.drafters.chain import Chain
from sled.drafters.guard import Guard
from sled.drafters.model import READ_TOKENS, ModelDrafter
from sled.drafters.ngram import NgramDrafter
from sled.learned import Learned
from sled.messages import Opened
from sled.pace import FixedPace
from sled.proposal import LITTLE, Proposal, Reading
from sled.run.drafting import Drafting
from sled.run.following import Shadowing
from sled.run.source import Source
from sled.testing import ToyDrafter
from sled.types import Sampling
from sled.window import Window

VOCAB = 50
LONG = [2 + i % 40 for i in range(1000)]


class Model:
    """Says the next number; reading a token takes 1 ms, and each call 4 ms more."""

    vocab_size, max_positions = VOCAB, 4096

    def __init__(self):
        self.now, self.ids, self.reads = 0.0, [], []

    def read(self, ids):
        self.now += 0.004 + 0.001 * len(ids)
        self.ids += ids.tolist()
        self.reads.append(len(ids))
        row = np.zeros((1, VOCAB), np.float32)
        row[0, (self.ids[-1] + 1) % VOCAB] = 9.0
        return row

    def forget(self, length):
        del self.ids[length:]

    def clock(self):
        return self.now


def drafter_of(model):
    drafter = ModelDrafter(model, name="model", target_ids=None, target_vocab_size=VOCAB)
    drafter.start(Sampling(), 0)
    return drafter


class Hearing(FixedPace):
    """Notes what it is told of times, in ms."""

    def __init__(self, size=4):
        super().__init__(Window(size))
        self.heard = []

    def read(self, count, took_s):
        self.heard.append(("read", count, round(took_s * 1e3)))

    def drafted(self, count, took_s, read=0):
        self.heard.append(("drafted", read, round(took_s * 1e3)))


# -- what is told of it


def test_a_model_reads_a_long_text_in_pieces_and_says_what_is_left():
    model = Model()
    drafter = drafter_of(model)
    assert drafter.unread(LONG) == 1000
    said = list(itertools.islice(drafter.draft(LONG, 2), 34))
    assert [one.left for one in said[:32]] == [1000 - READ_TOKENS * i for i in range(31)] + [8]
    assert [type(one) for one in said[32:]] == [Proposal, Proposal]
    assert (model.reads, model.ids[:1000]) == ([32] * 31 + [8, 1], LONG)
    assert drafter.unread([*LONG, *(one.token for one in said[32:])]) == 1
    assert drafter.unread([*LONG, 7, 8, 9]) == 3  # a correction, and what follows it


def test_a_model_that_is_left_while_it_reads_goes_on_where_it_was():
    model = Model()
    drafter = drafter_of(model)
    reading = drafter.draft(LONG, 4)
    assert [next(reading).left for _ in range(3)] == [1000, 968, 936]
    reading.close()
    longer = [*LONG, 3, 4]
    assert drafter.unread(longer) == 938
    assert next(iter(drafter.draft(longer, 4))) == Reading(938)


def test_a_text_that_is_longer_than_the_model_knows_is_not_read():
    model = Model()
    model.max_positions = 999
    assert list(drafter_of(model).draft(LONG, 4)) == []
    assert model.reads == []


def test_reading_and_drafting_are_timed_by_themselves():
    model, pace = Model(), Hearing()
    source = Source(drafter_of(model), pace, model.clock)
    source.ask(LONG, 4)
    while not isinstance(source.next(), Proposal):
        pass
    source.next()
    assert pace.heard == [("read", 32, 36)] * 31 + [("drafted", 7, 12), ("drafted", 0, 5)]


def test_the_second_of_two_drafters_reads_when_its_turn_comes():
    first, second = NgramDrafter(), drafter_of(Model())
    first.start(Sampling(), 0)
    said = list(Chain(first, second).draft([*LONG, 45], 2))  # the 45 is new to the first
    assert said[0] == Reading(1001)
    assert [one.token for one in said if isinstance(one, Proposal)] == [46, 47]


def test_a_drafter_of_others_that_reads_without_end_is_off():
    class Endless(ToyDrafter):
        def __init__(self):
            pass

        def start(self, sampling, num_prompt):
            pass

        def draft(self, text, limit):
            while True:
                yield Reading(5)

    watch = Guard(Endless(), vocab_size=VOCAB)
    watch.start(Sampling(), 1)
    assert list(watch.draft([1], 3)) == [Reading(5)]
    assert "fewer each time" in watch.fault


# -- what it means for auto


def learned(**more):
    """Rounds of 60 ms and 3 tokens each, and a draft of 2 ms."""
    found = Learned(draft_s=0.002, rounds=40, tokens=90.0, seconds=2.0, weight=30.0, **more)
    for _ in range(20):
        found.turnaround.told(3, 0.06)
        found.turnaround.told(0, 0.06)
    return found


def test_what_reading_takes_is_no_draft():
    known = learned()
    pace = AutoPace(known)
    pace.read(992, 0.248)
    pace.drafted(1, 0.25, read=999)  # of a drafter that reads in one go
    assert known.draft_s == 0.002
    assert known.read_s == pytest.approx(0.00025, rel=0.05)


def test_a_round_goes_without_drafts_rather_than_wait_for_long_reading():
    pace = AutoPace(learned(read_s=0.00025))
    assert pace.another([], [], None, unread=LITTLE)
    assert pace.another([], [], None, unread=60)  # 15 ms, for two tokens more
    assert not pace.another([], [], None, unread=1000)
    assert pace.another([], [], 0.01, unread=1000)  # while it is away
    assert pace.another([], [], 0.5, unread=1000)  # it is overdue: pieces are short


def test_reading_that_drafts_cannot_earn_again_is_left_alone():
    pace = AutoPace(learned(read_s=0.01))  # pieces of 0.32 s
    assert pace.another([], [], 0.01, unread=100)
    assert not pace.another([], [], 0.01, unread=1000)


def test_a_long_text_is_read_beside_a_stream_that_ends_with_it():
    pace = AutoPace(learned(read_s=0.00025))
    assert not pace.streams(200, 0.001, unread=100)
    assert pace.streams(200, 0.001, unread=1000)
    pace.stream_begun(0.0)
    for i in range(8):
        pace.streamed(1, 0.06 * (i + 1))
        assert pace.stays(200, unread=500)
    assert not pace.stays(200, unread=0)


WORLDS = [  # of drafter, link, forward; the ratio before reading was told apart
    (1, 0, "flat 60 ms"),  # .22
    (0, 1, "flat 60 ms"),  # .44
    (4, 0, "flat 60 ms"),  # .77
    (5, 2, "flat 15 ms"),
    (1, 3, "steps 28 ms"),
]


@pytest.mark.parametrize(("drafter", "link", "forward"), WORLDS)
def test_auto_with_a_long_prompt_keeps_up_with_the_best_fixed_window(drafter, link, forward):
    cell = Cell(DRAFTERS[drafter], LINKS[link], FORWARDS[forward]).with_prompt(1000)
    auto, _, best = compare(cell, tokens=150, answers=3, seed=1, sizes=(0, 2, 4, 8, 12))
    assert auto >= 0.9 * best


# -- that nobody waits for it


class Blocking(ToyDrafter):
    """Reads the prompt until somebody lets it go on."""

    def __init__(self, target):
        super().__init__(target, error=0.0)
        self.asked, self.read = threading.Event(), threading.Event()

    def draft(self, text, limit):
        self.asked.set()
        assert self.read.wait(120)
        yield from super().draft(text, limit)


class Streaming(AutoPace):
    """Has the server decode, and drafts beside it."""

    def streams(self, remaining, ping_s, unread=0):
        return True

    def stays(self, remaining, unread=0):
        return True

    def shadows(self, unread=0):
        return True


@pytest.mark.net
@pytest.mark.parametrize("streams", [True, False], ids=["stream", "rounds"])
def test_tokens_are_shown_while_the_drafter_reads(served, monkeypatch, streams):
    if streams:
        monkeypatch.setattr("sled.run.answering.pace_for", lambda window, learned: Streaming(learned))
    drafter = Blocking(served.target)
    with served.serving() as endpoint, served.device(endpoint, drafter) as device:
        device.drafter._calls._patience_s = 120.0
        stream = device.generate(LONG, max_tokens=60, sampling=Sampling(temperature=0.8, seed=3))
        shown = [token.id for token in itertools.islice(stream, 20)]
        assert drafter.asked.is_set()
        assert not drafter.read.is_set()
        assert device.drafter.num_late == 0  # nor was it given up
        drafter.read.set()
        shown += [token.id for token in stream]
        answer = stream.answer()
    assert shown == answer.tokens == served.target.plain_answer(LONG, Sampling(temperature=0.8, seed=3), 60)


def generation(prompt, **more):
    machine = Generation(bytes(8), prompt, chat=False, sampling=Sampling(**more), max_tokens=100, window=Window(4))
    machine.opened(Opened(prompt, len(prompt), 16))
    return machine


def test_between_two_pieces_others_have_their_turn():
    model = Model()
    work = Drafting(drafter_of(model), generation(LONG), Hearing(), model.clock)
    for count in range(1, 32):
        assert work.step(0.0)
        assert len(model.reads) == count - 1
    assert not work.ready
    while work.step(0.0):
        pass
    assert (work.ready, work.size) == (True, 4)


@pytest.mark.parametrize("rule", ["coupled", "rejection"])
def test_beside_a_stream_what_came_meanwhile_is_read_with_the_rest(rule):
    model, machine = Model(), generation(LONG, temperature=0.8, rule=rule)
    pace = Streaming(Learned())
    machine.decode_request()
    beside = Shadowing(drafter_of(model), machine, pace, model.clock)
    for token in range(60):  # one token of the stream each step
        beside.step()
        assert max(model.reads, default=0) <= READ_TOKENS
        machine.history.extend([token % VOCAB])
        beside.compare()
    while beside.unread > LITTLE:
        assert beside.step()
    assert model.ids[:1000] == LONG
    assert len(model.ids) >= len(machine.history) - LITTLE - 1
