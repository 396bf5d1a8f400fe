"""What the machines of a node have brought: requests to inboxes and handlers, answers to who waits for them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from edgebus.answerer import INTERNAL, Answerer
from edgebus.attached import Attached
from edgebus.calls import Pending
from edgebus.config import Limits
from edgebus.desk import NodeDesk
from edgebus.dialling import Dialled, Dialling
from edgebus.heap import keep_freed_memory
from edgebus.hub import Hub
from edgebus.inbox import Inbox, Request, offer
from edgebus.interrupts import is_of_signal, is_of_type
from edgebus.link_states import BulkUp, Down, Failed, Gone, ShareDone, ShareNews, State, Up, WantBulk
from edgebus.messages import Block, Message, Reply
from edgebus.near import NearLanes
from edgebus.outcomes import Arrived, PartArrived, Room, Settled, Superseded, Withdrawn
from edgebus.requests import refusal
from edgebus.runner import Runner
from edgebus.sharing import Sharing
from edgebus.streams import Frames

PING_SERVICE = "edgebus.ping"
PING_BYTES = 1024
_log = logging.getLogger("edgebus")
Handle = Callable[[Request], None]


class Delivering:
    """Hands out what has come, with the runner's lock held."""

    limits: Limits
    hub: Hub
    runner: Runner
    sharing: Sharing
    near: NearLanes
    dialling: Dialling
    _dialled: dict[int, Dialled]
    _desk: NodeDesk

    def __init__(self) -> None:
        self._inboxes: dict[str, Inbox] = {}
        self._handlers: dict[str, Handle] = {}
        self._rooms: dict[tuple[Answerer, int], list[Callable[[], object]]] = {}

    def arrived(self, attached: Attached, arrived: Arrived) -> None:
        """A plain request is here (hub.Taker)."""
        answerer = arrived.answerer
        try:
            if answerer.claim(arrived.id):
                self._deliver(attached, arrived)
        except BaseException:  # of a signal handler: it is known here by now, and would not come again
            answerer.claim(arrived.id)
            self.hub.put_back([(attached, arrived)])
            raise

    def settled(self, attached: Attached, settled: Settled) -> None:
        """A plain answer is here (hub.Taker)."""
        self.runner.guard(self._settle, settled)
        caller = attached.link.caller
        if caller.leases_done:
            self.runner.guard(self.sharing.done, attached, caller.leases_done)
            caller.leases_done, caller.leases_unsent = [], []

    def answer(self, attached: Attached, answerer: Answerer, request_id: int, message: Message) -> None:
        """Answer a request; nothing happens if nobody waits any more, or its link has another answerer by now."""
        if answerer.answer(request_id, message) and message.frames:
            self._count_copies(attached, message.frames, getattr(message.header, "blocks", None))
        self.hub.touch(attached, now=time.monotonic())

    def _count_copies(self, attached: Attached, frames: Frames, blocks: tuple[Block, ...] | None) -> None:
        """Count the bytes of arrays that were copied for a message: what was lent is no bytes object."""
        copied_bytes = self.sharing.copied_bytes(blocks or ()) + sum(
            len(each) for each in frames[1:] if type(each) is bytes
        )
        attached.traffic.copied_bytes_sent += copied_bytes

    def _handle_event(self, attached: Attached, event: object) -> None:  # noqa: PLR0912 - one case each
        match event:
            case Settled():
                self._settle(event)
            case Arrived():
                self._deliver(attached, event)
            case PartArrived():
                assert isinstance(event.ref, Pending)
                event.ref.add_part(event.arrival)
                self.runner.stirred = True
                if event.ref.on_part is not None:
                    self.runner.soon(event.ref.on_part)
            case Withdrawn():
                inbox = self._inboxes.get(event.service)
                if inbox is not None and inbox.withdraw(event.answerer, event.id):
                    event.answerer.never_executed(event.id)
                    self.hub.touch(attached, now=time.monotonic())
            case Superseded():
                inbox = self._inboxes.get(event.service)
                if inbox is not None and inbox.withdraw(event.answerer, event.id):
                    event.answerer.supersede(event.id)
                    self.hub.touch(attached, now=time.monotonic())
            case Room():
                for callback in self._rooms.pop((event.answerer, event.id), ()):
                    self.runner.soon(callback)
            case ShareNews():
                self.sharing.news(attached, event.header)
                self.hub.touch(attached, now=time.monotonic())
            case ShareDone():
                self.sharing.done(attached, event.leases)
            case Gone():
                self.sharing.gone(attached)
            case Down() if attached.link.state is State.CLOSED:
                self.near.drop(attached)  # its descriptors are not kept for forget_s
            case WantBulk() if (dialled := self._dialled.get(attached.route[0])) is not None:
                self.dialling.open_lane(dialled)
            case BulkUp():
                keep_freed_memory(self.limits.bulk_bytes)
            case Up():
                self.sharing.up(attached)
                if self.dialling.up(attached, now=time.monotonic()):
                    self.runner.stirred = True
                self.hub.touch(attached, now=time.monotonic())
            case Failed() if (dialled := self._dialled.get(attached.route[0])) is not None:
                self.dialling.failed(dialled, event)
                self.runner.stirred = True

    def _settle(self, settled: Settled) -> None:
        pending = settled.ref
        assert isinstance(pending, Pending)
        pending.settle(settled)
        self.runner.stirred = True
        if pending.on_done is not None:
            self.runner.soon(pending.on_done)

    def _deliver(self, attached: Attached, arrived: Arrived) -> None:
        """Hand a request out; one that fails on the way is refused."""
        try:
            self._hand_out(attached, arrived)
        except Exception as error:
            if is_of_signal(error):
                raise
            attached.link.failed += 1
            _log.exception("edgebus: internal error, a request for %s is not handed out", arrived.service)
            self.answer(attached, arrived.answerer, arrived.id, refusal(arrived.id, *INTERNAL))

    def _hand_out(self, attached: Attached, arrived: Arrived) -> None:
        service, handed = arrived.service, arrived.answerer.handed
        inbox = self._inboxes.get(service)
        if handed and arrived.id in handed:
            handed.remove(arrived.id)
        elif inbox is not None:
            self.runner.stirred = True
            offer(inbox, attached, arrived, self._desk)
        elif (handler := self._handlers.get(service)) is not None:
            request = Request(attached, arrived, self._desk)
            call = _Call(handler, request)
            try:
                request.arrived_at = time.monotonic()  # from now on it is refused if it is dropped
                self.runner.serve_soon(request.owner, call)
            except BaseException:  # of a signal handler: it is handed out again
                if call.withdraw():  # as another Request
                    request.forget()
                else:  # another thread is at it
                    handed.add(arrived.id)
                raise
        elif service == PING_SERVICE:
            self.answer(attached, arrived.answerer, arrived.id, _pong(arrived))
        else:
            served = ", ".join(sorted({*self._inboxes, *self._handlers})) or "nothing"
            refused = refusal(arrived.id, "unknown_service", f"{service!r} is not served here; served: {served}")
            self.answer(attached, arrived.answerer, arrived.id, refused)


