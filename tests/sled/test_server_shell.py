"""The shell: every request has an outcome, whatever fails."""

from __future__ import annotations

import msgspec
import pytest

from edgebus.payloads import decode, encode
from sled import messages
from sled.acceptance import Decision
from sled.errors import OutOfMemory, TargetLost
from sled.messages import Close, Later, Verdict
from sled.step_cost import StepCost
from sled.testing import ToyTarget
from sled.types import Sampling
from tests.sled.shell_fakes import GREEDY, PROMPT, Failing, FakeRequest, asking, opening, shell, steps, streaming


def test_stopping_server_refuses_rounds_and_streams_that_wait_and_names_others():
    others = [("tcp://10.0.0.6:5555", "key")]
    waiting, stream = asking(), streaming(1)
    server = shell(None, opening(), opening(1), others=others)
    steps(server)
    server.handle(waiting)
    server.handle(stream)
    server.stop()
    server.run()
    assert waiting.refusals == stream.refusals == ["closing"]
    assert decode(Later, waiting.info) == Later(0.0, others)
    assert server._inbox.closed


def test_one_failing_text_does_not_cost_the_others_their_verdicts():
    target = Failing()
    target.bad = lambda chunk: 13 in chunk.tokens
    server = shell(target)
    right = target.plain_answer(PROMPT, Sampling(), 1)
    for _ in range(3):
        bad, good = asking(1, [13]), asking(2)
        for request in (opening(1, [13]), opening(2), bad, good):
            server.handle(request)
        steps(server)
        assert bad.refusals == ["target_failed"]
        assert decode(Verdict, good.replies[0]).tokens == right
        server.handle(FakeRequest(messages.CLOSE, encode(Close(bytes([2] * 8)))))
    assert not server.step(), "the failing text is not tried again unasked"


def test_out_of_memory_is_halved_until_it_fits():
    target = Failing()
    target.most_tokens = 4
    rounds = [asking(n) for n in range(5)]
    server = shell(target, *(opening(n) for n in range(5)))
    for request in rounds:
        server.handle(request)
    steps(server)
    right = target.plain_answer(PROMPT, Sampling(), 1)
    assert [decode(Verdict, request.replies[0]).tokens for request in rounds] == [right] * 5
    assert server.report().counters["out_of_memory"] > 0
    assert max(sum(len(chunk.tokens) for chunk in step) for step in target.steps) <= 4


def test_steps_that_would_run_out_of_memory_again_are_divided_beforehand():
    target = Failing()
    target.most_tokens = 4
    streams = [streaming(n, max_tokens=30) for n in range(6)]
    server = shell(target, *(opening(n) for n in range(6)), *streams)
    assert steps(server) >= 25
    assert all(stream.tokens == target.plain_answer(PROMPT, GREEDY, 30) for stream in streams)
    assert 1 <= server.report().counters["out_of_memory"] <= 10


def test_target_that_is_lost_ends_the_server_and_sends_devices_elsewhere():
    class Lost(ToyTarget):
        def verify(self, chunks, rounds):
            raise TargetLost("a rank is gone")

    round_, stream = asking(), streaming(1)
    server = shell(Lost(), opening(), opening(1), round_, stream)
    with pytest.raises(TargetLost):
        server.run()
    assert round_.refusals == stream.refusals == ["closing"]


def test_chunk_that_never_fits_is_refused_with_a_time_to_ask_again():
    target = Failing()
    target.most_tokens = 2
    round_, other = asking(0, PROMPT, [1, 2]), asking(1, [5])
    server = shell(target, opening(0, PROMPT), opening(1, [5]), round_, other)
    steps(server)
    assert round_.refusals == ["out_of_memory"]
    assert decode(Later, round_.info).after_s > 0
    assert other.replies
    assert server.report().refusals == {"out_of_memory": 1}


@pytest.mark.parametrize("cost", [None, StepCost()])
def test_long_prompt_that_is_too_much_at_once_is_computed_in_smaller_pieces(cost):
    target, prompt = Failing(), [1 + i % 40 for i in range(300)]
    target.most_tokens = 40
    round_ = asking(0, prompt)
    server = shell(target, opening(0, prompt), round_, cost=cost)
    steps(server)
    assert round_.refusals == []
    assert decode(Verdict, round_.replies[0]).tokens == target.plain_answer(prompt, Sampling(), 1)
    assert 1 <= server.report().counters["out_of_memory"] <= 10
    target.most_tokens = 0  # nothing fits any more: the server does not try for ever
    again = asking(1, prompt[::-1])
    server.handle(opening(1, prompt[::-1]))
    server.handle(again)
    steps(server)
    assert again.refusals == ["out_of_memory"]


