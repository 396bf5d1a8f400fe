"""What a link sends: by which lane a content goes, whole or in pieces, and when the lane for large ones is opened.

Pieces and windows: bulk.py, pace.py. LinkMachine builds on this. Pure.
"""

from __future__ import annotations

import logging
import math

from edgebus import messages as m
from edgebus.interrupts import is_of_signal
from edgebus.link_receiving import LinkReceiving
from edgebus.link_states import Event, State, Surroundings, WantBulk
from edgebus.pace import LEAST_BYTES
from edgebus.requests import refusal
from edgebus.streams import content_bytes

_log = logging.getLogger("edgebus")
BULK_PATIENCE_S = 1.0
"""Contents wait so long for their own lane before they go by the control lane."""


class LinkSending(LinkReceiving):
    """The sending half of a link; before it tells what is to be sent, what has come is handed on.

    Args:
        dialled: True on the side that opens the bulk lane.
        around: what is shared with the node's other links.
    """

    def __init__(self, dialled: bool, around: Surroundings) -> None:
        super().__init__(around)
        self._dialled = dialled
        self._bulk_wanted_at = math.inf
        self._unsorted: list[m.Message] = []  # to send, by which lane is to be seen
        # A signal handler that comes in the middle of one of these and has the link do something leaves it to its end.
        self._sorts = self._pumps = False
        self._events: list[Event] = []

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
        if failed:
            for each in failed:
                self.not_sent(*each)
            failed.clear()  # else a circle: the traceback of each has this frame
            # What says so is small: another fault of it is not told of.
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

    def not_sent(self, message: m.Message, error: Exception) -> None:
        """A message to the peer has failed in here: likewise, see give_up."""
        header = message.header
        if isinstance(header, m.Chunk):  # of a content, which would wait for it
            self._give_up_content(header.transfer, error)
            return
        self.failed += 1
        if isinstance(header, m.Request):
            self.caller.give_up(header.id, "it cannot be sent by a fault in this node: its log has the reason")
        elif isinstance(header, m.Reply | m.Part):
            self.answerer.unsent(header.id)
        _log.error("edgebus: internal error, a %s is not sent", type(header).__name__, exc_info=error)

    def lane_lost(self) -> None:
        """The bulk lane is gone: what went by it is announced again."""
        if self._bulk_up:
            self._bulk_up = False
            self.sender.lane_lost(1)

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
            failed = self.failed
            try:
                self._pumps = True
                self._pump(now)
            finally:
                self._pumps = False
            if (self._unsorted and not self._sorts) or self.failed != failed:  # of a handler that came meanwhile
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
        while self.sender:  # once more if a content fails, after which there is one less
            try:
                self.sender.pump(
                    lane,
                    chunk_bytes=chunk_bytes,
                    window_bytes=window_bytes,
                    now=now,
                    whole=whole,
                    out=self._lane_messages,
                )
                break
            except Exception as error:
                if is_of_signal(error):
                    raise
                self._give_up_content(None, error)
        self.pace.sent(self.sender.credited_bytes + self.sender.in_flight_bytes, now)

    def _give_up_content(self, transfer: int | None, error: Exception) -> None:
        """A content fails as it is sent, by a fault of ours. Args: as BulkSender.give_up."""
        given_up = self.sender.give_up(transfer)
        if given_up is None:
            return  # with an earlier chunk of its own
        message, drop = given_up
        if drop is not None:
            self._lane_messages.append((0, drop))
        if isinstance(message.header, m.Reply):
            self.answerer.sending.discard(message.header.id)
        self.not_sent(message, error)

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

    def _impatient_at(self) -> float:
        """While there is no bulk lane: when contents wait for it no longer, inf if none does."""
        if -math.inf < self._bulk_wanted_at < math.inf and self._has_large:
            return self._bulk_wanted_at + BULK_PATIENCE_S
        return math.inf
