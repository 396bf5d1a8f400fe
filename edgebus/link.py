"""One end of a link: greeting, liveness and goodbye around a caller and an answerer. Pure.

States and transitions stand in DIALLER and LISTENER; docs/spec/bus-wire.md has the same tables for people.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import NamedTuple

from edgebus import messages as m
from edgebus.answerer import Answerer
from edgebus.config import Limits
from edgebus.requests import Caller
from edgebus.requests import Event as RequestEvent


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

HELLO_RETRY_S = 1.0


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


Event = Up | Down | Failed | Gone | RequestEvent


class LinkMachine:
    """Our end of the relation to one peer.

    Args:
        dialled: True on the side that greets first.
        name: this node's name, told to the peer.
        incarnation: 16 bytes that are new for every link object, so that ids never mean two requests.
        limits: this node's bounds.
        now: any monotonic time, seconds.
    """

    def __init__(self, *, dialled: bool, name: str, incarnation: bytes, limits: Limits, now: float) -> None:
        self.caller = Caller(limits)
        self.answerer = Answerer(limits)
        self.state = State.DIALLING if dialled else State.QUIET
        self.peer_name = ""
        self.peer_limits: m.WireLimits | None = None
        self.peer_incarnation = b""
        self.num_ups = 0
        self.unexpected = 0
        self._dialled = dialled
        self._table = DIALLER if dialled else LISTENER
        self._name = name
        self._incarnation = incarnation
        self._limits = limits
        self._greeting = 0
        self._hello_at = math.inf
        self._heard_at = now
        self._pinged_at = now
        self._messages: list[m.Message] = []
        self._events: list[Event] = []

    # -- the transport ------------------------------------------------------------------------------

    def connected(self, *, now: float) -> None:
        """The transport is there (again)."""
        if self._step(Input.CONNECTED, now=now, reason="reconnected"):
            self._greet(now)

    def disconnected(self, *, now: float) -> None:
        """The transport is gone; it may come back."""
        self._step(Input.DISCONNECTED, now=now, reason="disconnected")

    def fail(self, code: str, detail: str, *, now: float) -> None:
        """The transport will never come: every request ends now."""
        if self._step(Input.FAIL, now=now, reason=detail):
            self.caller.fail(code, detail)
            self.answerer.withdraw_all()
            self._events.append(Failed(code, detail))

    def close(self, *, now: float) -> None:
        """Leave politely: refuse what is pending here, cancel what is outstanding, say goodbye."""
        was_up = self.state is State.UP
        self.caller.close()
        self.answerer.close()
        if not self._step(Input.CLOSE, now=now, reason="closed"):
            return
        parting = [*self.caller.headers_to_send(), *self.answerer.headers_to_send()]
        if was_up:
            self._messages += [*parting, m.Message(m.Goodbye("closing", ""))]

    # -- the five verbs -----------------------------------------------------------------------------

    def receive(self, message: m.Message, *, now: float) -> None:
        """Take any decoded message of the peer."""
        header = message.header
        match header:
            case m.Hello():
                self._receive_hello(header, now)
            case m.Welcome():
                self._receive_welcome(header, now)
            case m.Reset():
                if self._step(Input.RESET, now=now, reason="the peer restarted"):
                    self._greet(now)
            case m.Goodbye():
                self._receive_goodbye(header, now)
            case m.Reply() | m.Refusal():
                # Also while the link is down: the news that a connection ended may overtake its last messages.
                if self._step(Input.ANSWER, now=now):
                    self.caller.receive(message)
            case _ if self._step(Input.TRAFFIC, now=now):
                self._receive_traffic(message, now)

    def spare_from(self) -> float:
        """From when on this link may make room for another: inf while it is up.

        Not before the deadlines it accepted are over, or a resend would be executed again; but a peer that
        named a deadline of hours has its place for forget_s after its last word, not for hours.
        """
        if self.state not in (State.QUIET, State.CLOSED) or self._dialled:
            return math.inf
        return min(self.answerer.busy_until(), self._heard_at + self._limits.forget_s)

    @property
    def heard_at(self) -> float:
        """When the peer was last heard of."""
        return self._heard_at

    def next_timer(self) -> float:
        """Earliest time handle_timer has something to do, inf if never."""
        at = self.caller.next_timer()
        match self.state:
            case State.UP:
                quiet_from = max(self._heard_at, self._pinged_at)
                return min(at, quiet_from + self._limits.heartbeat_s, self._heard_at + self._limits.silence_s)
            case State.GREETING:
                return min(at, self._hello_at)
            case State.QUIET | State.CLOSED if not self._dialled:
                return min(at, self._forget_at())
        return at

    def handle_timer(self, *, now: float) -> None:
        """Do what is due: resend, expire, ping, greet again, notice silence, forget."""
        self.caller.handle_timer(now=now)
        if self.state is State.UP:
            if now >= self._heard_at + self._limits.silence_s:
                reason = f"silent for {now - self._heard_at:.1f} s"
                self._step(Input.SILENCE, now=now, reason=reason)
                if self._dialled:
                    self._greet(now)
            elif now >= max(self._heard_at, self._pinged_at) + self._limits.heartbeat_s:
                self._pinged_at = now
                self._messages.append(m.Message(m.Ping()))
        elif self.state is State.GREETING:
            if now >= self._hello_at:
                self._greet(now)
        elif not self._dialled and now >= self._forget_at():
            self.caller.fail("link_lost", "the peer was silent too long")
            self.answerer.withdraw_all()
            self._events.append(Gone())

    def headers_to_send(self) -> list[m.Message]:
        """Messages since the last call."""
        if self.state is State.UP:
            self._messages += self.caller.headers_to_send()
            self._messages += self.answerer.headers_to_send()
        else:
            # Not up: the caller resends on the next welcome, duplicates get the cached answer.
            self.caller.headers_to_send()
            self.answerer.headers_to_send()
        messages, self._messages = self._messages, []
        return messages

    def events(self) -> list[Event]:
        """Events since the last call."""
        events = [*self._events, *self.caller.events(), *self.answerer.events()]
        self._events = []
        return events

    # -- inside -------------------------------------------------------------------------------------

    def _step(self, what: Input, *, now: float, reason: str = "") -> bool:
        """Look the transition up and take it; False if the table has none."""
        after = self._table.get((self.state, what))
        if after is None:
            self.unexpected += 1
            return False
        before, self.state = self.state, after
        self._heard_at = now
        if after is before:
            return True
        if after is State.UP:
            self._events.append(Up(again=self.num_ups > 0))
            self.num_ups += 1
            self._pinged_at = now
            self.caller.set_up(True, now=now)
        elif before is State.UP:
            self._events.append(Down(reason))
            self.caller.set_up(False, now=now)
        return True

    def _greet(self, now: float) -> None:
        self._greeting += 1
        self._hello_at = now + HELLO_RETRY_S
        hello = m.Hello(
            m.VERSION_MIN,
            m.VERSION_MAX,
            self._name,
            self._incarnation,
            self._greeting,
            wire_limits(self._limits),
        )
        self._messages.append(m.Message(hello))

    def _receive_hello(self, hello: m.Hello, now: float) -> None:
        if not self._step(Input.HELLO, now=now):
            return
        self.peer_name, self.peer_limits = hello.name, hello.limits
        self.peer_incarnation = hello.incarnation
        version = min(m.VERSION_MAX, hello.version_max)
        welcome = m.Welcome(version, self._name, self._incarnation, hello.greeting, wire_limits(self._limits))
        # Ahead of anything the caller just resent: the dialler ignores traffic until it is welcome.
        self._messages.insert(0, m.Message(welcome))

    def _receive_welcome(self, welcome: m.Welcome, now: float) -> None:
        if welcome.greeting != self._greeting:
            self.unexpected += 1  # an answer to an earlier hello: a newer one is on its way
            return
        if self.state is not State.GREETING:
            self.unexpected += 1
            return
        if not m.VERSION_MIN <= welcome.version <= m.VERSION_MAX:
            self.fail("version", f"the peer chose version {welcome.version}", now=now)
            return
        if welcome.incarnation != self.peer_incarnation:
            # Another end over there: its ids start anew, so what we remember of the old one is void.
            self.answerer.withdraw_all()
            self._events += self.answerer.events()
            self.answerer = self.answerer.successor()
            self.peer_incarnation = welcome.incarnation
        self.peer_name, self.peer_limits = welcome.name, welcome.limits
        self._step(Input.WELCOME, now=now)

    def _receive_goodbye(self, goodbye: m.Goodbye, now: float) -> None:
        if goodbye.code == "version" and self._dialled:
            self.fail("version", goodbye.detail, now=now)
            return
        # A dialler waits for the node to come back: its hello is retried later, not at once.
        if not self._step(Input.GOODBYE, now=now, reason=f"goodbye ({goodbye.code!r})"):
            return
        self._hello_at = now + HELLO_RETRY_S
        if self.state is State.CLOSED:
            self.caller.fail("link_lost", "the peer said goodbye")
            self.answerer.withdraw_all()

    def _receive_traffic(self, message: m.Message, now: float) -> None:
        match message.header:
            case m.Request() | m.Cancel():
                self.answerer.receive(message, now=now)
            case m.Ping():
                self._messages.append(m.Message(m.Pong()))

    def _forget_at(self) -> float:
        return max(self._heard_at + self._limits.forget_s, self.answerer.busy_until())


def wire_limits(limits: Limits) -> m.WireLimits:
    """The part of our limits that the peer has to keep to."""
    return m.WireLimits(limits.max_header_bytes, limits.max_frame_bytes, limits.max_frames)
