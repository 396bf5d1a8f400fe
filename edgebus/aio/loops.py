"""What the asyncio face needs of event loops: wake a task from any thread, and have a thread do what blocks.

A loop may be closed at any moment by whoever owns it; what was meant for it is then dropped, never raised at the node.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from edgebus.calls import Pending, Reply

T = TypeVar("T")
FAIR = 64
"""Things taken in a row without waiting before the loop's other tasks get their turn."""
_Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]


def post(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: Any) -> bool:
    """Have a loop call something soon, from any thread; False if the loop is closed."""
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:  # closed
        return False
    return True


def settle(future: asyncio.Future[None]) -> None:
    """Wake whoever waits for a future, if it still does."""
    if not future.done():
        future.set_result(None)


async def outcome(pending: Pending) -> Reply:
    """Wait for the outcome of a request; cancelling the task cancels the request.

    Raises:
        As Pending.result.
    """
    if not pending.done():
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        pending.on_done = lambda: post(loop, settle, future)
        if not pending.done():  # nor since the line before
            try:
                await future
            except asyncio.CancelledError:
                pending.cancel()
                raise
    return pending.result()


class Bell:
    """What tasks of any loops wait at until any thread rings; one ring wakes one task, or the next to come."""

    def __init__(self) -> None:
        self._waiting: deque[_Waiter] = deque()  # without a lock: each use is one step of the deque

    def ring(self) -> None:
        """Wake the task that has waited longest. It leaves last: after an exception of a signal handler, ring again."""
        while True:
            try:
                loop, future = self._waiting[0]
            except IndexError:
                return
            posted = post(loop, self._wake, future)
            self._leave(loop, future)
            if posted:
                return

    def ring_all(self) -> None:
        """Wake every task that waits. They leave by themselves, so one that was interrupted may ring again."""
        for loop, future in list(self._waiting):
            if not post(loop, settle, future):
                self._leave(loop, future)

    async def wait(self, ready: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Wait until something is ready; whoever makes it so has to ring.

        Args:
            ready: asked again after each ring, and once a task is in the queue: no ring is missed.
            timeout_s: seconds to wait; None and infinity wait as long as it takes.

        Returns:
            Whether it is ready.
        """
        until = None if timeout_s is None or timeout_s == math.inf else time.monotonic() + timeout_s
        loop = asyncio.get_running_loop()
        while not ready():
            future: asyncio.Future[None] = loop.create_future()
            self._waiting.append((loop, future))
            timer = None
            if until is not None:
                timer = loop.call_later(max(0.0, until - time.monotonic()), settle, future)
            try:
                if not ready():
                    await future
            except asyncio.CancelledError:
                if future.done() and not future.cancelled():
                    self.ring()  # it was meant for whoever waits
                raise
            finally:
                if timer is not None:
                    timer.cancel()
                self._leave(loop, future)
            if until is not None and time.monotonic() >= until:
                return ready()
        return True

    def _wake(self, future: asyncio.Future[None]) -> None:
        if future.done():  # its task was cancelled, or its time was up: the ring is for the next one
            self.ring()
        else:
            future.set_result(None)

    def _leave(self, loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
        with suppress(ValueError):  # it has left already
            self._waiting.remove((loop, future))


async def in_thread(function: Callable[..., T], *args: Any, unwanted: Callable[[T], object] = lambda result: None) -> T:
    """Have a thread of its own do something that blocks: those of the loop's pool may all be taken.

    Args:
        function: what is called with the arguments.
        unwanted: called with a result that nobody waits for any more, because the task was cancelled.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def give(result: T) -> None:
        if future.done():
            unwanted(result)
        else:
            future.set_result(result)

    def fail(error: BaseException) -> None:
        if not future.done():
            future.set_exception(error)

    def run() -> None:
        try:
            result = function(*args)
        except BaseException as error:
            post(loop, fail, error)
            return
        if not post(loop, give, result):
            unwanted(result)

    threading.Thread(target=run, name="edgebus-aio", daemon=True).start()
    return await future
