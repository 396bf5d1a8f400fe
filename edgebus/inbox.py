"""The answering side for applications: an inbox of requests, each to be answered exactly once."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from edgebus.arrays import Array, pack_arrays, view_arrays
from edgebus.errors import AlreadyAnswered, NodeClosed
from edgebus.messages import ArraySpec, Message, Reply
from edgebus.requests import Arrived, refusal
from edgebus.wire import check_outgoing

if TYPE_CHECKING:
    from edgebus.answerer import Answerer
    from edgebus.hub import Attached

Answer = Callable[["Attached", "Answerer", int, Message], None]


class Peer(NamedTuple):
    """Who asks: `id` is stable for the life of its link, `key` is its public key (None if insecure)."""

    id: str
    key: str | None
    name: str


class Request:
    """A request to answer with reply() or refuse(), from any thread, exactly once.

    Dropped without an answer it is refused with code "dropped", so that nobody waits in vain.

    Attributes:
        service: which service was asked for.
        payload: opaque bytes.
        arrays: read-only numpy views of the received frames.
        peer: who asks.
    """

    def __init__(
        self, attached: Attached, arrived: Arrived, answer: Answer, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.service = arrived.service
        self._answered = False
        self._lock = threading.Lock()
        self._attached = attached
        self._answerer = arrived.answerer  # not the link's: that changes when another incarnation greets
        self._id = arrived.id
        self._expires_at = arrived.expires_at
        self._answer = answer
        self._clock = clock
        self.payload = arrived.frames[0]
        self.arrays: tuple[Array, ...] = view_arrays(arrived.specs, arrived.frames[1:])
        self.peer = Peer(attached.peer_id, attached.key, attached.link.peer_name)

    def remaining_s(self) -> float:
        """Seconds until nobody waits for the answer any more; 0 if that is now (expired or cancelled)."""
        if not self._answerer.wants(self._id):
            return 0.0
        return max(0.0, self._expires_at - self._clock())

    def reply(self, payload: bytes = b"", arrays: Sequence[Array] = ()) -> None:
        """Answer yes.

        Raises:
            MessageTooLarge: the peer does not accept that much; the request can still be refused.
            AlreadyAnswered: this is the second answer.
            TypeError: an array that does not travel.
        """
        specs, frames = pack_arrays(arrays)
        self._send(Message(Reply(self._id, specs), (bytes(payload), *frames)), specs)

    def refuse(self, code: str, detail: str, info: bytes = b"") -> None:
        """Answer no; the caller gets Refused(code, detail, info).

        Raises:
            MessageTooLarge: info is more than the peer accepts.
            AlreadyAnswered: this is the second answer.
        """
        self._send(refusal(self._id, code, detail, bytes(info)), ())

    def close(self) -> None:
        """Refuse with code "dropped" unless answered."""
        if not self._answered:
            self.refuse("dropped", f"the handler of {self.service} gave no answer")

    @property
    def token(self) -> tuple[Answerer, int]:
        """What names it on this node, for the inbox."""
        return self._answerer, self._id

    def forget(self) -> None:
        """Nobody waits for it any more: let it go without an answer (runner thread)."""
        self._answered = True

    def __del__(self) -> None:
        if not getattr(self, "_answered", True):
            self.close()

    def _send(self, message: Message, specs: Sequence[ArraySpec]) -> None:
        limits = self._attached.link.peer_limits
        assert limits is not None, "requests come over links that were greeted"
        check_outgoing(message.frames, specs, limits)
        with self._lock:
            if self._answered:
                raise AlreadyAnswered(f"request {self._id} for {self.service} has its answer: answer once")
            self._answered = True
        self._answer(self._attached, self._answerer, self._id, message)


class Inbox:
    """Requests for some services, oldest first, at most `depth` waiting; more are refused "busy".

    One peer (by its key, or by its link where there are no keys) holds at most half of the places, rounded up,
    so that it cannot shut the others out.
    """

    def __init__(self, services: Sequence[str], depth: int, unregister: Callable[[Inbox], None]) -> None:
        self.services = tuple(services)
        self._depth = depth
        self._unregister = unregister
        self._share = (depth + 1) // 2
        self._waiting: OrderedDict[tuple[Answerer, int], Request] = OrderedDict()
        self._held: Counter[str] = Counter()  # requests waiting by peer
        self._pid = os.getpid()
        self._filled = threading.Condition()
        self._closed = False

    @property
    def closed(self) -> bool:
        """True once nothing will come any more."""
        return self._closed

    def get(self, timeout_s: float | None = None) -> Request | None:
        """The oldest request that somebody still waits for.

        Args:
            timeout_s: seconds to wait; None waits until there is one or the inbox is closed.

        Returns:
            None after the timeout, or when the inbox is closed.

        Raises:
            NodeClosed: this is a forked child, where nothing ever arrives.
        """
        self._check_process()
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            with self._filled:
                while not self._waiting and not self._closed:
                    left_s = None if until is None else until - time.monotonic()
                    if (left_s is not None and left_s <= 0) or not self._filled.wait(left_s):
                        return None
                if not self._waiting:
                    return None
                request = self._take(next(iter(self._waiting)))
            if request.remaining_s() > 0:
                return request
            _expire(request)

    def drain(self) -> list[Request]:
        """All requests waiting now, without waiting.

        Raises:
            NodeClosed: this is a forked child, where nothing ever arrives.
        """
        self._check_process()
        live = []
        for request in self._take_all():
            if request.remaining_s() > 0:
                live.append(request)
            else:
                _expire(request)
        return live

    def close(self) -> None:
        """Stop serving: waiting requests are refused "closing", later ones "unknown_service"."""
        if os.getpid() != self._pid:
            return
        self._unregister(self)
        self.shut()

    def shut(self) -> None:
        """Refuse what waits and wake whoever waits in get()."""
        with self._filled:
            self._closed = True
            requests = self._take_all()
            self._filled.notify_all()
        for request in requests:
            request.refuse("closing", "the service is closing")

    def put(self, request: Request) -> bool:
        """Offer a request (runner thread); False if the inbox, or the peer's half of it, is full, or it is closed."""
        owner = request.peer.key or request.peer.id
        with self._filled:
            if self._closed or len(self._waiting) >= self._depth or self._held[owner] >= self._share:
                return False
            self._waiting[request.token] = request
            self._held[owner] += 1
            self._filled.notify()
            return True

    def withdraw(self, answerer: Answerer, request_id: int) -> None:
        """Let go of a request that nobody waits for any more (runner thread)."""
        with self._filled:
            if (answerer, request_id) in self._waiting:
                self._take((answerer, request_id)).forget()

    def _take(self, token: tuple[Answerer, int]) -> Request:
        request = self._waiting.pop(token)
        owner = request.peer.key or request.peer.id
        self._held[owner] -= 1
        if not self._held[owner]:
            del self._held[owner]
        return request

    def _take_all(self) -> list[Request]:
        with self._filled:
            requests = list(self._waiting.values())
            self._waiting.clear()
            self._held.clear()
        return requests

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise NodeClosed(
                f"the inbox belongs to process {self._pid}, this is its fork {os.getpid()}: make a new Node here"
            )


def _expire(request: Request) -> None:
    request.refuse("expired", "the deadline passed while the request waited in the inbox")
