"""Rounds that hang on hope: the chain, the drafter at work, the server that holds them, and all of it over a socket."""

from __future__ import annotations

import random
import threading

import pytest

import sled
import sled.run.answering
from edgebus.testing import Proxy
from sled.chain import Chain
from sled.device import Generation, State
from sled.events import Finished, RoundEnded, RoundSent, Speculative
from sled.messages import Opened, Verdict
from sled.pace import FixedPace
from sled.proposal import Proposal
from sled.run.drafting import Drafting
from sled.takeover import Patience
from sled.testing import ToyDrafter, ToyTarget
from sled.types import Sampling, Token
from sled.window import Window
from tests.sled.driving import PROMPT, SAMPLED, Driver


def proposals(*tokens):
    return [Proposal(token, token / 100) for token in tokens]


class Hopeful(FixedPace):
    """Sends every round as soon as it is drafted."""

    def send(self, round_, hoped):
        return True


# -- the chain


def test_chain_hand_worked():
    chain = Chain(10)
    chain.proposals += proposals(1, 2, 3, 4, 5)
    assert chain.send(2).base == 10
    assert (chain.next_base, chain.start, chain.hoped()) == (13, 3, [0.01, 0.02, 0.03])
    second = chain.send(1)
    assert (second.base, [each.token for each in second.drafts], second.hoped) == (13, [4], (0.01, 0.02, 0.03))
    assert chain.commit([1, 2, 3]) == 3  # both drafts, and the token hoped for
    assert list(chain.flights) == [second]
    assert chain.commit([4, 9]) == 1  # its draft, and another token than the 5
    assert (chain.proposals, list(chain.flights), chain.length) == ([], [], 15)


@pytest.mark.parametrize(("told", "agreed"), [([1, 7], 1), ([7], 0), ([1, 2, 7], 2), ([1, 2], 2), ([1, 2, 3, 4], 4)])
def test_a_round_that_hangs_on_what_did_not_come_true_is_gone(told, agreed):
    chain = Chain()
    chain.proposals += proposals(1, 2, 3, 4, 5)
    chain.send(2), chain.send(1)
    assert chain.commit(told) == agreed
    assert not chain.flights


def test_text_that_outgrows_the_chain_is_another_text():
    """Whoever continues text and chain must begin anew: the last token is not the drafter's."""
    chain = Chain()
    chain.proposals += proposals(1)
    chain.send(1)
    cuts = chain.cuts
    assert chain.commit([1, 2]) == 1
    assert (chain.cuts, chain.proposals) == (cuts + 1, [])


# -- the drafter at work


class Counting:
    """Drafts 1, 2, 3 ... after a text, and remembers how it was asked."""

    name = "counting"

    def __init__(self, confidence=lambda token: 1.0, last=1000):
        self.confidence, self.last, self.asked, self.closed, self.drafted = confidence, last, [], 0, 0

    def start(self, sampling, num_prompt):
        pass

    def draft(self, text, limit):
        self.asked.append((list(text), limit))
        try:
            for token in range(text[-1] + 1, min(self.last, text[-1] + limit) + 1):
                self.drafted += 1
                yield Proposal(token, self.confidence(token))
        finally:
            self.closed += 1


def drafting(drafter, window, max_tokens=100):
    machine = Generation(bytes(8), [0], chat=False, sampling=Sampling(), max_tokens=max_tokens, window=window)
    machine.opened(Opened([0], 1, 16))
    return machine, Drafting(drafter, machine, FixedPace(window))


def drafted(work):
    count = 0
    while work.step():
        count += 1
        assert count < 100
    return count


def test_what_is_drafted_while_a_round_is_away_serves_the_next_one():
    drafter = Counting()
    machine, work = drafting(drafter, Window(3))
    assert (drafted(work), work.size, work.ready) == (3, 3, True)
    machine.submit(work.size)
    assert (drafted(work), work.size, work.ready) == (4, 3, True)  # the token hoped for, and three more
    machine.verdict(Verdict(1, [1, 2, 3, 4], 3, "", 16, 1))
    assert (work.size, work.ready, machine.submit(work.size).draft) == (3, True, [5, 6, 7])
    assert drafter.drafted == 7


def test_drafts_that_did_not_come_true_are_dropped_and_the_drafter_let_go():
    drafter = Counting()
    machine, work = drafting(drafter, Window(3))
    drafted(work)
    machine.submit(work.size)
    work.step()
    machine.verdict(Verdict(1, [1, 50], 1, "", 16, 1))
    assert drafted(work) == 3
    assert drafter.asked[-1][0] == [0, 1, 50]
    assert [each.token for each in machine.chain.proposals] == [51, 52, 53]
    work.close()
    assert drafter.closed == len(drafter.asked)


