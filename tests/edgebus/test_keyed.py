"""Idempotency keys: executed once for a key, whoever of its owner asks how often; bounded in number, bytes and age."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgebus
from edgebus import messages as m
from edgebus.answerer import NOT_EXECUTED, Answerer
from edgebus.keyed import KeyedAnswers
from edgebus.requests import refusal


def request(request_id, key=b"key", ttl_ms=10_000, settled_below=0):
    terms = m.Terms(m.PLAIN, key)
    return m.Message(m.Request(request_id, "s", ttl_ms, settled_below, terms=terms), (b"",))


def reply(request_id, payload=b"answer"):
    return m.Message(m.Reply(request_id), (payload,))


def link(keyed, owner="OWNER", **limits):
    return Answerer(edgebus.Limits(**limits), keyed, owner)


def arrivals(answerer):
    return [event.id for event in answerer.events() if type(event).__name__ == "Arrived"]


def said(answerer):
    return [
        (message.header.id, getattr(message.header, "code", bytes(message.frames[0])))
        for message in answerer.headers_to_send()
    ]


def test_restarted_device_gets_the_first_answer_and_nothing_is_executed_again():
    keyed = KeyedAnswers()
    before, after = link(keyed), link(keyed)
    before.receive(request(5), now=0.0)
    assert arrivals(before) == [5]
    before.answer(5, reply(5))
    before.withdraw_all()
    after.receive(request(0), now=1.0)
    assert arrivals(after) == []
    assert said(after) == [(0, b"answer")]
    assert (after.counts.executed, after.counts.repeated) == (0, 1)


def test_asked_again_while_it_is_executed_all_get_the_one_answer():
    keyed = KeyedAnswers()
    links = [link(keyed) for _ in range(3)]
    for number, each in enumerate(links):
        each.receive(request(number), now=0.0)
    assert [arrivals(each) for each in links] == [[0], [], []]
    links[0].answer(0, reply(0))
    assert [said(each) for each in links] == [[(number, b"answer")] for number in range(3)]
    for each in links:
        counts = each.counts
        assert counts.received == counts.executed + counts.repeated == 1
        assert counts.executed == counts.answered
        assert each.num_pending == 0


def test_answer_reaches_who_waits_also_if_the_first_asker_gave_up_and_was_forgotten():
    keyed = KeyedAnswers()
    first, second = link(keyed), link(keyed)
    first.receive(request(0), now=0.0)
    second.receive(request(0), now=0.0)
    first.receive(m.Message(m.Cancel(0)), now=0.1)
    first.receive(request(1, b"another", settled_below=1), now=0.2)
    first.answer(0, reply(0))
    assert said(second) == [(0, b"answer")]


@pytest.mark.parametrize("ends", ["cancelled", "link gone"])
def test_execution_that_nobody_waits_for_is_still_the_one_execution(ends):
    keyed = KeyedAnswers()
    first, second = link(keyed), link(keyed)
    first.receive(request(0), now=0.0)
    if ends == "cancelled":
        first.receive(m.Message(m.Cancel(0)), now=0.1)
    else:
        first.withdraw_all()
    second.receive(request(0), now=0.2)
    assert arrivals(second) == []
    first.answer(0, reply(0))
    assert said(second) == [(0, b"answer")]


@pytest.mark.parametrize("code", sorted(NOT_EXECUTED))
def test_refusal_without_execution_is_not_remembered(code):
    keyed = KeyedAnswers()
    first, second, third = (link(keyed) for _ in range(3))
    first.receive(request(0), now=0.0)
    second.receive(request(0), now=0.0)
    first.answer(0, refusal(0, code, "not now"))
    assert said(second) == [(0, code)], "who waited for it is told"
    third.receive(request(0), now=0.1)
    assert arrivals(third) == [0]


def test_refusal_of_the_application_is_an_answer():
    keyed = KeyedAnswers()
    first, second = link(keyed), link(keyed)
    first.receive(request(0), now=0.0)
    first.answer(0, refusal(0, "out_of_stock", "none left", b"info"))
    second.receive(request(7), now=0.1)
    assert arrivals(second) == []
    assert said(second) == [(7, "out_of_stock")]


def test_withdrawn_before_the_application_looked_it_may_be_executed_by_the_next():
    keyed = KeyedAnswers()
    first, second = link(keyed), link(keyed)
    first.receive(request(0), now=0.0)
    second.receive(request(0), now=0.0)
    first.receive(m.Message(m.Cancel(0)), now=0.1)
    first.never_executed(0)
    assert said(second) == [(0, "busy")]
    second.receive(request(1), now=0.2)
    assert arrivals(second) == [1]


def test_keys_of_different_public_keys_do_not_meet():
    keyed = KeyedAnswers()
    mine, yours = link(keyed, "MINE"), link(keyed, "YOURS")
    mine.receive(request(0), now=0.0)
    mine.answer(0, reply(0, b"secret"))
    yours.receive(request(0), now=0.0)
    assert arrivals(yours) == [0]


def test_answer_is_remembered_for_its_time_from_when_it_may_have_been_given():
    """Asked at 0 with a deadline at 1000, answered at 900, kept for 600 s: known at 1500, executed anew at 1601."""
    keyed = KeyedAnswers(keep_s=600.0)
    first, second, third = (link(keyed) for _ in range(3))
    first.receive(request(0, ttl_ms=1_000_000), now=0.0)
    first.answer(0, reply(0))
    second.receive(request(0), now=1500.0)
    assert said(second) == [(0, b"answer")]
    third.receive(request(0), now=1601.0)
    assert arrivals(third) == [0]


def test_request_that_is_still_being_executed_is_never_executed_again_however_long_it_takes():
    keyed = KeyedAnswers(keep_s=600.0)
    first, second = link(keyed), link(keyed)
    first.receive(request(0), now=0.0)
    second.receive(request(0), now=5000.0)
    assert (arrivals(first), arrivals(second)) == ([0], [])
    first.answer(0, reply(0))
    assert keyed.told == [second]
    assert said(second) == [(0, b"answer")]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 400), st.integers(0, 3)), max_size=80))
def test_bounds_hold_and_an_answer_is_never_another_keys(steps):
    keyed = KeyedAnswers(max_count=5, max_bytes=1000, keep_s=10.0)
    answerer = link(keyed)
    given_answers, now = {}, 0.0
    for number, (key, size, seconds) in enumerate(steps):
        now += seconds
        known = keyed.ask("OWNER", b"%d" % key, (answerer, number), now=now, expires_at=now)
        if known is None:
            given_answers[key] = b"%d:" % key + bytes(size)
            keyed.answered("OWNER", b"%d" % key, reply(number, given_answers[key]))
        else:
            assert known.frames[0] == given_answers[key]
        assert len(keyed) <= 5
        assert sum(keyed._bytes.values()) <= 1000
        assert sum(keyed._bytes.values()) == sum(
            known.size_bytes for keys in keyed._known.values() for known in keys.values()
        )


def test_executions_are_dropped_last():
    keyed = KeyedAnswers(max_count=3)
    answerer = link(keyed)
    answerer.receive(request(0, b"in execution"), now=0.0)
    for number in range(1, 10):
        answerer.receive(request(number, b"%d" % number), now=0.0)
        answerer.answer(number, reply(number))
    answerer.events()
    answerer.receive(request(10, b"in execution"), now=0.0)
    assert arrivals(answerer) == []


@pytest.mark.net
def test_key_outlives_the_device_over_real_sockets(ring):
    executed = []
    with ring.server() as server:
        endpoint = server.bind("tcp://127.0.0.1:0")

        def serve(request):
            executed.append(request.payload)
            request.reply(b"number %d" % len(executed))

        server.handle("count", serve)
        answers = []
        for _ in range(3):  # the same key pair, another life each time
            with ring.device() as device:
                link = device.connect(endpoint, ring.public("server"))
                answers += [link.request("count", b"x", key=b"order 7").payload for _ in range(2)]
                other = link.request("count", b"y", key=b"order 8").payload
        assert answers == [b"number 1"] * 6
        assert other == b"number 2"
        assert executed == [b"x", b"y"]
        total = server.stats().total
        assert (total.executed, total.repeated) == (2, 7)
        assert total.received == total.executed + total.duplicates + total.turned_away + total.repeated


@pytest.mark.net
def test_concurrent_askers_are_one_execution(ring):
    with ring.server() as server, ring.device() as one, ring.device() as two:
        endpoint = server.bind("tcp://127.0.0.1:0")
        inbox = server.serve("slow")
        links = [device.connect(endpoint, ring.public("server")) for device in (one, two)]
        pendings = [link.send_request("slow", key=b"once") for link in links for _ in range(3)]
        got = inbox.get(5)
        assert inbox.get(0.2) is None, "the others wait for it"
        threading.Thread(target=got.reply, args=(b"done",)).start()
        assert [pending.result().payload for pending in pendings] == [b"done"] * 6


def test_askers_that_gave_up_do_not_pile_up_while_one_is_executed():
    keyed = KeyedAnswers()
    first, other = link(keyed), link(keyed)
    first.receive(request(0), now=0.0)
    for number in range(5000):
        other.receive(request(number, settled_below=number), now=0.0)
        other.receive(m.Message(m.Cancel(number)), now=0.0)
    assert len(keyed._known["OWNER"][b"key"].waiting) <= 1025
