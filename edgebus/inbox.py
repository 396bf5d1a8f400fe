# cython: nonecheck=True
"""The answering side for applications: an inbox of requests, each to be answered exactly once."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from edgebus import seconds
from edgebus.arrays import Array, checked_content, pack_content, view_arrays
from edgebus.calls import Wait
from edgebus.errors import AlreadyAnswered, DeadlineExceeded, EdgebusError, NodeClosed, StreamEnded
from edgebus.forks import forks
from edgebus.locks import open_lock
from edgebus.messages import INLINE_BYTES, ONE_WAY, STREAM, ArraySpec, Message, Reply
from edgebus.outcomes import Arrived
from edgebus.requests import refusal
from edgebus.streams import Frames, Specs
from edgebus.turns import Turns
from edgebus.wire import check_outgoing

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from edgebus.answerer import Answerer
    from edgebus.attached import Attached
    from edgebus.desk import Desk
    from edgebus.loans import Loan


class Peer(NamedTuple):
    """Who asks: `id` is stable for the life of its link, `key` is its public key (None if insecure)."""

    id: str
    key: str | None
    name: str


_now = time.monotonic
_claims = open_lock()  # one for all requests: it is held for a moment


class Request:
    """A request to answer with reply() or refuse(), from any thread, exactly once.

    Dropped without an answer it is refused with code "dropped", so that nobody waits in vain. One that is one-way has
    its answer when the application takes it; a stream is given parts with push() until it is answered.

    Attributes:
        service: which service was asked for.
        payload: opaque bytes.
        arrays: read-only numpy views of the received frames.
        is_one_way: nobody waits for an answer.
        is_stream: parts are wanted, from position `from_pos` on.
    """

    def __init__(self, attached: Attached, arrived: Arrived, desk: Desk) -> None:
        request_id, service, expires_at, specs, frames, answerer, terms = arrived
        self._answered = False
        self.service = service
        self.is_one_way = terms is not None and terms.kind == ONE_WAY
        self.is_stream = terms is not None and terms.kind == STREAM
        self._has_key = terms is not None and bool(terms.key)
        self.from_pos = 0 if terms is None else terms.from_pos
        self._attached = attached
        self._answerer = answerer  # not the link's: that changes when another incarnation greets
        self._id = request_id
        self._expires_at = expires_at
        self.payload = frames[0]
        self.arrays: tuple[Array, ...] = view_arrays(specs, frames[1:]) if specs else ()
        # Set by the inbox once it is in there, or by whoever takes it: until then it may be made again, by an exception
        # of a signal handler, and this one is not refused as it goes.
        self.arrived_at = 0.0
        self.owner = attached.key or attached.peer_id  # whom its place in the inbox counts for
        self._desk = desk

    @property
    def peer(self) -> Peer:
        """Who asks."""
        attached = self._attached
        return Peer(attached.peer_id, attached.key, attached.link.peer_name)

    @property
    def answered(self) -> bool:
        """True once it has its answer."""
        return self._answered

    def remaining_s(self) -> float:
        """Seconds until nobody waits for the answer any more; 0 if that is now (expired or cancelled)."""
        if not self._answerer.wants(self._id):
            return 0.0
        left_s = self._expires_at - self._desk.now()
        return left_s if left_s > 0.0 else 0.0

    def reply(self, payload: bytes = b"", arrays: Sequence[Array] = (), *, copy: bool = True) -> None:
        """Answer yes; of a stream, end it.

        Args:
            payload: opaque bytes.
            arrays: what travels as arrays.
            copy: False sends the arrays as they lie; they are read-only until they are sent.

        Raises:
            MessageTooLarge: the peer does not accept that much; the request can still be refused.
            AlreadyAnswered: this is the second answer. To a one-way request every answer is nothing, and no error.
            TypeError: an array that does not travel.
        """
        if self.is_one_way:
            return
        if type(payload) is not bytes or type(arrays) is not tuple:
            payload, arrays = checked_content(payload, arrays)
        if not arrays and len(payload) <= INLINE_BYTES:
            self._claim()
            try:
                if self._desk.answer_small(self._attached, self._answerer, self._id, payload):
                    return
            except BaseException:
                self._answered = not self._answerer.wants(self._id)
                raise
            self._answered = False
        if self._answered:
            self._claim()  # says so, before anything lies in memory that nobody would ever give back
        # An answer that is kept for an idempotency key has to be whole: it may go to another link.
        shared = self._desk.share(self._attached, payload, arrays) if arrays and not self._has_key else None
        if shared is not None:
            specs, blocks = shared
            try:
                self._send(Message(Reply(self._id, specs, None, 0, None, blocks), (bytes(payload),)), specs)
            except BaseException as error:
                if isinstance(error, EdgebusError) or not self._answered:
                    self._desk.unshare(self._attached, blocks)
                raise
            return
        specs, frames = pack_content(payload, arrays, copy)
        self._send(Message(Reply(self._id, specs), frames), specs)

    def loan(self, shape: int | tuple[int, ...], dtype: DTypeLike = "float32") -> Loan:
        """An array to be filled in place and sent with this request's reply: it is not copied then.

        It lies in memory that the peer sees, where the peer is on this host and shares memory; else in ordinary memory,
        which is sent as it lies. Its first content is arbitrary.

        Args:
            shape: at most 8 dimensions.
            dtype: one of those that travel, little-endian.

        Raises:
            TypeError, ValueError: a dtype or shape that does not travel.
        """
        return self._desk.loan(self._attached, shape, dtype)

    def refuse(self, code: str, detail: str, info: bytes = b"") -> None:
        """Answer no; the caller gets Refused(code, detail, info).

        Raises:
            MessageTooLarge: info is more than the peer accepts.
            AlreadyAnswered: this is the second answer.
            TypeError: code or detail is no string, or info no bytes.
            ValueError: code is empty, so nobody could tell this refusal from another.
        """
        if not isinstance(code, str) or not isinstance(detail, str):
            raise TypeError(f"code and detail of a refusal must be strings, got {code!r} and {detail!r}")
        if not code:
            raise ValueError("code of a refusal must not be empty")
        if not isinstance(info, bytes | bytearray | memoryview):
            raise TypeError(f"info of a refusal must be bytes, got {type(info).__name__}: encode it")
        if not self.is_one_way or not self._answered:
            self._send(refusal(self._id, code, detail, bytes(info)), ())

    def push(
        self,
        payload: bytes = b"",
        arrays: Sequence[Array] = (),
        timeout_s: float | None = None,
        *,
        copy: bool = True,
    ) -> int:
        """Send the next part of a stream; waits for room in the caller's window.

        Args:
            payload: opaque bytes.
            arrays: what travels as arrays.
            timeout_s: seconds to wait for room; None waits as long as somebody wants the stream.
            copy: as for reply.

        Returns:
            Position of the part.

        Raises:
            StreamEnded: cancelled, expired, answered, or the caller is gone.
            DeadlineExceeded: no room within timeout_s; nothing was sent.
            MessageTooLarge, TypeError: as for reply.
        """
        specs, frames = pack_content(*checked_content(payload, arrays), copy)
        until = min(self._expires_at, self._desk.now() + seconds.wait(timeout_s))
        while True:
            pos = self._push(specs, frames)
            if not isinstance(pos, bool):
                return pos
            room = _Signal()
            self._desk.when_room(self._answerer, self._id, room.set)
            if not self._desk.wait(room, until):
                if self._desk.now() >= self._expires_at or not self._answerer.wants(self._id):
                    raise StreamEnded(f"{self.service}: nobody wants the stream any more")
                raise DeadlineExceeded(f"{self.service}: no room for a part in {timeout_s} s, the caller does not read")

    def try_push(self, payload: bytes = b"", arrays: Sequence[Array] = (), *, copy: bool = True) -> bool:
        """Like push, but False at once if there is no room; `when_room` tells when to try again."""
        specs, frames = pack_content(*checked_content(payload, arrays), copy)
        return not isinstance(self._push(specs, frames), bool)

    def when_room(self, callback: Callable[[], object]) -> None:
        """Have something called once, as soon as push has room or the stream has ended. On whichever thread drives."""
        self._desk.when_room(self._answerer, self._id, callback)

    def acknowledge(self) -> None:
        """A one-way request has been taken by the application, which is all its sender wants to know."""
        if not self.arrived_at:
            self.arrived_at = _now()
        if self.is_one_way and not self._answered:
            self._desk.answer(self._attached, self._answerer, self._id, Message(Reply(self._id), (b"",)))
            self._answered = True

    def close(self) -> None:
        """Refuse with code "dropped" unless answered."""
        if not self._answered:
            self.refuse("dropped", f"the handler of {self.service} gave no answer")

    def forget(self) -> None:
        """Nobody waits for it any more: let it go without an answer."""
        self._answered = True

    def __del__(self) -> None:
        if getattr(self, "_answered", True) or not getattr(self, "arrived_at", 0.0):
            return
        try:
            self._drop()
        except BaseException:  # of a signal handler: nobody would hear of it. The first answer counts
            self._drop()
            raise

    def _drop(self) -> None:
        message = refusal(self._id, "dropped", f"the handler of {self.service} gave no answer")
        self._desk.answer_later(self._attached, self._answerer, self._id, message)
        self._answered = True

    def _push(self, specs: Specs, frames: Frames) -> int | bool:
        self._check(specs, frames)
        if not self.is_stream:
            raise TypeError(
                f"request {self._id} for {self.service} is no stream: the caller has to ask with link.stream"
            )
        pos = self._desk.push(self._attached, self._answerer, self._id, specs, frames)
        if pos is None or self._desk.now() >= self._expires_at:
            raise StreamEnded(f"{self.service}: nobody wants the stream any more")
        return pos

    def _claim(self) -> None:
        try:
            _claims.acquire()  # nothing is called or made while it is held: whatever that runs may answer, too
            answered, self._answered = self._answered, True
        finally:
            _claims.release()
        if answered:
            raise AlreadyAnswered(f"request {self._id} for {self.service} has its answer: answer once")

    def _check(self, specs: Sequence[ArraySpec], frames: Frames) -> None:
        limits = self._attached.link.peer_limits
        assert limits is not None, "requests come over links that were greeted"
        check_outgoing(frames, specs, limits)

    def _send(self, message: Message, specs: Sequence[ArraySpec]) -> None:
        self._check(specs, message.frames)
        self._claim()
        try:
            self._desk.answer(self._attached, self._answerer, self._id, message)
        except BaseException:  # of a signal handler: if it was not given, another one may be, "dropped" at last
            self._answered = not self._answerer.wants(self._id)
            raise


class _Signal(threading.Event):
    """An event that a thread can wait for while it drives."""

    @property
    def ready(self) -> bool:
        return self.is_set()

    def follow(self, wait_s: float) -> None:
        self.wait(wait_s)


class Inbox:
    """Requests for some services, at most `depth` waiting; more are refused "busy".

    Peers (by their keys, or by their links where there are no keys) have turns, each one's oldest request first. One
    holds at most half of the places, rounded up, so that it cannot shut the others out.
    """

    def __init__(
        self,
        services: Sequence[str],
        depth: int,
        unregister: Callable[[Inbox], None],
        wait: Wait | None = None,
        nudge: Callable[[], object] = lambda: None,
    ) -> None:
        self.services = tuple(services)
        self._depth = depth
        self._unregister = unregister
        self._wait = wait
        self._nudge = nudge
        self._looked_at = 0.0
        self._share = (depth + 1) // 2
        self._waiting: dict[tuple[Answerer, int], Request] = {}  # in the order of their arrival
        self._turns = Turns()  # the same by peer
        self._pid, self._forks = os.getpid(), forks[0]
        self._mutex = open_lock()  # taken by itself: a condition takes it through two calls of Python
        self._filled = threading.Condition(self._mutex)
        self._followers = 0  # threads that sleep until it is filled
        self._closed = False
        self._woken = False  # somebody wants who waits to look at something else
        self.ready = False  # True if get returns at once

    @property
    def closed(self) -> bool:
        """True once nothing will come any more."""
        return self._closed

    def get(self, timeout_s: float | None = None) -> Request | None:
        """A request that somebody still waits for: the oldest of the peer whose turn it is.

        Args:
            timeout_s: seconds to wait; None waits until there is one or the inbox is closed.

        Returns:
            None after the timeout, when the inbox is closed, or after `wake`.

        Raises:
            NodeClosed: this is a forked child, where nothing ever arrives.
        """
        self._check_process()
        until = math.inf
        if timeout_s is not None:
            if type(timeout_s) is not float or not timeout_s < 1e6:
                timeout_s = seconds.wait(timeout_s)
            until = _now() + timeout_s
        while True:
            if not self.ready:
                self._look(until)
            try:
                self._mutex.acquire()
                self._looked_at = now = _now()
                woken, self._woken = self._woken, False
                if not self._turns.waiting:
                    self.ready = self._closed
                    if self._closed or woken or now >= until:
                        return None
                    continue  # another worker was quicker, or it was withdrawn
                request: Request = self._turns.take()
                self._left(request)
            finally:
                self._mutex.release()
            if request.remaining_s() > 0:
                request.acknowledge()
                return request
            _expire(request)

    def drain(self) -> list[Request]:
        """All requests waiting now, oldest first, without waiting.

        Raises:
            NodeClosed: this is a forked child, where nothing ever arrives.
        """
        self._check_process()
        self._look(0.0)
        self._looked_at = _now()
        live = []
        for request in self._take_all():
            if request.remaining_s() > 0:
                request.acknowledge()
                live.append(request)
            else:
                _expire(request)
        return live

    def wake(self) -> None:
        """Have the thread that waits in `get` come back, or the next one not wait: there is other work for it.

        From any thread, also from a callback of the bus; for an inbox that one thread reads.
        """
        with self._mutex:
            self._woken = self.ready = True
            self._filled.notify_all()
        self._nudge()

    def close(self) -> None:
        """Stop serving: waiting requests are refused "closing", later ones "unknown_service"."""
        if os.getpid() != self._pid:
            return
        self._unregister(self)
        self.shut()

    def shut(self) -> None:
        """Refuse what waits and wake whoever waits in get()."""
        with self._mutex:
            self._closed = self.ready = True
            requests = self._take_all()
            self._filled.notify_all()
        self._nudge()
        for request in requests:
            request.refuse("closing", "the service is closing")

    def stalled_s(self, now: float) -> float:
        """How long the oldest request has been lying here without the application looking, seconds."""
        with self._mutex:
            arrived_at = min((each.arrived_at for each in self._turns.oldest()), default=math.inf)
        return 0.0 if arrived_at == math.inf else max(0.0, now - max(arrived_at, self._looked_at))

    def put(self, request: Request) -> bool:
        """Offer a request; False if the inbox, or the peer's half of it, is full, or it is closed."""
        owner = request.owner
        try:
            self._mutex.acquire()
            if self._closed or len(self._waiting) >= self._depth or self._turns.num(owner) >= self._share:
                return False
            arrived_at = _now()
            # First: if a signal handler raises in between, get looks in vain once, and the request is offered again.
            self.ready = True
            if self._followers:
                self._filled.notify()
            token = (request._answerer, request._id)
            self._waiting[token] = request
            self._turns.put(owner, token, request)
            request.arrived_at = arrived_at  # last of all: it is in
            return True
        except BaseException:  # of a signal handler: it is offered again, and would be in here twice
            if not request.arrived_at:
                token = (request._answerer, request._id)
                self._waiting.pop(token, None)
                self._turns.drop(owner, token)
            raise
        finally:
            self._mutex.release()

    def withdraw(self, answerer: Answerer, request_id: int) -> bool:
        """Let go of a request that nobody waits for any more; False if the application has it already."""
        with self._mutex:
            token = (answerer, request_id)
            request = self._waiting.get(token)
            if request is None:
                return False
            self._turns.drop(request.owner, token)
            self._left(request)
            request.forget()
            return True

    def follow(self, wait_s: float) -> None:
        """Sleep until something may have come, at most so long."""
        with self._mutex:
            if not self._waiting and not self._closed and not self._woken and wait_s > 0:
                self._followers += 1
                try:
                    self._filled.wait(None if wait_s == math.inf else wait_s)
                finally:
                    self._followers -= 1

    def _look(self, until: float) -> None:
        """Wait until there is something or time is up; sockets are looked at once in any case."""
        if self._wait is not None:
            self._wait(self, until)
        elif not self.ready:
            self.follow(until - _now())

    def _left(self, request: Request) -> None:
        del self._waiting[request._answerer, request._id]
        self.ready = bool(self._waiting) or self._closed or self._woken

    def _take_all(self) -> list[Request]:
        with self._mutex:
            requests = list(self._waiting.values())
            self._waiting.clear()
            self._turns.clear()
            self.ready = self._closed or self._woken
        return requests

    def _check_process(self) -> None:
        if self._forks != forks[0]:
            raise NodeClosed(
                f"the inbox belongs to process {self._pid}, this is its fork {os.getpid()}: make a new Node here"
            )


def offer(inbox: Inbox, attached: Attached, arrived: Arrived, desk: Desk) -> None:
    """Put what arrived into an inbox, or refuse it."""
    request = Request(attached, arrived, desk)
    try:
        if not inbox.put(request):
            request.refuse("busy", "the inbox of the service is full, or this peer's half of it: ask again later")
    except BaseException:  # of a signal handler: it is offered again
        if request.arrived_at > 0.0:  # it is in, and by now perhaps the application has it
            request._answerer.handed.add(request._id)
        else:  # then as another Request
            request.forget()
        raise


def _expire(request: Request) -> None:
    request.refuse("expired", "the deadline passed while the request waited in the inbox")
