"""Who may call what, how often and how much. Pure: keys, sizes and both clocks are arguments.

Decided for each request before anything else is done with it, so the usual answer is two look-ups: a key without
limits is decided once per service and version of the allow-list.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from edgebus.grants import GUARDED, Grant
from edgebus.keyfiles import shell_key

__all__ = ["Denial", "Grant", "Policy", "TokenBucket"]

_NS = 1_000_000_000
_MILLI = 1000
_UNIT = _NS * _MILLI  # one token: at `rate` milli-tokens per second, `rate` units come back each nanosecond
_MAX_SERVICES = 64
_LONGEST_COMMAND = 800  # a detail has 1024 characters, and half a command is another command


class Denial(NamedTuple):
    """Why not (`forbidden`, `expired_key`, `rate_limited`, `too_large`), one line for people, when to ask again."""

    code: str
    detail: str
    retry_after_s: float = 0.0


class TokenBucket:
    """Never lets through more than burst + rate * t in any t seconds, and in the long run exactly the rate.

    Whole numbers inside: nothing is lost or gained to rounding, however many small steps time takes.

    Args:
        rate: tokens per second, to a thousandth.
        burst: tokens at once; the bucket starts full.
        now: seconds of any clock; a clock that steps back stands still.

    >>> bucket = TokenBucket(rate=2.0, burst=3, now=0.0)
    >>> [bucket.take(1, now=0.0) for _ in range(4)], bucket.take(1, now=0.5)
    ([True, True, True, False], True)
    """

    __slots__ = ("_at_ns", "_capacity", "_level", "_refill")

    def __init__(self, rate: float, burst: float, *, now: float) -> None:
        self._refill = round(rate * _MILLI)
        self._capacity = round(burst * _UNIT)
        if self._refill < 1 or self._capacity < 1:
            raise ValueError(f"rate and burst must be positive, got {rate!r} and {burst!r}")
        self._level = self._capacity
        self._at_ns = int(now * _NS)

    @property
    def burst(self) -> float:
        """The most it can hold, and so let through at once."""
        return self._capacity / _UNIT

    def take(self, tokens: float, *, now: float) -> bool:
        """Take that many if they are there, else none."""
        self._refill_until(now)
        cost = round(tokens * _UNIT)
        if cost > self._level:
            return False
        self._level -= cost
        return True

    def wait_s(self, tokens: float, *, now: float) -> float:
        """Seconds until take() would succeed if nobody else takes; 0 is now, inf is never."""
        self._refill_until(now)
        cost = round(tokens * _UNIT)
        if cost <= self._level:
            return 0.0
        if cost > self._capacity:
            return math.inf
        wait_ns = -((self._level - cost) // self._refill)
        return wait_ns / _NS + 2 * math.ulp(now) + 1e-9  # now + wait must not round to a moment before

    def is_full(self, *, now: float) -> bool:
        """True if a new bucket would be no better."""
        self._refill_until(now)
        return self._level == self._capacity

    def resized(self, rate: float, burst: float, *, now: float) -> TokenBucket:
        """A bucket with other limits in which what was taken is still missing: new limits are no refill."""
        self._refill_until(now)
        bucket = TokenBucket(rate, burst, now=now)
        bucket._level = max(0, bucket._capacity - (self._capacity - self._level))
        return bucket

    def _refill_until(self, now: float) -> None:
        now_ns = int(now * _NS)
        if now_ns > self._at_ns:
            self._level = min(self._capacity, self._level + (now_ns - self._at_ns) * self._refill)
            self._at_ns = now_ns


class Grants(Protocol):
    """Where grants come from: an AllowList. `version` changes whenever an answer of `grant` does."""

    @property
    def version(self) -> int: ...

    def grant(self, key: str) -> Grant | None:
        """What a key may do, None if nothing."""


@dataclass(slots=True, eq=False)
class _Peer:
    """What is remembered of one key."""

    grant: Grant | None
    used_at: float
    requests: TokenBucket | None = None
    bytes: TokenBucket | None = None
    free: dict[str, bool] = field(default_factory=dict)  # True: nothing to count; False: allowed, but count

    def is_idle(self, now: float) -> bool:
        return all(bucket is None or bucket.is_full(now=now) for bucket in (self.requests, self.bytes))


class Policy:
    """Decides for each request whether its sender may make it now.

    Args:
        grants: the allow-list; None on a plaintext node, and for requests from a node we dialled.
        plaintext_services: patterns of guarded services that peers without a key may call; without them none.
        max_keys: keys remembered. One that owes tokens is never forgotten: reconnecting refills nothing.
        wall: gives seconds since 1970, for `judge`.
    """

    def __init__(
        self,
        grants: Grants | None = None,
        *,
        plaintext_services: Sequence[str] = (),
        max_keys: int = 4096,
        wall: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._grants = grants
        self._plaintext = Grant(services=("*", *plaintext_services))
        self._max_keys = max_keys
        self._wall = wall
        self._version = -1 if grants is None else grants.version
        self._peers: dict[str | None, _Peer] = {}
        self._full_until = -math.inf  # nobody to forget: not worth looking before

    @property
    def num_keys(self) -> int:
        """Keys remembered now."""
        return len(self._peers)

    def judge(self, key: str | None, service: str, num_bytes: int, now: float) -> tuple[str, str] | None:
        """Like check, at the present hour: code and detail of a denial (hub.Judge)."""
        peer, grants = self._peers.get(key), self._grants
        if peer is not None and peer.free.get(service) and (grants is None or grants.version == self._version):
            return None
        denial = self.check(key, service, num_bytes, now=now, wall=self._wall())
        return None if denial is None else (denial.code, denial.detail)

    def check(self, key: str | None, service: str, num_bytes: int, *, now: float, wall: float) -> Denial | None:
        """Count one request, or say why it may not be made; what is denied costs its sender nothing.

        Args:
            key: the authenticated key of the sender, None in plaintext.
            service: what it calls.
            num_bytes: of all frames.
            now: monotonic seconds.
            wall: seconds since 1970.
        """
        if self._grants is not None and self._grants.version != self._version:
            self._read_again(now)
        peer = self._peers.get(key)
        if peer is not None and peer.free.get(service):
            return None
        return self._check(key, service, num_bytes, now, wall)

    def _check(self, key: str | None, service: str, num_bytes: int, now: float, wall: float) -> Denial | None:
        peer = self._peers.get(key) or self._meet(key, now)
        if peer is None:
            return Denial("rate_limited", f"{len(self._peers)} other keys are at their limits: ask again in 1 s", 1.0)
        peer.used_at = now
        grant = peer.grant
        if grant is None:
            return Denial("forbidden", "our key is no longer in the server's allow-list: `edgebus allow DIR KEY` there")
        if wall >= grant.until:
            detail = f"our key expired {wall - grant.until:.0f} s ago: raise its until= in the server's allow-list"
            return Denial("expired_key", detail)
        if service not in peer.free:
            if not grant.covers(service):
                return _forbidden(key, service, grant)
            if len(peer.free) >= _MAX_SERVICES:
                peer.free.clear()  # names are the peer's choice: it crowds out its own only
            peer.free[service] = not grant.is_limited and grant.until == math.inf
        return _count(peer, num_bytes, now) if grant.is_limited else None

    def _meet(self, key: str | None, now: float) -> _Peer | None:
        grant = self._look_up(key)
        peer = _Peer(grant, now)
        if grant is not None and grant.is_limited:
            peer.requests, peer.bytes = _buckets(grant, None, now)
        if len(self._peers) >= self._max_keys:
            self._forget(now)
            if len(self._peers) >= self._max_keys:
                return None if grant is not None and grant.is_limited else peer  # decided, but not remembered
        self._peers[key] = peer
        return peer

    def _forget(self, now: float) -> None:
        """Make room: a quarter of the keys at a time, the longest unused first, of those that owe nothing."""
        if now < self._full_until:
            return
        idle = [(peer.used_at, key) for key, peer in self._peers.items() if peer.is_idle(now)]
        idle.sort(key=lambda item: item[0])
        for _, key in idle[: max(1, self._max_keys // 4)]:
            del self._peers[key]
        if not idle:
            self._full_until = now + 1.0

    def _read_again(self, now: float) -> None:
        assert self._grants is not None
        self._version = self._grants.version
        for key, peer in list(self._peers.items()):
            grant = self._look_up(key)
            peer.free.clear()
            peer.grant = grant
            if grant is not None:
                peer.requests, peer.bytes = _buckets(grant, peer, now)
            # Of a key that is gone the buckets stay: a line that vanishes and returns is no refill.

    def _look_up(self, key: str | None) -> Grant | None:
        if key is None or self._grants is None:
            return self._plaintext
        return self._grants.grant(key)


def _count(peer: _Peer, num_bytes: int, now: float) -> Denial | None:
    requests, sizes = peer.requests, peer.bytes
    if sizes is not None and num_bytes > sizes.burst:
        detail = (
            f"the request has {num_bytes} B, the server lets our key send {sizes.burst:.0f} B at once: "
            "send less, or raise bytes_burst= in its allow-list"
        )
        return Denial("too_large", detail)
    wait_s = max(
        requests.wait_s(1, now=now) if requests is not None else 0.0,
        sizes.wait_s(num_bytes, now=now) if sizes is not None else 0.0,
    )
    if wait_s > 0:
        return Denial("rate_limited", _rate_detail(peer.grant, wait_s), wait_s)
    if requests is not None:
        requests.take(1, now=now)
    if sizes is not None:
        sizes.take(num_bytes, now=now)
    return None


def _rate_detail(grant: Grant | None, wait_s: float) -> str:
    assert grant is not None
    limits = [
        f"{value:.15g} {what}/s"
        for value, what in ((grant.requests_per_s, "requests"), (grant.bytes_per_s, "B"))
        if value is not None
    ]
    return f"the server lets our key send {' and '.join(limits)}: ask again in {math.ceil(wait_s * 1000) / 1000:.3f} s"


def _forbidden(key: str | None, service: str, grant: Grant) -> Denial:
    if key is None:
        return Denial("forbidden", f"{service!r} is not for peers without a key: use keys, or open it on the server")
    if service in GUARDED and not grant.deny:
        wanted = shlex.quote(",".join((*(grant.services or ("*",)), service)))  # nothing else is granted by the way
        command = f"`edgebus allow DIR --services {wanted} {shell_key(key)}`"
        if len(command) > _LONGEST_COMMAND:
            command = "add it to services= of our key in the allow-list"
        detail = f"{service!r} shows what others do, our key has no grant for it: on the server, {command}"
        return Denial("forbidden", detail)
    return Denial(
        "forbidden",
        f"{service!r} is not among the services of our key: change services= or deny= in the server's "
        f"allow-list (`edgebus allow DIR --services ... --deny ... {shell_key(key)}`)",
    )


def _buckets(grant: Grant, peer: _Peer | None, now: float) -> tuple[TokenBucket | None, TokenBucket | None]:
    requests, sizes = (peer.requests, peer.bytes) if peer is not None else (None, None)
    rate = grant.requests_per_s
    burst = grant.burst if grant.burst is not None or rate is None else max(1, math.ceil(rate))
    size_burst = grant.bytes_burst or grant.bytes_per_s
    return _bucket(requests, rate, burst, now), _bucket(sizes, grant.bytes_per_s, size_burst, now)


def _bucket(old: TokenBucket | None, rate: float | None, burst: float | None, now: float) -> TokenBucket | None:
    if rate is None or burst is None:
        return None
    return TokenBucket(rate, burst, now=now) if old is None else old.resized(rate, burst, now=now)
