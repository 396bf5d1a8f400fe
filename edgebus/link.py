"""One end of a link: greeting, lanes, liveness and goodbye around a caller and an answerer. Pure.

States and transitions stand in link_states.py; docs/spec/bus-wire.md has the same tables for people. Messages of a link
that is up have two rooms below this one, each built on the one before: link_receiving.py and link_sending.py.
"""

from __future__ import annotations

import math

from edgebus import messages as m
from edgebus.answerer import Answerer
from edgebus.bulk import BulkSender
from edgebus.bulk_receiver import BulkReceiver
from edgebus.link_sending import LinkSending
from edgebus.link_states import (
    DIALLER,
    LISTENER,
    BulkUp,
    Down,
    Event,
    Failed,
    Gone,
    Health,
    Input,
    ShareDone,
    ShareNews,
    State,
    Surroundings,
    Up,
    WantBulk,
)
from edgebus.liveness import Liveness
from edgebus.pace import Pace
from edgebus.requests import Caller

HELLO_RETRY_S = 1.0
_FINAL = {"version": "version", "forbidden": "key_not_allowed", "expired_key": "key_not_allowed"}
"""Goodbyes after which a dialler does not try again, and what its requests end with."""


class LinkMachine(LinkSending):
    """Our end of the relation to one peer.

    Args:
        dialled: True on the side that greets first.
        incarnation: 16 bytes that are new for every link object, so that ids never mean two requests.
        around: what is told to the peer and shared with the node's other links.
        now: any monotonic time, seconds.
        owner: the peer's public key.
    """

    def __init__(
        self, *, dialled: bool, incarnation: bytes, around: Surroundings, now: float, owner: str | None = None
    ) -> None:
        limits = around.limits
        super().__init__(dialled, around)
        self.caller = Caller(limits, around.jitter)
        self.answerer = Answerer(limits, around.keyed, owner)
        self.sender = BulkSender(limits.max_outstanding_bytes, limits.resend_s)
        self.receiver = BulkReceiver(limits.max_pending_bytes, limits.bulk_bytes)
        self.pace = Pace(limits.max_frame_bytes, limits.bulk_bytes)
        self.state = State.DIALLING if dialled else State.QUIET
        self.version = around.versions[0]
        self.peer_name = ""
        self.has_left = False  # the dialler has closed the link: nothing of it comes again
        self.goodbye = ""  # why the peer said so last
        self.peer_limits: m.WireLimits | None = None
        self.peer_incarnation = b""
        self.peer_share: m.Share | None = None
        self.num_ups = 0
        self.unexpected = 0
        self.heard_at = now
        self.liveness = Liveness(limits, now)
        self._table = DIALLER if dialled else LISTENER
        self._incarnation = incarnation
        self._greeting = 0
        self._hello_at = math.inf

    # -- the transport ------------------------------------------------------------------------------

    def connected(self, *, now: float) -> None:
        """The transport is there (again)."""
        if self._step(Input.CONNECTED, now=now, reason="reconnected"):
            self._greet(now)

    def disconnected(self, *, now: float) -> None:
        """The transport is gone; it may come back."""
        self._step(Input.DISCONNECTED, now=now, reason="disconnected")

    def lane_connected(self) -> None:
        """Dialler: the transport of the bulk lane is there (again): say whose it is."""
        if self.state is State.UP:
            self._lane_messages.append((1, self._hello(lane=1)))

    def lane_opened(self) -> None:
        """Both ends know the bulk lane now."""
        self._bulk_up = True
        self._bulk_wanted_at = math.inf
        self._events.append(BulkUp())
        if not self._dialled:
            self._lane_messages.append((1, self._welcome(lane=1)))

    def fail(self, code: str, detail: str, *, now: float) -> None:
        """The transport will never come: every request ends now."""
        if self._step(Input.FAIL, now=now, reason=detail):
            self.caller.fail(code, detail)
            self.answerer.withdraw_all()
            self._events.append(Failed(code, detail))

    def close(self, *, now: float, code: str = "closing", detail: str = "") -> None:
        """Leave politely: refuse what is pending here, cancel what is outstanding, say goodbye and why."""
        was_up = self.state is State.UP
        self.caller.close()
        self.answerer.close()
        if not self._step(Input.CLOSE, now=now, reason="closed"):
            return
        parting = [*self.caller.headers_to_send(), *self.answerer.headers_to_send()]
        if was_up:
            small = [message for message in parting if not self._is_large(message)]
            self._messages += [*small, m.Message(m.Goodbye(code, detail))]

    # -- the five verbs -----------------------------------------------------------------------------

    def receive(self, message: m.Message, *, now: float) -> None:
        """Take any decoded message of the peer."""
        header = message.header
        match header:
            case m.Reply() | m.Refusal() | m.Part():
                # Also while the link is down: the news that a connection ended may overtake its last messages.
                if self._step(Input.ANSWER, now=now):
                    self._receive_answer(message, now)
            case m.Hello():
                self._receive_hello(header, now)
            case m.Welcome():
                self._receive_welcome(header, now)
            case m.Reset():
                if self._step(Input.RESET, now=now, reason="the peer restarted"):
                    self._greet(now)
            case m.Goodbye():
                self._receive_goodbye(header, now)
            case _:
                if self._step(Input.TRAFFIC, now=now):
                    self._receive_traffic(message, now)

    def next_timer(self) -> float:
        """Earliest time handle_timer has something to do, inf if never."""
        at = self.caller.next_timer()
        match self.state:
            case State.UP:
                live, heard_at, is_asking = self.liveness, self.heard_at, bool(self.caller.num_outstanding)
                at = min(at, live.ping_at(heard_at, is_asking), live.silent_at(heard_at))
                at = min(at, self.sender.next_timer(), self.receiver.credit_at)
                return at if self._bulk_up else min(at, self._impatient_at())
            case State.GREETING:
                return min(at, self._hello_at)
            case State.QUIET | State.CLOSED if not self._dialled:
                return min(at, self._forget_at())
        return at

    def handle_timer(self, *, now: float) -> None:
        """Do what is due: resend, expire, ping, greet again, notice silence, forget."""
        self.caller.handle_timer(now=now)
        if self.state is State.UP:
            self.sender.handle_timer(now=now)
            self.receiver.credit_due(now, self._hears_of)
            is_asking = bool(self.caller.num_outstanding)
            if now >= self.liveness.silent_at(self.heard_at):
                self._step(Input.SILENCE, now=now, reason=f"silent for {now - self.heard_at:.1f} s")
                if self._dialled:
                    self._greet(now)
            elif now >= self.liveness.ping_at(self.heard_at, is_asking):
                self.liveness.pinged(now, is_asking)
                self._messages.append(m.Message(m.Ping()))
        elif self.state is State.GREETING:
            if now >= self._hello_at:
                self._greet(now)
        elif not self._dialled and now >= self._forget_at():
            self.caller.fail("link_lost", "the peer was silent too long")
            self.answerer.withdraw_all()
            self._events.append(Gone())

    def events(self) -> list[Event]:
        """Events since the last call."""
        caller, answerer, done = self.caller, self.answerer, None
        if caller.leases_done or answerer.leases_done:
            # First: making it is Python, where a signal handler may raise.
            done = ShareDone(caller.leases_done + answerer.leases_done, caller.leases_unsent)
        events: list[Event] = [*self._events, *caller.events(), *answerer.events()]
        self._events = []
        if done is not None:
            events.append(done)
            caller.leases_done, caller.leases_unsent, answerer.leases_done = [], [], []
        return events

    # -- what is known and said ---------------------------------------------------------------------

    def health(self, now: float) -> Health:
        """What can be said of the peer now."""
        return self.liveness.health(now) if self.state is State.UP else Health.DOWN

    def say(self, header: m.Header) -> None:
        """Send something that is lost with the connection, if there is one."""
        if self.state is State.UP and self.version >= 2:
            self._messages.append(m.Message(header))

    def tell_lease(self, *, now: float) -> None:
        """The application said how long it will be busy: tell the peer without being asked."""
        if self.state is State.UP and self.version >= 2:
            self._messages.append(m.Message(self._around.pong(now)))

    def spare_from(self) -> float:
        """From when on this link may make room for another: inf while it is up.

        Not before the deadlines it accepted are over, or a resend would be executed again; but a peer that
        named a deadline of hours has its place for forget_s after its last word, not for hours. Who has said goodbye
        resends nothing.
        """
        if self.state not in (State.QUIET, State.CLOSED) or self._dialled:
            return math.inf
        if self.has_left:
            return self.heard_at
        return min(self.answerer.busy_until(), self.heard_at + self._limits.forget_s)

    # -- inside -------------------------------------------------------------------------------------

    def _step(self, what: Input, *, now: float, reason: str = "") -> bool:
        """Look the transition up and take it; False if the table has none."""
        before = self.state
        after = self._table.get((before, what))
        if after is None:
            self.unexpected += 1
            return False
        self.heard_at = now
        if after is before:
            return True
        # The state last: what a signal handler interrupts is told once more, and has to begin anew then.
        if after is State.UP:
            up = Up(again=self.num_ups > 0)
            self.liveness.begin(now)
            self._bulk_wanted_at = math.inf
            self.sender.lane_lost()
            self.pace.lost()
            self.caller.set_up(True, now=now)
            self._events.append(up)
            self.num_ups += 1
        elif before is State.UP:
            down = Down(reason)
            self.caller.set_up(False, now=now)
            self._events.append(down)
        self.state = after
        return True

    def _hello(self, lane: int) -> m.Message:
        return m.Message(self._around.hello(self._incarnation, self._greeting, lane))

    def _welcome(self, lane: int) -> m.Message:
        return m.Message(self._around.welcome(self.version, self._incarnation, self._greeting, lane))

    def _greet(self, now: float) -> None:
        self._greeting += 1
        self._hello_at = now + HELLO_RETRY_S  # also if a signal handler raises in what follows
        self._hello_at = now + HELLO_RETRY_S * self._around.jitter()
        self._messages.append(self._hello(lane=0))

    def _agree(self, version: int) -> None:
        """Speak this version from now on; what an older peer cannot take goes whole, or ends."""
        self.version = version
        if version < 2:
            self.sender.clear()
            detail = f"the peer speaks protocol version {version}, streams need 2: upgrade it"
            self.caller.fail_streams("version", detail)

    def _receive_hello(self, hello: m.Hello, now: float) -> None:
        if not self._step(Input.HELLO, now=now):
            return
        self.peer_name, self.peer_limits, self.peer_share = hello.name, hello.limits, hello.share
        self.peer_incarnation = hello.incarnation
        self._agree(min(self._around.versions[1], hello.version_max))
        self._greeting = hello.greeting
        self.receiver.greeted()
        # Ahead of anything the caller just resent: the dialler ignores traffic until it is welcome.
        self._messages.insert(0, self._welcome(lane=0))

    def _receive_welcome(self, welcome: m.Welcome, now: float) -> None:
        if welcome.lane == 1:
            if self.state is State.UP and welcome.incarnation == self.peer_incarnation:
                self._step(Input.TRAFFIC, now=now)
                self.lane_opened()
            return
        if welcome.greeting != self._greeting or self.state is not State.GREETING:
            self.unexpected += 1  # an answer to an earlier hello: a newer one is on its way
            return
        low, high = self._around.versions
        if not low <= welcome.version <= high:
            self.fail("version", f"the peer chose version {welcome.version}", now=now)
            return
        if welcome.incarnation != self.peer_incarnation:
            # Another end over there: its ids start anew, so what we remember of the old one is void.
            self.answerer.withdraw_all()
            self._events += self.answerer.events()
            self.answerer = self.answerer.successor()
            self.receiver.clear()
            self.sender.forget_answers()
            self.sender.forget_arrived()
            self.caller.peer_restarted(self._around.recover)
            self.peer_incarnation = welcome.incarnation
        self.receiver.greeted()
        self._agree(welcome.version)
        self.peer_name, self.peer_limits, self.peer_share = welcome.name, welcome.limits, welcome.share
        self._step(Input.WELCOME, now=now)

    def _receive_goodbye(self, goodbye: m.Goodbye, now: float) -> None:
        if goodbye.code in _FINAL and self._dialled:
            self.fail(_FINAL[goodbye.code], goodbye.detail, now=now)
            return
        # A dialler waits for the node to come back: its hello is retried later, not at once.
        if not self._step(Input.GOODBYE, now=now, reason=f"goodbye ({goodbye.code!r})"):
            return
        self._hello_at = now + HELLO_RETRY_S * self._around.jitter()
        self.goodbye = f"{goodbye.code}: {goodbye.detail}"
        if self.state is State.CLOSED:
            self.has_left = True
            self.caller.fail("link_lost", "the peer said goodbye")
            self.answerer.withdraw_all()

    def _receive_traffic(self, message: m.Message, now: float) -> None:
        header = message.header
        match header:
            case m.Request():
                self._receive_request(message, now)
            case m.More():
                self.answerer.receive(message, now=now)
            case m.Cancel():
                self.answerer.receive(message, now=now)
                self._messages += self.sender.withdraw_answers(header.id)
                self.answerer.sending.discard(header.id)
            case m.Chunk():
                self.receive_chunk(header, message.frames[0], now=now)
            case m.Credit():
                self.credited(header, now=now)
            case m.Drop():
                self.receiver.drop(header.transfer)
            case m.OpenBulk() if self._dialled and not self._bulk_up:
                self._events.append(WantBulk())
            case m.Probe() | m.Seen() | m.Leases():
                self._events.append(ShareNews(header))
            case m.Ping():
                self._messages.append(m.Message(self._around.pong(now) if self.version >= 2 else m.Pong()))
            case m.Pong():
                self.liveness.answered(header, now, bool(self.caller.num_outstanding))
                self.caller.be_patient(self.liveness.leased_until)
                self.caller.note = self.liveness.note(header)

    def _forget_at(self) -> float:
        return max(self.heard_at + self._limits.forget_s, self.answerer.busy_until())
