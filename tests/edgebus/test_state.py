"""Publications and replicas: worked by hand, and over a network that loses, repeats and shuffles everything."""

from __future__ import annotations

import dataclasses
import random
import re
from collections import Counter
from pathlib import Path

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgebus import payloads, state
from edgebus.replica import Changed, Removed, Replica, ReplicaCounts
from edgebus.state import Cursor, Entry, Part, Publication, Subscribe

A, B = b"A" * 8, b"B" * 8


def pull(publication, replica, part_bytes=state.PART_BYTES):
    """Give a replica everything, over a perfect line; returns the parts and the events."""
    cursor, parts, events = publication.open(replica.subscribe()), [], []
    while (found := publication.next_part(cursor, part_bytes)) is not None:
        part, cursor = found
        parts.append(part)
        events += replica.apply(payloads.decode(Part, payloads.encode(part)))
    return parts, events


def filled(epoch=A, **pairs):
    publication = Publication(epoch)
    for key, value in pairs.items():
        publication.set(key, value)
    return publication


def test_snapshot_then_changes_worked_by_hand():
    publication, replica = filled(a=b"1", b=b"2"), Replica()
    assert not replica.synced
    parts, events = pull(publication, replica)
    assert parts == [Part(A, 1, 2, 0, 2, 2, [Entry("a", 1, b"1"), Entry("b", 2, b"2")])]
    assert events == [Changed("a", b"1", 1), Changed("b", b"2", 2)]
    assert replica.synced
    for value in (b"3", b"4", b"5"):
        publication.set("a", value)
    publication.remove("b")
    parts, events = pull(publication, replica)
    assert parts == [Part(A, 2, None, 2, 6, 6, [Entry("a", 5, b"5"), Entry("b", 6, None)])]
    assert events == [Changed("a", b"5", 5), Removed("b")]
    assert (replica.snapshot(), replica.synced, replica.seq) == ({"a": b"5"}, True, 6)


def test_nothing_new_still_says_so():
    publication, replica = filled(a=b"1"), Replica()
    pull(publication, replica)
    parts, events = pull(publication, replica)
    assert (parts, events) == ([Part(A, 2, None, 1, 1, 1, [])], [])
    assert replica.synced


def test_empty_topic_is_synced_after_its_first_part():
    replica = Replica()
    parts, _ = pull(Publication(A), replica)
    assert parts == [Part(A, 1, 0, 0, 0, 0, [])]
    assert replica.synced
    assert len(replica) == 0


def test_same_value_again_is_no_change():
    publication = filled(a=b"1")
    assert not publication.set("a", b"1")
    assert not publication.remove("b")
    assert publication.head == 1


def test_slow_subscriber_is_sent_latest_values_once_and_costs_one_cursor():
    publication, replica = filled(a=b"0"), Replica()
    _, cursor = publication.next_part(publication.open(replica.subscribe()))
    for n in range(10_000):
        publication.set("ab"[n % 2], b"%d" % n)
    part, cursor = publication.next_part(cursor)
    assert [(entry.key, entry.value) for entry in part.entries] == [("a", b"9998"), ("b", b"9999")]
    assert cursor == Cursor(10_000, 1, None, True)
    assert publication.next_part(cursor) is None
    assert len(publication._order) < 100


def test_restarted_publisher_replaces_everything_and_only_differences_are_events():
    replica = Replica()
    pull(filled(a=b"1", b=b"2", c=b"3"), replica)
    parts, events = pull(filled(B, b=b"2", c=b"4"), replica)
    assert parts[0].snapshot == 2
    assert events == [Changed("c", b"4", 2), Removed("a")]
    assert replica.snapshot() == {"b": b"2", "c": b"4"}


def late_part_of_an_earlier_attempt(replica):
    """The publisher of the first attempt is gone, and what it sent arrives when the second one has answered."""
    before = filled(a=b"1")
    late, _ = before.next_part(before.open(replica.subscribe()))
    pull(filled(B, a=b"2"), replica)
    assert replica.apply(late) == []
    assert replica.get("a") == b"2"
    assert (replica.counts.stale, replica.needs_repair) == (1, False)


def test_part_of_an_earlier_attempt_is_stale():
    late_part_of_an_earlier_attempt(Replica())


def test_part_of_a_life_that_is_over_asks_for_another_attempt():
    """A subscription that both lives of a publisher got: what they send comes by the same attempt."""
    old, new, replica = filled(a=b"1"), filled(B, a=b"2"), Replica()
    subscribe = replica.subscribe()
    [before, after] = [life.next_part(life.open(subscribe))[0] for life in (old, new)]
    replica.apply(before)
    replica.apply(after)
    assert replica.apply(before) == []
    assert (replica.get("a"), replica.needs_repair, replica.synced) == (b"2", True, False)
    assert pull(new, replica)[1] == []
    assert replica.synced


