"""Large contents that go in one message with their header: when they do, how they are credited, what gets lost."""

from __future__ import annotations

import random

import pytest

from edgebus import messages as m
from edgebus.bulk import MAX_PARTIAL, BulkSender
from edgebus.bulk_receiver import CREDIT_LATER_S, BulkReceiver
from edgebus.config import Limits
from edgebus.hub import Hub
from tests.edgebus.duo import BULK, CONTROL, Duo, through_the_wire
from tests.edgebus.test_bulk import KIB, LIMITS, MIB, content, request


def known(name):
    """Nothing is known to have arrived."""
    return False


class Ends:
    """A sender that may send wholes and a receiver; what goes between them is the test's to carry."""

    def __init__(self, *, max_bytes=64 * MIB, window_bytes=4 * MIB, chunk_bytes=MIB):
        self.sender = BulkSender(64 * MIB, retry_s=1.0)
        self.receiver = BulkReceiver(max_bytes, window_bytes)
        self.window_bytes, self.chunk_bytes = window_bytes, chunk_bytes
        self.now, self.waiting_bytes = 0.0, 0
        self.taken = []

    def offer(self, *numbers, size=600_000):
        for number in numbers:
            assert self.sender.offer(request(number, content(number, 7, size)))

    def pump(self, *, whole=True):
        bounds = {"chunk_bytes": self.chunk_bytes, "window_bytes": self.window_bytes}
        sent = self.sender.pump(0, now=self.now, whole=whole, **bounds)
        assert not sent or self.sender.in_flight_bytes <= self.window_bytes
        return [through_the_wire(message) for _, message in sent]

    def take(self, message):
        header, frames = message
        if isinstance(header, m.Chunk):
            done = self.receiver.receive(header, frames[0], now=self.now)
        elif any(each.header.id == header.id for each in self.taken):
            done = self.receiver.refuse(header)  # as the link does
        elif frames:
            done = self.receiver.receive_whole(header, frames, self.waiting_bytes, now=self.now)
        else:
            done = self.receiver.announce(header)
        if done is not None:
            self.taken.append(done)
        return self.admit()

    def admit(self):
        self.receiver.admit(self.waiting_bytes)
        self.taken += self.receiver.take_admitted()
        self.receiver.credit_due(self.now, known)
        return self.receiver.headers_to_send()

    def credit(self, messages):
        for message in messages:
            self.sender.receive(message.header, now=self.now)

    def later(self, seconds):
        self.now += seconds
        return self.admit()


def test_content_that_fits_a_piece_is_one_message_and_its_credit_comes_a_moment_later():
    ends = Ends()
    ends.offer(0)
    [whole] = ends.pump()
    assert tuple(map(bytes, whole.frames)) == content(0, 7, 600_000)
    assert ends.take(whole) == [], "no word is owed while its answer may say it"
    assert [tuple(map(bytes, each.frames)) for each in ends.taken] == [content(0, 7, 600_000)]
    assert ends.taken[0].header.transfer is None
    assert ends.receiver.credit_at == CREDIT_LATER_S
    assert ends.later(CREDIT_LATER_S / 2) == []
    said = ends.later(CREDIT_LATER_S)
    assert said == [m.Message(m.Credit(0, 600_007))]
    ends.credit(said)
    assert not ends.sender
    assert (ends.sender.in_flight_bytes, ends.sender.credited_bytes) == (0, 600_007)
    assert ends.receiver.credit_at == float("inf")


def test_quarter_of_the_window_is_credited_at_once():
    ends = Ends(window_bytes=4 * MIB)
    ends.offer(0, 1, 2)
    first, second, third = ends.pump()
    assert ends.take(first) == []
    assert [each.header.transfer for each in ends.take(second)] == [0, 1], "1.2 of 4 MiB"
    assert ends.take(third) == []


def test_answer_says_that_the_content_has_arrived():
    ends = Ends()
    ends.offer(0, 1)
    ends.pump()
    assert ends.sender.answered(0, now=0.0)
    assert ends.sender.in_flight_bytes == 600_007
    assert ends.sender.credited_bytes == 600_007
    assert ends.sender.has_arrived(m.Request(0, "s", 1, 0))
    assert ends.sender.withdraw((m.Request, 0, 0)) is None, "there is nothing to be dropped over there"
    assert not ends.sender.answered(0, now=0.0)
    assert not ends.sender.answered(7, now=0.0)


