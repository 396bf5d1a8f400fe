"""What a link is told and tells: its states, transitions and events, and what all links of a node share. Pure.

docs/spec/bus-wire.md has the same tables for people.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from edgebus import messages as m
from edgebus.config import Limits
from edgebus.keyed import KeyedAnswers
from edgebus.outcomes import Event as RequestEvent
from edgebus.streams import Frames

_DAY_MS = 86_400_000


class State(StrEnum):
    """Where a link stands."""

    DIALLING = "dialling"  # dialler only: no transport
    GREETING = "greeting"  # dialler only: hello is on its way
    UP = "up"
    QUIET = "quiet"  # listener only: the peer is silent, it has to speak first
    CLOSED = "closed"


class Input(StrEnum):
    """What can happen to a link."""

    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    HELLO = "hello"
    WELCOME = "welcome"
    RESET = "reset"
    TRAFFIC = "traffic"
    ANSWER = "answer"
    SILENCE = "silence"
    GOODBYE = "goodbye"
    FAIL = "fail"
    CLOSE = "close"


DIALLER: dict[tuple[State, Input], State] = {
    (State.DIALLING, Input.CONNECTED): State.GREETING,
    (State.DIALLING, Input.ANSWER): State.DIALLING,
    (State.DIALLING, Input.FAIL): State.CLOSED,
    (State.DIALLING, Input.CLOSE): State.CLOSED,
    (State.GREETING, Input.CONNECTED): State.GREETING,
    (State.GREETING, Input.WELCOME): State.UP,
    (State.GREETING, Input.ANSWER): State.GREETING,
    (State.GREETING, Input.GOODBYE): State.GREETING,
    (State.GREETING, Input.DISCONNECTED): State.DIALLING,
    (State.GREETING, Input.FAIL): State.CLOSED,
    (State.GREETING, Input.CLOSE): State.CLOSED,
    (State.UP, Input.TRAFFIC): State.UP,
    (State.UP, Input.ANSWER): State.UP,
    (State.UP, Input.CONNECTED): State.GREETING,
    (State.UP, Input.RESET): State.GREETING,
    (State.UP, Input.SILENCE): State.GREETING,
    (State.UP, Input.GOODBYE): State.GREETING,
    (State.UP, Input.DISCONNECTED): State.DIALLING,
    (State.UP, Input.FAIL): State.CLOSED,
    (State.UP, Input.CLOSE): State.CLOSED,
}


LISTENER: dict[tuple[State, Input], State] = {
    (State.QUIET, Input.HELLO): State.UP,
    (State.QUIET, Input.TRAFFIC): State.UP,
    (State.QUIET, Input.ANSWER): State.UP,
    (State.QUIET, Input.GOODBYE): State.CLOSED,
    (State.QUIET, Input.CLOSE): State.CLOSED,
    (State.UP, Input.HELLO): State.UP,
    (State.UP, Input.TRAFFIC): State.UP,
    (State.UP, Input.ANSWER): State.UP,
    (State.UP, Input.SILENCE): State.QUIET,
    (State.UP, Input.DISCONNECTED): State.QUIET,
    (State.UP, Input.GOODBYE): State.CLOSED,
    (State.UP, Input.CLOSE): State.CLOSED,
}
"""What is not in a table changes nothing: the message is ignored and counted."""


class Up(NamedTuple):
    """Event: greeted, requests flow. `again` is False the first time."""

    again: bool


class Down(NamedTuple):
    """Event: requests wait; a dialler keeps trying."""

    reason: str


class Failed(NamedTuple):
    """Event: the link is closed for good; code is version, key_not_allowed or wrong_server_key."""

    code: str
    detail: str


class Gone(NamedTuple):
    """Event: the peer said goodbye, or has been silent so long that it may be forgotten."""


class WantBulk(NamedTuple):
    """Event of a dialler: something large waits, or the peer has something large: open the bulk lane."""


class BulkUp(NamedTuple):
    """Event: both ends know the bulk lane."""


class ShareNews(NamedTuple):
    """Event: a word about shared memory, for whoever owns it."""

    header: m.Probe | m.Seen | m.Leases


class ShareDone(NamedTuple):
    """Event: messages with these leases of our shared memory are not sent again; those unsent were never."""

    leases: list[int]
    unsent: list[int]


Event = Up | Down | Failed | Gone | WantBulk | BulkUp | ShareNews | ShareDone | RequestEvent


class Health(StrEnum):
    """What can be said of a peer: only DOWN means that it cannot be reached."""

    UP = "up"
    BUSY = "busy"  # by its own word: it holds a lease on our patience
    WEDGED = "wedged"  # its node answers, its application has left requests lying
    DOWN = "down"


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all links of a node share, and tell their peers of it.

    Args:
        name: of the node.
        limits: its bounds.
        keyed: answers by idempotency key.
        jitter: gives factors around 1.
        stalled_ms: how long the application has left a request lying, milliseconds, 0 if none.
        lease_until: until when the application said it would be busy.
        share: where its shared memory can be seen.
        recover: arrays out of it, for a message that has to go by sockets after all.
        versions: lowest and highest protocol version spoken.
    """

    name: str
    limits: Limits
    keyed: KeyedAnswers = field(default_factory=KeyedAnswers)
    jitter: Callable[[], float] = lambda: 1.0
    stalled_ms: Callable[[float], int] = lambda now: 0
    lease_until: Callable[[], float] = lambda: -math.inf
    share: Callable[[], m.Share | None] = lambda: None
    recover: Callable[[Sequence[m.Block]], Frames | None] = lambda blocks: None
    versions: tuple[int, int] = (m.VERSION_MIN, m.VERSION_MAX)

    def hello(self, incarnation: bytes, greeting: int, lane: int) -> m.Hello:
        """How a dialler greets."""
        limits, share = wire_limits(self.limits), self.share()
        return m.Hello(*self.versions, self.name, incarnation, greeting, limits, lane, share)

    def welcome(self, version: int, incarnation: bytes, greeting: int, lane: int) -> m.Welcome:
        """How a greeting is answered."""
        limits, share = wire_limits(self.limits), self.share()
        return m.Welcome(version, self.name, incarnation, greeting, limits, lane, share)

    def pong(self, now: float) -> m.Pong:
        """What this node says of itself when it is asked, from protocol version 2 on."""
        lease_ms = int(1000 * max(0.0, self.lease_until() - now))
        return m.Pong(min(_DAY_MS, self.stalled_ms(now)), min(_DAY_MS, lease_ms))


def wire_limits(limits: Limits) -> m.WireLimits:
    """The part of our limits that the peer has to keep to."""
    return m.WireLimits(limits.max_header_bytes, limits.max_frame_bytes, limits.max_frames, limits.bulk_bytes)
