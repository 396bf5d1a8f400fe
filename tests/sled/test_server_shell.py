"""The server's shell without sockets: who is told what when it stops, fails, runs out, or is asked too much at once."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field

import msgspec
import pytest

import edgebus
from edgebus.payloads import decode, encode
from sled import messages
from sled.acceptance import Decision
from sled.errors import OutOfMemory, TargetLost
from sled.history import History
from sled.messages import Close, Decode, Later, Open, Opened, Trace, Traced, Verdict, Verify
from sled.metrics import ServerReport
from sled.run.preparing import MAX_WAITING_EACH, Preparer
from sled.run.server import TargetServer, warm_up
from sled.run.streams import Streamed
from sled.server import ServerLimits
from sled.testing import ToyTarget
from sled.types import Constraint, Sampling

PROMPT = [5, 6, 7]
GREEDY = Sampling()


@dataclass
class FakeRequest:
    """A request of the bus that remembers its answer; a stream has room for so many parts."""

    service: str
    payload: bytes
    peer: edgebus.Peer = edgebus.Peer("id", "key", "name")
    replies: list[bytes] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    info: bytes = b""
    too_large: bool = False
    is_stream: bool = False
    room: int = 1000
    parts: list[bytes] = field(default_factory=list)
    wants_room: object = None
    gone: bool = False

    def reply(self, payload=b"", arrays=()):
        assert not self.replies, "one answer"
        if self.too_large:
            raise edgebus.MessageTooLarge("the peer accepts 16 B")
        self.replies.append(payload)

    def refuse(self, code, detail, info=b""):
        if self.too_large and code != "too_large":
            raise edgebus.MessageTooLarge("the peer accepts 16 B")
        assert "\n" not in detail
        self.refusals.append(code)
        self.info = info

    def try_push(self, payload):
        if self.gone:
            raise edgebus.StreamEnded("nobody wants it")
        if self.too_large:
            raise edgebus.MessageTooLarge("the peer accepts 16 B")
        if len(self.parts) >= self.room:
            return False
        self.parts.append(payload)
        return True

    def when_room(self, callback):
        self.wants_room = callback

    def make_room(self, more):
        self.room += more
        callback, self.wants_room = self.wants_room, None
        callback()

    def remaining_s(self):
        return 0.0 if self.gone else 1.0

    @property
    def tokens(self):
        return [token for part in self.parts for token in decode(Verdict, part).tokens]


class FakeInbox:
    """Requests in a row."""

    def __init__(self, *requests):
        self.requests, self.closed = deque(requests), False

    def get(self, timeout_s=None):
        return self.requests.popleft() if self.requests else None

    def wake(self):
        pass

    def close(self):
        self.closed = True


def opening(number=0, prompt=PROMPT, sampling=GREEDY, **more) -> FakeRequest:
    return FakeRequest(messages.OPEN, encode(Open(bytes([number] * 8), sampling, prompt)), **more)


def asking(number=0, text=PROMPT, draft=(), **more) -> FakeRequest:
    digest = History(text).digest(len(text))
    return FakeRequest(messages.VERIFY, encode(Verify(bytes([number] * 8), len(text), digest, list(draft))), **more)


def streaming(number=0, text=PROMPT, max_tokens=10, **more) -> FakeRequest:
    digest = History(text).digest(len(text))
    payload = encode(Decode(bytes([number] * 8), len(text), digest, max_tokens))
    return FakeRequest(messages.DECODE, payload, **{"is_stream": True, **more})


def shell(target=None, *requests, **more) -> TargetServer:
    """A server that has handled these requests."""
    server = TargetServer(FakeInbox(), target or ToyTarget(), **more)
    for request in requests:
        server.handle(request)
    return server


def steps(server, at_most=200) -> int:
    """Run until there is nothing to do; returns how many steps that took."""
    for count in range(at_most):
        if not server.step():
            return count
    raise AssertionError("the server does not come to rest")


class Failing(ToyTarget):
    """Fails on chunks that `bad` is true of, and runs out of memory above so many tokens."""

    bad = staticmethod(lambda chunk: False)
    most_tokens = 1 << 20

    def verify(self, chunks, rounds):
        if any(map(self.bad, chunks)):
            raise RuntimeError("cannot")
        if sum(len(chunk.tokens) for chunk in chunks) > self.most_tokens:
            raise OutOfMemory("too much")
        return super().verify(chunks, rounds)


# -- outcomes -----------------------------------------------------------------------------------------


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
    round_, other = asking(0, PROMPT), asking(1, [5])
    server = shell(target, opening(0, PROMPT), opening(1, [5]), round_, other)
    steps(server)
    assert round_.refusals == ["out_of_memory"]
    assert decode(Later, round_.info).after_s > 0
    assert other.replies
    assert server.report().refusals == {"out_of_memory": 1}


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


# -- prompts and constraints --------------------------------------------------------------------------


def test_text_far_over_the_context_is_refused_before_it_is_tokenised():
    class Untouchable:
        def encode(self, text, *, chat):
            raise AssertionError("tokenised")

    target = ToyTarget()
    target.codec = Untouchable()
    request = opening(prompt="x" * (8 * 4096 + 1))
    shell(target, request)
    assert request.refusals == ["prompt_too_long"]


def test_rounds_are_computed_while_a_prompt_is_tokenised():
    """The tokenizer hangs until the round of another session has its verdict."""
    may_go_on, opened = threading.Event(), threading.Event()

    class Slow:
        def encode(self, text, *, chat):
            assert may_go_on.wait(30)
            return [9, 9]

    target = ToyTarget()
    target.codec = Slow()
    slow, round_ = opening(1, "slow"), asking()
    server = shell(target, opening())
    server._preparer.start()
    server._preparer._ring = opened.set
    server.handle(slow)
    server.handle(round_)
    steps(server)
    assert round_.replies
    assert not slow.replies
    may_go_on.set()
    assert opened.wait(30)
    server.step()
    assert decode(Opened, slow.replies[0]).prompt_tokens == [9, 9]
    assert server._preparer.close() == []


def test_requests_are_taken_for_a_bounded_time_between_steps():
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


def test_sessions_that_take_long_to_open_do_not_hold_up_rounds_all_at_once():
    now, woken = [0.0], []
    server = shell(clock=lambda: now[0])
    server._inbox.wake = lambda: woken.append(None)
    opens = server._machine.open

    def slow(*args, **more):
        now[0] += 0.015
        return opens(*args, **more)

    server._machine.open = slow
    requests = [opening(number, "text") for number in range(5)]
    for request in requests:
        assert server._preparer.submit(request, "me", decode(Open, request.payload))
    answered = []
    for _ in range(3):
        server._desk.handle_prepared()
        answered.append(sum(len(request.replies) for request in requests))
    assert (answered, len(woken)) == ([2, 4, 5], 2)


def test_owner_of_many_prompts_does_not_fill_the_queue_for_others():
    preparer = Preparer(lambda text, chat: [1], None, lambda: None)
    message = Open(bytes(8), Sampling(), "text")
    job = lambda owner: preparer.submit(opening(prompt="text"), owner, message)  # noqa: E731
    assert all(job("ann") for _ in range(MAX_WAITING_EACH))
    assert not job("ann")
    assert job("bob")
    assert len(preparer) == MAX_WAITING_EACH + 1
    assert len(list(iter(preparer.take, None))) == MAX_WAITING_EACH + 1
    assert job("ann")


def test_prompt_that_nobody_waits_for_any_more_is_not_tokenised():
    class Untouchable:
        def encode(self, text, *, chat):
            raise AssertionError("tokenised")

    target = ToyTarget()
    target.codec = Untouchable()
    server = shell(target, opening(prompt="text", gone=True))
    assert server.report().gauges["sessions"] == 0


def test_prompt_left_in_the_queue_when_the_server_ends_is_refused():
    request = opening(prompt="text")
    server = shell(None)
    server._preparer._thread = threading.Thread(target=lambda: None)  # one that never gets to it
    server._preparer._thread.start()
    server.handle(request)
    server._end()
    assert request.refusals == ["closing"]


def test_prompt_tokenised_when_the_server_ends_or_being_so_is_refused_too():
    target, enters, goes_on = ToyTarget(), threading.Event(), threading.Event()

    class Slow:
        def encode(self, text, *, chat):
            if text == "slow":
                enters.set()
                assert goes_on.wait(10)
            return [5]

    target.codec = Slow()
    server, done, working = shell(target), opening(0, "quick"), opening(1, "slow")
    server._preparer.start()
    close = server._preparer.close
    server._preparer.close = lambda: close(within_s=0.0)
    try:
        for request in (done, working):
            assert server._preparer.submit(request, "me", decode(Open, request.payload))
        assert enters.wait(10)
        server._end()
        assert (done.refusals, working.refusals) == (["closing"], ["closing"])
    finally:
        goes_on.set()
        server._preparer._thread.join(10)
    assert (done.replies, working.replies) == ([], [])


def test_constraints_are_refused_where_there_are_none_and_compiled_once_where_there_are():
    constraint = Sampling(constraint=Constraint("regex", "a+"))
    request = opening(sampling=constraint)
    shell(None, request)
    assert request.refusals == ["invalid"]

    class Form:
        finished = False

        def allowed(self, draft):
            raise NotImplementedError

        def commit(self, tokens):
            pass

    compiled = []

    def form_of(constraint):
        if constraint.text == "(":
            raise ValueError("unbalanced\nparenthesis")
        compiled.append(constraint.text)
        return Form()

    good, bad = opening(sampling=constraint), opening(1, sampling=Sampling(constraint=Constraint("regex", "(")))
    shell(None, good, bad, form_of=form_of)
    assert (len(good.replies), bad.refusals, compiled) == (1, ["invalid"], ["a+"])


# -- streams ------------------------------------------------------------------------------------------


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


# -- seen from outside --------------------------------------------------------------------------------


def test_report_follows_from_a_scripted_run():
    target = ToyTarget()
    right = target.plain_answer(PROMPT, Sampling(), 4)
    wrong = (right[2] + 1) % 50 or 1
    server = shell(target, opening())
    steps(server)
    round_ = asking(draft=[right[0], right[1], wrong])
    server.handle(round_)
    steps(server)
    server.handle(asking(9))
    report = server.report()
    assert (report.target, report.phase) == ("toy", "serving")
    assert (report.drafted_at, report.accepted_at) == ([1, 1, 1], [1, 1])
    counters = report.counters
    assert (counters["rounds"], counters["drafted"], counters["accepted"], counters["wasted"]) == (1, 3, 2, 1)
    assert (counters["committed"], counters["opened"]) == (3, 1)
    assert report.refusals == {"session_unknown": 1}
    assert report.gauges["sessions"] == 1
    assert report.histograms["step_seconds"].counts != []
    stats = FakeRequest(messages.STATS, b"")
    server.handle(stats)
    assert decode(ServerReport, stats.replies[0]).counters == counters


def test_tokens_told_again_are_committed_once():
    target = ToyTarget()
    server = shell(target, opening(), streaming(max_tokens=6))
    steps(server)
    server.handle(asking())  # a round and a stream that wait for the same token
    again = streaming(max_tokens=6)
    server.handle(again)  # a stream whose parts were lost
    steps(server)
    assert len(again.tokens) == 6
    report = server.report()
    assert (report.counters["committed"], report.counters["rounds"]) == (6, 6)
    assert report.gauges["goodput"] == pytest.approx(0.6)


def test_prompt_computed_together_with_its_first_round_counts_as_prefill():
    server = shell(None, opening(), asking())
    steps(server)
    counters = server.report().counters
    assert (counters["tokens"], counters["prefill"]) == (3, 2)  # the last one is fed to decide what follows


def test_trace_shows_the_rounds_of_a_session_to_its_owner_only():
    now = [0.0]

    class Timed(ToyTarget):
        def verify(self, chunks, rounds):
            now[0] += 0.5
            return super().verify(chunks, rounds)

    target = Timed()
    server = shell(target, opening(), clock=lambda: now[0])
    steps(server)
    opened_at = 0.0
    now[0] = 10.0
    server.handle(asking(draft=[1]))
    now[0] = 10.25
    steps(server)
    payload = encode(Trace(bytes(8)))
    mine, other = FakeRequest(messages.TRACE, payload), FakeRequest(messages.TRACE, payload)
    other.peer = edgebus.Peer("id", "another key", "name")
    server.handle(mine)
    server.handle(other)
    (round_,) = decode(Traced, mine.replies[0]).rounds
    assert (round_.base, round_.arrived_s, round_.queue_s, round_.step_s) == (3, 10.0 - opened_at, 0.25, 0.5)
    assert (round_.drafted, round_.batch) == (1, 1)
    assert round_.tokens == round_.accepted + 1
    assert other.refusals == ["session_unknown"]


def test_time_for_which_a_stream_had_no_room_is_no_time_in_the_queue():
    now = [0.0]
    stream = streaming(max_tokens=12, room=3)
    server = shell(None, opening(), stream, clock=lambda: now[0])
    steps(server)
    now[0] = 100.0
    stream.make_room(100)
    steps(server)
    queue = server.report().histograms["queue_seconds"]
    assert (sum(queue.counts), queue.total) == (12, 0.0)


def test_step_time_reaches_the_machine():
    now, told = [0.0], []

    class Timed(ToyTarget):
        def verify(self, chunks, rounds):
            now[0] += 0.5
            return super().verify(chunks, rounds)

    server = shell(Timed(), opening(), asking(), clock=lambda: now[0])
    complete = server._machine.complete
    server._machine.complete = lambda *args, **more: told.append(more["took_s"]) or complete(*args, **more)
    steps(server)
    assert set(told) == {0.5}


def test_retry_of_a_full_server_is_told_when():
    request = opening(1)
    shell(None, opening(), request, limits=ServerLimits(max_sessions=1))
    assert request.refusals == ["busy"]
    assert decode(Later, request.info).after_s > 0


def test_warming_up_computes_one_step():
    target = ToyTarget()
    warm_up(target)
    assert len(target.steps) == 1
