"""Whose turn it is: what many owners wait for, one of each after the other. Pure.

What came first would go first, were it not that one owner may put a hundred things there before another puts one.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any


class Turns:
    """Things that wait, in the names of their owners: each owner's oldest in its turn, one at a time.

    An owner that comes anew is the last of those who wait now. Of one owner alone it is a queue.
    """

    def __init__(self) -> None:
        self._ring: deque[str] = deque()  # owners, whose turn it is first
        # By owner: mostly it has one thing, (token, thing); more are in an ordered dict, whose first is found at once.
        self._queues: dict[str, Any] = {}
        self.waiting = False  # True while there is something

    def num_owners(self) -> int:
        """How many owners wait: so many turns are a round."""
        return len(self._queues)

    def num(self, owner: str) -> int:
        """How many things of an owner wait."""
        queue = self._queues.get(owner)
        if queue is None:
            return 0
        return 1 if type(queue) is tuple else len(queue)

    def put(self, owner: str, token: Any, thing: Any) -> None:
        """Add a thing of an owner, under a name that no other one of it has."""
        queue = self._queues.get(owner)
        if queue is None:
            self._queues[owner] = (token, thing)
            self._ring.append(owner)
        elif type(queue) is tuple:
            self._queues[owner] = OrderedDict((queue, (token, thing)))
        else:
            queue[token] = thing
        self.waiting = True

    def take(self) -> Any:
        """The oldest thing of the owner whose turn it is, which has another one when all others have had theirs.

        Raises:
            IndexError: there is nothing.
        """
        owner = self._ring.popleft()
        queue = self._queues[owner]
        if type(queue) is tuple:
            thing = queue[1]
            del self._queues[owner]
            self.waiting = len(self._queues) > 0
        else:
            thing = queue.popitem(False)[1]
            self._ring.append(owner)
            if len(queue) == 1:
                self._queues[owner] = queue.popitem()
        return thing

    def drop(self, owner: str, token: Any) -> Any:
        """Let go of a thing before its turn; returns it, None if it is not there (any more)."""
        queue = self._queues.get(owner)
        if queue is None:
            return None
        if type(queue) is not tuple:
            thing = queue.pop(token, None)
            if len(queue) == 1:
                self._queues[owner] = queue.popitem()
            return thing
        if queue[0] != token:
            return None
        del self._queues[owner]
        if owner in self._ring:  # else it was interrupted as it was put there
            self._ring.remove(owner)
        self.waiting = len(self._queues) > 0
        return queue[1]

    def oldest(self) -> list[Any]:
        """The oldest thing of each owner, whose turn it is first."""
        queues = [self._queues[owner] for owner in self._ring]
        return [queue[1] if type(queue) is tuple else next(iter(queue.values())) for queue in queues]

    def clear(self) -> None:
        """Let go of everything."""
        self._queues.clear()
        self._ring.clear()
        self.waiting = False
