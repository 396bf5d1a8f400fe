"""No server at all: what an answer does meanwhile, what of it is shown, and how it goes on."""

from __future__ import annotations

import math
import threading
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgebus
from edgebus.testing.proxy import Proxy
from sled.errors import ParameterError
from sled.events import Finished, Opened, Retracted, ServerLost, Unverified
from sled.loss import Loss
from sled.run import losing
from sled.run.device import Device
from sled.server import FixedWindow
from sled.stop_text import AnswerText
from sled.testing import ToyDrafter, ToyTarget
from sled.types import Sampling, Token
from sled.unverified import Released
from sled.window import Window

PROMPT = [5, 6, 7, 8, 5, 6]
SAMPLED = Sampling(temperature=0.8, top_k=20, top_p=0.95, seed=3)
NUM_TOKENS = 40
RIGHT = ToyTarget().plain_answer(PROMPT, SAMPLED, NUM_TOKENS)


# -- the policy, pure


def test_waiting_is_over_when_it_was_said_and_a_server_ends_it():
    loss = Loss("wait", 5.0)
    assert not loss.over(now=1e9)
    loss.begin(now=10.0)
    assert (loss.over(now=14.9), loss.over(now=15.0), loss.releases(now=15.0)) == (False, True, False)
    loss.end()
    assert not loss.lost
    assert not loss.over(now=15.0)


def test_release_counts_its_patience_from_the_last_draft():
    loss = Loss("release", 5.0, 2.0)
    loss.begin(now=10.0)
    assert not loss.over(now=100.0)
    loss.spent(now=100.0)
    loss.spent(now=104.0)
    assert (loss.over(now=104.9), loss.over(now=105.0)) == (False, True)


def test_fail_and_for_ever_are_never_over():
    for loss in (Loss("fail", 1.0), Loss("wait", math.inf)):
        loss.begin(now=0.0)
        assert not loss.over(now=1e12)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (("hope",), "on_loss is 'hope', give one of fail, wait, release"),
        (("wait", -1.0), "wait_s is -1.0"),
        (("wait", math.nan), "wait_s is nan"),
        (("release", 1.0, math.inf), "release_after_s is inf"),
    ],
)
def test_policy_out_of_range_is_refused(values, match):
    with pytest.raises(ParameterError, match=match):
        Loss(*values)


# -- what is shown, pure


@given(
    st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 4), max_size=6)), max_size=12),
    st.lists(st.integers(0, 4), min_size=0, max_size=12),
)
def test_what_is_shown_is_the_answer_as_soon_as_nothing_is_unverified(turns, answer):
    """Whatever is shown in between: tokens come, all that contradicts them was retracted, texts go with them."""
    released, committed = Released({0}, lambda token: b"<%d>" % token), AnswerText()
    screen, text, left = [], "", list(answer)
    for verified, tokens in turns:
        if verified:
            if not left:
                break
            token = left.pop(0)
            retracted = released.commit(token, len(screen) - len(released.tokens))
            if retracted is not None:
                del screen[retracted.from_pos :]
            done = len(answer) - len(left) - 1
            screen[done:done] = [] if len(screen) > done else [token]
            assert screen[done] == token
            text += committed.add(b"<%d>" % token)
        else:
            for token in tokens:
                shown = released.show(token, committed, len(screen))
                assert shown.pos == len(screen)
                screen.append(token)
        done = len(answer) - len(left)
        assert screen == answer[:done] + released.tokens
        assert text + released.text == "".join(f"<{token}>" for token in screen)
    done = len(answer) - len(left)
    if (retracted := released.retract(done)) is not None:
        del screen[retracted.from_pos :]
    assert screen == answer[:done]


def test_unverified_text_ends_at_a_stop_token_or_text_and_leaves_the_committed_one_alone():
    released, committed = Released({0}, lambda token: [b"", b"a", b"E", b"ND", b"z"][token]), AnswerText(["END"])
    committed.add(b"xE")
    assert [released.show(token, committed).text for token in (3, 4)] == ["", ""]
    assert released.ended
    assert released.retract(7) == Retracted(7)
    assert committed.add(b"z") == "Ez"
    released.show(1, committed)
    assert not released.ended
    released.show(0, committed)
    assert released.ended
    assert released.commit(1, 0) is None
    assert released.tokens == [0]


# -- over the bus


class Endless(ToyDrafter):
    """Never guesses that the answer ends."""

    def draft(self, text, limit):
        for token in super().draft(text, limit):
            yield token or 1


