"""The shell: what is reported, traced and told."""

from __future__ import annotations

import pytest

import edgebus
from edgebus.payloads import decode, encode
from sled import messages
from sled.messages import Later, Trace, Traced
from sled.metrics import ServerReport
from sled.server import ServerLimits
from sled.testing import ToyTarget
from sled.types import Sampling
from tests.sled.shell_fakes import PROMPT, FakeRequest, asking, opening, shell, steps, streaming


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
