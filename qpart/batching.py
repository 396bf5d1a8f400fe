"""Which inference requests are computed together in the next forward, and which are not computed at all.

Pure: no sockets, clock or threads; time is an argument. A batch is made of what waits when the server is free: nothing
waits for company unless `wait_s` says so. Every request that is accepted has exactly one end: answered, failed,
expired or withdrawn.

    accepted = answered + failed + expired + withdrawn + waiting + running
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from qpart.errors import RequestError
from qpart.fair import FairQueue

T = TypeVar("T")

LEAST_RETRY_S, MOST_RETRY_S = 0.01, 10.0
_NEWER = 0.3  # weight of the latest forward in what a unit of cost takes


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """Bounds of the queue and of one forward.

    Attributes:
        max_batch: samples in one forward; a request that has more on its own is computed alone. 1: no batching. More
            than 32 gains little on a CPU, and makes everybody else wait for longer.
        max_items: numbers in the widest tensor of one forward.
        max_waiting: requests that wait; one device holds at most half of the places.
        max_waiting_items: numbers in all requests that wait; of one device half of them, or one request.
        wait_s: how long a request may wait for company; 0 computes it as soon as the server is free.

    Raises:
        RequestError: a bound is out of range.
    """

    max_batch: int = 32
    max_items: int = 1 << 24
    max_waiting: int = 256
    max_waiting_items: int = 1 << 26
    wait_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_items", "max_waiting", "max_waiting_items"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} is {getattr(self, name)}, give 1 or more")
        if not 0 <= self.wait_s <= 1:
            raise RequestError(f"wait_s is {self.wait_s}, give 0 to 1 seconds")


@dataclass(slots=True, eq=False)
class Job(Generic[T]):
    """A request that waits for its forward.

    Attributes:
        ticket: whose it is, for whoever answers.
        owner: the device, for fairness.
        group: only jobs of one group are computed together.
        samples, items: how many, and numbers in the widest tensor of all of them.
        cost: of computing it, in multiply-accumulates.
        arrived_at, deadline_at: seconds; after the deadline nobody wants the answer.
    """

    ticket: T
    owner: str
    group: Hashable
    samples: int
    items: int
    cost: float
    arrived_at: float
    deadline_at: float


@dataclass(slots=True)
class Totals:
    """What became of requests, and what was computed."""

    accepted: int = 0
    answered: int = 0
    failed: int = 0
    expired: int = 0
    withdrawn: int = 0
    busy: int = 0
    batches: int = 0
    samples: int = 0


@dataclass(slots=True)
class Batch(Generic[T]):
    """Jobs to compute in one forward, in this order."""

    jobs: list[Job[T]] = field(default_factory=list)

    @property
    def samples(self) -> int:
        return sum(job.samples for job in self.jobs)

    @property
    def items(self) -> int:
        return sum(job.items for job in self.jobs)

    def halves(self) -> list[Batch[T]]:
        """Two smaller batches, to find out whose job fails."""
        middle = (len(self.jobs) + 1) // 2
        return [Batch(part) for part in (self.jobs[:middle], self.jobs[middle:]) if part]


class Batcher(Generic[T]):
    """Requests that wait, and the batches made of them.

    Args:
        limits: see there.
    """

    def __init__(self, limits: BatchLimits | None = None) -> None:
        self.limits = limits or BatchLimits()
        self.totals = Totals()
        self._queue: FairQueue[Job[T]] = FairQueue(self.limits.max_waiting)
        self._waiting_items = 0
        self._items_of: Counter[str] = Counter()
        self._waiting_cost = 0.0
        self._running = 0
        self._cost_s = 0.0  # seconds of a unit of cost, as measured

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Requests in a forward now."""
        return self._running

    def offer(self, job: Job[T]) -> float | None:
        """Accept a request, or say in how many seconds it is worth asking again."""
        most, held = self.limits.max_waiting_items, self._items_of[job.owner]
        full = self._waiting_items + job.items > most and len(self._queue) > 0
        if full or (held and held + job.items > (most + 1) // 2) or not self._queue.add(job.owner, job, job.cost):
            self.totals.busy += 1
            return self.retry_after_s()
        self.totals.accepted += 1
        self._waiting_items += job.items
        self._items_of[job.owner] += job.items
        self._waiting_cost += job.cost
        return None

    def retry_after_s(self) -> float:
        """About how long until half of what waits is done."""
        return min(MOST_RETRY_S, max(LEAST_RETRY_S, self._waiting_cost * self._cost_s / 2))

    def sweep(self, *, now: float, gone: Callable[[T], bool] = lambda ticket: False) -> list[Job[T]]:
        """Take out what nobody wants any more: expired, or given up by its device (`gone`); for refusing."""
        expired = self._queue.remove(lambda job: job.deadline_at <= now)
        withdrawn = self._queue.remove(lambda job: gone(job.ticket))
        self.totals.expired += len(expired)
        self.totals.withdrawn += len(withdrawn)
        for job in (*expired, *withdrawn):
            self._forget(job)
        return [*expired, *withdrawn]

    def next_batch(self, *, now: float) -> Batch[T] | None:
        """What to compute now; None if nothing waits, or what waits may still get company."""
        if not len(self._queue) or self.next_timer() > now:
            return None
        first = self._queue.pop()
        assert first is not None
        batch = Batch([first])
        samples, items = first.samples, first.items

        def fits(job: Job[T]) -> bool:
            return (
                job.group == first.group
                and samples + job.samples <= self.limits.max_batch
                and items + job.items <= self.limits.max_items
            )

        while samples < self.limits.max_batch and (job := self._queue.pop(fits)) is not None:
            batch.jobs.append(job)
            samples, items = samples + job.samples, items + job.items
        for job in batch.jobs:
            self._forget(job)
        self._running += len(batch.jobs)
        return batch

    def next_timer(self) -> float:
        """When `next_batch` has something: -inf if it has now, inf if nothing waits."""
        if not len(self._queue):
            return math.inf
        if not self.limits.wait_s or sum(job.samples for job in self._queue) >= self.limits.max_batch:
            return -math.inf
        return min(min(job.arrived_at + self.limits.wait_s, job.deadline_at) for job in self._queue)

    def done(self, batch: Batch[T], *, took_s: float) -> None:
        """A batch has its answers."""
        self._running -= len(batch.jobs)
        self.totals.answered += len(batch.jobs)
        self.totals.batches += 1
        self.totals.samples += batch.samples
        cost_s = took_s / max(1.0, sum(job.cost for job in batch.jobs))
        self._cost_s += (cost_s - self._cost_s) * (_NEWER if self._cost_s else 1.0)

    def failed(self, batch: Batch[T]) -> None:
        """A batch has none, and is not tried again."""
        self._running -= len(batch.jobs)
        self.totals.failed += len(batch.jobs)

    def give_up(self) -> list[Job[T]]:
        """Everything that waits; it counts as withdrawn."""
        left = self._queue.remove(lambda job: True)
        self.totals.withdrawn += len(left)
        for job in left:
            self._forget(job)
        return left

    def _forget(self, job: Job[T]) -> None:
        self._waiting_items -= job.items
        self._items_of[job.owner] -= job.items
        if not self._items_of[job.owner]:
            del self._items_of[job.owner]
        self._waiting_cost = max(0.0, self._waiting_cost - job.cost) if len(self._queue) else 0.0
