"""Sequences: only the highest position of a stream of requests counts; stale ones are refused unlooked at."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgebus
from edgebus import messages as m
from edgebus.answerer import MAX_SEQUENCES, Answerer
from edgebus.outcomes import Arrived, Superseded
from tests.edgebus.duo import Duo


def request(request_id, stream, pos):
    return m.Message(m.Request(request_id, "s", 10_000, 0, terms=m.Terms(m.PLAIN, b"", stream, pos)), (b"",))


def ask(answerer, request_id, stream, pos):
    """What happens: "new", "stale", and which earlier request is superseded."""
    answerer.receive(request(request_id, stream, pos), now=0.0)
    codes = [message.header.code for message in answerer.headers_to_send()]
    events = answerer.events()
    assert codes in ([], ["stale"])
    return codes or ["new" for event in events if isinstance(event, Arrived)], [
        event.id for event in events if isinstance(event, Superseded)
    ]


def test_positions_worked_by_hand():
    answerer = Answerer(edgebus.Limits())
    assert ask(answerer, 0, stream=1, pos=5) == (["new"], [])
    assert ask(answerer, 1, stream=1, pos=4) == (["stale"], [])
    assert ask(answerer, 2, stream=1, pos=5) == (["new"], [0]), "the same position again: the later word counts"
    assert ask(answerer, 3, stream=1, pos=9) == (["new"], [2])
    assert ask(answerer, 4, stream=2, pos=0) == (["new"], []), "another stream"
    assert (answerer.counts.stale, answerer.counts.executed) == (1, 4)


def test_request_without_a_sequence_is_touched_by_none():
    answerer = Answerer(edgebus.Limits())
    answerer.receive(m.Message(m.Request(0, "s", 10_000, 0), (b"",)), now=0.0)
    answerer.events()
    assert ask(answerer, 1, stream=0, pos=7) == (["new"], [])


def test_answered_request_is_not_superseded():
    answerer = Answerer(edgebus.Limits())
    ask(answerer, 0, stream=1, pos=0)
    answerer.answer(0, m.Message(m.Reply(0), (b"",)))
    answerer.headers_to_send()
    assert ask(answerer, 1, stream=1, pos=1) == (["new"], [])


def test_streams_remembered_are_bounded_and_the_one_not_used_for_longest_goes():
    answerer = Answerer(edgebus.Limits(max_pending=10_000))
    for stream in range(MAX_SEQUENCES):
        ask(answerer, stream, stream, pos=5)
    ask(answerer, 1000, stream=0, pos=6)
    for number in range(MAX_SEQUENCES - 1):
        ask(answerer, 2000 + number, 10_000 + number, pos=0)
    assert len(answerer._newest) == MAX_SEQUENCES
    assert ask(answerer, 5000, stream=0, pos=3) == (["stale"], [])
    assert ask(answerer, 5001, stream=1, pos=3) == (["new"], []), "forgotten: executed, not refused wrongly"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20)), max_size=100))
def test_what_is_let_in_never_goes_back(asked):
    answerer = Answerer(edgebus.Limits(max_pending=10_000))
    highest = {}
    for number, (stream, pos) in enumerate(asked):
        verdict, _ = ask(answerer, number, stream, pos)
        assert verdict == (["stale"] if pos < highest.get(stream, 0) else ["new"])
        highest[stream] = max(pos, highest.get(stream, 0))
    counts = answerer.counts
    assert counts.received == counts.executed + counts.stale == len(asked)


def test_stale_content_is_not_even_fetched():
    """A large request at an older position is refused before its bytes have come."""
    duo = Duo(edgebus.Limits(bulk_bytes=1 << 20))
    duo.ask(b"", terms=m.Terms(m.PLAIN, b"", 1, 7))
    duo.run()
    duo.ask(b"", bytes(8 << 20), terms=m.Terms(m.PLAIN, b"", 1, 3))
    duo.run()
    assert [(settled.outcome, settled.code) for settled in duo.settled] == [("refused", "stale")]
    carried = sum(size for *_, header, size in duo.carried if isinstance(header, m.Chunk))
    assert carried <= duo.limits.bulk_bytes
    assert duo.far.receiver.held_bytes == 0


@pytest.mark.net
def test_of_what_waits_only_the_newest_of_each_stream_is_handed_out():
    with edgebus.Node("server", insecure=True) as server, edgebus.Node("device", insecure=True) as device:
        inbox = server.serve("draft")
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        drafts = [link.send_request("draft", b"1:%d" % pos, sequence=(1, pos)) for pos in range(5)]
        other = link.send_request("draft", b"2:0", sequence=(2, 0))
        plain = link.send_request("draft", b"plain")
        link.request("edgebus.ping")
        late = link.send_request("draft", b"1:2", sequence=(1, 2))
        with pytest.raises(edgebus.Refused) as caught:
            late.result()
        assert caught.value.code == "stale"
        got = inbox.drain()
        assert [request.payload for request in got] == [b"1:4", b"2:0", b"plain"]
        for request in got:
            request.reply(request.payload)
        assert drafts[4].result().payload == b"1:4"
        assert (other.result().payload, plain.result().payload) == (b"2:0", b"plain")
        for draft in drafts[:4]:
            with pytest.raises(edgebus.Refused, match="higher position"):
                draft.result()
        total = server.stats().total
        assert total.received == total.executed + total.duplicates + total.turned_away + total.repeated
        assert total.executed == total.served + total.withdrawn + total.pending
        assert total.turned_away == 1


@pytest.mark.net
def test_what_the_application_has_already_is_left_alone():
    with edgebus.Node("server", insecure=True) as server, edgebus.Node("device", insecure=True) as device:
        inbox = server.serve("draft")
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        first = link.send_request("draft", b"0", sequence=(1, 0))
        taken = inbox.get(5)
        second = link.send_request("draft", b"1", sequence=(1, 1))
        newer = inbox.get(5)
        taken.reply(b"first")
        newer.reply(b"second")
        assert first.result().payload == b"first"
        assert second.result().payload == b"second"


@pytest.mark.parametrize("sequence", [(-1, 0), (0, -1), (2**63, 0), (0, 2**63)])
def test_impossible_sequence_is_a_value_error(sequence):
    with edgebus.Node("server", insecure=True) as server, edgebus.Node("device", insecure=True) as device:
        link = device.connect(server.bind("tcp://127.0.0.1:0"))
        with pytest.raises(ValueError, match="sequence is"):
            link.send_request("x", sequence=sequence)
