"""Who works the sockets of a node: whoever waits for something, and a thread of the node's own when nobody does.

A thread that waits for an answer, or for a request to serve, would otherwise sleep until another one has read the
socket, and be woken by it: two changes of threads for each message, which cost more than the message. So it drives:
it polls, reads, hands out and sends until what it waits for has come. One lock protects sockets and machines; it is
held while they are worked, never while anybody waits. ADR 0005 has figures.
"""

from __future__ import annotations

import math
import threading
import time
from typing import Protocol

from edgebus.config import Limits
from edgebus.errors import LocalError
from edgebus.locks import open_lock
from edgebus.port import take_back
from edgebus.runner_sections import Handler, Sections
from edgebus.seat import NOBODY, OWN

_NEVER = -math.inf
GRACE_S = 0.005
"""The node's own thread takes over when nobody has driven for so long: not between two requests of a loop."""
LENT_S = 0.1
"""While libzmq has frames that were lent to it, it is asked so often for those that it is done with: mostly a message
comes sooner, but not from a peer that is gone."""
_ident, _now = threading.get_ident, time.monotonic
_NOBODY, _OWN = NOBODY, OWN


class Item(Protocol):
    """What a thread can wait for."""

    @property
    def ready(self) -> bool:
        """True once it has come; looked at after every turn."""

    def follow(self, wait_s: float) -> object:
        """Sleep for at most so many seconds, or until it may be ready; used while another thread drives."""


class _Displaced:
    """What the node's own thread waits for while it drives: that somebody else does."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    @property
    def ready(self) -> bool:
        return self._runner._seat.driver != _OWN

    def follow(self, wait_s: float) -> None:
        raise AssertionError("the node's own thread leads or is parked")


class _Turn:
    """What a callback waits for that has come back from a wait and drives still: that no other one is being called."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    @property
    def ready(self) -> bool:
        runner = self._runner
        runner._turn_wanted = True  # first said, then tried
        if runner._calls != _ident() and runner._calling.acquire(blocking=False):
            runner._calls = _ident()
        return runner._calls == _ident()

    def follow(self, wait_s: float) -> None:
        raise AssertionError("whoever drives leads")


