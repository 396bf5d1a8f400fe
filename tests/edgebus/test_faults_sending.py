"""A large content that fails by a fault of ours as it is sent: given up once, and whoever waits is told."""

from __future__ import annotations

import logging

import pytest

from edgebus import hub as hub_module
from edgebus.bulk import BulkSender
from edgebus.messages import STREAM, Chunk, Terms
from edgebus.outcomes import Outcome
from tests.edgebus.duo import KIB, SMALL, Duo
from tests.edgebus.test_faults import LARGE, Poisoned, alarm


class PoisonedSender(BulkSender):
    """Contents that begin with `poison` fail at their second piece, or all of them before it is seen which it is."""

    calls, at_all = 0, False

    def pump(self, *args, **options):
        if self.at_all:
            self.calls += 1
            raise ZeroDivisionError("a fault of ours")
        return super().pump(*args, **options)

    def _next_chunk(self, outgoing, chunk_bytes):
        if outgoing.sent and bytes(outgoing.message.frames[0]) == b"poison":
            self.calls += 1
            raise ZeroDivisionError("a fault of ours")
        return super()._next_chunk(outgoing, chunk_bytes)


def check_given_up_once(duo, link, num_errors, caplog):
    """Nothing is left of what failed at this end, and nobody tries again."""
    calls = link.sender.calls
    duo.advance(20.0)
    assert calls == link.sender.calls == num_errors
    sender = link.sender
    assert (sender.queued_bytes, sender.unsent_bytes, sender.in_flight_bytes, bool(sender)) == (0, 0, 0, False)
    assert not duo.far.receiver.held_bytes
    assert not duo.link.receiver.held_bytes
    assert link.failed == num_errors
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == num_errors


def test_request_whose_pieces_fail_ends_at_once_and_those_behind_it_go_on(caplog):
    duo = Duo(SMALL).prove()
    duo.link.sender = PoisonedSender(SMALL.max_outstanding_bytes, 1.0)
    duo.ask(b"poison", LARGE)
    other = duo.ask(b"", LARGE)
    duo.run()
    assert [(each.outcome, each.code) for each in duo.settled] == [(Outcome.REFUSED, "internal")]
    assert [arrived.id for arrived in duo.arrived] == [other]
    duo.answer(duo.arrived.pop())
    check_given_up_once(duo, duo.link, 1, caplog)
    assert len(duo.settled) == 2


def test_answer_whose_pieces_fail_is_replaced_by_a_refusal(caplog):
    duo = Duo(SMALL).prove()
    duo.far.sender = PoisonedSender(SMALL.max_outstanding_bytes, 1.0)
    duo.ask()
    duo.ask()
    duo.run()
    for arrived, payload in zip(duo.arrived, (b"poison", b""), strict=True):
        duo.answer(arrived, payload, LARGE)
    duo.run()
    assert sorted((each.outcome, each.code) for each in duo.settled) == [
        (Outcome.ANSWERED, ""),
        (Outcome.REFUSED, "internal"),
    ]
    assert not duo.far.answerer.sending
    check_given_up_once(duo, duo.far, 1, caplog)


def test_part_whose_pieces_fail_ends_its_stream(caplog):
    duo = Duo(SMALL).prove()
    duo.far.sender = PoisonedSender(SMALL.max_outstanding_bytes, 1.0)
    duo.ask(b"", terms=Terms(STREAM, window_bytes=200 * KIB))
    duo.run()
    assert duo.push(duo.arrived[0], b"poison", LARGE)
    duo.run()
    assert [(each.outcome, each.code) for each in duo.settled] == [(Outcome.REFUSED, "internal")]
    check_given_up_once(duo, duo.far, 1, caplog)


def test_sender_that_always_fails_leaves_nobody_waiting(caplog):
    duo = Duo(SMALL).prove()
    duo.link.sender = PoisonedSender(SMALL.max_outstanding_bytes, 1.0)
    duo.link.sender.at_all = True
    for _ in range(3):
        duo.ask(b"", LARGE)
    duo.run()
    assert [(each.outcome, each.code) for each in duo.settled] == 3 * [(Outcome.REFUSED, "internal")]
    check_given_up_once(duo, duo.link, 3, caplog)


def test_alarm_as_pieces_are_made_gives_nothing_up():
    duo = Duo(SMALL).prove()

    class Interrupted(BulkSender):
        def _next_chunk(self, outgoing, chunk_bytes):
            if ringing:
                ringing.pop()()
            return super()._next_chunk(outgoing, chunk_bytes)

    duo.link.sender = Interrupted(SMALL.max_outstanding_bytes, 1.0)
    with alarm() as fire:
        ringing = [fire]
        duo.ask(b"", LARGE)
        with pytest.raises(TimeoutError):
            duo.run()
    duo.device.look_again(now=duo.now)
    duo.run()
    duo.answer(duo.arrived.pop())
    duo.run()
    assert [each.outcome for each in duo.settled] == [Outcome.ANSWERED]
    assert duo.link.failed == 0


def test_request_whose_pieces_cannot_be_encoded_ends_at_once(monkeypatch, caplog):
    duo = Duo(SMALL).prove()
    monkeypatch.setattr(
        hub_module, "encode", Poisoned(hub_module.encode, lambda message, *_: isinstance(message.header, Chunk))
    )
    duo.ask(b"", LARGE)
    duo.run()
    assert [(each.outcome, each.code) for each in duo.settled] == [(Outcome.REFUSED, "internal")]
    duo.advance(20.0)
    assert duo.link.failed == 1
    assert not duo.link.sender
    assert not duo.far.receiver.held_bytes
