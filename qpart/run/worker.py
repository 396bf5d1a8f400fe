"""What takes long, planning and running patterns as a whole, on a thread of its own: inference goes on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from edgebus import Request
from qpart.fair import FairQueue

log = logging.getLogger(__name__)

MAX_WAITING = 64


class Worker:
    """A bounded queue, fair between devices by the time that each has taken, and the thread that works it.

    Before `start` everything is done at once, by whoever submits it.

    Args:
        do: answers a request; keeps its errors to itself.
        refuse: answers one that is not done any more, with code and detail.
        max_waiting: requests that wait.
    """

    def __init__(
        self,
        do: Callable[[Request], None],
        refuse: Callable[[Request, str, str], None],
        *,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._do, self._refuse = do, refuse
        self._queue: FairQueue[Request] = FairQueue(max_waiting)
        self._changed = threading.Condition()
        self._working: Request | None = None
        self._closed = False
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        """Requests that wait or are worked on."""
        return len(self._queue) + (self._working is not None)

    def start(self) -> None:
        """From now on a thread does the work."""
        self._thread = threading.Thread(target=self._run, name="qpart-plan", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Take a request; it is refused "busy" if too many wait already, of all or of its device."""
        if self._thread is None:
            self._do(request)
            return
        with self._changed:
            taken = not self._closed and self._queue.add(request.owner, request, 0.0)
            self._changed.notify()
        if not taken:
            self._refuse(request, "busy", "too many plans are being made; ask again in a moment")

    def close(self, detail: str, within_s: float = 2.0) -> None:
        """End the thread and refuse what waits; work that takes longer is left behind, and refused too."""
        with self._changed:
            self._closed = True
            left = self._queue.remove(lambda request: True)
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(within_s)
            working = self._working
            if self._thread.is_alive() and working is not None:
                log.warning("a plan is still being made: its thread is left behind")
                left.append(working)
        for request in left:
            if not request.answered:
                self._refuse(request, "closing", detail)

    def _run(self) -> None:
        while (request := self._next()) is not None:
            began = time.monotonic()
            if request.remaining_s() > 0:
                self._do(request)
            else:
                self._refuse(request, "expired", "the deadline passed while others were planned for")
            with self._changed:
                self._working = None
                self._queue.charge(request.owner, time.monotonic() - began)

    def _next(self) -> Request | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._queue))
            self._working = None if self._closed else self._queue.pop()
            return self._working
