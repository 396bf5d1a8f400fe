"""What one device holds, and how many rejected drafts it may still send."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

S = TypeVar("S")
_RECOVERED = 0.25


@dataclass(slots=True)
class Bucket:
    """A budget of rejected drafts: filled at a constant rate, emptied by rejections.

    Once empty it stays shut until a quarter is back, so that a device is not told another limit with every verdict.

    >>> bucket = Bucket(burst=8, per_s=4.0)
    >>> bucket.take(9, now=0.0)
    >>> bucket.shut(now=0.5), bucket.shut(now=1.0)
    (True, False)
    """

    burst: float
    per_s: float
    level: float = field(init=False)
    at: float = 0.0
    _shut: bool = False

    def __post_init__(self) -> None:
        self.level = self.burst

    def take(self, drafts: int, *, now: float) -> None:
        """So many drafts were rejected."""
        self._fill(now)
        self.level = max(self.level - drafts, -self.burst)
        self._shut = self._shut or self.level <= 0

    def shut(self, *, now: float) -> bool:
        """Whether the device gets no more drafts verified."""
        if self._shut:
            self._fill(now)
            self._shut = self.level < _RECOVERED * self.burst
        return self._shut

    def is_full(self, *, now: float) -> bool:
        """Whether nothing is owed."""
        self._fill(now)
        return self.level >= self.burst

    def _fill(self, now: float) -> None:
        self.level = min(self.burst, self.level + max(0.0, now - self.at) * self.per_s)
        self.at = max(self.at, now)


@dataclass(slots=True)
class Owner(Generic[S]):
    """One device: its sessions' number, the text that is computed ahead for it, its budget."""

    bucket: Bucket
    num_sessions: int = 0
    ahead: S | None = None


class Owners(Generic[S]):
    """All devices with a session, and those that still owe for rejected drafts.

    Args:
        burst: see `ServerLimits.rejected_burst`.
        per_s: see `ServerLimits.rejected_per_s`.
    """

    def __init__(self, burst: float, per_s: float) -> None:
        self._burst, self._per_s = burst, per_s
        self._owners: dict[str, Owner[S]] = {}
        self._prune_at = 64

    def __getitem__(self, name: str) -> Owner[S]:
        return self._owners[name]

    def num_sessions(self, name: str) -> int:
        """Sessions of one device."""
        owner = self._owners.get(name)
        return owner.num_sessions if owner else 0

    def add_session(self, name: str, *, now: float) -> None:
        """A device opened one."""
        if name not in self._owners:
            self._prune(now)
            bucket = Bucket(self._burst, self._per_s)
            bucket.at = now
            self._owners[name] = Owner(bucket)
        self._owners[name].num_sessions += 1

    def remove_session(self, name: str, session: S) -> None:
        """One is gone; what the device owes is remembered until it is paid."""
        owner = self._owners[name]
        owner.num_sessions -= 1
        if owner.ahead is session:
            owner.ahead = None

    def _prune(self, now: float) -> None:
        if len(self._owners) < self._prune_at:
            return
        for name, owner in list(self._owners.items()):
            if not owner.num_sessions and owner.bucket.is_full(now=now):
                del self._owners[name]
        self._prune_at = 2 * len(self._owners) + 64
