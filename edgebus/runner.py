"""Who works the sockets of a node: whoever waits for something, and a thread of the node's own when nobody does.

A thread that waits for an answer, or for a request to serve, would otherwise sleep until another one has read the
socket, and be woken by it: two changes of threads for each message, which cost more than the message. So it drives:
it polls, reads, hands out and sends until what it waits for has come. One lock protects sockets and machines; it is
held while they are worked, never while anybody waits. ADR 0005 has figures.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import zmq

from edgebus.attached import Route
from edgebus.config import Limits
from edgebus.errors import ConfigError, EdgebusError, LocalError, NodeClosed
from edgebus.forks import forks
from edgebus.hub import Hub
from edgebus.interrupts import is_of_signal
from edgebus.locks import open_lock
from edgebus.port import take_back
from edgebus.rawzmq import BURST
from edgebus.seat import NOBODY, OWN, open_seat
from edgebus.sockets import Sockets
from edgebus.turns import Turns

T = TypeVar("T")
_log = logging.getLogger("edgebus")
_NEVER = -math.inf
GRACE_S = 0.005
"""The node's own thread takes over when nobody has driven for so long: not between two requests of a loop."""
LENT_S = 0.1
"""While libzmq has frames that were lent to it, it is asked so often for those that it is done with: mostly a message
comes sooner, but not from a peer that is gone."""
SLICE_S = 0.001
"""When handlers have been called for so long, and one of each peer that has asked, sockets are looked at before the
next one: another peer may have asked. For so long a turn takes in what comes while it sends."""
_ident, _now = threading.get_ident, time.monotonic
_NOBODY, _OWN = NOBODY, OWN


class Item(Protocol):
    """What a thread can wait for."""

    @property
    def ready(self) -> bool:
        """True once it has come; looked at after every turn."""

    def follow(self, wait_s: float) -> object:
        """Sleep for at most so many seconds, or until it may be ready; used while another thread drives."""


class Handler(Protocol):
    """What the runner drives; every method is called with its lock held."""

    hub: Hub
    """Whose links are worked."""

    def on_monitor(self, socket_id: int, event: str, value: int) -> None:
        """The transport of a socket changed."""

    def on_zap(self, frames: list[bytes]) -> list[bytes]:
        """A peer wants in."""

    def on_frames(self, route: Route, frames: list[Any], key: str | None) -> None:
        """A message came in from a node of this process."""

    def on_turn(self, now: float) -> float:
        """All that was ready has been handed over; returns the time of the next timer."""

    def look_again(self) -> None:
        """A signal handler has raised in the middle of something: see to what was left of it."""


