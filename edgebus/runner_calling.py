"""What the application asked to be called: callbacks and handlers, one at a time, on whichever thread comes first."""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from edgebus.interrupts import is_of_signal
from edgebus.locks import open_lock
from edgebus.seat import NOBODY, OWN, open_seat
from edgebus.turns import Turns

T = TypeVar("T")
_log = logging.getLogger("edgebus")
_NEVER = -math.inf
SLICE_S = 0.001
"""When handlers have been called for so long, and one of each peer that has asked, sockets are looked at before the
next one: another peer may have asked. For so long a turn takes in what comes while it sends."""
_ident, _now = threading.get_ident, time.monotonic
_NOBODY, _OWN = NOBODY, OWN


class _Again:
    """A callback that was interrupted: once more, not for ever."""

    def __init__(self, callback: Callable[[], object]) -> None:
        self._callback = callback

    def __call__(self) -> object:
        return self._callback()


class Calling:
    """Callbacks and handlers of a node, who calls them, and how whoever drives is woken for it."""

    def __init__(self) -> None:
        self._seat = open_seat()  # who drives
        self._own_ident = 0  # of the node's own thread
        self._own_needed = True
        self._sleeps_until = -math.inf
        self._callbacks: deque[Callable[[], object]] = deque()
        self._handlers = Turns()  # calls of handlers, by whose requests they are for
        self._handlers_lock = open_lock()
        self._calling = threading.Lock()
        self._calls = _NOBODY  # the thread that has it
        self._turn_wanted = False  # whoever drives waits for it
        self.stirred = False  # something may have become ready that a thread waits for
        self._closed = False
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._woken = False

    def call_back(self) -> None:
        """After such a section: call what the application asked to be called, unless this is one of those calls."""
        if (self._callbacks or self._handlers.waiting) and self._calls != _ident():
            self.run_callbacks()

    def soon(self, callback: Callable[[], object]) -> None:
        """Call something of the application's, without the lock, on the thread that drives; lock held here."""
        self._callbacks.append(callback)

    def serve_soon(self, owner: str, call: Callable[[], object]) -> None:
        """Likewise, a handler: in the turn of its owner, which may have asked for many things; lock held here."""
        try:
            self._handlers_lock.acquire()
            self._handlers.put(owner, call, call)
        except BaseException:  # of a signal handler: whoever asks for it asks again
            self._handlers.drop(owner, call)
            raise
        finally:
            self._handlers_lock.release()

    def nudge(self) -> None:
        """Have a thread of the application that sleeps in poll look whether what it waits for is there."""
        self.stirred = False
        driver = self._seat.driver
        if driver != _NOBODY and driver != _OWN and (driver != _ident() or self._sleeps_until != _NEVER):  # noqa: PLR1714 - the hot path
            self._wake()

    def run_callbacks(self) -> None:  # noqa: PLR0912 - the hot path
        """Call what the application asked to be called, one at a time, on whichever thread comes first.

        One of them that waits for something has the others called meanwhile. One that only sends has not: each would
        stand on the stack, with its request, until all that came behind it have been called. After SLICE_S, and a turn
        of each peer, the other handlers are left to whoever drives, who looks at the sockets first.
        """
        me = threading.get_ident()
        until, num_left, over = 0.0, 0, False
        callback: Callable[[], object] | None
        while self._callbacks or self._handlers.waiting:
            nested, whole = self._calls == me, False  # nested: one of them waits for something, and drives meanwhile
            if not nested and not self._calling.acquire(blocking=False):
                return  # another thread is at it, and looks again when it has finished
            try:
                self._calls = me
                while not over and self._calls == me:  # else one of them was interrupted as it came back from a wait
                    if self._callbacks:
                        try:
                            callback = self._callbacks.popleft()
                        except IndexError:
                            continue
                    elif self._handlers.waiting:
                        if num_left <= 0:
                            num_left, now = self._handlers.num_owners(), _now()
                            until = until or now + SLICE_S
                            over = now >= until and not self._closed
                        callback = None if over else self._next_handler()
                        num_left -= 1
                    else:
                        break
                    if callback is None:
                        continue
                    try:
                        self.guard(callback)
                    except BaseException:  # of a signal handler: others may wait for what it was to tell
                        if type(callback) is not _Again:
                            self._callbacks.appendleft(_Again(callback))
                        raise
                whole = True
            finally:
                if not nested and self._calls == me:
                    self._calls = _NOBODY
                    self._calling.release()
                if not whole:
                    self._leave_callbacks(me)
            if self._seat.driver not in (_NOBODY, _OWN) and (self._seat.driver != me or self._sleeps_until != _NEVER):
                self._wake()  # what the driver waits for may have been told by a callback
            if over and not self._closed:
                self._leave_callbacks(me)
                return
            over = False

    def guard(self, function: Callable[..., T], *args: Any) -> T | None:
        """A fault in one message or command must not take the whole node down."""
        try:
            return function(*args)
        except BaseException as error:
            if is_of_signal(error):
                raise
            _log.exception("edgebus: internal error in %r", function)
            return None

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            try:
                self._wake_write.send(b"\0")
            except BlockingIOError:  # full of wake-ups already
                pass
            except BaseException as error:  # of a signal handler, TimeoutError say: perhaps it was not sent
                if not isinstance(error, OSError) or self._wake_write.fileno() >= 0:
                    self._woken = False
                    raise

    def _on_wake(self, event: int) -> bool:
        # First read, then clear, then take what was deferred. Cleared first, a byte written in between would be
        # read away and leave the flag set, and nobody would wake a driver any more.
        try:
            self._wake_read.recv(4096)
        except BlockingIOError:
            pass
        finally:
            self._woken = False
        return False

    def _next_handler(self) -> Callable[[], object] | None:
        try:
            self._handlers_lock.acquire()
            return self._handlers.take() if self._handlers.waiting else None
        finally:
            self._handlers_lock.release()

    def _leave_callbacks(self, me: int) -> None:
        """Callbacks and handlers are to be called by whoever drives; this thread, if it is not in a signal handler."""
        if self._seat.driver == _NOBODY:
            self._own_needed = True
            self._seat.call()
        elif (
            me != (self._own_ident if self._seat.driver == _OWN else self._seat.driver) or self._sleeps_until != _NEVER
        ):
            self._wake()
