"""What a receiver holds of one peer's leases, told to the peer as a state and not as a list of changes."""

from __future__ import annotations

from collections.abc import Sequence


class Ledger:
    """Leases of one peer in use over here (pure).

    A report (upto, held) says: of your leases up to `upto` only those in `held` are in use here, and none of the others
    will ever be. It may be lost or repeated. What it gave up is refused afterwards, also where the message that
    brings the lease was overtaken: its block may hold something else by then.

    Args:
        max_held: leases held at once; the peer sends the rest by socket.
    """

    def __init__(self, max_held: int = 4096) -> None:
        self._max_held = max_held
        self._held: dict[int, int] = {}
        self._highest = self._floor = -1
        self._has_news = False

    @property
    def num_held(self) -> int:
        """Leases in use now."""
        return len(self._held)

    def admit(self, lease_ids: Sequence[int]) -> bool:
        """Hold all leases of a message once more; False, and none is, if one was given up or there is no room."""
        held = self._held
        if len(lease_ids) == 1 and lease_ids[0] > self._highest and len(held) < self._max_held:
            held[lease_ids[0]] = 1  # the next one: mostly it is
            self._highest = lease_ids[0]
            self._has_news = True
            return True
        new = set()
        for lease_id in lease_ids:
            if lease_id not in held:
                if lease_id <= self._floor:
                    return False
                new.add(lease_id)
        if len(held) + len(new) > self._max_held:
            return False
        for lease_id in lease_ids:
            held[lease_id] = held.get(lease_id, 0) + 1
            self._highest = max(self._highest, lease_id)
            self._has_news = True
        return True

    def give_back(self, lease_id: int) -> None:
        """One holder of the lease less.

        Raises:
            ValueError: it is not held.
        """
        count = self._held.get(lease_id, 0)
        if count == 0:
            raise ValueError(f"lease {lease_id} is not held; give back once for each time it was admitted")
        if count == 1:
            del self._held[lease_id]
            self._has_news = True
        else:
            self._held[lease_id] = count - 1

    def report(self) -> tuple[int, tuple[int, ...]] | None:
        """(upto, held) to be sent, binding from now on; None before the first lease."""
        if self._highest < 0:
            return None
        self._floor = self._highest
        self._has_news = False
        return self._floor, tuple(sorted(self._held))

    @property
    def has_news(self) -> bool:
        """Whether leases came or went since the last report."""
        return self._has_news