def test_snapshot_with_a_value_from_before_the_one_we_have_does_not_bring_it_back():
    """What no honest publisher sends: a snapshot of head 9 whose "a" is of 3, after a change of "a" at 7."""
    replica = Replica()
    attempt = replica.subscribe().attempt
    replica.apply(Part(A, attempt, 7, 0, 7, 7, [Entry("a", 7, b"new")]))
    assert replica.apply(Part(A, attempt, 9, 0, 9, 9, [Entry("a", 3, b"old"), Entry("b", 9, b"1")])) == [
        Changed("b", b"1", 9)
    ]
    assert replica.get("a") == b"new"


def test_gap_is_found_and_repaired_by_asking_again():
    publication, replica = filled(a=b"1"), Replica()
    part, cursor = publication.next_part(publication.open(replica.subscribe()))
    replica.apply(part)
    publication.set("b", b"2")
    lost, cursor = publication.next_part(cursor)
    publication.set("c", b"3")
    part, cursor = publication.next_part(cursor)
    assert (lost.seq, part.base) == (2, 2)
    assert replica.apply(part) == []
    assert replica.needs_repair
    assert not replica.synced
    _, events = pull(publication, replica)
    assert events == [Changed("b", b"2", 2), Changed("c", b"3", 3)]
    assert replica.apply(lost) == []
    assert replica.counts == ReplicaCounts(received=4, applied=2, stale=1, gaps=1, snapshots=1)


def test_who_missed_more_removals_than_are_remembered_gets_a_snapshot():
    publication, replica = Publication(A, max_removals=2), Replica()
    for key in "abcd":
        publication.set(key, b"1")
    pull(publication, replica)
    for key in "abc":
        publication.remove(key)
    parts, events = pull(publication, replica)
    assert parts[0].snapshot == 7
    assert sorted(events) == [Removed("a"), Removed("b"), Removed("c")]
    publication.remove("d")
    parts, _ = pull(publication, replica)
    assert parts[0].snapshot is None


def test_subscriber_that_falls_behind_the_removals_starts_a_snapshot_again():
    publication, replica = Publication(A, max_removals=1), Replica()
    for key in "abcd":
        publication.set(key, bytes(500))
    part, cursor = publication.next_part(publication.open(replica.subscribe()), 600)
    replica.apply(part)
    assert replica.get("a") is not None
    publication.remove("a")
    publication.remove("b")  # the removal of a is forgotten, and this cursor had been sent a
    while (found := publication.next_part(cursor, 600)) is not None:
        part, cursor = found
        replica.apply(part)
    assert replica.snapshot() == {"c": bytes(500), "d": bytes(500)}
    assert replica.synced
    assert replica.counts.snapshots == 2


def test_large_topic_travels_in_bounded_parts():
    publication, replica = Publication(A), Replica()
    for n in range(500):
        publication.set(f"key-{n}", bytes(1000))
    parts, _ = pull(publication, replica, 16_384)
    assert len(parts) > 30
    assert max(len(payloads.encode(part)) for part in parts) <= 16_384
    assert replica.snapshot() == {f"key-{n}": bytes(1000) for n in range(500)}
    publication, replica = Publication(A), Replica()
    for n in range(9000):
        publication.set(f"{n}", b"")
    assert max(len(part.entries) for part in pull(publication, replica)[0]) == state.MAX_ENTRIES


def test_largest_value_fits_a_part_and_more_is_refused():
    publication, replica = Publication(A), Replica()
    publication.set("k" * 256, bytes(65_536))
    pull(publication, replica)
    with pytest.raises(ValueError, match="value of 65537 B"):
        publication.set("k", bytes(65_537))
    with pytest.raises(ValueError, match="key of 258 B"):
        publication.set("é" * 129, b"")
    with pytest.raises(ValueError, match="key of 0 B"):
        publication.set("", b"")
    with pytest.raises(ValueError, match="lone surrogate"):
        publication.set("\udce9", b"")
    with pytest.raises(TypeError, match="str -> bytes, got str -> str"):
        publication.set("k", "text")


def test_topic_is_bounded_in_keys_and_bytes():
    publication = Publication(A, max_keys=2, max_bytes=100)
    publication.set("a", bytes(40))
    publication.set("b", bytes(40))
    with pytest.raises(ValueError, match="topic has 2 keys"):
        publication.set("c", b"")
    with pytest.raises(ValueError, match="82 of 100 B, no room for 20 B more"):
        publication.set("a", bytes(60))
    publication.remove("b")
    publication.set("a", bytes(60))
    assert publication.num_bytes == 61


