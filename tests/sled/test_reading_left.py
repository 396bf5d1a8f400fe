"""A drafter of somebody else that is left while it reads, and a server that is lost meanwhile."""

from __future__ import annotations

import itertools
import threading
import types
from contextlib import contextmanager

import numpy as np
import pytest

import edgebus
from edgebus.testing.proxy import Proxy
from sled.auto_pace import AutoPace
from sled.drafters.chain import Chain
from sled.drafters.guard import Guard
from sled.drafters.model import ModelDrafter
from sled.drafters.ngram import NgramDrafter
from sled.errors import AnswerIncomplete
from sled.events import Opened, ServerLost
from sled.proposal import Proposal, Reading
from sled.run.drafting import Drafting
from sled.run.following import verdicts
from sled.run.losing import Absence
from sled.run.source import Source
from sled.types import Sampling, Token
from tests.sled.test_reading import LONG, VOCAB, Blocking, Hearing, Model, drafter_of, generation, learned


class Reader:
    """Reads the text in one go, when it is let; notes which answers it was told of."""

    name = "reader"

    def __init__(self):
        self.started, self.asked, self.let = [], threading.Event(), threading.Event()

    def start(self, sampling, num_prompt):
        self.started.append(num_prompt)

    def draft(self, text, limit):
        self.asked.set()
        assert self.let.wait(120)
        yield from [7] * limit


def watched(drafter):
    watch = Guard(drafter, vocab_size=VOCAB, patience_s=120.0)
    watch.start(Sampling(), len(LONG))
    return watch


def test_a_drafter_that_is_left_before_it_was_asked_hears_of_the_answer_and_reads_it_later():
    reader = Reader()
    reader.let.set()
    watch = watched(reader)
    left = watch.draft(LONG, 2)
    assert next(left) == Reading(1000)
    left.close()  # before it was asked for anything
    assert watch.unread(LONG) == 1000
    assert [one.token for one in watch.draft(LONG, 2) if isinstance(one, Proposal)] == [7, 7]
    assert reader.started == [1000]
    assert watch.unread([*LONG, 7, 7, 8]) == 1
    watch.close()


def test_what_a_drafter_still_reads_that_was_left_is_not_read():
    reader = Reader()
    watch, pace, now = watched(reader), Hearing(), [0.0]
    first = Source(watch, pace, lambda: now[0])
    first.ask(LONG, 2)
    first.next()
    assert first.next() == Reading(1000, busy=True)
    assert reader.asked.wait(120)
    first.close()
    longer = [*LONG, 1, 2]
    assert watch.unread(longer) == 1002
    second = Source(watch, pace, lambda: now[0])
    second.ask(longer, 2)
    assert second.next() == Reading(1002)
    assert second.left == second.unread(longer) == 1002
    reader.let.set()
    while not isinstance(second.next(), Proposal):
        pass
    assert [what[:2] for what in pace.heard] == [("drafted", 1001)]  # the time of both, for the tokens of both
    assert watch.unread(longer) == 0
    watch.close()


def test_numbers_of_arrays_are_numbers_of_tokens_left():
    class Counting(Reader):
        def draft(self, text, limit):
            yield Reading(np.int64(5))
            yield Reading(np.int32(2))
            yield 7

    watch = watched(Counting())
    assert list(watch.draft([1], 1)) == [Reading(5), Reading(2), Proposal(7)]
    assert not watch.fault
    watch.close()


def test_what_cannot_be_read_is_not_unread():
    model = Model()
    model.max_positions = 999
    assert drafter_of(model).unread(LONG) == 0
    assert drafter_of(model).unread(LONG[:999]) == 999


