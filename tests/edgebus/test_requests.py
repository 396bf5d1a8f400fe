"""Caller and answerer one call at a time; the properties under faults are in tests/sim."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgebus
from edgebus import messages as m
from edgebus.answerer import Answerer
from edgebus.outcomes import Arrived, Settled, Withdrawn
from edgebus.requests import Caller, refusal


def up_caller(**limits):
    caller = Caller(edgebus.Limits(**limits))
    caller.set_up(True, now=0.0)
    return caller


def start(caller, now=0.0, deadline_at=10.0, ref=None):
    return caller.start("x", (), (b"",), deadline_at=deadline_at, ref=ref, now=now)


def request(request_id, ttl_ms=10_000, settled_below=0):
    return m.Message(m.Request(request_id, "x", ttl_ms, settled_below), (b"",))


def reply(request_id, payload=b""):
    return m.Message(m.Reply(request_id), (payload,))


def test_resends_worked_by_hand():
    """Sent at 0; again after 1, 2, 4, 8, 8 s: at 1, 3, 7, 15, 23; expired at 30."""
    caller = up_caller()
    start(caller, deadline_at=30.0)
    times, ttls = [0.0], [caller.headers_to_send()[0].header.ttl_ms]
    while (at := caller.next_timer()) < math.inf:
        caller.handle_timer(now=at)
        for message in caller.headers_to_send():
            times.append(at)
            ttls.append(message.header.ttl_ms)
    assert times == [0, 1, 3, 7, 15, 23]
    assert ttls == [30_000, 29_000, 27_000, 23_000, 15_000, 7_000]
    [settled] = caller.events()
    assert (settled.outcome, settled.detail) == ("expired", "sent 6 times, no answer")
    assert caller.retries == 5


def test_resends_are_spread_by_jitter():
    """Many devices that lost one server at the same time would come again at the same time."""
    factors = iter([1.25, 0.75, 0.75, 1.0])
    caller = Caller(edgebus.Limits(), lambda: next(factors))
    caller.set_up(True, now=0.0)
    start(caller, deadline_at=30.0)
    caller.headers_to_send()
    times = []
    for _ in range(3):
        times.append(caller.next_timer())
        caller.handle_timer(now=times[-1])
        assert len(caller.headers_to_send()) == 1
    assert times == [1.25, 1.25 + 2 * 0.75, 1.25 + 2 * 0.75 + 4 * 0.75]


def test_jitter_of_a_node_is_a_quarter_either_way_and_another_one_in_each():
    with edgebus.Node("a", insecure=True) as a, edgebus.Node("b", insecure=True) as b:
        drawn = [[node._engine.hub._around.jitter() for _ in range(50)] for node in (a, b)]
    assert drawn[0] != drawn[1]
    assert 0.75 <= min(*drawn[0], *drawn[1]) < 0.85
    assert 1.15 < max(*drawn[0], *drawn[1]) <= 1.25


def test_what_never_got_an_answer_says_how_often_it_was_sent():
    caller = up_caller()
    start(caller, ref="early", deadline_at=0.5)
    start(caller, ref="over before it began", deadline_at=0.0)
    caller.set_up(False, now=0.0)
    start(caller, ref="while it was down", deadline_at=0.25)
    caller.handle_timer(now=0.25)
    caller.set_up(True, now=0.3)
    start(caller, ref="late", deadline_at=0.5, now=0.4)
    caller.handle_timer(now=0.5)
    assert {settled.ref: settled.detail for settled in caller.events()} == {
        "early": "sent 2 times, no answer",
        "over before it began": "its time was over before it could be sent",
        "while it was down": "the peer was not there all that time, so it was never sent",
        "late": "sent once, no answer",
    }


@pytest.mark.parametrize(
    ("is_up", "detail"), [(True, "sent once, no answer"), (False, "sent once, then the link went down")]
)
def test_what_was_sent_once_is_said_to_have_been_sent_once(is_up, detail):
    caller = up_caller()
    start(caller, deadline_at=0.5)
    caller.headers_to_send()
    if not is_up:
        caller.set_up(False, now=0.1)
    caller.handle_timer(now=0.5)
    [settled] = caller.events()
    assert settled.detail == detail


def test_what_was_given_up_while_the_link_was_down_is_cancelled_when_it_is_up_again():
    """Of what was sent; what never left needs no word."""
    caller = up_caller()
    start(caller)
    caller.headers_to_send()
    caller.set_up(False, now=1.0)
    start(caller, now=1.0)
    caller.cancel(0)
    caller.cancel(1)
    assert caller.headers_to_send() == []
    caller.set_up(True, now=2.0)
    assert [message.header for message in caller.headers_to_send()] == [m.Cancel(0)]
    caller.set_up(False, now=3.0)
    caller.set_up(True, now=4.0)
    assert caller.headers_to_send() == []


def test_refusal_that_says_expired_is_that_outcome_and_any_other_is_a_refusal():
    caller = up_caller()
    start(caller, ref="a")
    start(caller, ref="b")
    caller.receive(refusal(0, "expired", "arrived after its deadline"))
    caller.receive(refusal(1, "busy", "later"))
    assert [(event.ref, event.outcome, event.code) for event in caller.events()] == [
        ("a", "expired", "expired"),
        ("b", "refused", "busy"),
    ]
    assert caller.outcomes == {"expired": 1, "refused": 1}


def test_settled_below_is_the_oldest_outstanding_id():
    caller = up_caller()
    for _ in range(3):
        start(caller)
    caller.receive(reply(0))
    caller.receive(reply(2))
    start(caller)
    headers = [message.header for message in caller.headers_to_send()]
    assert [(header.id, header.settled_below) for header in headers] == [(0, 0), (1, 0), (2, 0), (3, 1)]


def test_ttl_is_rounded_up_so_that_time_left_is_never_zero():
    caller = up_caller()
    start(caller, now=9.9999)
    assert caller.headers_to_send()[0].header.ttl_ms == 1


def test_request_past_its_deadline_is_expired_without_being_sent():
    caller = up_caller()
    start(caller, now=10.0, ref="late")
    assert caller.headers_to_send() == []
    assert [(event.ref, event.outcome) for event in caller.events()] == [("late", "expired")]


def test_what_fell_due_while_the_link_was_down_is_sent_once_and_what_expired_is_not():
    caller = up_caller()
    start(caller, deadline_at=3.0, ref="over")
    start(caller, deadline_at=30.0, ref="due")
    caller.headers_to_send()
    caller.set_up(False, now=0.5)
    caller.set_up(True, now=5.0)
    assert [message.header.id for message in caller.headers_to_send()] == [1]
    assert [(event.ref, event.outcome) for event in caller.events()] == [("over", "unknown")]


def test_timers_of_settled_requests_do_not_pile_up():
    caller = up_caller()
    for number in range(10_000):
        caller.receive(reply(start(caller, deadline_at=3600.0)))
        assert len(caller._timers) < 100, number
    assert caller.next_timer() == math.inf


@given(
    st.lists(
        st.tuples(st.sampled_from(["start", "reply", "refuse", "cancel", "time", "up", "down"]), st.integers(0, 5))
    )
)
@settings(max_examples=200, deadline=None)
def test_every_started_request_settles_exactly_once(steps):
    caller, now, refs, settled = up_caller(), 0.0, [], []
    for what, number in steps:
        now += 0.5
        caller.handle_timer(now=now)
        match what:
            case "start":
                refs.append(start(caller, now=now, deadline_at=now + number, ref=len(refs)))
            case "reply":
                caller.receive(reply(number))
            case "refuse":
                caller.receive(refusal(number, "busy", ""))
            case "cancel":
                caller.cancel(number)
            case "time":
                now += number
            case "up" | "down":
                caller.set_up(what == "up", now=now)
        settled += [event.ref for event in caller.events() if isinstance(event, Settled)]
    caller.handle_timer(now=now + 10)
    settled += [event.ref for event in caller.events()]
    assert sorted(settled) == list(range(len(refs)))
    assert caller.num_outstanding == 0
    assert sum(caller.outcomes.values()) == caller.started == len(refs)


def test_duplicates_worked_by_hand():
    answerer = Answerer(edgebus.Limits())
    answerer.receive(request(0), now=1.0)
    answerer.receive(request(0), now=1.1)
    assert answerer.events() == [Arrived(0, "x", 11.0, (), (b"",), answerer)]
    assert answerer.headers_to_send() == []
    assert answerer.wants(0)
    assert answerer.answer(0, reply(0, b"first"))
    assert not answerer.answer(0, reply(0, b"second"))
    answerer.receive(request(0), now=1.2)
    assert answerer.headers_to_send() == [reply(0, b"first")] * 2
    answerer.receive(request(1, settled_below=1), now=1.3)
    answerer.receive(request(0), now=1.4)
    assert [message.header.code for message in answerer.headers_to_send()] == ["forgotten"]
    assert answerer.counts.executed == 2
    assert answerer.counts.received == 5 == 2 + answerer.counts.duplicates + answerer.counts.forgotten


def test_cache_is_bounded_in_count_and_bytes_and_the_floor_holds():
    for limits, kept in ((edgebus.Limits(cache_count=3), 3), (edgebus.Limits(cache_bytes=250), 2)):
        answerer = Answerer(limits)
        for number in range(10):
            answerer.receive(request(number), now=0.0)
            answerer.answer(number, reply(number, bytes(100)))
        assert len(answerer._entries) == kept
        answerer.events()
        answerer.headers_to_send()
        for number in range(10):
            answerer.receive(request(number), now=0.1)
        assert answerer.events() == []
        answers = answerer.headers_to_send()
        assert sum(isinstance(message.header, m.Reply) for message in answers) == kept
        assert len(answers) == 10


def test_answer_larger_than_the_cache_is_kept_until_the_next_one():
    answerer = Answerer(edgebus.Limits(cache_bytes=10))
    answerer.receive(request(0), now=0.0)
    answerer.answer(0, reply(0, bytes(11)))
    answerer.receive(request(0), now=0.1)
    first, again = answerer.headers_to_send()
    assert first.frames == again.frames == (bytes(11),)
    answerer.receive(request(1), now=0.2)
    answerer.answer(1, reply(1))
    answerer.receive(request(0), now=0.3)
    assert answerer.headers_to_send()[-1].header.code == "forgotten"


def test_too_many_pending_are_refused_busy():
    answerer = Answerer(edgebus.Limits(max_pending=2))
    for number in range(3):
        answerer.receive(request(number), now=0.0)
    assert [message.header.code for message in answerer.headers_to_send()] == ["busy"]
    answerer.answer(0, reply(0))
    answerer.receive(request(2), now=0.1)
    assert answerer.counts.executed == 3


def test_cancel_withdraws_once_and_a_duplicate_is_not_executed():
    answerer = Answerer(edgebus.Limits())
    answerer.receive(request(0), now=0.0)
    answerer.events()
    for _ in range(2):
        answerer.receive(m.Message(m.Cancel(0)), now=0.1)
    answerer.receive(m.Message(m.Cancel(99)), now=0.1)
    assert answerer.events() == [Withdrawn(0, "x", answerer)]
    answerer.receive(request(0), now=0.2)
    assert answerer.events() == []
    assert [message.header.code for message in answerer.headers_to_send()] == ["cancelled"]


def test_refusal_always_fits_its_header():
    message = refusal(1, "c" * 100, "\U0001f680" * 5000)
    assert len(m.encode_header(message.header)) < 8192
    assert m.decode_header(m.encode_header(message.header)) == message.header
