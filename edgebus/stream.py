"""The calling side of a stream for applications: its parts in order, then its answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from edgebus import seconds
from edgebus.arrays import view_arrays
from edgebus.calls import Part, Pending, Reply, Wait


class Stream:
    """Parts that a server pushes, each exactly once and in order; made by Link.stream.

    Iterate over it for the parts, then take result() for the answer that ended it. A server that restarted is asked
    for the rest; what it pushes then is its own matter (it is told `from_pos`).
    """

    def __init__(
        self,
        pending: Pending,
        from_pos: int,
        consume: Callable[[Pending, int], None],
        wait: Wait,
        now: Callable[[], float] = time.monotonic,
        abandon: Callable[[Pending], None] | None = None,
    ) -> None:
        self._abandon = abandon
        self._pending = pending
        self._now = now
        self._position = from_pos
        self._consume = consume
        self._wait = wait
        self._came = threading.Semaphore(0)
        pending.on_part = pending.on_done = self._came.release

    def __del__(self) -> None:
        # Nobody reads it any more, so nobody should go on pushing.
        if getattr(self, "_abandon", None) is not None and not self._pending.done():
            self._abandon(self._pending)  # type: ignore[misc]

    @property
    def position(self) -> int:
        """Position of the next part."""
        return self._position

    @property
    def ended(self) -> bool:
        """True once there will be no more parts."""
        return self._pending.done() and not self._pending.parts

    def done(self) -> bool:
        """True once result() returns or raises at once; parts may still wait."""
        return self._pending.done()

    def on_news(self, callback: Callable[[], object]) -> None:
        """Have something called after each part that came and at the end, for who then only gets what is ready.

        It is called on whichever thread drives the node, and must be quick.
        """
        self._pending.on_part = self._pending.on_done = callback

    def get(self, timeout_s: float | None = None) -> Part | None:
        """The next part.

        Args:
            timeout_s: seconds to wait; None waits until there is one or the stream has ended.

        Returns:
            None after the timeout, or at the end (see `ended`; result() says how it ended).
        """
        until = self._pending.deadline_at + 1.0
        if timeout_s is not None:
            until = min(until, self._now() + seconds.wait(timeout_s))
        self._wait(self, until)
        if not self._pending.parts:
            return None
        arrival = self._pending.parts.popleft()
        self._position = arrival.pos + 1
        self._consume(self._pending, self._position)
        return Part(arrival.pos, arrival.frames[0], view_arrays(arrival.specs, arrival.frames[1:]))

    def __iter__(self) -> Iterator[Part]:
        """All parts; raises what result() raises if the stream did not end with an answer."""
        while (part := self.get()) is not None:
            yield part
        self.result()

    def result(self) -> Reply:
        """The answer that ended the stream; parts not taken yet stay there.

        Raises:
            As Pending.result.
        """
        return self._pending.result()

    def cancel(self) -> None:
        """Tell the server that no more parts are wanted."""
        self._pending.cancel()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    @property
    def ready(self) -> bool:
        """True if get returns at once."""
        return bool(self._pending.parts) or self._pending.ready

    def follow(self, wait_s: float) -> None:
        """Sleep until something may have come, at most so long."""
        self._came.acquire(timeout=wait_s)
