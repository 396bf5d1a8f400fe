"""One end of a link: greeting, lanes, liveness and goodbye around a caller and an answerer. Pure.

States and transitions stand in link_states.py; docs/spec/bus-wire.md has the same tables for people.
"""

from __future__ import annotations

import logging
import math

from edgebus import messages as m
from edgebus.answerer import Answerer
from edgebus.attached import LinkFront
from edgebus.bulk import BulkSender, Name
from edgebus.bulk_receiver import BulkReceiver
from edgebus.interrupts import is_of_signal
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
    wire_limits,
)
from edgebus.outcomes import Arrived, Settled
from edgebus.pace import LEAST_BYTES, Pace
from edgebus.requests import Caller, refusal
from edgebus.streams import content_bytes

HELLO_RETRY_S = 1.0
_FINAL = {"version": "version", "forbidden": "key_not_allowed", "expired_key": "key_not_allowed"}
"""Goodbyes after which a dialler does not try again, and what its requests end with."""
_log = logging.getLogger("edgebus")
BULK_PATIENCE_S = 1.0
"""Contents wait so long for their own lane before they go by the control lane."""


class LinkMachine(LinkFront):
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
        super().__init__()
        self.caller = Caller(limits, around.jitter)
        self.answerer = Answerer(limits, around.keyed, owner)
        self.sender = BulkSender(limits.max_outstanding_bytes, limits.resend_s)
        self.receiver = BulkReceiver(limits.max_pending_bytes, limits.bulk_bytes)
        self.pace = Pace(limits.max_frame_bytes, limits.bulk_bytes)
        self.state = State.DIALLING if dialled else State.QUIET
        self.version = around.versions[0]
        self.peer_name = ""
        self.peer_limits: m.WireLimits | None = None
        self.peer_incarnation = b""
        self.peer_share: m.Share | None = None
        self.num_ups = 0
        self.unexpected = 0
        self.failed = 0  # messages given up in here by a fault of ours
        self.round_trip_s = self.idle_round_trip_s = math.nan
        self.heard_at = now
        self._around = around
        self._dialled = dialled
        self._table = DIALLER if dialled else LISTENER
        self._incarnation = incarnation
        self._limits = limits
        self._greeting = 0
        self._hello_at = math.inf
        self._pinged_at = now
        self._ping_unanswered = self._ping_idle = False
        self._stalled_s = 0.0
        self._leased_until = -math.inf
        self._bulk_wanted_at = math.inf
        self._messages: list[m.Message] = []
        self._whole: list[m.Message] = []  # contents that have come, and are to be handed on
        self._unsorted: list[m.Message] = []  # to send, by which lane is to be seen
        # A signal handler that comes in the middle of one of these and has the link do something leaves it to its end.
        self._hands_on = self._sorts = self._pumps = False
        self._events: list[Event] = []

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
            self._lane_messages.append((1, m.Message(self._hello(lane=1))))

    def lane_opened(self) -> None:
        """Both ends know the bulk lane now."""
        self._bulk_up = True
        self._bulk_wanted_at = math.inf
        self._events.append(BulkUp())
        if not self._dialled:
            self._lane_messages.append((1, m.Message(self._welcome(self._greeting, lane=1))))

    def lane_lost(self) -> None:
        """The bulk lane is gone: what went by it is announced again."""
        if self._bulk_up:
            self._bulk_up = False
            self.sender.lane_lost(1)

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

    def give_up(self, message: m.Message, error: Exception) -> None:
        """A message of the peer has failed in here, by a fault of ours: whoever waits for what comes of it is told."""
        header = message.header
        self.failed += 1
        if isinstance(header, m.Request):
            self.answerer.give_up(header.id)
        elif isinstance(header, m.Reply | m.Refusal | m.Part):
            self.caller.give_up(header.id, "what came for it failed in this node: its log has the reason")
        _log.error("edgebus: internal error, a %s is given up", type(header).__name__, exc_info=error)

    def not_sent(self, message: m.Message, error: Exception) -> None:
        """A message to the peer has failed in here likewise."""
        header = message.header
        self.failed += 1
        if isinstance(header, m.Request):
            self.caller.give_up(header.id, "it cannot be sent by a fault in this node: its log has the reason")
        elif isinstance(header, m.Reply | m.Part):
            self.answerer.unsent(header.id)
        _log.error("edgebus: internal error, a %s is not sent", type(header).__name__, exc_info=error)

    def receive_plain(self, message: m.Message, *, now: float) -> Arrived | None:
        """Like receive, for a plain request that is whole and can be handed on at once; None for all else.

        Nothing else comes of it, unless `has_news`; what came before it has to have been handed on.
        """
        header, frames = message
        if type(header) is not m.Request or header.terms is not None or not frames:
            return None
        if self.state is not State.UP or self.receiver:
            return None  # contents that wait come first
        arrived = self.answerer.receive_plain(header, frames, now)
        if arrived is not None:
            self.heard_at = now
            if header.transfer is not None:
                self.receiver.took_whole(header, now)
        return arrived

    def receive_plain_answer(self, message: m.Message, *, now: float) -> Settled | None:
        """Like receive, for a whole answer that settles a request at once: its outcome; None for all else.

        Nothing else comes of it, but that leases may be done with, and the sender may have room for more.
        """
        header, frames = message
        if type(header) is not m.Reply or header.transfer is not None or not frames or self.state is not State.UP:
            return None
        if self.sender and not self.whole_answered(header.id, now):
            return None
        settled = self.caller.receive_plain(header, frames)
        if settled is not None:
            self.heard_at = now
        return settled

    @property
    def has_news(self) -> bool:
        """True if after receive_plain there is something to send or to tell."""
        return self.answerer.has_news or self.receiver.credit_at <= self.heard_at

    def next_timer(self) -> float:
        """Earliest time handle_timer has something to do, inf if never."""
        at = self.caller.next_timer()
        match self.state:
            case State.UP:
                at = min(at, self._ping_at(), self._silent_at(), self.sender.next_timer(), self.receiver.credit_at)
                if not self._bulk_up and -math.inf < self._bulk_wanted_at < math.inf and self._has_large:
                    at = min(at, self._bulk_wanted_at + BULK_PATIENCE_S)
                return at
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
            if now >= self._silent_at():
                reason = f"silent for {now - self.heard_at:.1f} s"
                self._step(Input.SILENCE, now=now, reason=reason)
                if self._dialled:
                    self._greet(now)
            elif now >= self._ping_at():
                self._pinged_at = now
                self._ping_unanswered, self._ping_idle = True, not self.caller.num_outstanding
                self._messages.append(m.Message(m.Ping()))
        elif self.state is State.GREETING:
            if now >= self._hello_at:
                self._greet(now)
        elif not self._dialled and now >= self._forget_at():
            self.caller.fail("link_lost", "the peer was silent too long")
            self.answerer.withdraw_all()
            self._events.append(Gone())

    def headers_to_send(self) -> list[m.Message]:
        """Messages of the control lane since the last call."""
        if self._whole:
            self._hand_on(self.heard_at)
        if self.receiver.waiting:
            self._admit(self.heard_at)
        # Whatever is taken out of a list is in another one when a signal handler raises: it goes next time.
        self._unsorted += self.caller.headers_to_send()
        self._unsorted += self.answerer.headers_to_send()
        if self.state is not State.UP:
            # Not up: the caller resends on the next welcome, duplicates get the cached answer.
            self._unsorted = []
        if not self._pumps:  # else after it, which goes through what the sender has
            for request_id in self.caller.ended:
                if drop := self.sender.withdraw((m.Request, request_id, 0)):
                    self._messages.append(drop)
            self.caller.ended = []
            if self._unsorted and not self._sorts:
                self._sort()
        if self.receiver.credit_at < math.inf:
            self.receiver.credit_due(self.heard_at, self._hears_of)
        self._messages += self.receiver.headers_to_send()
        messages, self._messages = self._messages, []
        return messages

    def _sort(self) -> None:
        """Give large contents to the sender; the others are messages of the control lane."""
        num_done, failed = 0, []
        try:
            self._sorts = True
            for message in self._unsorted:
                try:
                    self._sort_one(message)
                except Exception as error:
                    if is_of_signal(error):
                        raise
                    failed.append((message, error))
                num_done += 1
        finally:
            self._sorts = False
            del self._unsorted[:num_done]
        self.answerer.repeated.clear()
        for each in failed:
            self.not_sent(*each)
        if failed:  # what says so is small: another fault of it is not told of
            self._messages += [*self.caller.headers_to_send(), *self.answerer.headers_to_send()]

    def _sort_one(self, message: m.Message) -> None:
        if self._is_large(message):
            self._offer(message)
        elif not (self._repeats(message) and self._offer(message, late=True)):  # late ones do not go twice
            if isinstance(message.header, m.Content):
                message.header.transfer = None  # an earlier one, in pieces
                if isinstance(message.header, m.Reply):
                    self.receiver.answered(message.header.id)
            self._messages.append(message)

    @property
    def bulk_up(self) -> bool:
        """True while the bulk lane is there."""
        return self._bulk_up

    @property
    def has_bulk(self) -> bool:
        """True if bulk_to_send may have something."""
        return bool(self.sender) or bool(self._lane_messages)

    def bulk_to_send(self, *, now: float) -> list[tuple[int, m.Message]]:
        """Announcements and chunks that may go now, each with its lane: 1 bulk, 0 control."""
        if self._pumps:
            return []
        if self.sender and self.state is State.UP:
            try:
                self._pumps = True
                self._pump(now)
            finally:
                self._pumps = False
            if self._unsorted and not self._sorts:  # of a handler that came meanwhile
                self._lane_messages += [(0, message) for message in self.headers_to_send()]
                return self.bulk_to_send(now=now)
        # What is to go is in there from the moment on that it counts as sent, whatever a signal handler raises.
        out, self._lane_messages = self._lane_messages, []
        return out

    def _pump(self, now: float) -> None:
        if not self._bulk_up and self._has_large:
            if self._bulk_wanted_at == math.inf:
                self._bulk_wanted_at = now
                if self._dialled:
                    self._events.append(WantBulk())
                else:
                    self._lane_messages.append((0, m.Message(m.OpenBulk())))
            if now < self._bulk_wanted_at + BULK_PATIENCE_S:
                return
            self._bulk_wanted_at = -math.inf  # no longer waited for, and welcome whenever it comes
        chunk_bytes, window_bytes, whole = self._allowed(now)
        lane = int(self._bulk_up)
        self.sender.pump(
            lane,
            chunk_bytes=chunk_bytes,
            window_bytes=window_bytes,
            now=now,
            whole=whole,
            out=self._lane_messages,
        )
        self.pace.sent(self.sender.credited_bytes + self.sender.in_flight_bytes, now)

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

    # -- liveness -----------------------------------------------------------------------------------

    def health(self, now: float) -> Health:
        """What can be said of the peer now."""
        if self.state is not State.UP:
            return Health.DOWN
        if now < self._leased_until:
            return Health.BUSY
        return Health.WEDGED if self._stalled_s >= self._limits.heartbeat_s else Health.UP

    def say(self, header: m.Header) -> None:
        """Send something that is lost with the connection, if there is one."""
        if self.state is State.UP and self.version >= 2:
            self._messages.append(m.Message(header))

    def tell_lease(self, *, now: float) -> None:
        """The application said how long it will be busy: tell the peer without being asked."""
        if self.state is State.UP and self.version >= 2:
            self._messages.append(m.Message(self._pong(now)))

    def spare_from(self) -> float:
        """From when on this link may make room for another: inf while it is up.

        Not before the deadlines it accepted are over, or a resend would be executed again; but a peer that
        named a deadline of hours has its place for forget_s after its last word, not for hours.
        """
        if self.state not in (State.QUIET, State.CLOSED) or self._dialled:
            return math.inf
        return min(self.answerer.busy_until(), self.heard_at + self._limits.forget_s)

    # -- inside -------------------------------------------------------------------------------------

    @property
    def _has_large(self) -> bool:
        """True while something is being sent that the bulk lane is for; what is smaller does not wait for it."""
        return self.sender.largest_bytes >= self._limits.bulk_from_bytes

    def _is_large(self, message: m.Message) -> bool:
        header, frames = message
        if self.version < 2 or not isinstance(header, m.Content) or header.blocks is not None:
            return False  # what lies in shared memory goes whole, whatever the link has shown
        if header.transfer is not None and self.sender.knows(header.transfer.id):
            return True
        if self.is_local and header.transfer is None:  # what began elsewhere goes on in chunks
            return False
        return content_bytes(frames) >= min(self._limits.bulk_from_bytes, self.pace.proven_bytes + 1)

    def _repeats(self, message: m.Message) -> bool:
        """True for a request or an answer that went whole before, and has more than a header's worth of content.

        A request went by this very connection; an answer perhaps by an earlier one, and is asked for then.
        """
        header, frames = message
        if (
            self.version < 2
            or self.is_local
            or not isinstance(header, m.Request | m.Reply)
            or header.blocks is not None
        ):
            return False
        if content_bytes(frames) <= LEAST_BYTES:
            return False
        return header.id in self.answerer.repeated if isinstance(header, m.Reply) else self.caller.repeats(header.id)

    def _offer(self, message: m.Message, *, late: bool = False) -> bool:
        """Have a content sent in pieces. If its queue is full the resend of a request or part offers it again.

        Args:
            message: with the content.
            late: it went whole by the control lane, and may be on its way there still.

        Returns: False for a late answer that the queue has no room for: it goes whole again.
        """
        header = message.header
        taken = self.sender.offer(message, asks=late or self.sender.has_arrived(header), follows=late)
        if isinstance(header, m.Reply):
            if taken:
                self.answerer.sending.add(header.id)
            elif late:
                return False
            else:
                detail = f"{self.sender.queued_bytes} B of answers wait for this peer to take them: ask again later"
                # Not "busy", which would say that it was not executed.
                self.answerer.replace(header.id, refusal(header.id, "answer_lost", detail))
        return True

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
            self._pinged_at = now
            self._ping_unanswered = False
            self._stalled_s, self._leased_until = 0.0, -math.inf
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

    def _hello(self, lane: int) -> m.Hello:
        low, high = self._around.versions
        limits, share = wire_limits(self._limits), self._around.share()
        return m.Hello(low, high, self._around.name, self._incarnation, self._greeting, limits, lane, share)

    def _welcome(self, greeting: int, lane: int) -> m.Welcome:
        limits, share = wire_limits(self._limits), self._around.share()
        return m.Welcome(self.version, self._around.name, self._incarnation, greeting, limits, lane, share)

    def _greet(self, now: float) -> None:
        self._greeting += 1
        self._hello_at = now + HELLO_RETRY_S  # also if a signal handler raises in what follows
        self._hello_at = now + HELLO_RETRY_S * self._around.jitter()
        self._messages.append(m.Message(self._hello(lane=0)))

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
        self._messages.insert(0, m.Message(self._welcome(hello.greeting, lane=0)))

    def _receive_welcome(self, welcome: m.Welcome, now: float) -> None:
        if welcome.lane == 1:
            if self.state is State.UP and welcome.incarnation == self.peer_incarnation:
                self._step(Input.TRAFFIC, now=now)
                self.lane_opened()
            return
        if welcome.greeting != self._greeting:
            self.unexpected += 1  # an answer to an earlier hello: a newer one is on its way
            return
        if self.state is not State.GREETING:
            self.unexpected += 1
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
        if self.state is State.CLOSED:
            self.caller.fail("link_lost", "the peer said goodbye")
            self.answerer.withdraw_all()

    def _receive_answer(self, message: m.Message, now: float) -> None:
        header = message.header
        if self.sender and isinstance(header, m.Reply) and self.sender.answered(header.id, now):
            self._paced(now)
        if isinstance(header, m.Refusal) or header.transfer is None:  # type: ignore[union-attr]
            self._answered(message, now)
        elif self.caller.wants(header):  # type: ignore[arg-type]
            self._announced(message, now)
        else:
            self.receiver.refuse(header)  # type: ignore[arg-type]

    def _answered(self, message: m.Message, now: float) -> None:
        if self.sender and self.caller.is_small(message.header.id):  # type: ignore[union-attr]
            self.pace.small(now)
        header = message.header
        unseen = isinstance(header, m.Refusal) and header.code == "unshared"
        if unseen and self.caller.unshare(header.id, self._around.recover):  # type: ignore[union-attr]
            self.caller.send_again(header.id, now=now)  # type: ignore[union-attr]
            return
        self.caller.receive(message)

    def _announced(self, message: m.Message, now: float) -> None:
        """A transfer begins, or is there as a whole."""
        header, frames = message
        assert isinstance(header, m.Content)
        assert header.transfer is not None
        total_bytes = sum(header.transfer.sizes)
        if total_bytes > self._limits.max_pending_bytes:
            self._refuse_content(header, total_bytes)
            return
        if frames:
            whole = self.receiver.receive_whole(header, frames, self.answerer.pending_bytes, now=now)
        else:
            whole = self.receiver.announce(header)
        if whole is not None:
            self._complete(whole, now)
        if self.receiver:
            self._admit(now)

    def _refuse_content(self, header: m.Content, total_bytes: int) -> None:
        """A content is over all bounds: say so before it comes."""
        detail = f"{total_bytes} B in one message, max_pending_bytes is {self._limits.max_pending_bytes}"
        self.receiver.refuse(header)
        if isinstance(header, m.Request):
            self.answerer.deny(header, "too_large", detail)
            return
        if isinstance(header, m.Part):
            self._messages.append(m.Message(m.Cancel(header.id)))
        self.caller.receive(refusal(header.id, "too_large", detail))

    def _admit(self, now: float) -> None:
        self.receiver.admit(self.answerer.pending_bytes)
        while whole := self.receiver.take_admitted():
            self._whole += whole
            self._hand_on(now)
            self.receiver.admit(self.answerer.pending_bytes)

    def _complete(self, message: m.Message, now: float) -> None:
        self._whole.append(message)
        self._hand_on(now)

    def _hand_on(self, now: float) -> None:
        if self._hands_on:
            return
        try:
            self._hands_on = True
            while self._whole:  # until it is done with, whatever a signal handler raises: it has been credited
                message = self._whole[0]
                try:
                    if isinstance(message.header, m.Request):
                        self.answerer.receive(message, now=now)
                    else:
                        self.caller.receive(message)
                except Exception as error:
                    if is_of_signal(error):
                        raise
                    del self._whole[0]
                    self.give_up(message, error)
                else:
                    del self._whole[0]
        finally:
            self._hands_on = False

    def _receive_traffic(self, message: m.Message, now: float) -> None:  # noqa: PLR0912 - one case each
        header = message.header
        match header:
            case m.Request() if header.transfer is not None:
                if self.answerer.wants_content(header):
                    self._announced(message, now)
                else:
                    self.receiver.refuse(header)
                    self.answerer.receive(m.Message(header, ()), now=now)
            case m.Request():
                self.answerer.receive(message, now=now)
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
                self._messages.append(m.Message(self._pong(now)))
            case m.Pong():
                self._receive_pong(header, now)

    def receive_chunk(self, chunk: m.Chunk, frame: bytes, *, now: float) -> bool:
        """Take a piece of a content; True if that made it whole, and handed it on."""
        whole = self.receiver.receive(chunk, frame, now=now)
        if whole is not None:
            self._complete(whole, now)
        return whole is not None

    def credited(self, credit: m.Credit, *, now: float) -> None:
        """Take the receiver's word about a content."""
        if credit.received == 0 and not self.sender.knows(credit.transfer):
            self._messages.append(m.Message(m.Drop(credit.transfer)))  # it waits for what does not come
        name = self.sender.receive(credit, now=now)
        if name is not None and name[0] is m.Reply:
            self.answerer.sending.discard(name[1])
            self.answerer.trim()
        self._paced(now)

    def _hears_of(self, name: Name) -> bool:
        """True if the peer hears by a small answer that the content of its request has arrived."""
        return name[0] is m.Request and self.answerer.has_small_answer(name[1])

    def _receive_pong(self, pong: m.Pong, now: float) -> None:
        if self._ping_unanswered:
            self._ping_unanswered = False
            self.round_trip_s = now - self._pinged_at
            if self._ping_idle and not self.caller.num_outstanding:
                self.idle_round_trip_s = self.round_trip_s
        self._stalled_s = pong.stalled_ms / 1000
        self._leased_until = now + pong.lease_ms / 1000
        self.caller.be_patient(self._leased_until)
        self.caller.note = ""
        if pong.lease_ms:
            self.caller.note = f"; it is busy by its own word, for {pong.lease_ms / 1000:.1f} s more"
        elif self._stalled_s >= self._limits.heartbeat_s:
            self.caller.note = f"; its application has left requests lying for {self._stalled_s:.1f} s, it may be stuck"

    def _pong(self, now: float) -> m.Pong:
        if self.version < 2:
            return m.Pong()
        lease_ms = int(1000 * max(0.0, self._around.lease_until() - now))
        return m.Pong(min(86_400_000, self._around.stalled_ms(now)), min(86_400_000, lease_ms))

    def _ping_at(self) -> float:
        # With requests on their way it is asked in any case: the node may talk while its application does not.
        quiet_from = self._pinged_at if self.caller.num_outstanding else max(self.heard_at, self._pinged_at)
        return quiet_from + self._limits.heartbeat_s

    def _silent_at(self) -> float:
        return max(self.heard_at + self._limits.silence_s, self._leased_until)

    def _forget_at(self) -> float:
        return max(self.heard_at + self._limits.forget_s, self.answerer.busy_until())
