"""The rounds of an answer that are in flight: when the next one goes, when verdicts came, and how they are given up."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable

import edgebus
from edgebus.payloads import encode
from sled import messages
from sled.device import MAX_FLIGHTS, Generation
from sled.events import RoundEnded, RoundSent
from sled.pace import Pace
from sled.run.asked import Asked
from sled.run.drafting import Drafting

_POLL_S = 0.0005  # how often, while drafting, a verdict is looked for


class Flights:
    """Rounds on their way to a server, the oldest first.

    Args:
        machine: the answer.
        drafting: prepares the next round.
        pace: says whether one that hangs on hope is sent, and hears of those that are given up.
        now: seconds since the answer began.
    """

    def __init__(self, machine: Generation, drafting: Drafting, pace: Pace, now: Callable[[], float]) -> None:
        self._machine, self._drafting, self._pace, self._now = machine, drafting, pace, now
        self._asked: deque[Asked] = deque()
        self._polled_s = self._looked_s = 0.0

    def __bool__(self) -> bool:
        return bool(self._asked)

    @property
    def pending(self) -> edgebus.Pending:
        """Gets the verdict of the oldest one."""
        return self._asked[0].pending

    def waited_s(self) -> float | None:
        """Since the oldest one was sent; None if there is none."""
        return self._now() - self._asked[0].sent_s if self._asked else None

    def may_send(self) -> bool:
        """Whether the next round is to go now."""
        if not self._asked:
            return self._drafting.ready
        machine = self._machine
        if len(self._asked) >= MAX_FLIGHTS or machine.window_limit == 0 or not self._drafting.ready:
            return False
        chain, size = machine.chain, self._drafting.size
        if not size:
            return False
        round_ = [proposal.confidence for proposal in chain.proposals[chain.start : chain.start + size]]
        return self._pace.send(round_, chain.hoped())

    def send(self, link: edgebus.Link, timeout_s: float) -> RoundSent:
        """Send the next round."""
        request = self._machine.submit(self._drafting.size)
        flight = self._machine.chain.flights[-1]
        sent_s, came_s = self._now(), list[float]()
        pending = link.send_request(messages.VERIFY, encode(request), timeout_s=timeout_s)
        self._asked.append(Asked(flight, pending, sent_s, came_s))
        pending.on_done = lambda: came_s.append(self._now())
        return self._asked[-1].sent()

    def has_verdict(self) -> bool:
        """Whether the oldest round has its verdict; while drafting, that is not looked for after every token."""
        pending, now = self._asked[0].pending, self._now()
        if not pending.done() and now - self._polled_s >= _POLL_S:
            self._looked_s, self._polled_s = self._polled_s, now
            pending.wait(0.0)
        return pending.done()

    def looked(self) -> None:
        """Somebody waited for a verdict until now."""
        self._looked_s = self._now()

    def away_s(self, asked: Asked) -> float:
        """How long a round was away: one found when we looked came at any time since the look before."""
        came_s = asked.came_s[0] if asked.came_s else self._now()
        if came_s >= self._polled_s > self._looked_s:
            came_s = (max(self._looked_s, asked.sent_s) + came_s) / 2
        return came_s - asked.sent_s

    def take(self) -> Asked:
        """The oldest round, whose verdict is there."""
        return self._asked.popleft()

    def put_back(self, asked: Asked) -> None:
        """It came to nothing; it ends with the others."""
        self._asked.appendleft(asked)

    def dead(self) -> list[RoundEnded]:
        """Give up the rounds whose hope has failed; the server refuses them by itself."""
        alive, ended = self._machine.chain.flights, []
        for asked in [each for each in self._asked if not any(each.flight is flight for flight in alive)]:
            asked.pending.cancel()
            self._asked.remove(asked)
            self._pace.lost()
            ended.append(asked.ended(self._now(), self._machine.window_limit))
        return ended

    def cancel(self) -> None:
        """Break them off, from any thread."""
        with contextlib.suppress(RuntimeError):  # one went or came just now: then it is noticed at the next look
            for asked in self._asked:
                asked.pending.cancel()

    def give_up(self) -> None:
        """Expect no verdict of any of them."""
        while self._asked:
            self._asked.popleft().pending.cancel()
