"""An answer that another thread computes: a worker per device, and a pump from it to whoever takes the answer.

Drafting is work for the CPU and waiting for a verdict blocks; neither may hold an event loop or a terminal.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
AHEAD = 64
"""Items that a stream may be ahead of whoever takes them."""


class Closable(Protocol):
    """What a pump needs of a stream."""

    def cancel(self) -> None:
        """From any thread: break the answer off, also where it waits."""

    def close(self) -> None:
        """Break the answer off, in the thread that takes it."""


class Worker:
    """One thread that does what it is told, in order.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def do(self, job: Callable[[], object]) -> None:
        """Do this after what is to be done already; a job keeps its errors to itself."""
        self._jobs.put(job)

    def end(self) -> None:
        """End after what is to be done already."""
        self._jobs.put(None)

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; whether it has come."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            with contextlib.suppress(Exception):
                job()
            del job  # what it holds is to be freed while the thread waits


class Pump(Generic[T]):
    """Takes items from a stream on a worker's thread, at most `ahead` before they are wanted.

    Args:
        stream: what is closed at the end, whatever happens.
        items: begins to iterate; called on the worker's thread.
        on_news: called on the worker's thread when there is an item, or the end.
        ahead: items kept; a stream that is further ahead waits.
    """

    def __init__(
        self,
        stream: Closable,
        items: Callable[[], Iterator[T]],
        *,
        on_news: Callable[[], object] = lambda: None,
        ahead: int = AHEAD,
    ) -> None:
        assert ahead >= 1
        self._stream, self._items, self._on_news, self._ahead = stream, items, on_news, ahead
        self._kept: deque[T] = deque()
        self._changed = threading.Condition()
        self._cancelled = self._over = False
        self._error: BaseException | None = None

    @property
    def ready(self) -> bool:
        """Whether `take` returns at once."""
        return bool(self._kept) or self._over

    @property
    def over(self) -> bool:
        """Whether the stream is closed: its device is free."""
        return self._over

    @property
    def drained(self) -> bool:
        """Whether nothing comes any more."""
        return self._over and not self._kept

    @property
    def cancelled(self) -> bool:
        """Whether the rest is not wanted."""
        return self._cancelled

    def run(self) -> None:
        """Pump until the end; for a worker."""
        items: Iterator[T] | None = None
        try:
            if not self._cancelled:
                items = self._items()
                while self._room():
                    try:
                        item = next(items)
                    except StopIteration:
                        break
                    with self._changed:
                        self._kept.append(item)
                        self._changed.notify_all()
                    self._on_news()
        except BaseException as error:  # what it is, is told to whoever takes the next item
            self._error = error
        finally:
            del items
            with contextlib.suppress(Exception):
                self._stream.close()
            with self._changed:
                self._over = True
                self._changed.notify_all()
            self._on_news()

    def take(self, timeout_s: float | None = None) -> T | None:
        """The next item; None at the end, or after the timeout.

        Raises:
            What the stream raised, after its last item, unless it was cancelled.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.ready, timeout_s)
            if self._kept:
                item = self._kept.popleft()
                self._changed.notify_all()
                return item
            if self._over and self._error is not None and not self._cancelled:
                error, self._error = self._error, None
                raise error
        return None

    def cancel(self) -> None:
        """The rest is not wanted: the stream is closed as soon as its thread notices, which is at once."""
        with self._changed:
            if self._over or self._cancelled:
                return
            self._cancelled = True
            self._kept.clear()
            self._changed.notify_all()
        self._stream.cancel()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the stream is closed; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._over, timeout_s)

    def _room(self) -> bool:
        """Wait for room for one more item; False if none is wanted."""
        with self._changed:
            self._changed.wait_for(lambda: self._cancelled or len(self._kept) < self._ahead)
            return not self._cancelled
