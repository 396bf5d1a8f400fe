"""Small state that many want to know, the publishing half, pure: changes are numbered. The other half is replica.py.

A topic is a table of keys and values. What a replica is sent is the *latest* value of every key that changed
since a number it names, so a slow one skips values that are outdated anyway and costs the publisher one integer.
Rules and wire: docs/spec/bus-state.md.
"""

from __future__ import annotations

import bisect
from typing import Annotated, NamedTuple

from msgspec import Meta

from edgebus.payloads import Payload

EPOCH_BYTES = 8
MAX_TOPIC = 50  # characters, so that "edgebus.state/" and a topic make a service name
MAX_KEY_BYTES = 256
MAX_VALUE_BYTES = 65_536
MAX_ENTRIES = 4096
PART_BYTES = 131_072
MAX_KEYS = 65_536
MAX_TOPIC_BYTES = 16 * 1024 * 1024
MAX_REMOVALS = 1024
_ENTRY_BYTES = 16  # what an entry costs besides key and value, at most

Seq = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Epoch = Annotated[bytes, Meta(min_length=EPOCH_BYTES, max_length=EPOCH_BYTES)]
Value = Annotated[bytes, Meta(max_length=MAX_VALUE_BYTES)]


class Entry(Payload, frozen=True, array_like=True):
    """The latest change of a key; no value says that it was removed."""

    key: Annotated[str, Meta(max_length=MAX_KEY_BYTES)]
    seq: Seq
    value: Value | None


class Part(Payload, frozen=True, array_like=True):
    """Takes a replica that has all changes up to `base` to those up to `seq`; the publication stood at `head`.

    `snapshot` is None where the changes after `base` are complete. Otherwise removals may be missing: the part is
    one of a snapshot that began at that head, and `base` 0 starts it. `attempt` is the subscription's.
    """

    epoch: Epoch
    attempt: Seq
    snapshot: Seq | None
    base: Seq
    seq: Seq
    head: Seq
    entries: Annotated[list[Entry], Meta(max_length=MAX_ENTRIES)]


class Subscribe(Payload, frozen=True, array_like=True):
    """What a replica has: an epoch (empty: nothing yet) and the number of the last change; `attempt` counts up."""

    epoch: Annotated[bytes, Meta(max_length=EPOCH_BYTES)] = b""
    seq: Seq = 0
    attempt: Seq = 0
    part_bytes: Annotated[int, Meta(ge=1024, le=PART_BYTES)] = PART_BYTES


class Cursor(NamedTuple):
    """How far a subscriber has been sent: all a publication keeps of it."""

    seq: int = 0
    attempt: int = 0
    snapshot: int | None = None
    greeted: bool = False


def check_key(key: str, value: bytes = b"") -> int:
    """The bytes of a key and its value.

    Raises:
        TypeError: not a string and bytes.
        ValueError: empty, too large, or not UTF-8.
    """
    if not isinstance(key, str) or not isinstance(value, bytes):
        raise TypeError(f"state is str -> bytes, got {type(key).__name__} -> {type(value).__name__}")
    try:
        key_bytes = len(key.encode())
    except UnicodeEncodeError:
        raise ValueError(f"key {key!a} does not encode as UTF-8: drop the lone surrogate") from None
    if not 0 < key_bytes <= MAX_KEY_BYTES:
        raise ValueError(f"key of {key_bytes} B, accepted are 1..{MAX_KEY_BYTES} B")
    if len(value) > MAX_VALUE_BYTES:
        raise ValueError(f"value of {len(value)} B for {key!r}, accepted are {MAX_VALUE_BYTES} B: publish a blob's id")
    return key_bytes + len(value)


