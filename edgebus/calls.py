"""The calling side for applications: pending requests, their replies, and outcomes as exceptions."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

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
from edgebus.requests import Outcome, Settled

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


class Pending:
    """A request on its way; it has exactly one outcome, at its deadline at the latest."""

    def __init__(self, what: str, timeout_s: float, deadline_at: float, cancel: Callable[[Pending], None]) -> None:
        self._what = what
        self._timeout_s = timeout_s
        self.deadline_at = deadline_at
        self._cancel = cancel
        self._settled: Settled | None = None
        self._open = threading.Lock()  # held until settled: cheaper than an Event on the hot path
        self._open.acquire()
        self.request_id: int | None = None  # known to the runner thread only
        self._given_up = False

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
        # The runner settles at the deadline; the extra second is for a machine that is very busy.
        if self._open.acquire(timeout=max(0.0, self.deadline_at - time.monotonic()) + 1.0):
            self._open.release()
        settled = self._settled
        if settled is None:
            raise DeadlineExceeded(
                f"{self._what}: no outcome after {self._timeout_s:.3g} s, the node's thread is stuck"
            )
        if settled.outcome is Outcome.ANSWERED:
            return Reply(settled.frames[0], view_arrays(settled.specs, settled.frames[1:]))
        raise self._error(settled)

    def settle(self, settled: Settled) -> None:
        """Give the outcome (runner thread, once)."""
        assert self._settled is None
        self._settled = settled
        self._open.release()

    def _error(self, settled: Settled) -> EdgebusError:
        if fatal := FATAL.get(settled.code):
            return fatal(f"{self._what}: {settled.detail}")
        match settled.outcome:
            case Outcome.REFUSED:
                return Refused(settled.code, settled.detail, settled.frames[0] if settled.frames else b"")
            case Outcome.EXPIRED:
                return DeadlineExceeded(
                    f"{self._what}: deadline of {self._timeout_s:.3g} s passed ({settled.detail}): "
                    "see that the server runs, allow more time, or ask a less loaded one"
                )
            case Outcome.UNKNOWN:
                return LinkLost(f"{self._what}: outcome unknown, {settled.detail}: ask again if that is harmless")
            case _ if self._given_up:
                return RequestCancelled(f"{self._what}: cancelled")
        return NodeClosed(f"{self._what}: the link was closed here before the answer")