def test_a_token_not_worth_sending_is_what_the_round_after_hopes_for():
    drafter = Counting(lambda token: 0.1 if token == 3 else 0.9)
    machine, work = drafting(drafter, Window(8, confidence=0.5))
    assert (drafted(work), work.size, work.ready) == (3, 2, True)
    assert machine.submit(work.size).draft == [1, 2]
    drafted(work)
    assert work.size == 8  # 4 .. 11: the 3 needs no drafting again
    assert machine.submit(work.size).base == 4


def test_a_dry_drafter_ends_the_round_until_the_text_has_changed():
    drafter = Counting(last=2)
    machine, work = drafting(drafter, Window(8))
    assert (drafted(work), work.size, work.ready) == (2, 2, True)
    asked = len(drafter.asked)
    assert not work.step()
    assert len(drafter.asked) == asked
    machine.submit(work.size)
    machine.verdict(Verdict(1, [1, 2, 0], 2, "", 16, 1))
    assert (work.ready, work.step()) == (False, True)


def test_the_last_token_of_an_answer_is_never_drafted():
    machine, work = drafting(Counting(), Window(8), max_tokens=6)
    assert drafted(work) == 5
    machine.submit(2)
    assert (machine.draft_limit(), work.size) == (2, 2)  # three hoped for, two drafts, and the target's own
    machine.submit(work.size)
    assert machine.draft_limit() == 0


# -- the server


def held(driver, right, size=2, **more):
    """A round of `size` right drafts that waits, and behind it one that hopes for all of it."""
    assert driver.ask(PROMPT, right[:size], ticket="first") is None
    assert driver.ask(PROMPT + right[: size + 1], right[size + 1 : size + 2], ticket="second", **more) is None


def told(driver):
    return {ticket: answer for answer in driver.parts() for ticket in answer.tickets}


def test_a_held_round_goes_on_when_its_hope_has_come_true():
    driver = Driver()
    right = driver.target.plain_answer(PROMPT, SAMPLED, 5)
    driver.open()
    held(driver, right)
    step = driver.server.next_step(now=0.0)
    assert len(step.rounds) == 1  # it takes no part before
    (first,) = driver.compute(step)
    assert (first.tickets, first.verdict.tokens) == (["first"], right[:3])
    (second,) = driver.parts()
    assert (second.tickets, second.verdict.base, second.verdict.tokens) == (["second"], 6, right[3:5])
    assert driver.server.idle


def test_a_held_round_whose_hope_failed_is_refused():
    driver = Driver()
    right = driver.target.plain_answer(PROMPT, SAMPLED, 5)
    driver.open()
    wrong = [right[0], (right[1] + 1) % 50, right[2], right[3]]
    held(driver, wrong)
    answers = told(driver)
    assert answers["first"].verdict.tokens == right[:2]
    assert (answers["second"].refusal.code, answers["second"].refusal.info) == ("stale_base", 5)
    assert driver.ask(PROMPT + right[:2], [], ticket="third") is None  # nothing else has changed
    assert told(driver)["third"].verdict.tokens == right[2:3]


def test_a_held_round_of_the_right_length_and_another_text_is_refused():
    driver = Driver()
    right = driver.target.plain_answer(PROMPT, SAMPLED, 5)
    driver.open()
    driver.ask(PROMPT, right[:2], ticket="first")
    driver.ask([*PROMPT, *right[:2], (right[2] + 1) % 50], [], ticket="second")
    assert told(driver)["second"].refusal.code == "stale_base"


@pytest.mark.parametrize("what", ["too far", "replaced", "withdrawn", "first withdrawn", "closed", "twice", "stream"])
def test_a_held_round_has_one_outcome(what):
    driver = Driver()
    right = driver.target.plain_answer(PROMPT, SAMPLED, 20)
    driver.open()
    held(driver, right)
    if what == "too far":
        with pytest.raises(Exception, match="starts at length 21, committed are 3"):
            driver.ask(PROMPT + right[:18], [], ticket="far")
        assert told(driver)["second"].verdict.tokens == right[3:5]
    elif what == "replaced":
        driver.ask(PROMPT + right[:2] + [right[3]], [], ticket="other")
        answers = told(driver)
        assert [answers[ticket].refusal.code for ticket in ("second", "other")] == ["stale_base"] * 2
    elif what == "withdrawn":
        driver.server.withdraw(lambda ticket: ticket == "second")
        assert set(told(driver)) == {"first"}
    elif what == "first withdrawn":
        driver.server.withdraw(lambda ticket: ticket == "first")
        assert told(driver)["second"].refusal.code == "stale_base"
    elif what == "closed":
        assert driver.server.close("me", bytes(8)) == ["first", "second"]
    elif what == "twice":
        driver.ask(PROMPT + right[:3], right[3:4], ticket="again")
        answers = told(driver)
        assert answers["second"] is answers["again"]
    else:
        driver.stream(PROMPT, ticket="stream")
        answers = told(driver)
        assert answers["second"].refusal.code == "stale_base"
    assert driver.server.idle