class Publication:
    """One topic at its publisher: the latest value of every key, in the order of their changes.

    Args:
        epoch: 8 bytes, new for every life of the publisher.
        max_keys: most keys.
        max_bytes: most bytes of keys and values.
        max_removals: removals remembered; who has missed more of them gets a snapshot.
    """

    def __init__(
        self,
        epoch: bytes,
        *,
        max_keys: int = MAX_KEYS,
        max_bytes: int = MAX_TOPIC_BYTES,
        max_removals: int = MAX_REMOVALS,
    ) -> None:
        if len(epoch) != EPOCH_BYTES:
            raise ValueError(f"an epoch has {EPOCH_BYTES} bytes, got {len(epoch)}")
        self.epoch = epoch
        self.head = 0
        self.num_bytes = 0
        self._max_keys, self._max_bytes, self._max_removals = max_keys, max_bytes, max_removals
        self._values: dict[str, tuple[bytes, int]] = {}
        self._removals: dict[str, int] = {}  # oldest first
        self._horizon = 0  # the last removal that is forgotten
        self._order: list[tuple[int, str]] = []  # every change by number; those that were overtaken are skipped

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> bytes | None:
        """The value of a key, None if there is none."""
        found = self._values.get(key)
        return None if found is None else found[0]

    def snapshot(self) -> dict[str, bytes]:
        """All keys and values."""
        return {key: value for key, (value, _) in self._values.items()}

    def set(self, key: str, value: bytes) -> bool:
        """Give a key a value; False if it has that value already.

        Raises:
            TypeError, ValueError: a key or value that cannot travel, or the topic is full.
        """
        more_bytes = check_key(key, value)
        old = self._values.get(key)
        if old is not None:
            if old[0] == value:
                return False
            more_bytes = len(value) - len(old[0])
        elif len(self._values) >= self._max_keys:
            raise ValueError(f"topic has {self._max_keys} keys, no room for {key!r}: unpublish some")
        if self.num_bytes + more_bytes > self._max_bytes:
            raise ValueError(
                f"topic has {self.num_bytes} of {self._max_bytes} B, no room for {more_bytes} B more: unpublish some"
            )
        self.num_bytes += more_bytes
        self._removals.pop(key, None)
        self._values[key] = (value, self._number(key))
        return True

    def remove(self, key: str) -> bool:
        """Remove a key; False if it is not there."""
        old = self._values.pop(key, None)
        if old is None:
            return False
        self.num_bytes -= check_key(key, old[0])
        self._removals[key] = self._number(key)
        if len(self._removals) > self._max_removals:
            self._horizon = self._removals.pop(next(iter(self._removals)))
        return True

    def open(self, subscribe: Subscribe) -> Cursor:
        """Where to begin for a replica that has this much."""
        if subscribe.epoch == self.epoch and self._horizon <= subscribe.seq <= self.head:
            return Cursor(subscribe.seq, subscribe.attempt)
        return Cursor(0, subscribe.attempt, self.head)

    def next_part(self, cursor: Cursor, part_bytes: int = PART_BYTES) -> tuple[Part, Cursor] | None:
        """What to send next and the cursor once it is sent; None if the subscriber has everything.

        The first part comes even if it is empty: it tells the replica that it is up to date.
        """
        if cursor.greeted and cursor.seq == self.head:
            return None
        if self._horizon > max(cursor.seq, cursor.snapshot or 0):
            cursor = Cursor(0, cursor.attempt, self.head)  # too slow: removals it has not seen are forgotten by now
        entries: list[Entry] = []
        size = 0
        reached = self.head
        for row in range(bisect.bisect_right(self._order, cursor.seq, key=lambda item: item[0]), len(self._order)):
            entry = self._entry(*self._order[row])
            if entry is None:
                continue
            size += _ENTRY_BYTES + len(entry.key.encode()) + len(entry.value or b"")
            if entries and (size > part_bytes or len(entries) == MAX_ENTRIES):
                reached = entries[-1].seq
                break
            entries.append(entry)
        part = Part(self.epoch, cursor.attempt, cursor.snapshot, cursor.seq, reached, self.head, entries)
        ended = cursor.snapshot is None or reached >= cursor.snapshot
        return part, Cursor(reached, cursor.attempt, None if ended else cursor.snapshot, greeted=True)

    def _entry(self, seq: int, key: str) -> Entry | None:
        value, latest = self._values.get(key, (None, 0))
        if latest == seq:
            return Entry(key, seq, value)
        return Entry(key, seq, None) if self._removals.get(key) == seq else None

    def _number(self, key: str) -> int:
        self.head += 1
        self._order.append((self.head, key))
        if len(self._order) > 64 + 2 * (len(self._values) + len(self._removals)):
            alive = {seq for _, seq in self._values.values()} | set(self._removals.values()) | {self.head}
            self._order = [item for item in self._order if item[0] in alive]
        return self.head