def test_a_drafter_of_ours_that_fails_at_a_text_is_off(monkeypatch):
    watch = Guard(drafter_of(Model()), vocab_size=VOCAB)
    watch.start(Sampling(), 3)
    monkeypatch.setattr(ModelDrafter, "_kept", lambda self, text: 1 // 0)
    assert watch.unread([1, 2, 3]) == 0
    assert "ZeroDivisionError" in watch.fault


class Clock:
    now, look_s, chance = 0.0, 0.02, staticmethod(lambda: 0.5)

    def clock(self):
        self.now += 0.001
        return self.now


def no_stream(*, ended=False):
    def result():
        raise edgebus.LinkLost("gone")

    return types.SimpleNamespace(get=lambda timeout_s: None, ended=ended, result=result)


def absence_of(around, look):
    machine = generation([1, 2])
    absence = Absence(machine, None, None, types.SimpleNamespace(bears=False), None, around, 30.0)
    absence.look = look
    return absence


@pytest.mark.parametrize("how", ["ended", "lost", "silent"])
def test_a_stream_whose_server_is_lost_while_something_is_read_is_noticed(how):
    around, looks = Clock(), []

    def look():
        looks.append(around.now)
        return types.SimpleNamespace(server="a") if how == "lost" else None

    reading = verdicts(no_stream(ended=how == "ended"), absence_of(around, look), around, 0.5, lambda: True)
    expected = edgebus.DeadlineExceeded if how == "silent" else edgebus.LinkLost
    with pytest.raises(expected):
        for _ in itertools.islice(reading, 5000):
            pass
    assert len(looks) <= 30  # not after every piece


class Rounds(AutoPace):
    """Never has the server decode by itself: it could be far ahead when it is lost."""

    def streams(self, remaining, ping_s, unread=0):
        return False


@contextmanager
def lost_while_it_reads(served, monkeypatch):
    """An answer of a device that shows drafts without a server, its drafter at the prompt; nobody can be asked."""
    monkeypatch.setattr("sled.run.answering.pace_for", lambda window, learned: Rounds(learned))
    drafter = Blocking(served.target)
    with (
        served.serving() as real,
        Proxy(int(real.rpartition(":")[2])) as proxy,
        served.device(proxy.endpoint, drafter, on_loss="release", release_after_s=0.0) as device,
    ):
        device.drafter._calls._patience_s = 3600.0
        stream = device.generate(LONG, max_tokens=40, sampling=Sampling(temperature=0.8, seed=3))
        events = stream.events()
        got = list(itertools.islice((one for one in events if isinstance(one, Token)), 5))
        proxy.refuse()
        proxy.cut()
        try:
            yield drafter, proxy, stream, events, got
        finally:
            drafter.read.set()


@pytest.mark.net
def test_a_server_that_is_lost_and_comes_back_while_the_drafter_reads_is_noticed(served, monkeypatch):
    with lost_while_it_reads(served, monkeypatch) as (drafter, proxy, stream, events, got):
        for kind in (ServerLost, Opened):
            for event in events:
                if isinstance(event, Token):
                    got.append(event)
                if isinstance(event, kind):
                    break
            proxy.accept()
        assert not drafter.read.is_set()
        drafter.read.set()
        got += [event for event in events if isinstance(event, Token)]
        right = served.target.plain_answer(LONG, Sampling(temperature=0.8, seed=3), 40)
        assert [token.id for token in got] == right == stream.answer().tokens


@pytest.mark.net
def test_an_answer_without_a_server_can_be_cancelled_while_the_drafter_reads(served, monkeypatch):
    with lost_while_it_reads(served, monkeypatch) as (drafter, _, stream, events, _):
        for event in events:
            if isinstance(event, ServerLost):
                break
        later = threading.Timer(0.3, stream.cancel)
        later.start()
        assert not [event for event in events if isinstance(event, Token)]
        later.join()
        assert not drafter.read.is_set()
        with pytest.raises(AnswerIncomplete):
            stream.answer()


def test_a_model_says_how_large_its_pieces_are():
    model = Model()
    model.read_tokens = 128
    said = list(itertools.islice(drafter_of(model).draft(LONG, 1), 10))
    assert [one.left for one in said[:9]] == [1000 - 128 * i for i in range(8)] + [1]
    assert model.reads == [128] * 7 + [103, 1]


def test_what_reading_costs_is_thought_of_in_the_pieces_that_it_takes():
    def late(piece):
        known = learned()
        pace = AutoPace(known)
        for _ in range(8):
            pace.read(piece, piece * 0.0015)
        pace.drafted(1, 1.5, read=999)  # in one go, on a thread of its own: no piece
        assert known.read_s == pytest.approx(0.0015, rel=0.01)
        return next(unread for unread in range(100, 10000, 100) if not pace.another([], [], 0.01, unread=unread))

    assert late(16) > 1.5 * late(128)


def test_where_the_first_of_two_drafters_is_sure_the_second_need_not_read():
    first, second = NgramDrafter(), drafter_of(Model())
    first.start(Sampling(), 0)
    chain = Chain(first, second)
    assert chain.unread(LONG) == 0
    work = Drafting(chain, generation(LONG), AutoPace(learned(read_s=0.01)))  # too slow to read all of it
    assert work.step()
    assert work.unread == 0
    assert chain.unread([*LONG, 45]) == 1001  # new to the first


def test_a_drafter_is_told_of_an_answer_before_it_is_asked_what_it_has_to_read():
    model = Model()
    watch = Guard(drafter_of(model), vocab_size=VOCAB)
    other = [3] * 40
    for prompt in (other + LONG * 2, LONG * 2 + LONG):
        watch.start(Sampling(), len(prompt))
        kept = sum(
            1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(model.ids, prompt, strict=False))
        )
        assert watch.unread(prompt) == len(prompt) - kept
        assert [one for one in watch.draft(prompt, 1) if isinstance(one, Proposal)]
    again = [9, *prompt[1:]]  # only its beginning is another
    watch.start(Sampling(), len(again))
    assert watch.unread(again) == len(again)
