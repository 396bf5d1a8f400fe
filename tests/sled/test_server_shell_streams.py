"""The shell: decode streams, and how a server ends."""

from __future__ import annotations

from edgebus.payloads import decode, encode
from sled import messages
from sled.messages import Close, Later
from sled.run.streams import Streamed
from sled.testing import ToyTarget
from sled.types import Sampling
from tests.sled.shell_fakes import PROMPT, Failing, FakeInbox, FakeRequest, asking, opening, shell, steps, streaming


def test_stream_gives_the_whole_answer_in_parts_and_then_ends():
    target = ToyTarget()
    stream = streaming(max_tokens=12)
    server = shell(target, opening(), stream)
    steps(server)
    right = target.plain_answer(PROMPT, Sampling(), 12)
    assert stream.tokens == right
    assert len(stream.parts) == len(right)
    assert stream.replies == [b""]
    assert server.report().gauges["streams"] == 0


def test_stream_without_room_is_not_decoded_further_and_goes_on_when_there_is_room():
    target = ToyTarget()
    stream = streaming(max_tokens=12, room=3)
    server = shell(target, opening(), stream)
    count = steps(server)
    assert (len(stream.parts), stream.replies) == (3, [])
    assert count <= 6
    assert not server.step()
    stream.make_room(2)
    steps(server)
    assert len(stream.parts) == 5
    stream.make_room(100)
    steps(server)
    assert stream.tokens == target.plain_answer(PROMPT, Sampling(), 12)
    assert stream.replies == [b""]


def test_parts_that_had_no_room_go_in_order_and_the_end_comes_after_them():
    request, told = streaming(room=1), []
    stream = Streamed(request, 0.0, bytes(8), told.append)
    assert stream.give(b"1", last=False)
    assert not stream.give(b"2", last=False)
    assert not stream.give(b"3", last=True)
    assert request.replies == []
    request.make_room(1)
    assert told == [stream]
    assert not stream.flush()
    request.make_room(5)
    assert stream.flush()
    assert (request.parts, request.replies, stream.gone) == ([b"1", b"2", b"3"], [b""], True)
    assert stream.give(b"4", last=True)
    assert len(request.parts) == 3


def test_stream_that_nobody_reads_any_more_ends_and_its_session_can_be_asked_again():
    target = ToyTarget()
    stream = streaming(max_tokens=12, room=3)
    server = shell(target, opening(), stream)
    steps(server)
    stream.gone = True
    steps(server)
    assert server.report().gauges["streams"] == 0
    text = PROMPT + target.plain_answer(PROMPT, Sampling(), 12)[:3]
    again = streaming(text=text, max_tokens=4)
    server.handle(again)
    steps(server)
    assert again.tokens == target.plain_answer(PROMPT, Sampling(), 12)[3:7]


def test_stream_whose_peer_vanishes_between_decision_and_push_ends():
    class Vanishing(ToyTarget):
        stream = None

        def verify(self, chunks, rounds):
            decisions = super().verify(chunks, rounds)
            if len(self.stream.parts) == 2:
                self.stream.gone = True
            return decisions

    target = Vanishing()
    target.stream = stream = streaming(max_tokens=50)
    server = shell(target, opening(), stream)
    assert steps(server) <= 5
    assert len(stream.parts) == 2


def test_decoding_asked_for_as_a_plain_request_is_invalid():
    request = streaming(is_stream=False)
    shell(None, opening(), request)
    assert request.refusals == ["invalid"]


def test_failing_stream_is_refused_and_others_go_on():
    target = Failing()
    target.bad = lambda chunk: chunk.session == bytes([1] * 8)
    bad, good = streaming(1), streaming(2)
    server = shell(target, opening(1), opening(2), bad, good)
    steps(server)
    assert bad.refusals == ["target_failed"]
    assert good.tokens == target.plain_answer(PROMPT, Sampling(), 10)


# -- drain --------------------------------------------------------------------------------------------


def drained(*requests, drain_s, **more):
    now = [0.0]
    server = shell(None, *requests, clock=lambda: now[0], drain_s=drain_s, **more)
    server.drain()
    return server, now


def test_draining_server_takes_no_session_but_decides_rounds():
    server, _ = drained(opening(), drain_s=30.0)
    server._look_at_drain()
    new, round_ = opening(1), asking()
    server.handle(new)
    server.handle(round_)
    steps(server)
    assert new.refusals == ["draining"]
    assert decode(Later, new.info).after_s > 0
    assert round_.replies
    assert server.report().phase == "draining"


def test_drain_ends_with_the_last_session():
    close = FakeRequest(messages.CLOSE, encode(Close(bytes(8))))
    server, _ = drained(opening(), drain_s=1e4)
    server._inbox.requests.append(close)
    server.run()
    assert close.replies
    assert server.phase == "closing"


def test_drain_ends_when_its_time_is_over_and_what_waits_is_told():
    reports = []
    server, now = drained(opening(), drain_s=5.0, on_report=lambda report: reports.append((now[0], report.phase)))
    server._tell()

    class Late(FakeInbox):
        def get(self, timeout_s=None):
            now[0] += 1.0
            return super().get(timeout_s)

    server._inbox = inbox = Late()
    server.run()
    assert inbox.closed
    assert 5.0 <= now[0] <= 8.0
    assert reports[:2] == [(0.0, "serving"), (0.0, "draining")], "told at once, so that new devices go elsewhere"


def test_drain_of_no_time_ends_at_once():
    waiting = asking()
    server, _ = drained(opening(), waiting, drain_s=0.0)
    server.run()
    assert waiting.refusals == ["closing"]
