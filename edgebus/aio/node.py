"""A node for asyncio: it opens links and inboxes of this kind over a sync node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from edgebus import links, node
from edgebus.aio.calling import Link
from edgebus.aio.loops import in_thread
from edgebus.aio.serving import Inbox, RingingInbox
from edgebus.config import Limits
from edgebus.errors import ConfigError

if TYPE_CHECKING:
    from edgebus.keys import AllowList, Keys
    from edgebus.stats import NodeStats


class Node:
    """One process on the bus, for asyncio. Use it with `async with`, or await close().

    Args:
        name, keys, allow, insecure, limits: as for edgebus.Node. Where `limits.on_full` is "wait", tasks wait for room.
        sync: a node to use instead of a new one, which stays in use by threads; its `on_full` must not be "wait", which
            would hold the loop.

    Attributes:
        sync: the node underneath, for what needs no waiting.

    Raises:
        As edgebus.Node.
    """

    def __init__(
        self,
        name: str = "node",
        keys: Keys | None = None,
        allow: AllowList | None = None,
        insecure: bool = False,
        limits: Limits | None = None,
        *,
        sync: node.Node | None = None,
    ) -> None:
        limits = Limits() if limits is None else limits
        if not isinstance(limits, Limits):
            raise TypeError(f"limits must be Limits(...) or None, got {limits!r}")
        self._waits = sync is None and limits.on_full == "wait"
        if sync is None:
            limits = replace(limits, on_full="refuse") if self._waits else limits
            sync = node.Node(name, keys, allow, insecure, limits)
        elif sync.limits.on_full == "wait":
            raise ConfigError('on_full="wait" would hold the loop: give that node another on_full, or make an aio.Node')
        self.sync = sync

    @property
    def name(self) -> str:
        """What it calls itself."""
        return self.sync.name

    @property
    def key(self) -> str | None:
        """Its public key, None if it is insecure."""
        return self.sync.key

    def bind(self, endpoint: str) -> str:
        """Listen at an endpoint; returns the real one. As edgebus.Node.bind."""
        return self.sync.bind(endpoint)

    def serve(self, *services: str, depth: int = 1024) -> Inbox:
        """Take requests for these services: `async for request in node.serve("shout")`. As edgebus.Node.serve."""
        return Inbox(self.sync.open_inbox(RingingInbox, services, depth))

    async def connect(
        self, endpoint: str, server_key: str | Sequence[str] | None = None, timeout_s: float = 5.0
    ) -> Link:
        """Dial a node and wait until both have greeted. As edgebus.Node.connect."""

        def connect() -> links.Link:
            return self.sync.connect(endpoint, server_key, timeout_s)

        return Link(await in_thread(connect, unwanted=lambda link: link.close()), self._waits)

    def publish(self, topic: str, key: str, value: bytes) -> None:
        """Give a key of a topic of small state a value; peers follow it with subscribe()."""
        self.sync.publish(topic, key, value)

    def unpublish(self, topic: str, key: str) -> None:
        """Remove a key of a topic; nothing happens if it is not there."""
        self.sync.unpublish(topic, key)

    def busy(self, seconds: float, why: str = "") -> None:
        """Say that the application will not look at its requests for so long, and to our log why; 0 ends it."""
        self.sync.busy(seconds, why)

    def stats(self) -> NodeStats:
        """Totals, per peer, and what was turned away."""
        return self.sync.stats()

    async def close(self, linger_s: float = 1.0) -> None:
        """Refuse what waits, cancel what is outstanding, say goodbye. Also if the task is cancelled meanwhile."""
        await in_thread(self.sync.close, linger_s)

    async def __aenter__(self) -> Node:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()
