"""Links of a node that come, move and go: which one a greeting belongs to, by which routes it is reached, who has room.

Links outlive routes: a dialler that reconnects is recognised by (its key, its incarnation). Hub builds on this. Pure.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable

from edgebus import messages as m
from edgebus.attached import Attached, Route, Traffic
from edgebus.errors import ConfigError
from edgebus.hub_collecting import HubCollecting
from edgebus.link import LinkMachine
from edgebus.link_states import Gone, Surroundings

_WARN_EVERY_S = 60.0
_log = logging.getLogger("edgebus")


class HubLinks(HubCollecting):
    """Links and their routes.

    Args:
        around: what the links of this node share.
        new_incarnation: gives 16 bytes, different at every call.
        max_links: accepted links a key may have; None for limits.max_links_per_key.
    """

    def __init__(
        self, around: Surroundings, new_incarnation: Callable[[], bytes], max_links: Callable[[str], int | None]
    ) -> None:
        super().__init__(around)
        self._new_incarnation = new_incarnation
        self._max_links = max_links
        self._full_told_at = -math.inf

    def dial(self, route: Route, *, now: float) -> Attached:
        """Add a link that this node opens; `connected` follows when its transport is there."""
        self.make_room_to_dial(now=now)
        return self._new_link(route, None, None, now=now)

    def make_room_to_dial(self, *, now: float) -> None:
        """Make sure that there is room for one more link.

        Raises:
            ConfigError: max_peers links are in use.
        """
        if not self._make_room(None, now):
            raise ConfigError(
                f"{len(self.links)} links are open, max_peers is {self._limits.max_peers}: close one, or raise it"
            )

    def connected(self, route: Route, *, now: float) -> None:
        """The transport of a dialled link is there (again)."""
        if attached := self.by_route.get(route):
            attached.link.connected(now=now)
            self.touch(attached, now=now)

    def disconnected(self, route: Route, *, now: float) -> None:
        """The transport at this route is gone."""
        attached = self.by_route.get(route)
        if attached is None:
            return
        if route == attached.bulk_route:
            attached.link.lane_lost()
            if attached.hello_id is not None:  # a listener's routes end with their connection
                del self.by_route[route]
                attached.bulk_route = None
        else:
            attached.link.disconnected(now=now)
        self.touch(attached, now=now)

    def add_lane(self, attached: Attached, route: Route) -> None:
        """A dialled link has a second transport, for bulk; `lane_connected` follows when it is there."""
        attached.bulk_route = route
        self.by_route[route] = attached

    def drop_lane(self, attached: Attached, route: Route) -> None:
        """That transport will not come."""
        if self.by_route.get(route) is attached:
            del self.by_route[route]
        if attached.bulk_route == route:
            attached.bulk_route = None

    def lane_connected(self, attached: Attached, *, now: float) -> None:
        """The bulk transport of a dialled link is there (again)."""
        attached.link.lane_connected()
        self.touch(attached, now=now)

    def move(self, attached: Attached, route: Route) -> None:
        """A dialled link goes on over another transport; `connected` follows when it is there."""
        self._leave_routes(attached)
        attached.link.lane_lost()
        attached.route, attached.bulk_route = route, None
        attached.link.is_local = route[0] < 0
        self.by_route[route] = attached

    def fail(self, route: Route, code: str, detail: str, *, now: float) -> None:
        """The transport of a dialled link will never come."""
        if attached := self.by_route.get(route):
            attached.link.fail(code, detail, now=now)
            self.touch(attached, now=now)

    def cut(self, attached: Attached, code: str, detail: str, *, now: float) -> None:
        """End an accepted link: its key may not stay."""
        attached.link.close(now=now, code=code, detail=detail)
        self.touch(attached, now=now)

    def _new_link(self, route: Route, key: str | None, hello_id: bytes | None, *, now: float) -> Attached:
        incarnation = self._new_incarnation()
        link = LinkMachine(dialled=hello_id is None, incarnation=incarnation, around=self._around, now=now, owner=key)
        attached = Attached(link, route, key, peer_id(key, hello_id or incarnation), hello_id, Traffic())
        self.by_route[route] = attached
        link.is_local = route[0] < 0
        return attached

    def _greeted(self, route: Route, key: str | None, hello: m.Hello, now: float) -> Attached | None:
        """Find or make the link a hello belongs to, and move it to the route the hello came by."""
        low, high = self._around.versions
        if hello.version_min > high or hello.version_max < low:
            detail = (
                f"this node speaks {low}..{high}, "
                f"the peer {hello.version_min}..{hello.version_max}: upgrade the older one"
            )
            self.outbox.append((route, None, m.Message(m.Goodbye("version", detail))))
            return None
        attached = self._accepted.get((key, hello.incarnation))
        previous = self.by_route.get(route)
        if attached is None:
            if not self._make_room(key, now):
                limits = self._limits
                detail = f"all in use: max_peers is {limits.max_peers}, max_links_per_key {limits.max_links_per_key}"
                self.outbox.append((route, None, m.Message(m.Goodbye("busy", detail))))
                if now >= self._full_told_at + _WARN_EVERY_S:
                    self._full_told_at = now
                    _log.warning("no place for a link of %s, %s; others within a minute are not logged", key, detail)
                return None
            attached = self._new_link(route, key, hello.incarnation, now=now)
            self._accepted[key, hello.incarnation] = attached
        elif attached.route != route:
            if self.by_route.get(attached.route) is attached:  # another link may have taken it over
                del self.by_route[attached.route]
            attached.route = route
            attached.link.is_local = route[0] < 0
        if previous is not None and previous is not attached:
            previous.link.disconnected(now=now)
            self.touch(previous, now=now)
        self.by_route[route] = attached
        return attached

    def _greeted_lane(self, route: Route, key: str | None, hello: m.Hello, frames_bytes: int, now: float) -> None:
        """The second connection of a peer that has greeted: it is tried again until its link is known."""
        attached = self._accepted.get((key, hello.incarnation))
        if attached is None or self.by_route.get(route, attached) is not attached or route == attached.route:
            return
        if attached.bulk_route is not None:
            self.by_route.pop(attached.bulk_route, None)
        attached.bulk_route = route
        self.by_route[route] = attached
        attached.link.lane_opened()
        self.touch(attached, now=now)
        attached.traffic.took(frames_bytes, 0)

    def _make_room(self, key: str | None, now: float) -> bool:
        """Room for one more link of a key; its own oldest spare link goes first, then anybody's."""
        own = [attached for attached in self._accepted.values() if key is not None and attached.key == key]
        most = self._limits.max_links_per_key if key is None else self._max_links(key) or self._limits.max_links_per_key
        if len(own) >= most:
            return self._evict(own, now)
        if len(self.links) < self._limits.max_peers:
            return True
        return self._evict(own, now) or self._evict(list(self._accepted.values()), now)

    def _evict(self, candidates: list[Attached], now: float) -> bool:
        spare = [attached for attached in candidates if attached.link.spare_from() <= now]
        if not spare:
            return False
        oldest = min(spare, key=lambda attached: (not attached.link.has_left, attached.link.heard_at))
        oldest.link.close(now=now)
        self.touch(oldest, now=now)
        self.drop(oldest)
        self.news.append((oldest, Gone()))  # shared memory and whoever else keeps something of it
        return True


def peer_id(key: str | None, incarnation: bytes) -> str:
    """A name for a link that nobody without the key can take: 32 hex digits."""
    return hashlib.blake2b(f"{key}|".encode() + incarnation, digest_size=16).hexdigest()
