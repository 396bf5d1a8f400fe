"""The plan of a fetch against sources that lose, repeat, delay, lie and refuse; no sockets, no clock."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebus.blobs.errors import BlobCorrupt, BlobNotFound
from edgebus.blobs.machine import (
    MAX_BAD_ANSWERS,
    Completed,
    Described,
    Failed,
    FetchMachine,
    Item,
    Kind,
    State,
    Superseded,
    Verified,
)
from edgebus.blobs.manifest import manifest_of
from edgebus.blobs.memory import MemoryBlobs
from edgebus.blobs.messages import decode_ask
from edgebus.blobs.serve import answer
from edgebus.errors import DeadlineExceeded, LinkLost, NodeClosed, Refused, RequestCancelled
from edgebus.payloads import encode

CHUNK = 4096
HEAD = Item(Kind.HEAD, 0)


def content_of(num_bytes, seed=0):
    return random.Random(seed).randbytes(num_bytes)


class Driver:
    """Keeps chunks as the shell would, and says what happened."""

    def __init__(self, content, num_sources=1, window=4, have=()):
        self.source = MemoryBlobs()
        self.blob_id = self.source.put(content, chunk_bytes=CHUNK)
        self.machine = FetchMachine(self.blob_id, [f"peer {i}" for i in range(num_sources)], window=window)
        self.have = have
        self.kept = {}
        self.ended = None
        self.superseded = []

    def true_answer(self, item):
        return answer(self.source, decode_ask(encode(item.ask(self.blob_id))))

    def pump(self):
        while events := self.machine.events():
            for event in events:
                assert self.ended is None or isinstance(event, Superseded)
                match event:
                    case Described():
                        self.machine.start(self.have)
                    case Verified(chunk, data):
                        assert chunk not in self.kept
                        self.kept[chunk] = bytes(data)
                        self.machine.stored(chunk)
                    case Superseded(source, item):
                        self.superseded.append((source, item))
                    case Completed() | Failed():
                        self.ended = event

    def give(self, source=0, *, answer=None, error=None, now=0.0):
        """One question, one answer; the true one by default. Returns what was asked."""
        item = self.machine.ask(source, now=now)
        if item is not None:
            self.settle(source, item, answer=answer, error=error, now=now)
        return item

    def settle(self, source, item, *, answer=None, error=None, now=0.0):
        if error is not None:
            self.machine.fail(source, item, error, now=now)
        else:
            self.machine.receive(source, item, self.true_answer(item) if answer is None else answer)
        self.pump()


def test_small_blob_takes_one_question():
    driver = Driver(b"hello")
    assert driver.give() == HEAD
    assert driver.kept == {0: b"hello"}
    assert driver.ended == Completed()
    assert driver.machine.ask(0, now=0) is None


def test_empty_blob_takes_one_question():
    driver = Driver(b"")
    driver.give()
    assert (driver.kept, driver.ended) == ({}, Completed())


def test_chunks_are_asked_for_in_order_and_within_the_window():
    driver = Driver(content_of(6 * CHUNK), window=2)
    assert driver.give() == HEAD
    asked = [driver.machine.ask(0, now=0) for _ in range(3)]
    assert asked == [Item(Kind.CHUNK, 0), Item(Kind.CHUNK, 1), None]
    driver.settle(0, asked[1])
    assert driver.machine.ask(0, now=0) == Item(Kind.CHUNK, 2)
    assert driver.kept.keys() == {1}


def test_only_missing_chunks_are_asked_for():
    driver = Driver(content_of(5 * CHUNK), have=[0, 1, 3])
    asked = [driver.give() for _ in range(4)]
    assert asked == [HEAD, Item(Kind.CHUNK, 2), Item(Kind.CHUNK, 4), None]
    assert driver.ended == Completed()


def test_known_manifest_is_not_asked_for():
    content = content_of(2 * CHUNK)
    driver = Driver(content, have=[1])
    driver.machine.restore(manifest_of(content, CHUNK))
    driver.pump()
    assert [driver.give(), driver.give()] == [Item(Kind.CHUNK, 0), None]
    assert driver.ended == Completed()


def test_pages_after_the_first_are_asked_for_before_any_chunk():
    driver = Driver(bytes(CHUNK * 4096 * 2 + 1), have=range(8192))
    asked = [driver.give() for _ in range(4)]
    assert asked == [HEAD, Item(Kind.PAGE, 1), Item(Kind.PAGE, 2), Item(Kind.CHUNK, 8192)]
    assert driver.ended == Completed()


@pytest.mark.parametrize("junk", [b"", b"\xff" * 100, bytes(CHUNK)])
def test_peer_that_serves_junk_is_named_with_the_chunk(junk):
    driver = Driver(content_of(5 * CHUNK))
    driver.give()
    for _ in range(MAX_BAD_ANSWERS):
        assert driver.ended is None
        driver.give(answer=junk)
    assert isinstance(driver.ended.error, BlobCorrupt)
    assert (driver.ended.error.peer, driver.ended.error.chunk, driver.ended.error.times) == ("peer 0", 0, 3)
    assert "peer 0 answered 3 times" in str(driver.ended.error)
    assert driver.kept == {}


def test_chunk_that_comes_right_the_second_time_is_taken():
    driver = Driver(content_of(2 * CHUNK))
    driver.give()
    driver.give(answer=b"junk")
    while driver.give() is not None:
        pass
    assert driver.ended == Completed()
    assert driver.machine.bad_answers == 1


def test_lying_manifest_is_junk():
    driver = Driver(b"x" * 100)
    other = Driver(b"y" * 100)
    for _ in range(MAX_BAD_ANSWERS):
        driver.give(answer=other.true_answer(HEAD))
    assert driver.ended.error.chunk == -1
    assert "its manifest" in str(driver.ended.error)


def test_true_head_with_a_false_page_or_content_is_junk():
    from edgebus.blobs.messages import ManifestAnswer

    content = b"x" * 100
    manifest = manifest_of(content, CHUNK)
    head, page = manifest.head.encode(), manifest.page(0)
    for lie in [(head, b"z" * 32, content), (head, page, b"y" * 100), (head, b"", content)]:
        driver = Driver(content)
        driver.give(answer=encode(ManifestAnswer(*lie)))
        assert driver.machine.bad_answers == 1
        driver.give()
        assert driver.ended == Completed()


def test_bad_source_is_dropped_and_its_chunks_come_from_the_good_one():
    driver = Driver(content_of(12 * CHUNK), num_sources=2)
    driver.give(1)
    for _ in range(MAX_BAD_ANSWERS):
        driver.give(0, answer=b"junk")
    assert driver.machine.is_dropped(0)
    assert driver.machine.ask(0, now=0) is None
    while driver.give(1) is not None:
        pass
    assert driver.ended == Completed()
    assert len(driver.kept) == 12


def test_chunk_that_one_source_had_wrong_is_asked_of_the_other():
    driver = Driver(content_of(8 * CHUNK), num_sources=2)
    driver.give(1)
    assert driver.give(0, answer=b"junk") == Item(Kind.CHUNK, 0)
    assert driver.give(0) == Item(Kind.CHUNK, 1)
    assert driver.give(1) == Item(Kind.CHUNK, 0)


def test_stalled_source_is_outrun_near_the_end():
    """Source 0 takes two questions and never answers: the other one is asked for them, one after the other."""
    driver = Driver(content_of(4 * CHUNK), num_sources=2, window=2)
    driver.give(1)
    stalled = [driver.machine.ask(0, now=0), driver.machine.ask(0, now=0)]
    while driver.give(1) is not None:
        pass
    assert driver.ended == Completed()
    assert driver.superseded == [(0, item) for item in stalled]
    driver.settle(0, stalled[0], answer=b"late junk")
    assert driver.machine.bad_answers == 0
    driver.settle(0, stalled[1], error=RequestCancelled(""))


def test_unknown_blob_everywhere_is_not_found():
    driver = Driver(b"x", num_sources=2)
    driver.give(0, error=Refused("unknown_blob", ""))
    assert driver.ended is None
    driver.give(1, error=Refused("unknown_blob", ""))
    assert isinstance(driver.ended.error, BlobNotFound)
    assert "none of 2 peers" in str(driver.ended.error)


@pytest.mark.parametrize("error", [Refused("unknown_service", "no"), Refused("too_large", "1"), NodeClosed("closed")])
def test_what_will_not_change_ends_the_fetch_with_that_error(error):
    driver = Driver(b"x", num_sources=2)
    driver.give(0, error=error)
    driver.give(1, error=Refused("unknown_blob", ""))
    assert driver.ended.error is error


@pytest.mark.parametrize("error", [Refused("busy", ""), Refused("closing", ""), LinkLost(""), DeadlineExceeded("")])
def test_what_may_pass_is_asked_again_after_a_growing_while(error):
    driver = Driver(b"x")
    now, waits = 0.0, []
    for _ in range(8):
        assert driver.give(error=error, now=now) == HEAD
        assert driver.machine.ask(0, now=now) is None
        waits.append(driver.machine.next_timer(0) - now)
        now = driver.machine.next_timer(0)
    assert waits == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0])
    driver.give(now=now)
    assert driver.ended == Completed()


def test_cancelled_question_is_asked_again():
    driver = Driver(b"x")
    driver.give(error=RequestCancelled(""))
    driver.give()
    assert driver.ended == Completed()


FAULTS = ["true", "true", "true", "junk", "other chunk", "cut", "busy", "lost", "gone"]


@given(
    seed=st.integers(0, 2**32),
    size=st.integers(0, 20 * CHUNK),
    num_sources=st.integers(1, 4),
    window=st.integers(1, 5),
    num_have=st.integers(0, 10),
)
def test_fetch_ends_right_whatever_the_sources_do(seed, size, num_sources, window, num_have):
    """Answers come in any order, twice, late, wrong or never; source 0 is honest, if slow."""
    chance = random.Random(seed)
    content = content_of(size, seed)
    num_chunks = -(-size // CHUNK)
    have = chance.sample(range(num_chunks), min(num_have, num_chunks))
    driver = Driver(content, num_sources, window, have)
    in_flight, asked, now = [], Counter(), 0.0
    for _ in range(20_000):
        if driver.ended is not None:
            break
        source = chance.randrange(num_sources)
        if chance.random() < 0.5 and (item := driver.machine.ask(source, now=now)) is not None:
            in_flight.append((source, item))
            asked[source] += 1
            assert sum(each == source for each, _ in in_flight) <= window
        elif in_flight:
            source, item = in_flight.pop(chance.randrange(len(in_flight)))
            fault = chance.choice(["true", "busy", "lost"] if source == 0 else FAULTS)
            misbehave(driver, source, item, fault, chance, now)
            if chance.random() < 0.1:
                driver.machine.receive(source, item, b"a duplicate, wrong at that")
                driver.pump()
        now += 0.1
    assert driver.ended == Completed()
    assert driver.machine.state is State.COMPLETE
    assert driver.kept.keys() == set(range(num_chunks)).difference(have)
    assert all(data == content[chunk * CHUNK :][:CHUNK] for chunk, data in driver.kept.items())
    most_bad = (MAX_BAD_ANSWERS + window) * (num_sources - 1) + asked[0]
    assert driver.machine.bad_answers <= most_bad


def misbehave(driver, source, item, fault, chance, now):
    right = driver.true_answer(item)
    match fault:
        case "true":
            driver.settle(source, item)
        case "junk":
            driver.settle(source, item, answer=chance.randbytes(chance.randrange(100)))
        case "other chunk":
            driver.settle(source, item, answer=driver.true_answer(HEAD if item != HEAD else item)[::-1])
        case "cut":
            driver.settle(source, item, answer=right[:-1])
        case "busy":
            driver.settle(source, item, error=Refused("busy", ""), now=now)
        case "lost":
            driver.settle(source, item, error=LinkLost(""), now=now)
        case "gone":
            driver.settle(source, item, error=Refused("unknown_blob", ""), now=now)