def test_replica_takes_no_more_than_its_bounds():
    for bounds in ({"max_keys": 2}, {"max_bytes": 20}):
        replica = Replica(**bounds)
        with pytest.raises(ValueError, match="subscribe with higher bounds"):
            pull(filled(a=bytes(9), b=bytes(9), c=bytes(9)), replica)
        assert len(replica) == 2


@pytest.mark.parametrize(
    "part",
    [
        Part(A, 1, None, 3, 2, 4, []),
        Part(A, 1, None, 0, 5, 4, []),
        Part(A, 1, 9, 0, 2, 4, []),
        Part(A, 1, 4, 0, 4, 4, [Entry("a", 2, b""), Entry("b", 2, b"")]),
        Part(A, 1, 4, 0, 2, 4, [Entry("a", 3, b"")]),
        Part(A, 1, 4, 2, 4, 4, [Entry("a", 2, b"")]),
        Part(A, 1, 4, 0, 4, 4, [Entry("", 2, b"")]),
        Part(A, 1, 4, 0, 4, 4, [Entry("é" * 200, 2, b"")]),
    ],
)
def test_part_that_contradicts_itself_changes_nothing(part):
    replica = Replica()
    pull(filled(), replica)
    with pytest.raises(ValueError, match=r"out of order|key of"):
        replica.apply(part)
    assert replica.snapshot() == {}


@pytest.mark.parametrize(
    "fields",
    [
        [b"short", 0, None, 0, 1, 1, []],
        [A, 0, None, -1, 1, 1, []],
        [A, 0, None, 0, 1, 2**63, []],
        [A, 0, None, 0, 1, 1, [["k" * 257, 1, b""]]],
        [A, 0, None, 0, 1, 1, [["k", 1, bytes(65_537)]]],
        [A, 0, None, 0, 1, 1, [["k", 1, "text"]]],
        [A, 0, None, 0, 1, 1, [["k", 1, b""]] * 4097],
        [A, 0, None, 0],
        {"epoch": A},
    ],
)
def test_hostile_part_does_not_decode(fields):
    with pytest.raises(ValueError, match="not a valid Part"):
        payloads.decode(Part, msgpack.packb(fields))


def bytes_shown(page):
    """The bytes in the first example of a specification, as hex."""
    example = (Path(__file__).parents[2] / "docs/spec" / page).read_text().partition("```text\n")[2].partition("```")[0]
    return "".join(re.match(r" *((?:[0-9a-f]{2}(?: |$))*)", line)[1] for line in example.splitlines()).replace(" ", "")


def test_wire_layout_is_the_one_of_the_specification():
    part = payloads.encode(Part(A, 3, None, 2, 6, 6, [Entry("a", 5, b"5"), Entry("b", 6, None)]))
    assert part.hex(" ") == "97 c4 08 41 41 41 41 41 41 41 41 03 c0 02 06 06 92 93 a1 61 05 c4 01 35 93 a1 62 06 c0"
    assert part.hex() == bytes_shown("bus-state.md")
    assert msgpack.unpackb(part) == [A, 3, None, 2, 6, 6, [["a", 5, b"5"], ["b", 6, None]]]
    assert payloads.encode(Subscribe(A, 2, 3)).hex(" ") == "94 c4 08 41 41 41 41 41 41 41 41 02 03 ce 00 02 00 00"
    assert payloads.decode(Subscribe, msgpack.packb([A, 2])) == Subscribe(A, 2)


# -- over a network that does everything to a part but change it ---------------------------------------