def test_content_whose_answer_has_gone_owes_no_credit_and_sets_no_timer():
    ends = Ends(window_bytes=4 * MIB)
    for number in range(8):  # all in all more than a window
        ends.offer(number)
        [whole] = ends.pump()
        assert ends.take(whole) == []
        assert ends.receiver.credit_at == ends.now + CREDIT_LATER_S
        ends.receiver.answered(number)
        assert ends.receiver.credit_at == float("inf")
        assert ends.sender.answered(number, now=ends.now)
        ends.now += CREDIT_LATER_S / 4
    assert ends.later(1.0) == []


def test_answer_to_one_content_leaves_the_credit_of_another():
    ends = Ends(window_bytes=8 * MIB)
    ends.offer(0, 1)
    for whole in ends.pump():
        assert ends.take(whole) == []
    ends.receiver.answered(0)
    ends.receiver.answered(7)
    assert ends.later(CREDIT_LATER_S) == [m.Message(m.Credit(1, 600_007))]
    assert ends.receiver.credit_at == float("inf")


def test_answer_in_the_middle_of_the_content_does_not_count_as_its_credit():
    ends = Ends(window_bytes=MIB, chunk_bytes=100_000)
    ends.offer(0, size=5 * MIB)
    ends.pump()
    assert not ends.sender.answered(0, now=0.0)
    assert ends.sender.withdraw((m.Request, 0, 0)) == m.Message(m.Drop(0))


def test_window_holds_for_wholes_and_a_content_over_a_piece_goes_in_chunks():
    ends = Ends(window_bytes=2 * MIB, chunk_bytes=MIB)
    ends.offer(*range(4))
    ends.offer(4, size=3 * MIB)
    sent = ends.pump()
    assert [message.header.id for message in sent] == [0, 1, 2], "2.097 MB hold three of 0.6 MB"
    for _ in range(40):
        for message in sent:
            ends.credit(ends.take(message))
        ends.credit(ends.later(CREDIT_LATER_S))
        sent = ends.pump()
    assert [message.header.id for message in ends.taken] == [0, 1, 2, 3, 4]
    assert bytes(ends.taken[4].frames[1]) == content(4, 7, 3 * MIB)[1]
    assert (ends.sender.in_flight_bytes, ends.receiver.held_bytes) == (0, 0)


def test_whole_that_gets_lost_is_asked_about_and_sent_again_at_once_then():
    ends = Ends()
    ends.offer(0)
    ends.pump()
    ends.now = ends.sender.next_timer()
    assert ends.now == 1.0
    ends.sender.handle_timer(now=ends.now)
    [asked] = ends.pump()
    assert asked.frames == (), "asking costs no content"
    ends.credit(ends.take(asked))
    [again] = ends.pump()
    assert tuple(map(bytes, again.frames)) == content(0, 7, 600_000)
    ends.take(again)
    assert len(ends.taken) == 1
    assert ends.receiver.held_bytes == 0


def test_what_began_in_chunks_and_starts_over_may_go_whole():
    ends = Ends()
    ends.offer(0)
    ends.chunk_bytes = 100_000
    announced, *chunks = ends.pump(whole=False)
    ends.take(announced)
    ends.take(chunks[0])
    ends.chunk_bytes = MIB
    ends.sender.lane_lost()
    [whole] = ends.pump()
    ends.take(whole)
    assert [tuple(map(bytes, each.frames)) for each in ends.taken] == [content(0, 7, 600_000)]
    assert ends.receiver.held_bytes == 0


def test_receiver_without_room_keeps_a_window_of_wholes_and_credits_none():
    ends = Ends(max_bytes=2 * MIB, window_bytes=2 * MIB, chunk_bytes=MIB)
    ends.waiting_bytes = 2 * MIB
    ends.offer(*range(6))
    for message in ends.pump():
        assert ends.take(message) == []
    assert ends.later(1.0) == []
    assert ends.taken == []
    assert 0 < ends.receiver.held_bytes <= 2 * MIB
    assert ends.pump() == []
    ends.waiting_bytes = 0
    for _ in range(20):
        ends.credit(ends.later(CREDIT_LATER_S))
        for message in ends.pump():
            ends.credit(ends.take(message))
    assert [each.header.id for each in ends.taken] == list(range(6))
    assert ends.receiver.overruns == 0