class Runner(Sections):
    """Who drives: whoever waits, and a thread of the node's own when nobody else does.

    Args:
        name: of the thread.
        limits: bounds the sockets are given.
        handler: what is driven.
    """

    def __init__(self, name: str, limits: Limits, handler: Handler) -> None:
        super().__init__(limits, handler)
        self._who = open_lock()  # a signal handler may wait for something in the middle of it
        self._following: list[int] = []  # threads that sleep while another one drives; left without a lock
        self._own_asleep = False
        self._own_polls = False
        self._stop_linger_ms: int | None = None
        self._thread = threading.Thread(target=self._run, name=f"edgebus-{name}", daemon=True)
        self._thread.start()

    def wait(self, item: Item, until: float) -> bool:  # noqa: PLR0912, PLR0915 - the hot path
        """Wait until something is ready, and drive meanwhile if no other thread of the application does.

        Args:
            item: what is waited for.
            until: monotonic time to give up; the sockets are looked at once even if that is over.

        Returns:
            Whether it is ready.

        Raises:
            LocalError: this is a signal handler that came while its thread was at the sockets.
            NodeClosed: this is a forked child.
        """
        self.check_fork()
        me = _ident()
        if self._owner == me and not item.ready:
            raise LocalError(
                "a signal handler came in the middle of the node's work and cannot wait for anything in there: "
                "let it send_request, and take the result after it has returned"
            )
        looked = False
        while not item.ready:
            if self._closed or (looked and until <= _now()):
                return item.ready
            looked = True
            before, in_poll, lead = me, False, True
            # A callback that waits: the others, which may be what it waits for, go on, on whichever thread. It comes
            # back between two of them, also if one of those waits for longer.
            calls = self._calls == me
            # Ctrl-C may come between any two steps: whoever has become the driver leaves, whatever happens.
            try:
                if calls:
                    self._calls = _NOBODY
                    self._calling.release()
                    if self._turn_wanted:
                        self._turn_wanted = False
                        self._wake()
                try:
                    self._who.acquire()
                    before = self._seat.driver
                    lead = before == _NOBODY or before == _OWN or before == me  # noqa: PLR1714 - the hot path
                    if lead:
                        in_poll = before == me and self._sleeps_until != _NEVER  # this is a signal handler
                        self._seat.driver = me
                        self._seat.leads += 1
                    else:
                        self._following.append(me)
                finally:
                    self._who.release()
                if lead:
                    if before == _OWN:
                        self._wake()  # it sleeps in poll, and parks when it sees that it is not the driver any more
                    self._drive(item, until, me)
                    if calls and before == me:  # it drives for a wait behind this one as well, and has to go on with it
                        self._drive(_Turn(self), math.inf, me)
                else:
                    if calls:
                        self.run_callbacks()
                    left_s = until - _now()
                    if left_s > 0:
                        item.follow(min(left_s, 60.0))
            finally:
                if not lead and me in self._following:
                    self._following.remove(me)
                elif before != me and self._seat.driver == me:
                    self._seat.driver = _NOBODY  # first of all, likewise
                    self._leave()
                if in_poll:
                    self._wake()  # what the poll behind it waits for may have come meanwhile
                if calls and self._calls != me:
                    self._calling.acquire()
                    self._calls = me
        return True

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread to end; True if it has."""
        if threading.current_thread() is self._thread:  # a handler that closes its own node
            return False
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def stop(self, linger_s: float) -> None:
        """End: unsent bytes get linger_s seconds."""
        self._stop_linger_ms = max(0, int(linger_s * 1000))
        self._closed = True  # whoever drives sees it before it touches a socket again
        self._wake()
        self._own_needed = True
        self._seat.call()

    def _drive(self, item: Item, until: float, who: int) -> None:  # noqa: PLR0912, PLR0915 - the hot path
        sockets, hub = self.sockets, self._hub
        me = who if who != _OWN else _ident()
        while True:
            try:
                self._lock.acquire()
                if self._closed:
                    return
                depth = self._depth
                if sockets.touched:
                    try:
                        self._depth += 1
                        self._owner = me
                        sockets.take_touched()
                        # Timers as well: what is waited for may be here each time, and the poll never be reached.
                        if not depth and (self._deferred or hub.outbox or hub.news or _now() >= self._next_at):
                            self._turn()
                    except BaseException:
                        self._interrupted()
                        raise
                    finally:
                        self._depth = depth
                        if not depth:
                            self._owner = 0
                        self._exit()
            finally:
                self._lock.release()
            num_lent = take_back()
            if self._callbacks or self._handlers.waiting:
                self.run_callbacks()
            if item.ready:
                return
            now = _now()
            # What was just taken may want a timer without having anything to send or to tell.
            self._next_at = min(self._next_at, hub.first_timer_at)
            # First said, then looked: whoever touches a socket after the look sees that it has to wake us.
            self._sleeps_until = sleeps_until = min(self._next_at, until)
            timeout_s = 0.0
            # Where another thread is at the handlers it says when it has left some.
            calls = self._handlers.waiting and (self._calls == _NOBODY or self._calls == me)  # noqa: PLR1714 - the hot path
            if sleeps_until > now and not self._deferred and not sockets.touched and not calls:
                timeout_s = sleeps_until - now
                if num_lent and timeout_s > LENT_S:
                    timeout_s = LENT_S
            ready = sockets.poll(timeout_s)
            if self._seat.driver == who:  # else it was displaced meanwhile, and another one sleeps
                self._sleeps_until = _NEVER
            try:
                self._lock.acquire()
                if self._closed:
                    return
                depth = self._depth
                self._depth += 1
                self._owner = me
                try:
                    sockets.take(ready)
                    # What is waited for goes first; the rest is done by whoever comes next, this thread mostly.
                    # What was due before the poll, that is: for anything else there is another round.
                    if self._depth == 1 and (self._deferred or hub.outbox or hub.news or now >= self._next_at):
                        self._turn()
                except BaseException:
                    self._interrupted()
                    raise
                finally:
                    self._depth = depth
                    if not depth:
                        self._owner = 0
                    self._exit()
            finally:
                self._lock.release()
            take_back()
            if self._callbacks or self._handlers.waiting:
                self.run_callbacks()
            if item.ready or until <= now:
                return

    def _leave(self) -> None:
        if self._own_polls:
            self._wake()  # it was displaced and has not noticed: it shall look at the time again, and park
        # No lock: where one is waited for a signal handler may raise, and the node's own thread would sleep on. It says
        # first that it sleeps, and looks then whether anybody drives.
        self._seat.left_at = _now()
        if self._following or self._handlers.waiting:
            self._own_needed = True
        if self._own_asleep or self._own_needed:
            self._own_asleep = False
            self._seat.call()

    def _run(self) -> None:
        seen, self._own_ident = -1, _ident()
        try:
            while self._stop_linger_ms is None:
                with self._who:
                    idle = self._seat.driver == _NOBODY
                    lead = idle and (self._own_needed or time.monotonic() - self._seat.left_at >= GRACE_S)
                    if lead:
                        self._seat.driver, self._own_needed = _OWN, False
                        self._seat.leads += 1
                    # The same thread has been driving for a while: it will say when it leaves.
                    self._own_asleep = not idle and self._seat.leads == seen
                    # Whoever leaves says first that nobody drives, and then looks whether we are asleep.
                    if self._own_asleep and self._seat.driver == _NOBODY:
                        self._own_asleep = False
                    seen, asleep = self._seat.leads, self._own_asleep
                if lead:
                    self._own_polls = True
                    self.guard(self._drive, _Displaced(self), math.inf, _OWN)
                    self._own_polls = False
                    with self._who:
                        displaced = self._seat.driver != _OWN
                        if not displaced:  # it failed, or the node ends
                            self._seat.driver, self._own_needed = _NOBODY, True
                    if displaced:
                        self._wake()  # what woke this thread may have been meant for the one that drives now
                else:
                    self._seat.rest(GRACE_S, asleep)
        finally:
            self._end()

    def _see_driver_off(self) -> None:
        """Wait for whoever sleeps in poll: once its descriptors are closed, nothing would wake it any more."""
        until = time.monotonic() + 1.0
        while self._seat.driver not in (_NOBODY, _OWN) and time.monotonic() < until:
            self._woken = False
            self._wake()
            time.sleep(0.001)

    def _end(self) -> None:
        with self._lock:
            self._closed = True
            deferred = list(self._deferred)
            self._deferred.clear()
        self._see_driver_off()
        with self._lock:
            self.sockets.shut(self._stop_linger_ms or 0)
        take_back()
        for _, _, if_closed in deferred:
            self.guard(if_closed)
        self.run_callbacks()
        self._wake_read.close()
        self._wake_write.close()