class _Call:
    """The one call of a handler: begun and interrupted by a signal handler, it is not begun again."""

    def __init__(self, handler: Handle, request: Request) -> None:
        self._left: tuple[Handle, Request] | None = (handler, request)

    def __call__(self) -> None:
        left, self._left = self._left, None
        if left is not None:
            _serve(*left)

    def withdraw(self) -> bool:
        """Have nothing come of it; False if it has begun."""
        left, self._left = self._left, None
        return left is not None


def _serve(handler: Handle, request: Request) -> None:
    """Call the application's function; a request that it fails on is refused."""
    request.acknowledge()
    try:
        handler(request)
    except BaseException as error:
        if is_of_type(error) and not isinstance(error, SystemExit):
            raise
        _log.exception("edgebus: the handler of %s failed", request.service)
        if not request.answered:
            request.refuse("internal", "the handler failed on this request; the server's log has the reason")
        if is_of_type(error):
            raise


def _pong(arrived: Arrived) -> Message:
    # No more than it takes to measure a round trip: echoes to a peer that does not read would pile up here.
    if len(arrived.frames[0]) > PING_BYTES:
        return refusal(arrived.id, "too_large", f"{PING_SERVICE} echoes at most {PING_BYTES} B")
    return Message(Reply(arrived.id), arrived.frames[:1])