class Gate(ToyTarget):
    """Computes no more than some tokens until it may: a server cannot have sent all before it is cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.may = threading.Event()

    def verify(self, chunks, rounds):
        if any(rows.position > len(PROMPT) + 10 for rows in rounds):
            assert self.may.wait(30)
        return super().verify(chunks, rounds)


@contextmanager
def alone(served, *, error=0.0, window=3, policy=None, target=None, **more):
    """A device whose only server can be cut off."""
    with served.serving(policy=policy, target=target) as real, Proxy(int(real.rpartition(":")[2])) as proxy:
        drafter = Endless(served.target, error=error)
        with served.device(proxy.endpoint, drafter, **more) as device:
            stream = device.generate(PROMPT, max_tokens=NUM_TOKENS, sampling=SAMPLED, window=Window(window))
            yield device, proxy, stream


def cut_off(proxy):
    proxy.refuse()
    proxy.cut()


def read(events, until, limit=5000):
    """Events up to the first that is such."""
    got = []
    for event in events:
        got.append(event)
        if until(event):
            return got
        assert len(got) < limit
    return got


def tokens(events, kind=Token):
    return [event.id for event in events if isinstance(event, kind)]


@pytest.mark.net
@pytest.mark.parametrize("error", [0.0, 0.5], ids=["right", "wrong"])
@pytest.mark.parametrize("policy", [lambda: None, lambda: FixedWindow(0)], ids=["rounds", "stream"])
def test_released_drafts_are_verified_when_the_server_is_back(served, error, policy):
    gate, release = Gate(), {"on_loss": "release", "release_after_s": 0.05}
    with alone(served, error=error, policy=policy(), target=gate, **release) as (_, proxy, stream):
        events = stream.events()
        got = read(events, lambda event: isinstance(event, Token) and event.pos >= len(PROMPT) + 6)
        cut_off(proxy)
        gate.may.set()
        lost = read(events, lambda event: isinstance(event, Unverified) and event.pos >= len(PROMPT) + 25)
        assert any(isinstance(event, ServerLost) for event in lost)
        proxy.accept()
        rest = list(events)
        assert any(isinstance(event, Opened) for event in rest)
        assert tokens(got + lost + rest) == RIGHT == stream.answer().tokens
        shown = [event for event in lost + rest if isinstance(event, Unverified | Retracted)]
        assert any(isinstance(event, Retracted) for event in shown) == (error > 0)
        if not error:
            begin = shown[0].pos - len(PROMPT)
            assert tokens(shown, Unverified) == RIGHT[begin : begin + len(shown)]
        assert rest[-1] == Finished(stream.answer().finish_reason, 0, rest[-1].at_s)
        assert stream.answer().unverified == []


@pytest.mark.net
def test_without_a_server_to_the_end_the_answer_says_what_is_unverified(served):
    with alone(served, on_loss="release", release_after_s=0.0, wait_s=0.1) as (device, proxy, stream):
        iterator = iter(stream)
        got = [next(iterator).id for _ in range(4)]
        cut_off(proxy)
        got += [token.id for token in iterator]
        answer = stream.answer()
        assert answer.tokens == got == RIGHT[: len(got)]
        assert answer.finish_reason == ""
        assert answer.tokens + answer.unverified == RIGHT
        assert answer.text + answer.unverified_text == "".join(f"<{token}>" for token in RIGHT if token)
        proxy.accept()
        again = device.generate(PROMPT, max_tokens=NUM_TOKENS, sampling=SAMPLED).answer()
        assert again.tokens == RIGHT


@pytest.mark.net
def test_tokens_are_committed_ones_alone_while_drafts_are_shown(served):
    with alone(served, error=0.5, on_loss="release", release_after_s=0.0) as (_, proxy, stream):
        iterator = iter(stream)
        got = [next(iterator).id for _ in range(4)]
        cut_off(proxy)
        proxy.accept()
        assert got + [token.id for token in iterator] == RIGHT


@pytest.mark.net
@pytest.mark.parametrize("policy", [lambda: None, lambda: FixedWindow(0)], ids=["rounds", "stream"])
def test_waiting_device_goes_on_at_a_server_restarted_on_its_port(served, policy):
    with served.serving(policy=policy()) as endpoint:
        device = served.device(endpoint, ToyDrafter(served.target), on_loss="wait", timeout_s=2.0)
        stream = device.generate(PROMPT, max_tokens=NUM_TOKENS, sampling=SAMPLED, window=Window(3))
        events = stream.events()
        got = read(events, lambda event: isinstance(event, Token) and event.pos >= len(PROMPT) + 3)
    with device:
        got += read(events, lambda event: isinstance(event, ServerLost))
        with served.serving(endpoint, target=ToyTarget(), policy=policy()):
            got += list(events)
            assert tokens(got) == RIGHT
            assert not tokens(got, Unverified)


@pytest.mark.net
def test_waiting_ends_with_an_error_that_says_what_was_wrong(served):
    with alone(served, on_loss="wait", wait_s=0.2) as (_, proxy, stream):
        iterator = iter(stream)
        next(iterator)
        cut_off(proxy)
        with pytest.raises(edgebus.PeerUnreachable, match=r"no server for 0\.2 s .*down.*wait_s"):
            list(iterator)


@pytest.mark.net
def test_answer_that_has_not_begun_cannot_be_released(served):
    """Nobody has told the device what the prompt's tokens are: it can only wait."""
    with alone(served, on_loss="release", release_after_s=0.0, wait_s=0.1) as (_, proxy, stream):
        cut_off(proxy)
        with pytest.raises(edgebus.PeerUnreachable, match="no server for"):
            list(stream)


