"""The answering side for applications: an inbox of requests, each to be answered exactly once."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from edgebus.arrays import Array, pack_arrays, view_arrays
from edgebus.errors import AlreadyAnswered
from edgebus.messages import ArraySpec, Message, Reply
from edgebus.requests import Arrived, refusal
from edgebus.wire import check_outgoing

if TYPE_CHECKING:
    from edgebus.hub import Attached

Answer = Callable[["Attached", int, Message], None]


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
        self._answered = False
        self._lock = threading.Lock()
        self._attached = attached
        self._id = arrived.id
        self._expires_at = arrived.expires_at
        self._answer = answer
        self._clock = clock
        self.service = arrived.service
        self.payload = arrived.frames[0]
        self.arrays: tuple[Array, ...] = view_arrays(arrived.specs, arrived.frames[1:])
        self.peer = Peer(attached.peer_id, attached.key, attached.link.peer_name)

    def remaining_s(self) -> float:
        """Seconds until nobody waits for the answer any more; 0 if that is now (expired or cancelled)."""
        if not self._attached.link.answerer.wants(self._id):
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
        self._answer(self._attached, self._id, message)


class Inbox:
    """Requests for some services, oldest first, at most `depth` waiting; more are refused "busy"."""

    def __init__(self, services: Sequence[str], depth: int, unregister: Callable[[Inbox], None]) -> None:
        self.services = tuple(services)
        self._depth = depth
        self._unregister = unregister
        self._waiting: deque[Request] = deque()
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
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            with self._filled:
                while not self._waiting and not self._closed:
                    left_s = None if until is None else until - time.monotonic()
                    if (left_s is not None and left_s <= 0) or not self._filled.wait(left_s):
                        return None
                if not self._waiting:
                    return None
                request = self._waiting.popleft()
            if request.remaining_s() > 0:
                return request
            _expire(request)

    def drain(self) -> list[Request]:
        """All requests waiting now, without waiting."""
        with self._filled:
            requests = list(self._waiting)
            self._waiting.clear()
        live = [request for request in requests if request.remaining_s() > 0]
        for request in requests:
            if request not in live:
                _expire(request)
        return live

    def close(self) -> None:
        """Stop serving: waiting requests are refused "closing", later ones "unknown_service"."""
        self._unregister(self)
        self.shut()

    def shut(self) -> None:
        """Refuse what waits and wake whoever waits in get()."""
        with self._filled:
            self._closed = True
            requests = list(self._waiting)
            self._waiting.clear()
            self._filled.notify_all()
        for request in requests:
            request.refuse("closing", "the service is closing")

    def put(self, request: Request) -> bool:
        """Offer a request (runner thread); False if the inbox is full or closed."""
        with self._filled:
            if self._closed or len(self._waiting) >= self._depth:
                return False
            self._waiting.append(request)
            self._filled.notify()
            return True


def _expire(request: Request) -> None:
    request.refuse("expired", "the deadline passed while the request waited in the inbox")
