"""The servers of a pool: addresses, links, and the thread that dials, follows the directory and moves links.

Rules: docs/spec/bus-directory.md, section 4.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgebus.balance import Candidate, next_delay
from edgebus.directory import Joined, Record, fingerprint, identity
from edgebus.errors import EdgebusError, NodeClosed
from edgebus.services import Follower

if TYPE_CHECKING:
    from edgebus.links import Link
    from edgebus.node import Node

_TURN_S = 0.1
_MAX_DIALS = 4
_MOST_ADDRESSES = 16  # beside the static ones
_HURRY_S = 1.0
_RETIRED_S = 60.0
_FULL_LOAD = 1.0  # what a server that refuses "busy" is taken to have at least
_log = logging.getLogger("edgebus")


@dataclass(eq=False)
class Member:
    """One server of a pool.

    Attributes:
        key: its public key, None in plaintext.
        addresses: where it may be, the likeliest first: given, of its record, or where its key was proven.
        fixed: it was given, so it stays whatever the directory says.
        static: the addresses that were given; none is ever forgotten.
        hints: where somebody on the network says that it is, the latest first. Each other dial goes to one of these, so
            that lies, however many, leave the addresses their turn.
    """

    id: str
    key: str | None
    addresses: list[str]
    fixed: bool
    static: set[str] = field(default_factory=set)
    hints: list[str] = field(default_factory=list)
    link: Link | None = None
    record: Record | None = None
    outstanding: int = 0
    requests: int = 0
    failures: int = 0
    dials: int = 0
    moves: int = 0
    dialling: bool = False
    next_address: int = 0
    next_hint: int = 0
    hint_is_next: bool = False
    hurry_at: float = -math.inf
    delay_s: float = 0.0
    dial_at: float = 0.0
    down_since: float = math.inf
    full_until: float = 0.0
    last_error: str = ""

    @property
    def health(self) -> str:
        """Of its link; down if there is none."""
        return "down" if self.link is None else str(self.link.health)

    @property
    def identity(self) -> str:
        """What the directory knows it by."""
        return identity(self.key, self.link.peer_name if self.link else "")

    def offer(self, endpoint: str) -> None:
        """An address to try first, by a record."""
        if endpoint not in self.addresses:
            self.prefer(endpoint)
            self.next_address = 0
            self.dial_at = 0.0

    def prefer(self, endpoint: str) -> None:
        """Put an address first; of those that were not given the oldest goes, if they are too many."""
        self.addresses = [endpoint, *(each for each in self.addresses if each != endpoint)]
        found = [each for each in self.addresses if each not in self.static]
        for each in found[_MOST_ADDRESSES:]:
            self.addresses.remove(each)

    def hinted(self, endpoints: Sequence[str], now: float) -> None:
        """All that the network says of it now, the latest first. A new one may bring the next dial forward."""
        fresh = [each for each in endpoints if each not in self.addresses]
        if not set(fresh).issubset(self.hints):
            if len(fresh) <= _MOST_ADDRESSES:
                self.next_hint = 0
            if now >= self.hurry_at:
                self.dial_at, self.hurry_at = 0.0, now + _HURRY_S
        self.hints = fresh

    def next_endpoint(self) -> str:
        """Where to dial now."""
        if self.hint_is_next and self.hints:
            endpoint = self.hints[self.next_hint % len(self.hints)]
            self.next_hint += 1
        else:
            endpoint = self.addresses[self.next_address % len(self.addresses)]
            self.next_address += 1
        self.hint_is_next = not self.hint_is_next
        return endpoint

    def candidate(self, now: float) -> Candidate:
        """As balance.choose wants it."""
        load, capacity = (self.record.load, self.record.capacity) if self.record else (0.0, 1.0)
        if now < self.full_until:
            load = max(load, _FULL_LOAD)
        return Candidate(self.id, self.health, load, capacity, self.outstanding)


@dataclass
class Patience:
    """How long a pool waits for what.

    Args:
        dial_s: for one connection.
        least_delay_s, most_delay_s: between two of them to one server, with jitter.
        move_s: a server that is down so long is looked for at all its addresses.
    """

    dial_s: float = 2.0
    least_delay_s: float = 0.05
    most_delay_s: float = 5.0
    move_s: float = 1.0


@dataclass
class Members:
    """Keeps links to all servers that it can reach. `changed` is notified whenever one may have come or gone."""

    node: Node
    service: str | None
    follower: Follower | None
    patience: Patience
    chance: random.Random
    hints: Callable[[], Sequence[tuple[str, str]]] = lambda: ()
    by_id: dict[str, Member] = field(default_factory=dict)
    num_strange_hints: int = 0  # addresses of nodes whose key we do not know

    def __post_init__(self) -> None:
        self._announcing: frozenset[str] = frozenset()  # identities that tell what they offer
        self.changed = threading.Condition()
        self._retired: list[tuple[float, Link]] = []
        self._dials: list[threading.Thread] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgebus-pool", daemon=True)

    def start(self) -> None:
        """Begin to dial."""
        self._thread.start()

    def add(self, endpoint: str, key: str | None, *, fixed: bool) -> Member:
        """A server, or another address of one whose key is known."""
        with self.changed:
            for member in self.by_id.values():
                if (key is not None and member.key == key) or (key is None and endpoint in member.addresses):
                    if endpoint not in member.addresses:
                        member.addresses.append(endpoint)
                    if fixed:
                        member.static.add(endpoint)
                    return member
            member = Member(key or f"at {endpoint}", key, [endpoint], fixed, {endpoint} if fixed else set())
            self.by_id[member.id] = member
            return member

    def candidates(self, now: float) -> list[Candidate]:
        """All servers that offer the service, as far as we know."""
        with self.changed:
            return [
                member.candidate(now)
                for member in self.by_id.values()
                if member.record is not None or self.service is None or member.identity not in self._announcing
            ]

    def those(self, condition: Callable[[Link], bool]) -> list[str]:
        """Ids of the servers whose link is such."""
        with self.changed:
            links = [(member.id, member.link) for member in self.by_id.values()]
        return [member_id for member_id, link in links if link is not None and condition(link)]

    def close(self) -> None:
        """Stop dialling and close all links."""
        self._stop.set()
        with self.changed:
            self.changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(10.0)
        for thread in self._dials:
            thread.join(self.patience.dial_s + 1.0)
        if self.follower is not None:
            self.follower.close()
        with self.changed:
            links = [link for _, link in self._retired]
            links += [member.link for member in self.by_id.values() if member.link is not None]
            self._retired.clear()
        for link in links:
            link.close()

    # -- the pool's thread --------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._turn(time.monotonic())
            except NodeClosed:
                return
            except Exception:
                _log.exception("edgebus: internal error in a pool")
            self._stop.wait(_TURN_S)

    def _turn(self, now: float) -> None:
        self._follow(now)
        with self.changed:
            members = list(self.by_id.values())
            self.changed.notify_all()  # healths change without notice
        for member in members:
            self._look_after(member, now)
        self._dials = [thread for thread in self._dials if thread.is_alive()]
        for at, link in self._retired[:]:
            if now >= at:
                self._retired.remove((at, link))
                link.close()

    def _handle(self, record: Record, *, joined: bool) -> None:
        with self.changed:
            member = self._find(record)
            if joined:
                if member is None:
                    if not record.endpoints:
                        return
                    member = Member(record.identity, record.key or None, list(record.endpoints), fixed=False)
                    self.by_id[member.id] = member
                for endpoint in reversed(record.endpoints):
                    member.offer(endpoint)
                member.record = record
            elif member is not None:
                member.record = None
                if not member.fixed:
                    del self.by_id[member.id]
                    self._retire(member.link)

    def _find(self, record: Record) -> Member | None:
        """The member a record is about. Plaintext nodes may share a name: the address decides first."""
        if record.key:
            return next((each for each in self.by_id.values() if each.key == record.key), None)
        plain = [each for each in self.by_id.values() if each.key is None]
        for member in plain:
            if set(record.endpoints) & set(member.addresses):
                return member
        named = [each for each in plain if record.identity in (each.id, each.identity)]
        return named[0] if len(named) == 1 else None

    def _follow(self, now: float) -> None:
        """Bring in what the directory and the network say."""
        if self.follower is not None:
            links = {member.link: member.key for member in self.by_id.values() if member.link is not None}
            self.follower.follow_only(links)
            for event in self.follower.turn(now):
                if event.record.service == self.service:
                    self._handle(event.record, joined=isinstance(event, Joined))
            self._announcing = frozenset(record.identity for record in self.follower.directory.records(first_hand=True))
        self._take_hints(now)

    def _take_hints(self, now: float) -> None:
        by_print: dict[str, list[str]] = {}
        for key_print, endpoint in reversed(self.hints()):
            by_print.setdefault(key_print, []).append(endpoint)
        with self.changed:
            for member in self.by_id.values():
                member.hinted(by_print.get(fingerprint(member.identity), ()), now)
            known = {fingerprint(member.identity) for member in self.by_id.values()}
        self.num_strange_hints = sum(len(by_print[key_print]) for key_print in by_print.keys() - known)

    def _look_after(self, member: Member, now: float) -> None:
        if member.health != "down":
            member.down_since = math.inf
            return
        member.down_since = min(member.down_since, now)
        waits = member.link is not None and now < member.down_since + self.patience.move_s
        if waits or member.dialling or now < member.dial_at or len(self._dials) >= _MAX_DIALS:
            return
        endpoint = member.next_endpoint()
        member.dialling = True
        member.dials += 1
        thread = threading.Thread(target=self._dial, args=(member, endpoint), name="edgebus-dial", daemon=True)
        self._dials.append(thread)
        thread.start()

    # -- a thread that dials ------------------------------------------------------------------------

    def _dial(self, member: Member, endpoint: str) -> None:
        link, failure = None, ""
        try:
            link = self.node.connect(endpoint, member.key, timeout_s=self.patience.dial_s)
        except EdgebusError as error:
            failure = str(error)
        with self.changed:
            member.dialling = False
            if link is None:
                member.last_error = failure
                member.delay_s = next_delay(
                    member.delay_s,
                    self.chance,
                    least_s=self.patience.least_delay_s,
                    most_s=self.patience.most_delay_s,
                )
                member.dial_at = time.monotonic() + member.delay_s
                return
            unwanted = self._stop.is_set() or self.by_id.get(member.id) is not member or member.health != "down"
            if not unwanted:
                old, member.link = member.link, link
                member.moves += old is not None
                member.delay_s, member.dial_at, member.last_error = 0.0, 0.0, ""
                member.prefer(endpoint)
                member.next_address = 0
                member.hint_is_next = False
                self._retire(old)
                self.changed.notify_all()
        if unwanted:
            link.close()

    def _retire(self, link: Link | None) -> None:
        """Close a link after the requests on it have had their time."""
        if link is not None:
            self._retired.append((time.monotonic() + _RETIRED_S, link))
