"""Announcing services and following what others announce: the shell around directory.py.

Rules: docs/spec/bus-directory.md.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from edgebus.directory import TOPIC, Directory, Event, Joined, Record, encode_record, identity, next_epoch
from edgebus.errors import EdgebusError
from edgebus.files import telling
from edgebus.replica import Changed
from edgebus.subscribing import Subscription
from edgebus.wire import check_name

if TYPE_CHECKING:
    from edgebus.links import Link
    from edgebus.node import Node

_BURST = 256  # changes taken from one peer at a time
_NOWHERE = ("tcp://0.0.0.0:", "tcp://*:", "tcp://[::]:")
_log = logging.getLogger("edgebus")


class Announcement:
    """A service of this node in the topic `edgebus.directory`, where peers find it; made by announce().

    Attributes:
        record: as it is published now.
    """

    def __init__(self, node: Node, record: Record) -> None:
        self._node = node
        self._lock = threading.Lock()
        self._withdrawn = False
        self.record = record
        node.publish(TOPIC, record.id, encode_record(record))

    def update(
        self,
        *,
        load: float | None = None,
        capacity: float | None = None,
        endpoints: Sequence[str] | None = None,
        meta: Mapping[str, str] | None = None,
    ) -> None:
        """Change what is announced; what is not given stays. A load is worth telling when it moved by a tenth or so.

        Raises:
            ValueError: a value that cannot be announced.
        """
        with self._lock:
            if self._withdrawn:
                return
            old = self.record
            record = replace(
                old,
                version=old.version + 1,
                load=old.load if load is None else float(load),
                capacity=old.capacity if capacity is None else float(capacity),
                endpoints=_dialable(old.endpoints if endpoints is None else endpoints),
                meta=old.meta if meta is None else dict(meta),
            )
            value = encode_record(record)
            self.record = record
            self._node.publish(TOPIC, record.id, value)

    def exceed(self, epoch: int) -> None:
        """Others know of a later epoch of this node than its own, so its clock was set back: go beyond it."""
        with self._lock:
            if not self._withdrawn and epoch >= self.record.epoch:
                self.record = replace(self.record, epoch=epoch + 1, version=0)
                self._node.publish(TOPIC, self.record.id, encode_record(self.record))

    def withdraw(self) -> None:
        """The service is no longer offered. Twice is fine."""
        with self._lock:
            self._withdrawn = True
            self._node.unpublish(TOPIC, self.record.id)


def announce(
    node: Node,
    service: str,
    endpoints: Sequence[str],
    *,
    load: float = 0.0,
    capacity: float = 1.0,
    meta: Mapping[str, str] | None = None,
    epoch_file: str | os.PathLike[str] | None = None,
) -> Announcement:
    """Tell peers that this node offers a service.

    Args:
        node: the one that offers it.
        service: its name.
        endpoints: where peers reach the node, at most 8; not what it binds, if that is 0.0.0.0.
        load: the part of its capacity in use.
        capacity: requests it works on at once.
        meta: at most 16 short texts of your own.
        epoch_file: remembers the last epoch; give one where the clock may be wrong after a reboot.

    Raises:
        TypeError, ValueError: a value that cannot be announced.
        FileError: the epoch file cannot be written; it is an OSError.
    """
    check_name("service", service)
    now_ms = time.time_ns() // 1_000_000
    epoch = next_epoch(-1, now_ms) if epoch_file is None else _epoch_from(Path(epoch_file), now_ms)
    record = Record(
        service,
        node.name,
        node.key or "",
        _dialable(endpoints),
        epoch,
        0,
        float(load),
        float(capacity),
        dict(meta or {}),
    )
    return Announcement(node, record)


class Follower:
    """A directory fed by the nodes we have links to.

    Not for several threads at once: one calls follow() and turn(), for instance a pool's.

    Args:
        directory: what is fed.
        trusted: keys of nodes that may speak for others.
        republish: a node that passes on what its peers say about themselves: a directory server.
    """

    def __init__(self, directory: Directory, *, trusted: Sequence[str] = (), republish: Node | None = None) -> None:
        self.directory = directory
        self._trusted = frozenset(trusted)
        self._republish = republish
        self._followed: dict[Link, tuple[str, bool, Subscription]] = {}
        self._mute: set[str] = set()  # sources whose topic we may not read
        self._own: list[Announcement] = []

    def follow(self, link: Link, key: str | None) -> None:
        """Listen to what a peer announces.

        Args:
            link: to it.
            key: that it was dialled with; None in plaintext, where its name has to do.
        """
        if link not in self._followed:
            source = identity(key, link.peer_name)
            self._followed[link] = (source, key in self._trusted, Subscription(link, TOPIC))

    def follow_only(self, links: Mapping[Link, str | None]) -> None:
        """Follow these links, by the key that each was dialled with, and no others."""
        for link in [link for link in self._followed if link not in links]:
            self.unfollow(link)
        for link, key in links.items():
            self.follow(link, key)

    def unfollow(self, link: Link) -> None:
        """Listen no longer; what it said lives for a lease."""
        found = self._followed.pop(link, None)
        if found is not None:
            found[2].close()

    def exceed_for(self, announcement: Announcement) -> None:
        """Let an announcement of this node exceed whatever epoch others know of it."""
        self._own.append(announcement)

    def turn(self, now: float) -> list[Event]:
        """Take in what has arrived, without waiting; returns what it changed."""
        for link, (source, trusted, subscription) in list(self._followed.items()):
            try:
                self._take(source, trusted, subscription, now)
            except EdgebusError as error:
                if source not in self._mute:
                    self._mute.add(source)
                    _log.info("%s tells nothing of services: %s", link.endpoint, error)
                continue
            if link.health in ("up", "busy"):
                self.directory.heard(source, now=now)
        self.directory.handle_timer(now=now)
        events = self.directory.events()
        self._pass_on(events)
        for announcement in self._own:
            record = announcement.record
            if self.directory.latest_epoch(record.identity) > record.epoch:
                announcement.exceed(self.directory.latest_epoch(record.identity))
        return events

    def close(self) -> None:
        """Follow nobody."""
        for link in list(self._followed):
            self.unfollow(link)

    def _take(self, source: str, trusted: bool, subscription: Subscription, now: float) -> None:
        for _ in range(_BURST):
            change = subscription.next(0.0)
            if change is None:
                return
            if isinstance(change, Changed):
                self.directory.merge(change.key, change.value, source=source, trusted=trusted, now=now)
            else:
                self.directory.withdraw(change.key, source=source, now=now)

    def _pass_on(self, events: Sequence[Event]) -> None:
        """First-hand records only, so that what two directory servers say of each other ends somewhere."""
        if self._republish is None or not events:
            return
        first_hand = {record.id for record in self.directory.records(first_hand=True)}
        for event in events:
            record = event.record
            if isinstance(event, Joined) and record.id in first_hand:
                self._republish.publish(TOPIC, record.id, encode_record(record))
            elif not isinstance(event, Joined):
                self._republish.unpublish(TOPIC, record.id)


def _dialable(endpoints: Sequence[str]) -> list[str]:
    if isinstance(endpoints, str):
        raise TypeError(f"endpoints must be a list of addresses, got {endpoints!r}: put it into one")
    for endpoint in endpoints:
        if not isinstance(endpoint, str):
            raise TypeError(f"endpoints must be strings, got {endpoint!r}")
        if endpoint.startswith(_NOWHERE):
            raise ValueError(f"nobody can dial {endpoint}: announce the address that peers reach this node by")
    return list(endpoints)


def _epoch_from(path: Path, now_ms: int) -> int:
    try:
        last = int(path.read_text())
    except (OSError, ValueError):
        last = -1
    epoch = next_epoch(last, now_ms)
    with telling("write the epoch file", path):
        temporary = path.with_name(path.name + ".new")
        temporary.write_text(f"{epoch}\n")
        temporary.replace(path)
    return epoch
