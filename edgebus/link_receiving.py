"""What a link takes in: requests and answers, small or with contents that come whole or in pieces, each handed on once.

Reassembly and credit: bulk_receiver.py. LinkMachine builds on this. Pure.
"""

from __future__ import annotations

import logging

from edgebus import messages as m
from edgebus.attached import LinkFront
from edgebus.bulk import Name
from edgebus.interrupts import is_of_signal
from edgebus.link_states import State, Surroundings
from edgebus.outcomes import Arrived, Settled
from edgebus.requests import refusal

_log = logging.getLogger("edgebus")


class LinkReceiving(LinkFront):
    """The receiving half of a link.

    Args:
        around: what is shared with the node's other links.
    """

    def __init__(self, around: Surroundings) -> None:
        super().__init__()
        self._around = around
        self._limits = around.limits
        self._messages: list[m.Message] = []  # to send by the control lane
        self._whole: list[m.Message] = []  # contents that have come, and are to be handed on
        self._hands_on = False  # a signal handler that comes then and has the link do something leaves it to its end

    def give_up(self, message: m.Message, error: Exception) -> None:
        """A message of the peer has failed in here, by a fault of ours: whoever waits for what comes of it is told."""
        header = message.header
        self.failed += 1
        if isinstance(header, m.Request):
            self.answerer.give_up(header.id)
        elif isinstance(header, m.Reply | m.Refusal | m.Part):
            self.caller.give_up(header.id, "what came for it failed in this node: its log has the reason")
        _log.error("edgebus: internal error, a %s is given up", type(header).__name__, exc_info=error)

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

    def _hears_of(self, name: Name) -> bool:
        """True if the peer hears by a small answer that the content of its request has arrived."""
        return name[0] is m.Request and self.answerer.has_small_answer(name[1])

    def _receive_request(self, message: m.Message, now: float) -> None:
        header = message.header
        assert isinstance(header, m.Request)
        if header.transfer is None:
            self.answerer.receive(message, now=now)
        elif self.answerer.wants_content(header):
            self._announced(message, now)
        else:
            self.receiver.refuse(header)
            self.answerer.receive(m.Message(header, ()), now=now)
