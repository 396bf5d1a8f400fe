"""What leases are called on one link: numbers in the order of sending, whoever was quicker to fill his memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable


class Numbers:
    """Names for leases of one link (pure).

    The peer refuses numbers that it has reported as unused, so they have to grow from message to message. Threads that
    share a link fill their memory at once and send in another order, and what is sent again comes after what is newer:
    so a lease gets a number when its message leaves, another one each time.
    """

    def __init__(self) -> None:
        self._next = 0
        self._leases: dict[int, int] = {}  # by number, which only grows
        self._sent: Counter[int] = Counter()  # numbers a lease has
        self._done: set[int] = set()  # leases whose message is not sent again

    def __len__(self) -> int:
        return len(self._leases)

    def number(self, lease_id: int) -> int:
        """A lease is on its way (again): what it is called."""
        number, self._next = self._next, self._next + 1
        self._leases[number] = lease_id
        self._sent[lease_id] += 1
        return number

    def done(self, lease_ids: Iterable[int]) -> list[int]:
        """Messages with these leases are not sent again; returns those that the peer does not use."""
        free = []
        for lease_id in lease_ids:
            if self._sent[lease_id]:
                self._done.add(lease_id)
            else:
                del self._sent[lease_id]
                free.append(lease_id)
        return free

    def settle(self, upto: int, held: Collection[int]) -> list[int]:
        """The peer uses none of the numbers up to `upto` but those held; returns leases that nobody uses any more."""
        free, held = [], frozenset(held)
        for number in list(self._leases):
            if number > upto:
                break
            if number in held:
                continue
            lease_id = self._leases.pop(number)
            self._sent[lease_id] -= 1
            if not self._sent[lease_id]:
                del self._sent[lease_id]
                if lease_id in self._done:
                    self._done.discard(lease_id)
                    free.append(lease_id)
        return free
