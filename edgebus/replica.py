"""The subscribing half of small state, pure: finds gaps and catches up. The other half is state.py."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from edgebus.state import MAX_KEYS, MAX_TOPIC_BYTES, PART_BYTES, Entry, Part, Subscribe, check_key

_EPOCHS_LEFT = 16


class Changed(NamedTuple):
    """Event of a replica: a key has this value now."""

    key: str
    value: bytes
    seq: int


class Removed(NamedTuple):
    """Event of a replica: a key is gone."""

    key: str


Event = Changed | Removed


@dataclass(slots=True)
class ReplicaCounts:
    """What became of the parts a replica was given: received = applied + stale + gaps."""

    received: int = 0
    applied: int = 0
    stale: int = 0
    gaps: int = 0
    snapshots: int = 0


@dataclass
class Replica:
    """One topic at a subscriber. Parts may come late, twice, in any order or not at all: it never takes an old one
    for new, and says `needs_repair` where one is missing.

    Args:
        max_keys: most keys it takes.
        max_bytes: most bytes of keys and values it takes.
    """

    max_keys: int = MAX_KEYS
    max_bytes: int = MAX_TOPIC_BYTES
    epoch: bytes = b""
    seq: int = 0
    needs_repair: bool = False
    counts: ReplicaCounts = field(default_factory=ReplicaCounts)
    _head: int = -1  # of the publication when it sent the last part we applied
    _snapshot: int | None = None  # the snapshot being taken
    _values: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    _doubtful: set[str] = field(default_factory=set)  # from before the snapshot, not seen in it yet
    _attempt: int = 0
    _left: deque[bytes] = field(default_factory=lambda: deque(maxlen=_EPOCHS_LEFT))  # in this attempt
    _num_bytes: int = 0

    @property
    def synced(self) -> bool:
        """True if it holds all that the publication held when it sent the last part."""
        return self.seq == self._head and not self._doubtful and not self.needs_repair

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> bytes | None:
        """The value of a key, None if there is none."""
        found = self._values.get(key)
        return None if found is None else found[0]

    def snapshot(self) -> dict[str, bytes]:
        """All keys and values."""
        return {key: value for key, (value, _) in self._values.items()}

    def changes(self) -> list[Changed]:
        """All keys and values as events."""
        return [Changed(key, value, seq) for key, (value, seq) in self._values.items()]

    def subscribe(self, part_bytes: int = PART_BYTES) -> Subscribe:
        """What to ask the publisher for: the first time, after a gap, and whenever the way to it was lost."""
        self.needs_repair = False
        self._snapshot = None  # the same snapshot may come again
        self._left.clear()
        self._attempt += 1
        return Subscribe(self.epoch, self.seq, self._attempt, part_bytes)

    def apply(self, part: Part) -> list[Event]:
        """Take a part; returns what changed by it.

        Raises:
            ValueError: the part contradicts itself, or is more than this replica takes.
        """
        _check_part(part)
        self.counts.received += 1
        if part.attempt != self._attempt:
            self.counts.stale += 1
            return []
        starts = part.snapshot is not None and part.base == 0
        if part.epoch != self.epoch:
            if part.epoch in self._left or not starts:
                return self._gap()  # of two lives of the publisher another attempt finds the one that lives
            self._enter(part.epoch)
        elif starts:
            if part.head <= self.seq or part.snapshot == self._snapshot:
                self.counts.stale += 1
                return []
        elif self._has(part):
            self.counts.stale += 1
            return []
        elif part.base > self.seq or part.snapshot not in (None, self._snapshot):
            return self._gap()
        if starts:
            self.counts.snapshots += 1
            self._snapshot, self.seq, self._doubtful = part.snapshot, 0, set(self._values)
        return self._take(part)

    def _has(self, part: Part) -> bool:
        return part.seq < self.seq or (part.base < part.seq == self.seq and part.head <= self._head)

    def _gap(self) -> list[Event]:
        self.counts.gaps += 1
        self.needs_repair = True
        return []

    def _enter(self, epoch: bytes) -> None:
        if self.epoch:
            self._left.append(self.epoch)
        self.epoch, self.seq, self._head = epoch, 0, -1
        self._values = {key: (value, 0) for key, (value, _) in self._values.items()}

    def _take(self, part: Part) -> list[Event]:
        self.counts.applied += 1
        events: list[Event] = []
        for entry in part.entries:
            if entry.seq > self.seq:
                events += self._change(entry)
        self.seq, self._head = part.seq, max(part.head, self._head)
        if self.seq >= self._head:
            self._snapshot = None
            for key in self._doubtful:
                events += self._drop(key)
            self._doubtful = set()
        return events

    def _change(self, entry: Entry) -> list[Event]:
        self._doubtful.discard(entry.key)
        old = self._values.get(entry.key)
        if old is not None and old[1] > entry.seq:
            return []  # a late snapshot, from before the last change we saw
        if entry.value is None:
            return self._drop(entry.key)
        added = len(entry.value) - len(old[0]) if old else len(entry.key.encode()) + len(entry.value)
        if self._num_bytes + added > self.max_bytes or (old is None and len(self._values) >= self.max_keys):
            raise ValueError(
                f"topic is more than {self.max_keys} keys or {self.max_bytes} B: subscribe with higher bounds"
            )
        self._num_bytes += added
        self._values[entry.key] = (entry.value, entry.seq)
        return [] if old and old[0] == entry.value else [Changed(entry.key, entry.value, entry.seq)]

    def _drop(self, key: str) -> list[Event]:
        old = self._values.pop(key, None)
        if old is None:
            return []
        self._num_bytes -= len(key.encode()) + len(old[0])
        return [Removed(key)]


def _check_part(part: Part) -> None:
    if not part.base <= part.seq <= part.head or (part.snapshot is not None and part.snapshot > part.head):
        raise ValueError(f"part from {part.base} to {part.seq} of {part.head}, snapshot {part.snapshot}: out of order")
    last = part.base
    for entry in part.entries:
        if not last < entry.seq <= part.seq:
            raise ValueError(f"change {entry.seq} after {last} in a part up to {part.seq}: out of order")
        check_key(entry.key, entry.value or b"")
        last = entry.seq
