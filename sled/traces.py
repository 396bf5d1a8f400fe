"""The last rounds of each session, for whoever opened it. Pure: no sockets, clock or threads."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from sled.messages import Traced, TracedRound

Noted = tuple[int, float, float, float, int, int, int, int, int]
"""The fields of a TracedRound, with the time of arrival by the server's clock: the cheapest there is to keep."""

ROUNDS_EACH = 128
MAX_SESSIONS = 1024


@dataclass(slots=True)
class _Ring:
    owner: str
    opened_at: float
    rounds: deque[Noted] = field(default_factory=lambda: deque(maxlen=ROUNDS_EACH))
    num_rounds: int = 0


class Traces:
    """A ring of rounds for each of the sessions used last; a session that ended stays until others need its place.

    Args:
        max_sessions: sessions remembered.
    """

    def __init__(self, max_sessions: int = MAX_SESSIONS) -> None:
        self._max_sessions = max_sessions
        self._rings: OrderedDict[bytes, _Ring] = OrderedDict()

    def opened(self, session: bytes, owner: str, *, now: float) -> None:
        """A session was opened, or found again; one that is opened anew by another owner begins anew."""
        ring = self._rings.get(session)
        if ring is None or ring.owner != owner:
            self._rings[session] = _Ring(owner, now)
        self._rings.move_to_end(session)
        if len(self._rings) > self._max_sessions:
            self._rings.popitem(last=False)

    def add(self, session: bytes, noted: Noted) -> None:
        """A round was decided."""
        ring = self._rings.get(session)
        if ring is not None:
            self._rings.move_to_end(session)
            ring.num_rounds += 1
            ring.rounds.append(noted)

    def of(self, session: bytes, owner: str, last: int) -> Traced | None:
        """The last rounds of a session; None if it is not known, or not this owner's."""
        ring = self._rings.get(session)
        if ring is None or ring.owner != owner:
            return None
        rounds = list(ring.rounds)[-last:]
        return Traced([_traced(each, ring.opened_at) for each in rounds], ring.num_rounds - len(rounds))


def _traced(noted: Noted, opened_at: float) -> TracedRound:
    base, arrived_at, queue_s, step_s, *counts = noted
    return TracedRound(base, round(arrived_at - opened_at, 6), round(queue_s, 6), round(step_s, 6), *counts)
