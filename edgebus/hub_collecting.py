"""What the links of a node have to say, and when: their timers, messages to send and events. Pure.

Hub builds on this.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
from collections.abc import Iterable

from edgebus.attached import Attached, HubFront
from edgebus.interrupts import is_of_signal
from edgebus.link_states import Event, Gone, Surroundings
from edgebus.stats import LinkStats, link_stats

_log = logging.getLogger("edgebus")
_FAULT_S = 1.0
"""A link whose timers fail by a fault of ours is looked at again after so long."""


class HubCollecting(HubFront):
    """The links known, and what is collected of them.

    Args:
        around: what the links of this node share.

    Attributes:
        gone: counters of links that were dropped.
    """

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._limits = around.limits
        self.by_route = {}
        self.outbox = []
        self.news = []
        self.first_timer_at = math.inf
        self.gone = LinkStats()
        self._accepted: dict[tuple[str | None, bytes], Attached] = {}
        self._timers: list[tuple[float, int, Attached]] = []
        self._order = itertools.count()  # ties in the heap

    @property
    def links(self) -> list[Attached]:
        """Every link known, in no order."""
        return list({id(item): item for item in (*self.by_route.values(), *self._accepted.values())}.values())

    @property
    def busy(self) -> bool:
        """True if there is something to send or to tell."""
        return bool(self.outbox or self.news)

    def touch(self, attached: Attached, *, now: float) -> None:
        """Collect what a link has to say; to be called after every direct use of one."""
        link = attached.link
        route = attached.route
        self.outbox += [(route, attached, message) for message in link.headers_to_send()]
        if link.has_bulk:
            by_lane = (route, attached.bulk_route or route)
            self.outbox += [(by_lane[lane], attached, message) for lane, message in link.bulk_to_send(now=now)]
        if self._around.keyed.told:
            told, self._around.keyed.told = set(self._around.keyed.told), []
            for other in self.links:
                if other.link.answerer in told:
                    self.touch(other, now=now)
        events = link.events()
        if events:
            self.news += [(attached, event) for event in events]
            if any(isinstance(event, Gone) for event in events):
                self.drop(attached)
                return
        at = link.next_timer()
        if at < attached.scheduled_at:
            self.schedule(attached, at)

    def schedule(self, attached: Attached, at: float) -> None:
        """Have a link's timers looked at by then."""
        self.first_timer_at = min(self.first_timer_at, at)
        attached.scheduled_at = at
        if len(self._timers) > 64 + 4 * (len(self.by_route) + len(self._accepted)):
            # Stale ones keep links that were dropped: greetings in a row would pile them up for forget_s.
            self._timers = [item for item in self._timers if item[0] == item[2].scheduled_at]
            heapq.heapify(self._timers)
        heapq.heappush(self._timers, (at, next(self._order), attached))

    def next_timer(self) -> float:
        """Earliest time handle_timer has something to do, inf if never."""
        while self._timers and self._timers[0][0] != self._timers[0][2].scheduled_at:
            heapq.heappop(self._timers)
        self.first_timer_at = self._timers[0][0] if self._timers else math.inf
        return self.first_timer_at

    def handle_timer(self, *, now: float) -> None:
        """Let every link whose time has come do what is due."""
        while self.next_timer() <= now:
            attached = heapq.heappop(self._timers)[2]
            attached.scheduled_at = math.inf
            if (at := attached.link.next_timer()) > now:  # what it was for is done
                if at < math.inf:
                    self.schedule(attached, at)
                continue
            self.schedule(attached, now)  # until it is done, whatever a signal handler raises
            try:
                attached.link.handle_timer(now=now)
                attached.scheduled_at = math.inf
                self.touch(attached, now=now)
            except Exception as error:
                if is_of_signal(error):
                    raise
                _log.exception("edgebus: internal error in the timers of a link")
                attached.scheduled_at = math.inf
                self.schedule(attached, now + _FAULT_S)  # the others have theirs

    def look_again(self, *, now: float) -> None:
        """A signal handler has raised in the middle of something: see to what was left of it, on every link."""
        for attached in self.links:
            try:
                self.touch(attached, now=now)
            except Exception as error:
                if is_of_signal(error):
                    raise
                _log.exception("edgebus: internal error in a link")

    def events(self) -> list[tuple[Attached, Event]]:
        """Events of all links since the last call."""
        events, self.news = self.news, []
        return events

    def put_back(self, events: Iterable[tuple[Attached, Event]]) -> None:
        """Events that could not be handled come first next time."""
        self.news[:0] = events

    def close(self, *, now: float) -> None:
        """Say goodbye on every link."""
        for attached in self.links:
            attached.link.close(now=now)
            self.touch(attached, now=now)

    def drop(self, attached: Attached) -> None:
        """Forget a link that is closed."""
        if math.isnan(attached.scheduled_at):
            return
        self.gone += link_stats(attached)
        self._leave_routes(attached)
        if attached.hello_id is not None:
            self._accepted.pop((attached.key, attached.hello_id), None)
        attached.scheduled_at = math.nan  # no timer compares equal to it: they are all stale

    def _leave_routes(self, attached: Attached) -> None:
        for route in (attached.route, attached.bulk_route):
            if route is not None and self.by_route.get(route) is attached:  # another link may have taken it over
                del self.by_route[route]
