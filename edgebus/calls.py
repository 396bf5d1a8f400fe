"""The calling side for applications: pending requests, their replies, and outcomes as exceptions."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

from edgebus import seconds
from edgebus.arrays import Array, view_arrays
from edgebus.errors import (
    DeadlineExceeded,
    EdgebusError,
    KeyNotAllowed,
    LinkLost,
    NodeClosed,
    Refused,
    RequestCancelled,
    VersionMismatch,
    WrongServerKey,
)
from edgebus.outcomes import Outcome, Settled
from edgebus.streams import Arrival

FATAL: dict[str, type[EdgebusError]] = {
    "key_not_allowed": KeyNotAllowed,
    "wrong_server_key": WrongServerKey,
    "version": VersionMismatch,
}
"""Codes that end a link for good."""


class Reply(NamedTuple):
    """The answer yes: opaque bytes and read-only arrays."""

    payload: bytes
    arrays: tuple[Array, ...]


_reply: Callable[[tuple[bytes, tuple[Array, ...]]], Reply] = partial(tuple.__new__, Reply)  # without a frame of Python
_kept: Callable[[tuple[Any, ...]], Settled] = partial(tuple.__new__, Settled)
_making = threading.Lock()
_ANSWERED = Settled(None, Outcome.ANSWERED)  # a reply that is a payload and nothing else


class Part(NamedTuple):
    """One part of a stream: its position, opaque bytes and read-only arrays."""

    pos: int
    payload: bytes
    arrays: tuple[Array, ...]


class Item(Protocol):
    """What a thread can wait for; see runner.Item."""

    @property
    def ready(self) -> bool: ...

    def follow(self, wait_s: float) -> object: ...


Wait = Callable[[Item, float], bool]


class Pending:
    """A request on its way; it has exactly one outcome, at its deadline at the latest.

    Args:
        service: what was asked for.
        timeout_s: how long it may take.
        deadline_at: when that is over, monotonic seconds.
        cancel: gives it up.
        endpoint: where it went, for messages.
        wait: waits for something and works the node's sockets meanwhile; None if nothing does.
    """

    __slots__ = (
        "__weakref__",
        "_cancel",
        "_endpoint",
        "_given_up",
        "_payload",
        "_service",
        "_settled",
        "_timeout_s",
        "_wait",
        "_waiter",
        "deadline_at",
        "on_done",
        "on_part",
        "parts",
        "ready",
        "request_id",
    )

    def __init__(
        self,
        service: str,
        timeout_s: float,
        deadline_at: float,
        cancel: Callable[[Pending], None],
        endpoint: str = "",
        wait: Wait | None = None,
    ) -> None:
        self._service = service
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self.deadline_at = deadline_at
        self._cancel = cancel
        self._wait = wait
        self._settled: Settled | None = None
        self._payload = b""
        self._waiter: threading.Lock | None = None  # held until settled; made by whoever has to sleep for that
        self.request_id: int | None = None
        self.on_done: Callable[[], object] | None = None  # called once it has its outcome
        self.on_part: Callable[[], object] | None = None
        self.parts: deque[Arrival] | None = None  # of a stream, from its first one on
        self._given_up = False
        self.ready = False  # what `wait` looks at

    @property
    def what(self) -> str:
        """The request in words."""
        return f"{self._service} at {self._endpoint}" if self._endpoint else self._service

    def done(self) -> bool:
        """True once result() returns or raises at once."""
        return self._settled is not None

    @property
    def outcome(self) -> str | None:
        """answered, refused, expired, unknown or cancelled; None before that."""
        settled = self._settled
        return None if settled is None else settled.outcome.value

    def cancel(self) -> None:
        """Give up: result() raises RequestCancelled, unless there is an outcome already."""
        self._given_up = True
        self._cancel(self)

    def wait(self, timeout_s: float) -> bool:
        """Wait at most so long for the outcome; True if there is one."""
        if self._settled is None:
            until = min(self.deadline_at + 1.0, time.monotonic() + seconds.wait(timeout_s))
            if self._wait is not None:
                self._wait(self, until)
            else:
                self.follow(max(0.0, until - time.monotonic()))
        return self._settled is not None

    def result(self) -> Reply:
        """The reply; waits for it at most until the deadline.

        Raises:
            Refused: the peer answered no.
            DeadlineExceeded: no answer in time.
            LinkLost: the link went down after sending; whether it was executed is unknown.
            KeyNotAllowed, WrongServerKey, VersionMismatch: the link failed for good meanwhile.
            RequestCancelled: by cancel().
            NodeClosed: the link or node was closed here.
        """
        if self._settled is None:
            # It is settled at the deadline; the extra second is for a machine that is very busy.
            until = self.deadline_at + 1.0
            if self._wait is not None:
                self._wait(self, until)
            else:
                self.follow(max(0.0, until - time.monotonic()))
        settled = self._settled
        if settled is None:
            raise DeadlineExceeded(f"{self.what}: no outcome after {self._timeout_s:.3g} s, the node's thread is stuck")
        if settled is _ANSWERED:
            return _reply((self._payload, ()))
        if settled.outcome is Outcome.ANSWERED:
            specs, frames = settled.specs, settled.frames
            return Reply(frames[0], view_arrays(specs, frames[1:]) if specs else ())
        raise self.error(settled)

    def follow(self, wait_s: float) -> None:
        """Sleep until it is settled, at most so long."""
        waiter = threading.Lock()
        waiter.acquire()
        with _making:  # nothing is called while it is held: a signal handler may follow something, too
            if self._waiter is None:
                self._waiter = waiter
        # Said first, then looked: whoever settles it after this look sees that we wait.
        if self._settled is None and self._waiter.acquire(timeout=wait_s):
            self._waiter.release()

    def settle(self, settled: Settled) -> None:
        """Give the outcome; the first one counts."""
        if self._settled is None:
            # Without us: a circle would keep the peer's memory from it until the garbage collector looks.
            self._settled = _kept((None, *settled[1:]))
            self.ready = True
            if self._waiter is not None:
                self._waiter.release()

    def settle_small(self, payload: bytes) -> None:
        """Give the outcome: a reply without arrays; the first one counts."""
        if self._settled is None:
            self._payload = payload
            self._settled = _ANSWERED
            self.ready = True
            if self._waiter is not None:
                self._waiter.release()

    def add_part(self, arrival: Arrival) -> None:
        """The next part of a stream."""
        if self.parts is None:
            self.parts = deque()
        self.parts.append(arrival)

    def error(self, settled: Settled) -> EdgebusError:
        """An outcome that is no answer, as an exception."""
        if fatal := FATAL.get(settled.code):
            return fatal(f"{self.what}: {settled.detail}")
        match settled.outcome:
            case Outcome.REFUSED:
                return Refused(settled.code, settled.detail, settled.frames[0] if settled.frames else b"")
            case Outcome.EXPIRED:
                return DeadlineExceeded(
                    f"{self.what}: deadline of {self._timeout_s:.3g} s passed ({settled.detail}): "
                    "see that the server runs, allow more time, or ask a less loaded one"
                )
            case Outcome.UNKNOWN:
                return LinkLost(f"{self.what}: outcome unknown, {settled.detail}: ask again if that is harmless")
            case _ if self._given_up:
                return RequestCancelled(f"{self.what}: cancelled")
        return NodeClosed(f"{self.what}: the link was closed here before the answer")
