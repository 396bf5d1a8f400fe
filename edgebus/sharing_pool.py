"""The memory of a node, and what is done at it: at once, or later where a signal handler or another thread has it.

Pool and lock: `edgebus/shm/pool.py`. Sharing builds on this.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from edgebus import messages as m
from edgebus import shm
from edgebus.config import Limits
from edgebus.streams import Frames

if TYPE_CHECKING:
    from edgebus.attached import Attached

REPORT_S = 0.005
"""What is put off, and leases that are given back, wait so long."""
POOL_S = 0.02
"""That whoever drives waits for the pool, which mostly is taken for microseconds."""
_ident = threading.get_ident
_SWEEP_S = 5.0
_SEGMENT_BYTES = 64 << 20


class SharingPool:
    """Our shared memory.

    Args:
        limits: how much of it there may be.
        wake: has `take_back` called soon; used on any thread, at any moment.

    Attributes:
        report_at: when take_back is to be called.
        share: where the peers see it; None where there is none.
    """

    def __init__(self, limits: Limits, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._is_due_soon = False  # take_back will be called anyhow: nobody need be woken
        self.report_at = math.inf
        self._putting: set[int] = set()  # threads
        # What a signal handler that came in the middle of a put could not do, with the pool's lock taken under it.
        self._postponed: deque[Callable[[], None]] = deque()
        self._pool: shm.Pool | None = None
        self._swept_at = 0.0
        self.share: m.Share | None = None
        if limits.share_bytes >= shm.COMMIT_BYTES and shm.available():
            started = shm.process_start_time(os.getpid()) or 0
            self.share = m.Share(shm.host_id(), os.getpid(), started)
            # A segment is mapped as a whole: one larger than all we may have would be over the bounds of the peer.
            self._pool = shm.Pool(limits.share_bytes, min(_SEGMENT_BYTES, limits.share_bytes))

    def recover(self, blocks: Sequence[m.Block]) -> Frames | None:
        """Arrays out of our own shared memory, for a message that has to go by sockets after all."""
        if self._pool is None or self._is_in_put():
            return None
        frames = [self._pool.read(block.lease, block.size) for block in blocks]
        return None if None in frames else tuple(frame for frame in frames if frame is not None)

    def sweep(self, now: float) -> None:
        """Look from time to time which memory of links that have ended is free."""
        if self._pool is not None and now >= self._swept_at + _SWEEP_S and not self._is_in_put():
            self._swept_at = now
            with suppress(shm.PoolBusy):
                self._pool.sweep(wait_s=POOL_S)

    def _is_in_put(self) -> bool:
        """True for a signal handler that came in the middle of a put of its own thread."""
        return len(self._putting) > 0 and _ident() in self._putting

    def _give_free(self, attached: Attached, unused: list[int], done: list[int]) -> None:
        """Our leases that the peer does not use, and those that are not sent again."""
        assert self._pool is not None
        pool, owner = self._pool, attached.peer_id
        try:
            if not self._is_in_put():
                if unused:
                    pool.release(unused, owner, POOL_S)
                    unused = []
                if done:
                    pool.done(done, owner, POOL_S)
                    done = []
        except shm.PoolBusy:
            pass
        finally:  # also of what a signal handler has interrupted
            if unused:
                self._postpone(partial(self._release_late, unused, owner))
            if done:
                self._postpone(partial(self._done_late, done, owner))
            if unused or done:
                self._wake()  # nobody else comes for it before the next beat, if this was the short way

    def _release_late(self, leases: list[int], owner: str) -> None:  # the method of a typed pool is no object
        assert self._pool is not None
        self._pool.release(leases, owner, POOL_S)

    def _done_late(self, leases: list[int], owner: str) -> None:
        assert self._pool is not None
        self._pool.done(leases, owner, POOL_S)

    def _now_or_later(self, function: Callable[[], None]) -> None:
        """Do something at the pool, unless a thread holds it that may be waiting for this one.

        A signal handler may come in the middle of a put and wait for an answer; whoever drives would wait for the put.
        """
        if not self._is_in_put():
            with suppress(shm.PoolBusy):
                function()
                return
        self._postpone(function)

    def _postpone(self, function: Callable[[], None]) -> None:
        self._postponed.append(function)
        self._is_due_soon = True
        self.report_at = min(self.report_at, time.monotonic() + REPORT_S)

    def _do_postponed(self) -> None:
        for _ in range(0 if self._is_in_put() else len(self._postponed)):
            self._now_or_later(self._postponed[0])
            self._postponed.popleft()