@pytest.mark.net
def test_cancel_ends_the_waiting(served):
    with alone(served, on_loss="wait") as (_, proxy, stream):
        events = stream.events()
        read(events, lambda event: isinstance(event, Token))
        cut_off(proxy)
        read(events, lambda event: isinstance(event, ServerLost))
        stream.cancel()
        assert not tokens(events)


def test_policy_out_of_range_is_refused_before_anything_is_dialled():
    with pytest.raises(ParameterError, match="on_loss"):
        Device("tcp://127.0.0.1:1", insecure=True, on_loss="panic")


@pytest.mark.net
def test_closing_the_device_ends_the_waiting(served):
    with alone(served, on_loss="wait") as (device, proxy, stream):
        events = stream.events()
        read(events, lambda event: isinstance(event, Token))
        cut_off(proxy)
        read(events, lambda event: isinstance(event, ServerLost))
        device.close()
        with pytest.raises(edgebus.EdgebusError):
            list(events)


@pytest.mark.net
@pytest.mark.parametrize("policy", [lambda: None, lambda: FixedWindow(0)], ids=["rounds", "stream"])
def test_frozen_server_is_left_before_its_link_is_given_up(served, policy, monkeypatch):
    """Its connection stands and swallows everything: a ping that nobody answers gives it away."""
    monkeypatch.setattr(losing, "_OVERDUE_S", 0.1)
    monkeypatch.setattr(losing, "_PROBE_S", 0.1)
    with (
        served.serving(policy=policy()) as real,
        served.serving(target=ToyTarget(), name="other", policy=policy()) as second,
        Proxy(int(real.rpartition(":")[2])) as proxy,
        served.device([proxy.endpoint, second], ToyDrafter(served.target)) as device,
    ):
        device._servers._pool.wait_ready(10.0, servers=2)
        device._servers._avoided[second] = math.inf
        stream = device.generate(PROMPT, max_tokens=NUM_TOKENS, sampling=SAMPLED, window=Window(3))
        events = stream.events()
        got = read(events, lambda event: isinstance(event, Token) and event.pos >= len(PROMPT) + 4)
        device._servers._avoided.clear()
        proxy.stall()
        got += list(events)
        lost = [event for event in got if isinstance(event, ServerLost)]
        assert tokens(got) == RIGHT
        assert [event.server for event in lost] == [proxy.endpoint]
        assert "is silent" in lost[0].reason


@pytest.mark.net
def test_slow_server_that_answers_pings_is_not_left(served, monkeypatch):
    monkeypatch.setattr(losing, "_OVERDUE_S", 0.02)
    monkeypatch.setattr(losing, "_PROBE_S", 5.0)

    class Slow(ToyTarget):
        def verify(self, chunks, rounds):
            threading.Event().wait(0.1)
            return super().verify(chunks, rounds)

    with (
        served.serving(target=Slow()) as real,
        served.serving(target=Slow(), name="other") as second,
        served.device([real, second], ToyDrafter(served.target, error=0.0)) as device,
    ):
        device._servers._pool.wait_ready(10.0, servers=2)
        stream = device.generate(PROMPT, max_tokens=12, sampling=SAMPLED, window=Window(4))
        assert stream.answer().tokens == RIGHT[:12]
        assert stream.moves == 0
