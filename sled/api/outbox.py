"""From a worker's thread to the event loop: a bounded queue that either end can close."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Outbox(Generic[_T]):
    """Items from threads for one task; a thread waits while `size` of them are not taken.

    Args:
        loop: where the taker runs.
        size: items that may wait.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, size: int = 256) -> None:
        self._loop, self._size = loop, size
        self._items: deque[_T] = deque()
        self._changed = threading.Condition()
        self._ready = asyncio.Event()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether nobody takes anything any more."""
        return self._closed

    def put(self, item: _T) -> bool:
        """Hand an item over, from any thread but the loop's; False if nobody wants it."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._size)
            return self._append(item)

    def put_last(self, item: _T) -> bool:
        """Hand over the item that ends something; never waits."""
        with self._changed:
            return self._append(item)

    async def take(self) -> list[_T]:
        """All items that are there, at least one; none at all once it is closed."""
        while True:
            with self._changed:
                self._ready.clear()
                if self._items or self._closed:
                    found = [] if self._closed else list(self._items)
                    self._items.clear()
                    self._changed.notify_all()
                    return found
            await self._ready.wait()

    def close(self) -> None:
        """Nothing is taken any more: whoever waits to put, or to take, is let go; from any thread."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()
            self._wake()

    def _append(self, item: _T) -> bool:
        if self._closed:
            return False
        self._items.append(item)
        self._wake()
        return True

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._ready.set)
        except RuntimeError:  # the loop has ended, and with it whoever might have taken this
            self._closed = True
