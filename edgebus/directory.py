"""Who offers what, where and how loaded, pure: records count only from those they may come from, newest life first.

Records travel as a topic of small state (state.py). Rules and wire: docs/spec/bus-directory.md.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Annotated, NamedTuple

from msgspec import Meta, field

from edgebus.keys import is_key
from edgebus.payloads import Payload, decode, encode

TOPIC = "edgebus.directory"
MAX_RECORD_BYTES = 8192
Name = Annotated[str, Meta(max_length=64)]
Text = Annotated[str, Meta(max_length=256)]
Amount = Annotated[float, Meta(ge=0, le=1e9)]


class Record(Payload, frozen=True, array_like=True):
    """A node says that it offers a service.

    `key` is the node's public key ("" in plaintext), `epoch` grows with every life of the node and `version` with
    every change within one; `load` is the part of `capacity` (requests at once) that is in use.
    """

    service: Name
    name: Name
    key: Annotated[str, Meta(max_length=40)]
    endpoints: Annotated[list[Text], Meta(max_length=8)]
    epoch: Annotated[int, Meta(ge=0, le=2**62)]
    version: Annotated[int, Meta(ge=0, le=2**62)] = 0
    load: Amount = 0.0
    capacity: Annotated[float, Meta(gt=0, le=1e9)] = 1.0
    meta: Annotated[dict[Name, Text], Meta(max_length=16)] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """Who it is about: the key, or the name where there are no keys."""
        return identity(self.key, self.name)

    @property
    def id(self) -> str:
        """What it is filed under: 32 characters for this service of this node."""
        text = f"{len(self.identity)} {self.identity} {self.service}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def identity(key: str | None, name: str) -> str:
    """What a node is known by: its key, or its name where there are no keys."""
    return key or f"name:{name}"


def fingerprint(who: str) -> str:
    """16 characters that name an identity where anybody may read: enough to find a key we have, not to learn one.

    >>> fingerprint("name:server")
    '748a40c2fef5a6be'
    """
    return hashlib.blake2b(who.encode(), digest_size=8).hexdigest()


def next_epoch(last: int, now_ms: int) -> int:
    """The epoch of a new life: the clock in ms, but more than the last one however the clock was set.

    >>> next_epoch(last=5000, now_ms=7000), next_epoch(last=5000, now_ms=12)
    (7000, 5001)
    """
    return max(now_ms, last + 1)


def encode_record(record: Record) -> bytes:
    """A record as the value of its topic.

    Raises:
        ValueError: more than 8192 bytes, or nothing a reader would take.
    """
    value = encode(record)
    decode_record(value)
    return value


def decode_record(value: bytes) -> Record:
    """The record in a value of the topic.

    Raises:
        ValueError: not a record, a field out of its bounds, or an endpoint nobody could dial.
    """
    if len(value) > MAX_RECORD_BYTES:
        raise ValueError(f"record of {len(value)} B, accepted are {MAX_RECORD_BYTES} B: shorten meta or endpoints")
    record = decode(Record, value)
    for endpoint in record.endpoints:
        if not endpoint.startswith(("tcp://", "ipc://")) or not endpoint.isprintable():
            raise ValueError(f"endpoint {endpoint!a} is not tcp://HOST:PORT or ipc://PATH")
    if not record.service or not record.name or (record.key and not is_key(record.key)):
        raise ValueError(f"record of {record.name!a} for {record.service!a} lacks a name, or its key is none")
    return record


class Joined(NamedTuple):
    """Event: a service is offered, or by a new life of its node, or something about it changed."""

    record: Record


class Left(NamedTuple):
    """Event: a service was withdrawn, or its node has not been heard of for a lease."""

    record: Record


Event = Joined | Left


@dataclass(frozen=True, slots=True)
class _Filed:
    record: Record
    source: str
    dead_at: float = math.inf  # when it was withdrawn or its lease ended

    @property
    def first_hand(self) -> bool:
        return self.source == self.record.identity


class Directory:
    """Records merged from all the nodes we listen to.

    A record lives as long as the one we have it from is heard of. What died is remembered for a while, so that
    an old record cannot come back; and a node is believed about itself as soon as nothing else about it lives.

    Args:
        lease_s: a source that was not heard of for so long takes its records with it.
        memory_s: how long the dead are remembered.
        max_records: most records, live and dead.
        max_services: most services of one node.
    """

    def __init__(
        self, *, lease_s: float = 10.0, memory_s: float = 60.0, max_records: int = 4096, max_services: int = 64
    ) -> None:
        self._lease_s, self._memory_s = lease_s, memory_s
        self._max_records, self._max_services = max_records, max_services
        self._filed: dict[str, _Filed] = {}
        self._heard: dict[str, float] = {}
        self._services: Counter[str] = Counter()  # filed, by identity
        self._events: list[Event] = []
        self.rejected: Counter[str] = Counter()

    def __len__(self) -> int:
        return sum(filed.dead_at == math.inf for filed in self._filed.values())

    def live(self, service: str) -> list[Record]:
        """Everyone who offers a service now."""
        return [
            filed.record
            for filed in self._filed.values()
            if filed.record.service == service and filed.dead_at == math.inf
        ]

    def records(self, *, first_hand: bool = False) -> list[Record]:
        """All live records, or only those their own nodes gave us."""
        return [
            filed.record
            for filed in self._filed.values()
            if filed.dead_at == math.inf and (filed.first_hand or not first_hand)
        ]

    def latest_epoch(self, who: str) -> int:
        """The greatest epoch that records about a node have, 0 if there are none: a node exceeds its own."""
        return max((filed.record.epoch for filed in self._filed.values() if filed.record.identity == who), default=0)

    def heard(self, source: str, *, now: float) -> None:
        """The link to a source is up: its records live on."""
        self._heard[source] = now

    def merge(self, record_id: str, value: bytes, *, source: str, trusted: bool = False, now: float) -> bool:
        """Take a record that came by a link.

        Args:
            record_id: its key in the topic.
            value: its bytes.
            source: identity of the peer whose link it came by, as the link knows it.
            trusted: that peer may speak for others.
            now: seconds.

        Returns:
            True if it counts; otherwise `rejected` says why it does not.
        """
        try:
            record = decode_record(value)
        except ValueError:
            return self._reject("malformed")
        if record.id != record_id:
            return self._reject("misfiled")
        if record.identity != source and not trusted:
            return self._reject("foreign")
        self._heard[source] = now
        offered = _Filed(record, source)
        known = self._filed.get(record_id)
        if known is None:
            if self._services[record.identity] >= self._max_services or not self._make_room():
                return self._reject("full")
            self._services[record.identity] += 1
        elif not _counts(offered, known):
            return self._reject("stale")
        self._filed[record_id] = offered
        if known is None or known.record != record or known.dead_at < math.inf:
            self._events.append(Joined(record))
        return True

    def withdraw(self, record_id: str, *, source: str, now: float) -> None:
        """A record is gone from the topic of a source; nothing happens if we have it from another one."""
        filed = self._filed.get(record_id)
        if filed is not None and filed.source == source:
            self._bury(record_id, filed, now)

    def next_timer(self) -> float:
        """Earliest time handle_timer has something to do, inf if never."""
        return min(map(self._due_at, self._filed.values()), default=math.inf)

    def handle_timer(self, *, now: float) -> None:
        """End leases, forget the dead."""
        for record_id, filed in list(self._filed.items()):
            if self._due_at(filed) > now:
                continue
            if filed.dead_at == math.inf:
                self._bury(record_id, filed, now)
            else:
                self._forget(record_id)
        sources = {filed.source for filed in self._filed.values()}
        self._heard = {source: at for source, at in self._heard.items() if source in sources}

    def events(self) -> list[Event]:
        """What happened since the last call."""
        events, self._events = self._events, []
        return events

    def _due_at(self, filed: _Filed) -> float:
        if filed.dead_at < math.inf:
            return filed.dead_at + self._memory_s
        return self._heard[filed.source] + self._lease_s

    def _bury(self, record_id: str, filed: _Filed, now: float) -> None:
        if filed.dead_at == math.inf:
            self._filed[record_id] = replace(filed, dead_at=now)
            self._events.append(Left(filed.record))

    def _forget(self, record_id: str) -> None:
        who = self._filed.pop(record_id).record.identity
        self._services[who] -= 1
        if not self._services[who]:
            del self._services[who]

    def _make_room(self) -> bool:
        if len(self._filed) >= self._max_records:
            oldest = min(self._filed, key=lambda record_id: self._filed[record_id].dead_at)
            if self._filed[oldest].dead_at == math.inf:
                return False
            self._forget(oldest)
        return True

    def _reject(self, why: str) -> bool:
        self.rejected[why] += 1
        return False


def _counts(offered: _Filed, known: _Filed) -> bool:
    """Whether a record replaces the one that is filed: newer, or the node's own word where the other is dead."""
    ours, theirs = (known.record.epoch, known.record.version), (offered.record.epoch, offered.record.version)
    alive = known.dead_at == math.inf
    if theirs > ours:
        return True
    if theirs == ours:
        # Nothing new: it refreshes its own source, a node speaks for itself rather than others for it,
        # and what died is not raised by a repetition, except by the node itself.
        return offered.first_hand or (alive and not known.first_hand)
    return offered.first_hand and not alive
