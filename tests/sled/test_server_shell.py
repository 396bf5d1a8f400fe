"""The server's shell without sockets: who is told what when it stops, fails, or is asked too much at once."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import pytest

import edgebus
from edgebus.payloads import decode, encode
from sled import messages
from sled.history import History
from sled.messages import Open, Verdict, Verify
from sled.run.server import TargetServer
from sled.testing import ToyTarget
from sled.types import Sampling

PROMPT = [5, 6, 7]


@dataclass
class FakeRequest:
    """A request of the bus that remembers its answer."""

    service: str
    payload: bytes
    peer: edgebus.Peer = edgebus.Peer("id", "key", "name")
    replies: list[bytes] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    too_large: bool = False

    def reply(self, payload=b"", arrays=()):
        if self.too_large:
            raise edgebus.MessageTooLarge("the peer accepts 16 B")
        self.replies.append(payload)

    def refuse(self, code, detail, info=b""):
        if self.too_large and code != "too_large":
            raise edgebus.MessageTooLarge("the peer accepts 16 B")
        self.refusals.append(code)

    def remaining_s(self):
        return 1.0


class FakeInbox:
    """Requests in a row."""

    def __init__(self, *requests):
        self.requests, self.closed = deque(requests), False

    def get(self, timeout_s=None):
        return self.requests.popleft() if self.requests else None

    def close(self):
        self.closed = True


def opening(number=0, prompt=PROMPT) -> FakeRequest:
    return FakeRequest(messages.OPEN, encode(Open(bytes([number] * 8), Sampling(), prompt)))


def asking(number=0, text=PROMPT) -> FakeRequest:
    digest = History(text).digest(len(text))
    return FakeRequest(messages.VERIFY, encode(Verify(bytes([number] * 8), len(text), digest, [])))


def test_stopping_server_refuses_rounds_that_wait_and_frees_their_caches():
    inbox, target = FakeInbox(), ToyTarget()
    server = TargetServer(inbox, target)
    server.handle(opening())
    server.step()
    waiting = asking()
    server.handle(waiting)
    server.stop()
    server.run()
    assert waiting.refusals == ["closing"]
    assert inbox.closed
    assert server._machine.gauges().pages_held == 0


def test_one_failing_text_does_not_cost_the_others_their_verdicts():
    class Picky(ToyTarget):
        def verify(self, chunks, rounds):
            if any(13 in chunk.tokens for chunk in chunks):
                raise RuntimeError("no thirteen")
            return super().verify(chunks, rounds)

    target = Picky()
    server = TargetServer(FakeInbox(), target)
    right = target.plain_answer(PROMPT, Sampling(), 1)
    for _ in range(3):
        server.handle(opening(1, [13]))
        bad, good = asking(1, [13]), asking(2)
        server.handle(opening(2))
        server.handle(bad)
        server.handle(good)
        server.step()
        assert bad.refusals == ["target_failed"]
        assert decode(Verdict, good.replies[0]).tokens == right
        server.handle(FakeRequest(messages.CLOSE, encode(messages.Close(bytes([2] * 8)))))
    assert not server.step(), "the failing text is not tried again unasked"


@pytest.mark.parametrize("service", messages.SERVICES)
def test_answer_that_cannot_be_sent_is_refused_and_the_server_goes_on(service):
    server = TargetServer(FakeInbox(), ToyTarget())
    server.handle(opening())
    request = {messages.OPEN: opening, messages.VERIFY: asking}.get(service, lambda: FakeRequest(service, b""))()
    request.too_large = True
    server.handle(request)
    server.step()
    assert request.replies == []
    fine = asking()
    server.handle(fine)
    server.step()
    assert fine.replies


def test_unexpected_failure_of_one_request_is_its_own():
    class Broken(ToyTarget):
        class Codec:
            def encode(self, text, *, chat):
                raise ZeroDivisionError("tokenizer bug")

    target = Broken()
    target.codec = Broken.Codec()
    server = TargetServer(FakeInbox(), target)
    request = opening(prompt="text")
    server.handle(request)
    assert request.refusals == ["internal"]


def test_text_far_over_the_context_is_refused_before_it_is_tokenised():
    class Untouchable(ToyTarget):
        class Codec:
            def encode(self, text, *, chat):
                raise AssertionError("tokenised")

    target = Untouchable()
    target.codec = Untouchable.Codec()
    request = opening(prompt="x" * (8 * 4096 + 1))
    TargetServer(FakeInbox(), target).handle(request)
    assert request.refusals == ["prompt_too_long"]


def test_rounds_are_computed_between_requests_that_take_long():
    """A queue of slow requests must not hold up a round for its whole length."""
    now = [0.0]

    class SlowCodec:
        def encode(self, text, *, chat):
            now[0] += 1.0
            return [1]

    target = ToyTarget()
    target.codec = SlowCodec()
    round_ = asking()
    inbox = FakeInbox(opening(), round_, *(opening(n, "slow") for n in range(3, 10)))
    server = TargetServer(inbox, target, clock=lambda: now[0])
    while not round_.replies:
        server._take_requests(0.0)
        server.step()
    assert len(inbox.requests) >= 6
