"""The lock of a node: what is done with it held, at the sockets and the machines, by whichever thread."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import zmq

from edgebus.attached import Route
from edgebus.config import Limits
from edgebus.errors import ConfigError, EdgebusError, NodeClosed
from edgebus.forks import forks
from edgebus.hub import Hub
from edgebus.locks import open_lock
from edgebus.rawzmq import BURST
from edgebus.runner_calling import SLICE_S, Calling
from edgebus.sockets import Sockets

T = TypeVar("T")
_NEVER = -math.inf
_ident, _now = threading.get_ident, time.monotonic


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


def _nothing() -> None:
    pass


class Sections(Calling):
    """The lock, the sockets, and what is done with them.

    Args:
        limits: bounds the sockets are given.
        handler: what is driven.
    """

    def __init__(self, limits: Limits, handler: Handler) -> None:
        super().__init__()
        self._handler = handler
        self._hub = handler.hub
        self._pid, self._forks = os.getpid(), forks[0]
        self._lock = open_lock()
        self._owner = 0
        self._depth = 0  # how often its owner has it: only the outermost section ends with a turn
        self._is_whole = True  # a section that sends by itself has come to its end
        self._next_at = math.inf
        self._deferred: deque[tuple[Callable[..., object], tuple[Any, ...], Callable[[], object]]] = deque()
        self.sockets = Sockets(limits, self)
        self.sockets.watch_fd(self._wake_read.fileno(), self._on_wake)

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

    def on_monitor(self, socket_id: int, event: str, value: int) -> None:
        """From the sockets."""
        self.guard(self._handler.on_monitor, socket_id, event, value)

    def on_zap(self, frames: list[bytes]) -> list[bytes]:
        """From the sockets."""
        return self._handler.on_zap(frames)

    def on_frames(self, route: Route, frames: list[Any], key: str | None) -> None:
        """From the sockets."""
        self._handler.on_frames(route, frames, key)

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