def test_wholes_without_end_into_a_full_receiver_are_bounded():
    receiver = BulkReceiver(max_bytes=MIB, window_bytes=MIB)
    receiver.admit(MIB)
    most = 0
    for number in range(200):
        frames = (b"", bytes(256 * KIB))
        header = m.Request(number, "s", 1, 0, (), transfer=m.Transfer(number, (0, 256 * KIB)))
        receiver.receive_whole(header, frames, MIB, now=0.0)
        receiver.admit(MIB)
        most = max(most, receiver.held_bytes)
    assert most <= 2 * MIB
    assert receiver.overruns > 100


def test_whole_that_is_larger_than_the_window_and_has_no_room_is_not_kept():
    receiver = BulkReceiver(max_bytes=8 * MIB, window_bytes=MIB)
    frames = (b"", *[bytes(MIB)] * 6)
    header = m.Request(0, "s", 1, 0, (), transfer=m.Transfer(0, tuple(map(len, frames))))
    assert receiver.receive_whole(header, frames, 8 * MIB, now=0.0) is None
    assert (receiver.held_bytes, receiver.overruns) == (0, 1)


def test_credits_that_wait_are_bounded():
    receiver = BulkReceiver(max_bytes=1 << 40, window_bytes=1 << 40)
    for number in range(3 * MAX_PARTIAL):
        header = m.Request(number, "s", 1, 0, (), transfer=m.Transfer(number, (1,)))
        assert receiver.receive_whole(header, (b"x",), 0, now=0.0) is not None
        receiver.credit_due(0.0, known)
        assert len(receiver._later) < MAX_PARTIAL
    assert len(receiver.headers_to_send()) >= 2 * MAX_PARTIAL


def test_content_announced_again_after_it_came_whole_is_credited_only_once():
    ends = Ends()
    ends.offer(0)
    [whole] = ends.pump()
    ends.take(whole)
    ends.now = 0.001
    ends.sender.lane_lost()
    [again] = ends.pump()
    assert ends.take(again) == [m.Message(m.Credit(0, 600_007))]
    assert ends.later(1.0) == []


@pytest.mark.parametrize("seed", range(40))
def test_loss_duplication_and_reordering_of_wholes_and_chunks_change_nothing(seed):
    source = random.Random(seed)
    ends = Ends(window_bytes=2 * MIB, chunk_bytes=MIB)
    sizes = [source.choice([70_000, 500_000, 900_000, 1_500_000]) for _ in range(8)]
    for number, size in enumerate(sizes):
        ends.offer(number, size=size)
    wire = []
    for _ in range(20_000):
        ends.chunk_bytes = source.choice([100_000, MIB])
        wire += [(True, message) for message in ends.pump(whole=source.random() < 0.7)]
        if not wire:
            if not ends.sender:
                break
            said = ends.later(CREDIT_LATER_S)
            wire += [(False, each) for each in said]
            if not said:
                ends.now = max(ends.now, ends.sender.next_timer())
                ends.sender.handle_timer(now=ends.now)
            continue
        is_forward, message = wire.pop(source.randrange(min(3, len(wire))) if source.random() < 0.05 else 0)
        if source.random() < 0.05:
            continue
        if source.random() < 0.1:
            wire.append((is_forward, through_the_wire(message)))
        if is_forward:
            wire += [(False, each) for each in ends.take(message)]
        else:
            ends.credit([message])
    assert not ends.sender, "everything ends"
    first = {}
    for whole in ends.taken:
        first.setdefault(whole.header.id, tuple(map(bytes, whole.frames)))
    assert first == {number: content(number, 7, size) for number, size in enumerate(sizes)}


# -- two whole hubs -----------------------------------------------------------------------------------