class _Displaced:
    """What the node's own thread waits for while it drives: that somebody else does."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    @property
    def ready(self) -> bool:
        return self._runner._seat.driver != _OWN

    def follow(self, wait_s: float) -> None:
        raise AssertionError("the node's own thread leads or is parked")


def _nothing() -> None:
    pass


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


class _Again:
    """A callback that was interrupted: once more, not for ever."""

    def __init__(self, callback: Callable[[], object]) -> None:
        self._callback = callback

    def __call__(self) -> object:
        return self._callback()


class Runner:
    """The lock, the sockets, and the thread that drives when nobody else does.

    Args:
        name: of the thread.
        limits: bounds the sockets are given.
        handler: what is driven.
    """

    def __init__(self, name: str, limits: Limits, handler: Handler) -> None:
        self._handler = handler
        self._hub = handler.hub
        self._pid, self._forks = os.getpid(), forks[0]
        self._lock = open_lock()
        self._owner = 0
        self._depth = 0  # how often its owner has it: only the outermost section ends with a turn
        self._is_whole = True  # a section that sends by itself has come to its end
        self._who = open_lock()  # a signal handler may wait for something in the middle of it
        self._seat = open_seat()  # who drives
        self._following: list[int] = []  # threads that sleep while another one drives; left without a lock
        self._own_asleep = False
        self._own_polls = False
        self._own_needed = True
        self._sleeps_until = -math.inf
        self._next_at = math.inf
        self._deferred: deque[tuple[Callable[..., object], tuple[Any, ...], Callable[[], object]]] = deque()
        self._callbacks: deque[Callable[[], object]] = deque()
        self._handlers = Turns()  # calls of handlers, by whose requests they are for
        self._handlers_lock = open_lock()
        self._calling = threading.Lock()
        self._calls = _NOBODY  # the thread that has it
        self._turn_wanted = False  # whoever drives waits for it
        self.stirred = False  # something may have become ready that a thread waits for
        self._closed = False
        self._stop_linger_ms: int | None = None
        self.sockets = Sockets(limits, self)
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._woken = False
        self.sockets.watch_fd(self._wake_read.fileno(), self._on_wake)
        self._thread = threading.Thread(target=self._run, name=f"edgebus-{name}", daemon=True)
        self._thread.start()

    # -- any thread ---------------------------------------------------------------------------------

    def do(self, function: Callable[..., T], *args: Any) -> T:
        """Run a function with the lock held, then everything the machines want done.

        Raises:
            NodeClosed: the node is closed, or this is a forked child.
        """
        self.check()
        with self._lock:
            if self._closed:
                raise NodeClosed("the node is closed: make a new Node")
            depth = self._depth
            try:
                self._enter()
                result = function(*args)
                if not depth:
                    self._turn()
            except EdgebusError:
                raise
            except BaseException:
                self._interrupted()
                raise
            finally:
                self._depth = depth  # first of all: an exception of a signal handler may come at the next call
                if not depth:
                    self._owner = 0  # likewise
                self._exit()
        self.call_back()
        return result

    def do_small(self, function: Callable[..., bool], *args: Any) -> bool:
        """Like do, for what sends by itself and leaves the machines nothing to do; False if it could not.

        Nothing is read here: whoever waits next does that, or the node's own thread after a moment.
        """
        me = _ident()
        if self._owner == me:
            return False
        try:
            try:
                self.open_section()
                done = function(*args)
                self.sent()
            finally:
                self.close_section()
        finally:
            if self._owner == me:
                self._depth = self._owner = 0
            self._lock.release()
        self.call_back()
        return done

    def open_section(self) -> None:
        """Take the lock for what sends by itself, on a thread that is not in the middle of something.

        To be called inside of `try`, with `close_section` in its `finally`: an exception of a signal handler may come
        as soon as the lock is taken. Around that another `finally` gives the lock back, and says before any call that
        nobody is in here: one may come on the way into `close_section`, too.

        Raises:
            NodeClosed: the node is closed, or this is a forked child.
        """
        self.check_fork()
        self._lock.acquire()
        if self._closed:
            raise NodeClosed("the node is closed: make a new Node")
        self._depth, self._owner = 1, _ident()
        self._is_whole = False

    def close_section(self) -> None:
        """The end of such a section, if the lock was taken: whoever drives looks at what it has left."""
        if not self._lock.is_mine():
            return
        self._depth = self._owner = 0
        if not self._is_whole:
            self._interrupted()
        if self.stirred:
            self.nudge()

    def call_back(self) -> None:
        """After such a section: call what the application asked to be called, unless this is one of those calls."""
        if (self._callbacks or self._handlers.waiting) and self._calls != _ident():
            self.run_callbacks()

    def sent(self) -> None:
        """Something was sent in a section."""
        self._next_at = min(self._next_at, self._hub.first_timer_at)
        if self._sleeps_until != _NEVER:
            self._turn()  # a driver sleeps, and sending may have eaten what would have woken it
        self._is_whole = True

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Like do, for what may fail in libzmq."""
        try:
            return self.do(function, *args)
        except zmq.ZMQError as error:
            raise ConfigError(f"libzmq: {error.strerror}: lower max_peers, or see `ulimit -n`") from None

    def defer(
        self, function: Callable[..., object], *args: Any, if_closed: Callable[[], object] = lambda: None
    ) -> None:
        """Run a function with the lock held soon: for the garbage collector and signal handlers, which may come
        while this very thread is in the middle of something. If the node ends before, `if_closed` is called instead.
        """
        if self._closed or os.getpid() != self._pid:
            if_closed()
            return
        item = (function, args, if_closed)
        self._deferred.append(item)
        self._wake()
        if self._closed:  # since a moment ago: whoever gets it out tells that it will not be run
            with contextlib.suppress(ValueError):
                self._deferred.remove(item)
                if_closed()

    def do_unless_closed(self, function: Callable[..., object], *args: Any) -> None:
        """Like do, for what a closed node has done already."""
        with contextlib.suppress(NodeClosed):
            self.do(function, *args)

    def do_or_defer(self, function: Callable[..., object], *args: Any) -> None:
        """Like do_unless_closed, but later for a signal handler that came in the middle of something."""
        if self.is_mine:
            self.defer(function, *args)
        else:
            self.do_unless_closed(function, *args)

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

    def nudge(self) -> None:
        """Have a thread of the application that sleeps in poll look whether what it waits for is there."""
        self.stirred = False
        driver = self._seat.driver
        if driver != _NOBODY and driver != _OWN and (driver != _ident() or self._sleeps_until != _NEVER):  # noqa: PLR1714 - the hot path
            self._wake()

    def look(self) -> None:
        """Take in what is there, without waiting."""
        with self._lock:
            if not self._closed:
                depth = self._depth
                try:
                    self._enter()
                    self.sockets.take(self.sockets.poll(0.0))
                    self.sockets.take_touched()
                    if not depth:
                        self._turn()
                except BaseException:
                    self._interrupted()
                    raise
                finally:
                    self._depth = depth
                    if not depth:
                        self._owner = 0
                    self._exit()
        self.run_callbacks()

    def check(self) -> None:
        """Raise NodeClosed in a forked child, before it takes a lock that another thread held at the fork."""
        if os.getpid() != self._pid:
            raise NodeClosed(
                f"the node belongs to process {self._pid}, this is its fork {os.getpid()}: make a new Node here"
            )

    def check_fork(self) -> None:
        """Like check, and quick."""
        if self._forks != forks[0]:
            self.check()

    @property
    def is_mine(self) -> bool:
        """True if this very thread is in the middle of something with the lock held: a signal handler, say."""
        return self._owner == threading.get_ident()

    @property
    def is_own_process(self) -> bool:
        """False in a forked child."""
        return os.getpid() == self._pid

    @property
    def closed(self) -> bool:
        """True once the node has ended."""
        return self._closed

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread to end; True if it has."""
        if threading.current_thread() is self._thread:  # a handler that closes its own node
            return False
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

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

    # -- with the lock held -------------------------------------------------------------------------

    def stop(self, linger_s: float) -> None:
        """End: unsent bytes get linger_s seconds."""
        self._stop_linger_ms = max(0, int(linger_s * 1000))
        self._closed = True  # whoever drives sees it before it touches a socket again
        self._wake()
        self._own_needed = True
        self._seat.call()

    def on_monitor(self, socket_id: int, event: str, value: int) -> None:
        """From the sockets."""
        self.guard(self._handler.on_monitor, socket_id, event, value)

    def on_zap(self, frames: list[bytes]) -> list[bytes]:
        """From the sockets."""
        return self._handler.on_zap(frames)

    def on_frames(self, route: Route, frames: list[Any], key: str | None) -> None:
        """From the sockets."""
        self._handler.on_frames(route, frames, key)

    # -- inside -------------------------------------------------------------------------------------

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
            me != (self._thread.ident if self._seat.driver == _OWN else self._seat.driver)
            or self._sleeps_until != _NEVER
        ):
            self._wake()

    def _enter(self) -> None:
        self._depth += 1
        self._owner = _ident()

    def _exit(self) -> None:
        if not self._depth and self.stirred:
            self.nudge()

    def _interrupted(self) -> None:
        """An exception of a signal handler came in the middle of the machines' work: there is more of it to do.

        What it left may be other threads' messages, whose own work is done, and whoever drives may sleep.
        """
        if not self._closed:
            self._deferred.append((self._handler.look_again, (), _nothing))
            self._wake()

    def _turn(self) -> None:
        """Deferred functions, timers, events, sends, and what came in meanwhile, until there is nothing more."""
        sockets, handler = self.sockets, self._handler
        until = 0.0
        for _ in range(16):
            # Some at a time: another node of this process may bring more as fast as they are taken.
            for _ in range(min(len(self._deferred), BURST)):
                if self._closed:
                    break
                item = self._deferred.popleft()
                try:
                    self.guard(item[0], *item[1])
                except BaseException:  # of a signal handler: it is run again, as a whole
                    self._deferred.appendleft(item)
                    raise
            now = _now()
            at = self.guard(handler.on_turn, now)
            self._next_at = _now() + 0.1 if at is None else at
            if not (sockets.touched or self._deferred) or self._closed:
                break
            until = until or now + SLICE_S
            # A callback has sent something, or this takes long: whoever drives takes in what has come.
            if (self._calls == self._owner or now >= until) and not self._deferred:
                break
            sockets.take_touched()
            if not (self._hub.outbox or self._hub.news or self._deferred):
                break
        left = bool(sockets.touched or self._deferred or self._hub.outbox or self._hub.news)
        if left or self._next_at < self._sleeps_until:
            self._wake()  # a driver sleeps for longer than that

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
        seen = -1
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
