"""An answer that goes over to a stream and back to drafts, over real sockets: the same answer, and nothing is lost."""

from __future__ import annotations

import threading
import time

import pytest

from edgebus.testing import Proxy
from sled.auto_pace import AutoPace
from sled.drafters import NoDrafter
from sled.messages import DECODE, SERVICES
from sled.testing import ToyDrafter, ToyTarget
from sled.types import Sampling
from sled.window import Window

pytestmark = pytest.mark.net

PROMPT = [5, 6, 7, 8, 5, 6]
SAMPLED = Sampling(temperature=0.8, top_k=20, top_p=0.95, seed=3)


class Restless(AutoPace):
    """Has the server decode a few tokens, drafts a few rounds, and again."""

    def __init__(self, learned):
        super().__init__(learned)
        self.parts = self.rounds = self.begun = self.compared = 0

    def streams(self, remaining, ping_s, unread=0):
        return self.begun == 0 or self.rounds >= 2

    def stream_begun(self, now):
        super().stream_begun(now)
        self.begun, self.parts, self.rounds = self.begun + 1, 0, 0

    def stays(self, remaining, unread=0):
        self.parts += 1
        self._told_again = self.parts >= 4
        return not self._told_again

    def told(self, *given, **more):
        super().told(*given, **more)
        self.rounds += 1

    def shadows(self, unread=0):
        return True

    def shadowed(self, drafts, accepted, size):
        super().shadowed(drafts, accepted, size)
        self.compared += 1


@pytest.fixture
def paces(monkeypatch):
    """Every pace that was made."""
    made = []

    def make(window, learned):
        made.append(Restless(learned))
        return made[-1]

    monkeypatch.setattr("sled.run.answering.pace_for", make)
    return made


@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("error", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("logprobs", [-1, 2])
def test_switching_gives_the_targets_answer(served, paces, sampling, error, logprobs):
    expected = served.target.plain_answer(PROMPT, sampling, 60)
    with served.serving() as endpoint, served.device(endpoint, ToyDrafter(served.target, error=error)) as device:
        more = {"logprobs": logprobs} if logprobs >= 0 else {}
        for _ in range(20):
            stream = device.generate(PROMPT, max_tokens=60, sampling=sampling, window=Window.auto(), **more)
            answer = stream.answer()
            assert answer.tokens == expected
            assert stream.moves == 0  # the server never had to open the session again
            assert paces[-1].begun >= 1
            if logprobs >= 0:
                assert len(answer.logprobs) == len(expected)
            # Four tokens need not decide a round of a good drafter; where the cores are taken a bad one may be late.
            if error < 1.0 or paces[-1].compared:
                break
    assert error < 1.0 or paces[-1].compared >= 1


def test_without_a_drafter_there_is_nothing_to_compare_but_rounds_of_none(served, paces):
    with served.serving() as endpoint, served.device(endpoint, NoDrafter()) as device:
        answer = device.generate(PROMPT, max_tokens=40, window=Window.auto()).answer()
    assert answer.tokens == served.target.plain_answer(PROMPT, Sampling(), 40)
    assert paces[0].compared >= 1


def test_nothing_is_drafted_beside_a_stream_under_the_rejection_rule(served, paces):
    sampling = Sampling(temperature=0.8, seed=3, rule="rejection")
    with served.serving() as endpoint, served.device(endpoint, ToyDrafter(served.target)) as device:
        answer = device.generate(PROMPT, max_tokens=40, sampling=sampling, window=Window.auto()).answer()
    assert answer.tokens
    assert paces[0].compared == 0


def test_auto_streams_over_a_long_link(served):
    with served.serving() as endpoint, Proxy(endpoint) as proxy:
        proxy.delay_s = 0.06
        with served.device(proxy.endpoint, ToyDrafter(served.target, error=1.0)) as device:
            for _ in range(2):
                stream = device.generate(PROMPT, max_tokens=40, window=Window.auto())
                kinds = [type(event).__name__ for event in stream.events()]
                assert stream.answer().tokens == served.target.plain_answer(PROMPT, Sampling(), 40)
    assert kinds.count("RoundSent") <= 2  # 40 rounds would take 5 s


class SlowTarget(ToyTarget):
    """Takes 20 ms a forward."""

    def verify(self, chunks, rounds):
        time.sleep(0.02)
        return super().verify(chunks, rounds)


class SlowDrafter(ToyDrafter):
    """Takes 0.2 s a token."""

    def draft(self, text, limit):
        for token in super().draft(text, limit):
            time.sleep(0.2)
            yield token


class Shadowed(AutoPace):
    """Streams to the end, and drafts beside it as much as it may."""

    def streams(self, remaining, ping_s, unread=0):
        return True

    def stays(self, remaining, unread=0):
        return True

    def shadows(self, unread=0):
        return True

    def another(self, *given, **more):
        return True

    def more(self, *given, **more):
        return True


def test_cancelling_does_not_wait_for_a_round_in_the_shadow(served, monkeypatch):
    monkeypatch.setattr("sled.run.answering.pace_for", lambda window, learned: Shadowed(learned))
    with (
        served.serving(target=SlowTarget()) as endpoint,
        Proxy(endpoint) as proxy,
        served.device(proxy.endpoint, SlowDrafter(served.target, error=0.0)) as device,
    ):
        stream = device.generate(PROMPT, max_tokens=500, sampling=SAMPLED)
        tokens = iter(stream)
        for _ in range(3):
            next(tokens)
        proxy.stall()  # nothing comes any more, and 16 drafts would take 3.2 s
        cancelled = []
        timer = threading.Timer(0.5, lambda: (cancelled.append(time.monotonic()), stream.cancel()))
        timer.start()
        list(tokens)
        assert time.monotonic() - cancelled[0] < 1.5  # a draft, and what the farewell waits for
        timer.join()


@pytest.mark.parametrize("window", [Window.auto(), Window(0)], ids=["auto", "0"])
def test_a_server_without_streams_is_asked_for_rounds(served, monkeypatch, window):
    monkeypatch.setattr("sled.testing.SERVICES", tuple(name for name in SERVICES if name != DECODE))
    with served.serving() as endpoint, Proxy(endpoint) as proxy:
        proxy.delay_s = 0.04  # so that auto wants a stream
        with served.device(proxy.endpoint, ToyDrafter(served.target, error=0.9)) as device:
            stream = device.generate(PROMPT, max_tokens=12, window=window)
            assert stream.answer().tokens == served.target.plain_answer(PROMPT, Sampling(), 12)
            assert stream.moves == 0