def test_large_request_that_is_answered_costs_one_message_each_way():
    duo = Duo(LIMITS).prove()
    duo.ask(b"", *content(1, 500_000))
    duo.run()
    duo.carried.clear()
    for number in range(5):
        duo.ask(b"", *content(number, 800_000))
        duo.run()
        duo.answer(duo.arrived[-1], b"seen")
        duo.run()
    assert duo.count(m.Chunk) == 0
    assert duo.count(m.Request, lane=BULK) == 5
    assert duo.count(m.Request, lane=CONTROL) == 0
    assert duo.count(m.Reply) == 5
    # 0.8 of a window of 1 MiB is over its quarter, which is credited at once.
    assert duo.count(m.Credit) == 5
    assert duo.link.sender.in_flight_bytes == duo.link.sender.queued_bytes == 0


def test_answered_requests_need_no_credit_under_a_wide_window():
    duo = Duo(Limits(max_frame_bytes=MIB, max_pending_bytes=32 * MIB, bulk_bytes=32 * MIB)).prove()
    duo.ask(b"", *content(1, 500_000))
    duo.run()
    duo.answer(duo.arrived[-1], b"seen")
    duo.advance(0.1)
    duo.carried.clear()
    for number in range(20):
        duo.ask(b"", *content(number, 800_000))
        duo.run()
        duo.answer(duo.arrived[-1], b"seen")
        duo.advance(0.001)
        assert duo.far.receiver.credit_at == float("inf"), "its answer has gone: there is nothing to come back for"
    assert [type(header) for _, _, header, _ in duo.carried] == [m.Request, m.Reply] * 20
    duo.advance(0.1)
    assert duo.count(m.Credit) == duo.count(m.Drop) == 0
    assert duo.link.sender.in_flight_bytes == duo.link.sender.queued_bytes == 0
    assert duo.link.pace.rate > 1e6


def test_time_of_a_credit_that_is_not_owed_any_more_passes_unnoticed(monkeypatch):
    duo = Duo(Limits(max_frame_bytes=MIB, max_pending_bytes=32 * MIB, bulk_bytes=32 * MIB)).prove()
    for number in range(2):
        duo.advance(0.1)
        duo.ask(b"", *content(number, 500_000))
        duo.run()
        duo.answer(duo.arrived[-1], b"seen")
        duo.run()
    assert duo.server.next_timer() <= duo.now + CREDIT_LATER_S, "else there is nothing to be seen here"
    touched = []
    monkeypatch.setattr(Hub, "touch", lambda hub, attached, *, now: touched.append(now))
    duo.server.handle_timer(now=duo.now + 2 * CREDIT_LATER_S)
    assert touched == []
    assert duo.server.next_timer() > duo.now + 2 * CREDIT_LATER_S, "what else it waits for is not forgotten"
    assert duo.server.next_timer() < float("inf")


def test_request_that_takes_its_time_is_credited_meanwhile():
    duo = Duo(Limits(max_frame_bytes=MIB, max_pending_bytes=32 * MIB, bulk_bytes=32 * MIB))
    for number in range(2):
        duo.ask(b"", *content(number, 800_000))
    duo.run()
    duo.advance(2 * CREDIT_LATER_S)
    assert duo.settled == []
    assert duo.link.sender.in_flight_bytes == duo.link.sender.queued_bytes == 0


def test_cancelled_whole_that_waits_for_room_is_dropped():
    duo = Duo(LIMITS)
    numbers = [duo.ask(b"", *content(number, 900_000)) for number in range(8)]
    duo.run()
    assert len(duo.arrived) < 8, "4 MiB of requests may wait in the application"
    assert duo.far.receiver.held_bytes > 0
    for number in numbers:
        duo.cancel(number)
    duo.run()
    duo.advance(10.0)
    assert duo.far.receiver.held_bytes == 0
    assert duo.link.sender.queued_bytes == 0


def test_polite_sender_sends_no_wholes():
    duo = Duo(LIMITS)
    duo.ask(b"", *content(1, 900_000))
    duo.run()
    duo.link.pace.small(now=duo.now)
    duo.carried.clear()
    duo.ask(b"", *content(2, 900_000))
    duo.run()
    assert duo.count(m.Chunk) > 3