def test_last_tokens_of_a_text_that_are_too_much_with_their_round_are_computed_before_it():
    target, prompt = Failing(), [1 + i % 40 for i in range(300)]
    target.most_tokens = 8
    round_ = asking(0, prompt, [1, 2, 3, 4])
    server = shell(target, opening(0, prompt), round_)
    steps(server)
    assert round_.refusals == []
    assert decode(Verdict, round_.replies[0]).tokens[:1] == target.plain_answer(prompt, Sampling(), 1)[:1]


def test_text_that_never_fits_does_not_keep_the_forwards_of_others_small():
    class Choosy(ToyTarget):
        def verify(self, chunks, rounds):
            if any(chunk.session == bytes([9] * 8) for chunk in chunks):
                raise OutOfMemory("too much")
            return super().verify(chunks, rounds)

    target, prompt = Choosy(vocab_size=500), [1 + i % 40 for i in range(300)]
    streams, long = [streaming(n, max_tokens=100) for n in range(6)], asking(9, prompt)
    server = shell(target, *(opening(n) for n in range(6)), *streams, opening(9, prompt), long)
    steps(server)
    assert long.refusals == ["out_of_memory"]
    assert all(stream.tokens == target.plain_answer(PROMPT, GREEDY, 100) for stream in streams)
    assert len(target.steps) <= 120  # one forward for all of them, not one for each


def test_logits_that_are_no_numbers_are_refused_and_the_round_can_be_asked_again():
    class NaN(ToyTarget):
        bad = True

        def verify(self, chunks, rounds):
            decisions = super().verify(chunks, rounds)
            return [Decision(0, 0, finite=False)] * len(decisions) if self.bad else decisions

    target = NaN()
    round_ = asking(draft=[1, 2])
    server = shell(target, opening(), round_)
    steps(server)
    assert round_.refusals == ["target_failed"]
    target.bad = False
    again = asking()
    server.handle(again)
    steps(server)
    assert decode(Verdict, again.replies[0]).tokens == target.plain_answer(PROMPT, Sampling(), 1)
    assert server.report().counters["not_finite"] == 1


@pytest.mark.parametrize("service", messages.SERVICES)
def test_answer_that_cannot_be_sent_is_refused_and_the_server_goes_on(service):
    server = shell(None, opening())
    makers = {messages.OPEN: opening, messages.VERIFY: asking, messages.DECODE: streaming}
    request = makers.get(service, lambda: FakeRequest(service, b""))()
    request.too_large = True
    server.handle(request)
    steps(server)
    assert request.replies == []
    assert request.parts == []
    server.handle(opening(1))
    fine = asking(1)
    server.handle(fine)
    steps(server)
    assert fine.replies


@pytest.mark.parametrize("service", [messages.OPEN, messages.VERIFY, messages.DECODE, messages.CLOSE, messages.TRACE])
@pytest.mark.parametrize("payload", [b"", b"\xc1", bytes(40), b"\xdd\xff\xff\xff\xff"])
def test_malformed_payloads_are_invalid(service, payload):
    request = FakeRequest(service, payload, is_stream=True)
    server = shell(None, request)
    assert request.refusals == ["invalid"]
    assert server.report().refusals == {"invalid": 1}


def test_unexpected_failure_of_one_request_is_its_own():
    class Codec:
        def encode(self, text, *, chat):
            raise ZeroDivisionError("tokenizer bug")

    target = ToyTarget()
    target.codec = Codec()
    request, fine = opening(prompt="text"), opening(1)
    shell(target, request, fine)
    assert request.refusals == ["internal"]
    assert fine.replies


def test_stale_base_says_where_the_server_stands():
    request = asking(text=PROMPT[:2])
    shell(None, opening(), request)
    assert request.refusals == ["stale_base"]
    assert msgspec.msgpack.decode(request.info) == 3
