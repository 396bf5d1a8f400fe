"""The answering side for asyncio: an inbox to iterate over, and requests whose parts wait for room."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

from edgebus import inbox, seconds
from edgebus.aio.loops import FAIR, Bell
from edgebus.arrays import Array, pack_content
from edgebus.errors import DeadlineExceeded, StreamEnded

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from edgebus.loans import Loan


class _Done:
    """Nothing to wait for."""

    def __await__(self) -> Generator[Any, None, None]:
        yield from ()


class Request:
    """A request to answer with reply() or refuse(), from any task or thread, exactly once.

    Both act at once, so `await request.reply(...)` and plain `request.reply(...)` are the same. Attributes and errors
    are those of edgebus.Request.
    """

    def __init__(self, sync: inbox.Request) -> None:
        self.sync = sync
        self.service, self.payload, self.arrays, self.peer = sync.service, sync.payload, sync.arrays, sync.peer
        self.is_one_way, self.is_stream, self.from_pos = sync.is_one_way, sync.is_stream, sync.from_pos

    @property
    def answered(self) -> bool:
        """True once it has its answer."""
        return self.sync.answered

    def remaining_s(self) -> float:
        """Seconds until nobody waits for the answer any more; 0 if that is now (expired or cancelled)."""
        return self.sync.remaining_s()

    def reply(self, payload: bytes = b"", arrays: Sequence[Array] = (), *, copy: bool = True) -> Awaitable[None]:
        """Answer yes; of a stream, end it."""
        self.sync.reply(payload, arrays, copy=copy)
        return _Done()

    def loan(self, shape: int | tuple[int, ...], dtype: DTypeLike = "float32") -> Loan:
        """An array to be filled in place and sent with the reply. As edgebus.Request.loan."""
        return self.sync.loan(shape, dtype)

    def refuse(self, code: str, detail: str, info: bytes = b"") -> Awaitable[None]:
        """Answer no; the caller gets Refused(code, detail, info)."""
        self.sync.refuse(code, detail, info)
        return _Done()

    async def push(
        self,
        payload: bytes = b"",
        arrays: Sequence[Array] = (),
        timeout_s: float | None = None,
        *,
        copy: bool = True,
    ) -> int:
        """Send the next part of a stream; waits for room in the caller's window. As edgebus.Request.push."""
        packed = pack_content(payload, arrays, copy)
        until = time.monotonic() + seconds.wait(timeout_s)
        bell, told = Bell(), threading.Event()

        def tell() -> None:
            told.set()
            bell.ring_all()

        while True:
            pos = self.sync._push(*packed)  # packed once, however often it has to wait
            if not isinstance(pos, bool):
                return pos
            told.clear()
            self.sync.when_room(tell)
            left_s = min(self.sync.remaining_s(), until - time.monotonic())
            if await bell.wait(told.is_set, max(0.0, left_s)):
                continue
            if self.sync.remaining_s() <= 0:
                raise StreamEnded(f"{self.service}: nobody wants the stream any more")
            raise DeadlineExceeded(f"{self.service}: no room for a part in {timeout_s} s, the caller does not read")

    def close(self) -> None:
        """Refuse with code "dropped" unless answered."""
        self.sync.close()


class RingingInbox(inbox.Inbox):
    """An inbox that rings for tasks where the other one wakes threads."""

    def __init__(self, services: Sequence[str], depth: int, unregister: Callable[[inbox.Inbox], None]) -> None:
        super().__init__(services, depth, unregister)  # without a wait: get(0) only looks at what is here
        self.bell = Bell()

    def put(self, request: inbox.Request) -> bool:
        # A signal handler may raise at any step: what is in is rung for in any case, and one ring too many only looks.
        try:
            try:
                return super().put(request)
            finally:
                self.bell.ring()
        except BaseException:
            self.bell.ring()
            raise

    def shut(self) -> None:
        try:
            super().shut()
        finally:
            self.bell.ring_all()


class Inbox:
    """Requests for some services, peers in turns; made by Node.serve. Several tasks may take from one inbox."""

    def __init__(self, sync: RingingInbox) -> None:
        self._sync = sync
        self._taken = 0

    @property
    def services(self) -> Sequence[str]:
        """What is served through it."""
        return self._sync.services

    @property
    def closed(self) -> bool:
        """True once nothing will come any more."""
        return self._sync.closed

    async def get(self, timeout_s: float | None = None) -> Request | None:
        """A request that somebody still waits for, of the peer whose turn it is.

        Returns:
            None after the timeout, or when the inbox is closed.
        """
        until = time.monotonic() + seconds.wait(timeout_s)
        while True:
            request = self._sync.get(0.0)
            if request is not None:
                self._taken += 1
                if self._taken % FAIR == 0:
                    await asyncio.sleep(0)
                return Request(request)
            left_s = until - time.monotonic()
            if self._sync.closed or left_s <= 0:
                return None
            await self._sync.bell.wait(lambda: self._sync.ready, left_s)

    def close(self) -> None:
        """Stop serving: waiting requests are refused "closing", later ones "unknown_service"."""
        self._sync.close()

    def __aiter__(self) -> Inbox:
        return self

    async def __anext__(self) -> Request:
        request = await self.get()
        if request is None:
            raise StopAsyncIteration
        return request

    async def __aenter__(self) -> Inbox:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.close()