@pytest.mark.parametrize("seed", range(60))
def test_any_interleaving_of_rounds_gives_the_plain_answer(seed):
    """Rounds in flight are decided whenever; the answer is the target's own."""
    chance, driver, target = random.Random(seed), Driver(), ToyTarget()
    sampling = Sampling(temperature=0.9 * (seed % 2), seed=seed)
    machine = Generation(bytes(8), PROMPT, chat=False, sampling=sampling, max_tokens=24, window=Window(4))
    drafter = ToyDrafter(target, error=chance.choice([0.0, 0.1, 0.5]), seed=seed)
    drafter.start(sampling, len(PROMPT))
    machine.opened(driver.server.open("me", machine.open_request(), PROMPT, now=0.0))
    work = Drafting(drafter, machine, Hopeful(machine.window))
    waiting: list[str] = []
    for number in range(2000):
        if machine.state is State.DONE:
            break
        chain, choice = machine.chain, chance.choice(["draft", "draft", "send", "decide"])
        if choice == "draft":
            work.step()
        elif choice == "send" and len(chain.flights) < 2 and chain.start <= len(chain.proposals):
            request = machine.submit(chance.randint(0, work.size))
            assert driver.server.verify("me", request, str(number), now=0.0) is None
            waiting.append(str(number))
        elif choice == "decide":
            for answer in driver.parts(1):
                if answer.tickets == waiting[:1] and answer.refusal is None:
                    machine.verdict(answer.verdict)
                    waiting = waiting[1 : 1 + len(machine.chain.flights)]
    assert machine.answer == target.plain_answer(PROMPT, sampling, 24)
    assert machine.counts.accepted <= machine.counts.drafted


# -- over a socket


@pytest.mark.net
@pytest.mark.parametrize(("error", "rule"), [(0.0, "coupled"), (0.3, "coupled"), (0.2, "rejection")])
def test_rounds_in_flight_do_not_change_the_answer(served, monkeypatch, error, rule):
    monkeypatch.setattr(sled.run.answering, "pace_for", lambda window, learned: Hopeful(window))
    sampling = Sampling(temperature=0.9, seed=4, rule=rule)
    with served.serving() as endpoint, Proxy(endpoint) as proxy:
        proxy.delay_s = 0.02
        with served.device(proxy.endpoint, ToyDrafter(served.target, error=error, seed=1)) as device:
            stream = device.generate([5, 6, 7], max_tokens=40, sampling=sampling, window=Window(3))
            events = list(stream.events())
            answer = stream.answer()
    sent = [event for event in events if isinstance(event, RoundSent)]
    ended = [event for event in events if isinstance(event, RoundEnded)]
    assert len(sent) >= len(ended)
    assert answer.stats.hoped_rounds == sum(event.hoped for event in sent) > 0
    assert answer.stats.dead_rounds == sum(not event.tokens for event in ended)
    assert (answer.stats.dead_rounds > 0) == (error > 0)
    assert [event.id for event in events if isinstance(event, Token)] == answer.tokens
    assert any(isinstance(event, Speculative) for event in events)
    assert isinstance(events[-1], Finished)
    if rule == "coupled":
        assert answer.tokens == served.target.plain_answer([5, 6, 7], sampling, 40)


@pytest.mark.net
@pytest.mark.parametrize("waits_for", ["a server that lives", "the end of a pause"])
def test_an_answer_that_waits_is_cancelled_at_once(served, monkeypatch, waits_for):
    """No server lives, or the one that there is wants to be asked later."""
    endless = Sampling(bias=((0, -100.0),))
    monkeypatch.setattr(Patience, "pause_s", lambda self, at_least_s, *, now: 25.0)
    with served.serving() as first, served.serving(name="other") as second:
        several = waits_for == "a server that lives"
        with served.device([first, second] if several else first, timeout_s=30.0) as device:
            if several:
                served.nodes["server"].close()
                served.nodes["other"].close()
                for _ in range(500):
                    if device._servers.link.health == "down" and device._servers._other(0.01) is None:
                        break
            stream = device.generate([5, 6, 7], max_tokens=4000, sampling=endless)
            if not several:
                served.servers["server"]._machine.drain()
            taken = []
            reading = threading.Thread(target=lambda: taken.extend(stream.events()))
            reading.start()
            reading.join(0.3)  # it may have begun to wait by then; it ends as soon if it has not
            stream.cancel()
            reading.join(8)
            assert not reading.is_alive()
            assert not [event for event in taken if isinstance(event, Token)]


@pytest.mark.net
def test_a_cancelled_answer_ends_and_frees_its_device(served):
    with served.serving() as endpoint, served.device(endpoint, ToyDrafter(served.target)) as device:
        stream = device.generate([5, 6, 7], max_tokens=4000)
        tokens = iter(stream)
        next(tokens)
        stream.cancel()
        assert len(list(tokens)) < 30  # of the verdict that was being read
        with pytest.raises(sled.AnswerIncomplete, match="broken off"):
            stream.answer()
        assert len(device.generate([5, 6], max_tokens=3).answer().tokens) == 3
