"""A client of several servers: it asks the less loaded one that lives, and another one where that is safe.

Rules: docs/spec/bus-directory.md, section 4.
"""

from __future__ import annotations

import random
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

from edgebus import seconds
from edgebus.balance import Next, after_failure, choose, next_delay
from edgebus.directory import Directory
from edgebus.errors import (
    ConfigError,
    DeadlineExceeded,
    EdgebusError,
    NodeClosed,
    PeerUnreachable,
    Refused,
)
from edgebus.keys import is_key
from edgebus.members import Member, Members, Patience
from edgebus.node import Node
from edgebus.services import Follower
from edgebus.wire import check_name

if TYPE_CHECKING:
    from edgebus.arrays import Array
    from edgebus.calls import Pending, Reply
    from edgebus.links import Link

_LOOK_S = 0.1  # how often a waiting request looks at the health of its server
_FULL_S = 0.5  # a server that refused "busy" is thought full for so long
_MOST_ATTEMPTS = 16
_MOST_AFFINITIES = 4096


@dataclass(frozen=True, slots=True)
class MemberStats:
    """One server of a pool."""

    endpoint: str
    health: str
    load: float
    outstanding: int
    requests: int
    failures: int
    dials: int
    moves: int
    last_error: str


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A pool: requests = answered + failed + running; attempts - requests were made at another server or again.

    Attributes:
        reasons: why attempts failed: refusal codes, or names of errors.
        no_server: times a request had to wait because no server lived.
        strange_hints: addresses on the network of nodes whose key is not known.
        rejected_records: directory records that did not count, by reason.
    """

    requests: int = 0
    answered: int = 0
    failed: int = 0
    attempts: int = 0
    no_server: int = 0
    strange_hints: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    rejected_records: dict[str, int] = field(default_factory=dict)
    members: dict[str, MemberStats] = field(default_factory=dict)


class Pool:
    """Several servers as one. Every method may be called from any thread; close it before its node.

    One thread of its own dials, with jitter between attempts, follows what the servers announce, and moves to a
    server's new address. Requests run on the threads of the callers.

    Args:
        node: that dials.
        endpoints: servers to begin with: (endpoint, public key), the key None in plaintext.
        service: what servers must offer, if they announce anything; None asks everyone and follows nobody.
        trusted: keys of directory nodes, which may name further servers.
        patience: how long to wait for what.
        hints: returns (fingerprint, endpoint) pairs seen on the network, such as Browser.hints; an address is
            tried for a key that is known, or not at all.
        chance: source of randomness.

    Raises:
        ConfigError, TypeError: a server that Node.connect would not dial, or another argument that cannot be.

    >>> with Node("a", insecure=True) as server, Node("b", insecure=True) as client:
    ...     with Pool(client, [(server.bind("tcp://127.0.0.1:0"), None)]) as pool:
    ...         pool.request("edgebus.ping", b"hello").payload
    b'hello'
    """

    def __init__(
        self,
        node: Node,
        endpoints: Sequence[tuple[str, str | None]],
        service: str | None = None,
        *,
        trusted: Sequence[str] = (),
        patience: Patience | None = None,
        hints: Callable[[], Sequence[tuple[str, str]]] = tuple,
        chance: random.Random | None = None,
    ) -> None:
        if not isinstance(node, Node):
            raise TypeError(f"node must be an edgebus.Node (of an aio.Node its `sync`), got {node!r}")
        if not endpoints:
            raise ConfigError("a pool needs at least one server to begin with: endpoints=[(endpoint, key), ...]")
        servers = _pairs(endpoints)
        for endpoint, key in servers:
            node._check_server(endpoint, key)
        _check_options(service, trusted, patience, hints)
        self._node = node
        self._chance = chance or random.Random()  # noqa: S311 - spreads load, keeps no secret
        follower = Follower(Directory(), trusted=trusted) if service is not None else None
        self._members = Members(node, service, follower, patience or Patience(), self._chance, hints)
        self._sticky: OrderedDict[str, str] = OrderedDict()
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._closed = False
        for endpoint, key in servers:
            self._members.add(endpoint, key, fixed=True)
        self._members.start()

    def request(
        self,
        service: str,
        payload: bytes = b"",
        arrays: Sequence[Array] = (),
        timeout_s: float = 10.0,
        *,
        key: bytes = b"",
        may_repeat: bool = False,
        affinity: str | None = None,
    ) -> Reply:
        """Ask one server; if it cannot answer and that is safe, another one, all within one deadline.

        Safe is what was certainly never executed (refused "busy", "rate_limited" or "unknown_service", or never sent),
        and everything with `key` or `may_repeat`.

        Args:
            service: what is asked for.
            payload: opaque bytes.
            arrays: numpy arrays.
            timeout_s: deadline over all attempts.
            key: idempotency key, at most 64 bytes: says that the operation may be repeated under it. Each server
                knows its own answers only; where two must not both execute it, they have to share what they know.
            may_repeat: executing it twice is harmless.
            affinity: requests with the same one go to the same server as long as that lives.

        Raises:
            PeerUnreachable: no server lived within the deadline.
            Refused, DeadlineExceeded, LinkLost, MessageTooLarge: as Link.request, of the last attempt.
            NodeClosed: the pool or its node is closed.
        """
        return self._call(
            lambda link, left_s: link.send_request(service, payload, arrays, left_s, key=key),
            timeout_s,
            may_repeat or bool(key),
            affinity,
        )

    def link(
        self, timeout_s: float = 5.0, *, affinity: str | None = None, but: Callable[[Link], bool] = lambda link: False
    ) -> Link:
        """The link to the server a request would go to: for streams, blobs and subscriptions.

        Args:
            timeout_s: how long to wait for one.
            affinity: as for request.
            but: true of links that are not wanted, since their server has just said no, say.

        Raises:
            PeerUnreachable: no such server lives within timeout_s.
        """
        timeout_s = seconds.wait(timeout_s)
        deadline_at = time.monotonic() + timeout_s
        while (member := self._pick(self._members.those(but), affinity)) is None:
            self._wait_for_server(deadline_at, timeout_s, None)
        assert member.link is not None
        return member.link

    def add(self, endpoint: str, key: str | None) -> None:
        """Another server, or another address of one that is there by its key.

        Raises:
            ConfigError, TypeError: what Node.connect would not dial.
        """
        self._node._check_server(endpoint, key)
        self._members.add(endpoint, key, fixed=True)

    def wait_ready(self, timeout_s: float = 5.0, *, servers: int = 1) -> None:
        """Wait until so many servers live.

        Raises:
            PeerUnreachable: they do not within timeout_s; the text says why.
        """
        timeout_s = seconds.wait(timeout_s)
        deadline_at = time.monotonic() + timeout_s
        while self._num_live() < servers:
            self._wait_for_server(deadline_at, timeout_s, None)

    def stats(self) -> PoolStats:
        """Counters of the pool and of each server."""
        members, follower = self._members, self._members.follower
        with members.changed:
            each = {
                member.id: MemberStats(
                    member.addresses[0],
                    member.health,
                    member.record.load if member.record else 0.0,
                    member.outstanding,
                    member.requests,
                    member.failures,
                    member.dials,
                    member.moves,
                    member.last_error,
                )
                for member in members.by_id.values()
            }
            counts = {name: self._counts[name] for name in ("requests", "answered", "failed", "attempts", "no_server")}
            return PoolStats(
                **counts,
                strange_hints=members.num_strange_hints,
                reasons=dict(self._reasons),
                rejected_records=dict(follower.directory.rejected) if follower else {},
                members=each,
            )

    def close(self) -> None:
        """Close all links; requests that wait end as NodeClosed. Closing twice is fine."""
        if not self._closed:
            self._closed = True
            self._members.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(
        self, send: Callable[[Link, float], Pending], timeout_s: float, may_repeat: bool, affinity: str | None
    ) -> Reply:
        timeout_s = seconds.deadline(timeout_s)
        deadline_at = time.monotonic() + timeout_s
        self._count("requests")
        tried: set[str] = set()
        failure: EdgebusError | None = None
        delay_s = 0.0
        try:
            for _ in range(_MOST_ATTEMPTS):
                while (member := self._pick(tried, affinity)) is None:
                    if not tried:
                        self._count("no_server")
                        self._wait_for_server(deadline_at, timeout_s, failure)
                        continue
                    tried.clear()  # all of them had their chance: begin again, a little later
                    delay_s = next_delay(delay_s, self._chance)
                    self._pause(delay_s, deadline_at, failure)
                if time.monotonic() >= deadline_at:
                    raise failure or DeadlineExceeded(f"no server came to be asked within {timeout_s:.3g} s")
                reply, failure, sent = self._attempt(member, send, deadline_at, may_repeat)
                if reply is not None:
                    self._count("answered")
                    return reply
                assert failure is not None
                tried.add(member.id)
                if after_failure(failure, sent=sent, may_repeat=may_repeat) is Next.FAIL or self._closed:
                    raise failure
            assert failure is not None
            raise failure
        except BaseException:
            self._count("failed")
            raise

    def _attempt(
        self, member: Member, send: Callable[[Link, float], Pending], deadline_at: float, may_repeat: bool
    ) -> tuple[Reply | None, EdgebusError | None, bool]:
        """Ask one server: the reply, or why there is none and whether the request left this process."""
        link = member.link
        assert link is not None
        with self._members.changed:
            member.outstanding += 1
            member.requests += 1
            self._counts["attempts"] += 1
        pending: Pending | None = None
        try:
            pending = send(link, max(0.001, deadline_at - time.monotonic()))
            while not pending.wait(_LOOK_S):
                if may_repeat and link.health in ("down", "wedged") and self._num_live(member.id):
                    pending.cancel()  # its outcome may come for ever so long, and somebody else is there
                    raise PeerUnreachable(f"{link.endpoint} is {link.health}: another server may do it")
            return pending.result(), None, True
        except EdgebusError as error:
            self._note_failure(member, error)
            # A link that fails for good refuses what it has not sent.
            return None, error, pending is not None and pending.outcome != "refused"
        except BaseException:
            if pending is not None and not pending.done():  # a signal handler has raised: nobody waits for it
                pending.cancel()
            raise
        finally:
            with self._members.changed:
                member.outstanding -= 1

    def _note_failure(self, member: Member, error: EdgebusError) -> None:
        code = error.code if isinstance(error, Refused) else type(error).__name__
        with self._members.changed:
            member.failures += 1
            self._reasons[code] += 1
            if code == "busy":
                member.full_until = time.monotonic() + _FULL_S

    def _pick(self, tried: Collection[str], affinity: str | None) -> Member | None:
        if self._closed:
            raise NodeClosed("the pool is closed: make a new Pool")
        candidates = self._members.candidates(time.monotonic())
        with self._members.changed:
            if affinity is not None:
                sticky = self._sticky.get(affinity)
                if any(
                    each.id == sticky and each.health in ("up", "busy") for each in candidates if sticky not in tried
                ):
                    self._sticky.move_to_end(affinity)
                    return self._members.by_id.get(sticky or "")
            chosen = choose(candidates, self._chance, tried)
            if chosen is None:
                return None
            if affinity is not None:
                self._sticky[affinity] = chosen
                if len(self._sticky) > _MOST_AFFINITIES:
                    self._sticky.popitem(last=False)
            return self._members.by_id.get(chosen)

    def _num_live(self, but: str = "") -> int:
        candidates = self._members.candidates(time.monotonic())
        return sum(each.health in ("up", "busy") and each.id != but for each in candidates)

    def _wait_for_server(self, deadline_at: float, timeout_s: float, failure: EdgebusError | None) -> None:
        left_s = deadline_at - time.monotonic()
        if left_s <= 0:
            raise failure or PeerUnreachable(f"no server lived within {timeout_s:.3g} s: {self._why()}")
        with self._members.changed:
            self._members.changed.wait(min(left_s, 3600.0))
        if self._closed:
            raise NodeClosed("the pool was closed meanwhile: make a new Pool")

    def _pause(self, delay_s: float, deadline_at: float, failure: EdgebusError | None) -> None:
        if time.monotonic() + delay_s >= deadline_at and failure is not None:
            raise failure
        until = time.monotonic() + delay_s
        while (left_s := until - time.monotonic()) > 0 and not self._closed:
            with self._members.changed:
                self._members.changed.wait(min(left_s, 3600.0))

    def _why(self) -> str:
        with self._members.changed:
            said = [
                f"{each.addresses[0]} is {each.health}: {each.last_error or 'no answer so far'}"
                for each in self._members.by_id.values()
            ]
        return "; ".join(said[:3]) or "the directory names none"

    def _count(self, what: str) -> None:
        with self._members.changed:
            self._counts[what] += 1


def _pairs(endpoints: Sequence[tuple[str, str | None]]) -> list[tuple[str, str | None]]:
    what = "endpoints must be [(endpoint, key), ...], the key None in plaintext"
    if isinstance(endpoints, str) or not isinstance(endpoints, Iterable):
        raise TypeError(f"{what}, got {endpoints!r}")
    pairs = list(endpoints)
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(f"{what}, got {pair!r} in it")
    return pairs


def _check_options(service: str | None, trusted: object, patience: object, hints: object) -> None:
    if service is not None:
        check_name("service", service)
    if isinstance(trusted, str) or not isinstance(trusted, Collection):
        raise TypeError(f"trusted must be a list of public keys, got {trusted!r}")
    for key in trusted:
        if not is_key(key):
            raise ConfigError(f"trusted must be public keys of 40 characters of Z85, got {key!r}: see read_public_key")
    if not isinstance(patience, Patience | None):
        raise TypeError(f"patience must be Patience(...) or None, got {patience!r}")
    if patience is not None:
        seconds.deadline(patience.dial_s, "dial_s")
        for name in ("least_delay_s", "most_delay_s", "move_s"):
            seconds.wait(getattr(patience, name), name)
    if not callable(hints):
        raise TypeError(f"hints must be something to call, got {hints!r}")
