"""Topics of small state for asyncio: the changes of a subscription as they come."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from edgebus import seconds
from edgebus.aio.loops import Bell, in_thread
from edgebus.subscribing import Subscription as SyncSubscription
from edgebus.subscribing import subscribe as sync_subscribe

if TYPE_CHECKING:
    from edgebus.aio.calling import Link
    from edgebus.replica import Event

_EVENTS_AHEAD = 64


class Subscription:
    """Changes of a topic as they come; made by subscribe(). `async with` closes it, `async for` takes the changes."""

    def __init__(self, sync: SyncSubscription) -> None:
        self.sync = sync  # get, snapshot and the like look at what has arrived
        self._bell = Bell()
        self._events: deque[Event] = deque()
        self._room = threading.Semaphore(_EVENTS_AHEAD)
        self._error: BaseException | None = None
        self._closed = self._ended = False
        threading.Thread(target=self._run, name="edgebus-aio", daemon=True).start()

    async def next(self, timeout_s: float | None = None) -> Event | None:
        """The next change, Changed or Removed; None after the timeout, or when it is closed.

        Raises:
            EdgebusError: the subscription cannot go on.
        """
        await self._bell.wait(lambda: bool(self._events) or self._ended, seconds.wait(timeout_s))
        try:
            event = self._events.popleft()
        except IndexError:
            if self._error is not None:
                raise self._error from None
            return None
        self._room.release()
        return event

    def close(self) -> None:
        """Stop; closing twice is fine."""
        self._closed = True
        self.sync.close()
        self._room.release()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        event = await self.next()
        if event is None:
            raise StopAsyncIteration
        return event

    async def __aenter__(self) -> Subscription:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            while self._room.acquire() and not self._closed and (event := self.sync.next()) is not None:
                self._events.append(event)
                self._bell.ring()
        except Exception as error:
            self._error = error
        finally:
            self._ended = True
            self._bell.ring_all()


async def subscribe(link: Link, topic: str, timeout_s: float = 0.0, **bounds: int) -> Subscription:
    """Subscribe to a topic of the node at the other end of a link. Arguments and errors as edgebus.subscribe."""

    def start() -> SyncSubscription:
        return sync_subscribe(link.sync, topic, timeout_s, **bounds)

    return Subscription(await in_thread(start, unwanted=lambda subscription: subscription.close()))