class World:
    """One publisher that crashes and restarts, three replicas; parts and subscriptions are lost, doubled, shuffled."""

    def __init__(self, seed, make_publication=Publication, make_replica=Replica):
        self.random = random.Random(seed)
        self.make_publication = make_publication
        self.replicas = [make_replica() for _ in range(3)]
        self.shown = [{} for _ in self.replicas]  # what the events alone say
        self.cursors = {}
        self.wire = []
        self.restart()

    def restart(self):
        self.publication = self.make_publication(self.random.randbytes(8), max_removals=3)
        self.cursors.clear()

    def send(self, *message):
        if self.random.random() >= 0.2:
            self.wire += [message] * (2 if self.random.random() < 0.2 else 1)

    def mutate(self):
        key = f"k{self.random.randrange(12)}"
        if self.random.random() < 0.6:
            self.publication.set(key, self.random.randbytes(self.random.choice((0, 5, 300))))
        else:
            self.publication.remove(key)

    def deliver(self, message):
        kind, row, content = message
        if kind == "subscribe":
            self.cursors[row] = self.publication.open(content)
            return
        before = (self.replicas[row].epoch, self.replicas[row].seq)
        for event in self.replicas[row].apply(content):
            if isinstance(event, Changed):
                self.shown[row][event.key] = event.value
            else:
                del self.shown[row][event.key]  # a removal of what was never shown is an error
        counts = self.replicas[row].counts
        assert counts.received == counts.applied + counts.stale + counts.gaps
        assert self.replicas[row].epoch != before[0] or self.replicas[row].seq >= before[1] or content.base == 0

    def step(self):
        for _ in range(self.random.randrange(4)):
            self.mutate()
        if self.random.random() < 0.02:
            self.restart()
        for row, cursor in list(self.cursors.items()):
            if self.random.random() < 0.5 and (found := self.publication.next_part(cursor, 700)):
                self.cursors[row] = found[1]
                self.send("part", row, found[0])
        for row, replica in enumerate(self.replicas):
            if replica.needs_repair or self.random.random() < 0.05:
                self.send("subscribe", row, replica.subscribe())
        self.random.shuffle(self.wire)
        for _ in range(self.random.randrange(len(self.wire) + 1)):
            self.deliver(self.wire.pop())

    def check(self):
        """After the faults one subscription over a good line is enough."""
        for row, replica in enumerate(self.replicas):
            cursor = self.publication.open(replica.subscribe())
            while (found := self.publication.next_part(cursor, 700)) is not None:
                part, cursor = found
                self.deliver(("part", row, part))
            assert replica.synced
            assert replica.snapshot() == self.shown[row] == self.publication.snapshot()
            assert replica._num_bytes == self.publication.num_bytes


def run_world(seed, **kinds):
    world = World(seed, **kinds)
    for _ in range(120):
        world.step()
    world.check()
    return world


@pytest.mark.parametrize("first", range(0, 400, 50))
def test_replicas_converge_under_loss_duplication_reordering_and_restarts(first):
    totals = Counter()
    for seed in range(first, first + 50):
        try:
            world = run_world(seed)
        except AssertionError as error:
            error.add_note(f"replay with run_world({seed})")
            raise
        for replica in world.replicas:
            totals.update(dataclasses.asdict(replica.counts))
    assert min(totals.values()) > 100, f"the faults did not happen: {totals}"


class GapBlind(Replica):
    """The mutant: takes whatever comes next."""

    def apply(self, part):
        if part.epoch == self.epoch and part.base > self.seq:
            self.seq = part.base
        return super().apply(part)


class AttemptBlind(Replica):
    """The mutant: takes parts of any attempt, and so of any life of the publisher."""

    def apply(self, part):
        return super().apply(msgspec.structs.replace(part, attempt=self._attempt))


class Undoubting(Replica):
    """The mutant: keeps what a snapshot does not mention."""

    def apply(self, part):
        events = super().apply(part)
        self._doubtful.clear()
        return events


class Forgetful(Publication):
    """The mutant: forgets removals and does not know that it did."""

    @property
    def _horizon(self):
        return 0

    @_horizon.setter
    def _horizon(self, value):
        pass


@pytest.mark.parametrize(
    "kinds",
    [
        {"make_replica": GapBlind},
        {"make_replica": Undoubting},
        {"make_publication": Forgetful},
    ],
    ids=lambda kinds: next(iter(kinds.values())).__name__,
)
def test_mutants_are_caught(kinds):
    with pytest.raises((AssertionError, KeyError)):
        [run_world(seed, **kinds) for seed in range(50)]


def test_mutant_that_takes_any_attempt_is_caught():
    with pytest.raises(AssertionError):
        late_part_of_an_earlier_attempt(AttemptBlind())


OPERATIONS = st.lists(
    st.tuples(st.sampled_from("sspdrx"), st.sampled_from("abcdef"), st.binary(max_size=40)), min_size=1, max_size=80
)


@settings(max_examples=300, deadline=None)
@given(OPERATIONS, st.integers(0, 3))
def test_replica_on_a_line_that_cuts_holds_what_was_published(operations, max_removals):
    """s: set, p: publish a part, d: delete, r: restart of the publisher, x: the line is cut and a part lost."""
    publication, replica = Publication(A, max_removals=max_removals), Replica()
    model: dict[str, bytes] = {}
    cursor = publication.open(replica.subscribe())
    lives = 0
    for what, key, value in operations:
        if what == "s":
            publication.set(key, value)
            model[key] = value
        elif what == "d":
            publication.remove(key)
            model.pop(key, None)
        elif what == "r":
            lives += 1
            publication = Publication(lives.to_bytes(8, "big"), max_removals=max_removals)
            model.clear()
            cursor = publication.open(replica.subscribe())
        elif (found := publication.next_part(cursor, 64)) is not None:
            part, cursor = found
            if what == "p":
                replica.apply(part)
                if replica.needs_repair:
                    cursor = publication.open(replica.subscribe())
    pull(publication, replica, 64)
    assert replica.synced
    assert replica.snapshot() == model
