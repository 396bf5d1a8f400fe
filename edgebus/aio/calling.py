"""The calling side for asyncio: links, requests on their way, and streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

from edgebus import seconds
from edgebus.aio.loops import FAIR, Bell, outcome
from edgebus.arrays import Array
from edgebus.calls import Part, Reply
from edgebus.errors import QueueFull
from edgebus.messages import MAX_TIMEOUT_S

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from edgebus import calls, links, stream
    from edgebus.link_states import Health
    from edgebus.loans import Loan
    from edgebus.stats import LinkStats

_ROOM_LOOK_S = 0.005


class Pending:
    """A request on its way: `await` it for the reply. Cancelling a task that does cancels the request."""

    def __init__(self, pending: calls.Pending) -> None:
        self._pending = pending
        self._bell = Bell()
        pending.on_done = self._bell.ring_all

    def done(self) -> bool:
        """True once awaiting it returns or raises at once."""
        return self._pending.done()

    @property
    def outcome(self) -> str | None:
        """answered, refused, expired, unknown or cancelled; None before that."""
        return self._pending.outcome

    def cancel(self) -> None:
        """Give up: whoever awaits it gets RequestCancelled, unless there is an outcome already."""
        self._pending.cancel()

    async def result(self) -> Reply:
        """The reply; raises as edgebus.Pending.result."""
        try:
            await self._bell.wait(self._pending.done)
        except asyncio.CancelledError:
            self._pending.cancel()
            raise
        return self._pending.result()

    def __await__(self) -> Generator[Any, None, Reply]:
        return self.result().__await__()


class Stream:
    """Parts that a server pushes, each exactly once and in order; made by Link.stream.

    `async for` takes the parts and raises what result() raises if the stream did not end with an answer; a task that is
    cancelled in it cancels the stream, and so does leaving `async with`.
    """

    def __init__(self, sync: stream.Stream) -> None:
        self._sync = sync
        self._taken = 0
        self._bell = Bell()
        sync.on_news(self._bell.ring_all)

    @property
    def position(self) -> int:
        """Position of the next part."""
        return self._sync.position

    @property
    def ended(self) -> bool:
        """True once there will be no more parts."""
        return self._sync.ended

    async def get(self, timeout_s: float | None = None) -> Part | None:
        """The next part; None after the timeout, or at the end. Cancelling this leaves the stream as it is."""
        until = time.monotonic() + seconds.wait(timeout_s)
        while await self._bell.wait(lambda: self._sync.ready, until - time.monotonic()):
            self._taken += 1
            if self._taken % FAIR == 0:
                await asyncio.sleep(0)
            part = self._sync.get(0.0)
            if part is not None or self._sync.ended:
                return part  # else another task was quicker
        return None

    async def result(self) -> Reply:
        """The answer that ended the stream; parts not taken yet stay there. Raises as edgebus.Pending.result."""
        await self._bell.wait(self._sync.done)
        return self._sync.result()

    def cancel(self) -> None:
        """Tell the server that no more parts are wanted."""
        self._sync.cancel()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Part:
        try:
            part = await self.get()
        except asyncio.CancelledError:
            self._sync.cancel()
            raise
        if part is None:
            self._sync.result()
            raise StopAsyncIteration
        return part

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._sync.cancel()


class Link:
    """A link to another node; made by Node.connect. Arguments and errors are those of edgebus.Link."""

    def __init__(self, sync: links.Link, waits: bool) -> None:
        self.sync = sync
        self._waits = waits  # for room, where a sync link would hold the thread

    @property
    def endpoint(self) -> str:
        """Where the other node is."""
        return self.sync.endpoint

    @property
    def peer_name(self) -> str:
        """What the other node calls itself."""
        return self.sync.peer_name

    @property
    def health(self) -> Health:
        """Whether the peer can be reached, and if its application looks at its requests."""
        return self.sync.health

    def loan(self, shape: int | tuple[int, ...], dtype: DTypeLike = "float32") -> Loan:
        """An array to be filled in place and sent over this link. As edgebus.Link.loan."""
        return self.sync.loan(shape, dtype)

    async def request(
        self,
        service: str,
        payload: bytes = b"",
        arrays: Sequence[Array] = (),
        timeout_s: float = 10.0,
        *,
        key: bytes = b"",
        sequence: tuple[int, int] | None = None,
        copy: bool = True,
    ) -> Reply:
        """Send a request and wait for its reply; cancelling the task cancels the request."""

        def start(left_s: float) -> calls.Pending:
            return self.sync.send_request(service, payload, arrays, left_s, key=key, sequence=sequence, copy=copy)

        return await outcome(
            await self._when_room(start, payload, arrays, timeout_s) if self._waits else start(timeout_s)
        )

    async def send_request(
        self,
        service: str,
        payload: bytes = b"",
        arrays: Sequence[Array] = (),
        timeout_s: float = 10.0,
        *,
        key: bytes = b"",
        sequence: tuple[int, int] | None = None,
        copy: bool = True,
    ) -> Pending:
        """Send a request, to await what this returns later: `pending = await link.send_request(...)`."""

        def start(left_s: float) -> calls.Pending:
            return self.sync.send_request(service, payload, arrays, left_s, key=key, sequence=sequence, copy=copy)

        return Pending(await self._when_room(start, payload, arrays, timeout_s))

    async def send(
        self,
        service: str,
        payload: bytes = b"",
        arrays: Sequence[Array] = (),
        timeout_s: float = 10.0,
        *,
        key: bytes = b"",
        sequence: tuple[int, int] | None = None,
        copy: bool = True,
    ) -> Pending:
        """Send a message that needs no answer; await what this returns to know that it has been taken over there."""

        def start(left_s: float) -> calls.Pending:
            return self.sync.send(service, payload, arrays, left_s, key=key, sequence=sequence, copy=copy)

        return Pending(await self._when_room(start, payload, arrays, timeout_s))

    def stream(
        self,
        service: str,
        payload: bytes = b"",
        arrays: Sequence[Array] = (),
        timeout_s: float = MAX_TIMEOUT_S,
        *,
        from_pos: int = 0,
        window_bytes: int = 1 << 20,
        copy: bool = True,
    ) -> Stream:
        """Ask for a stream of parts: `async for part in link.stream(...)`. Without room it raises QueueFull at once."""
        return Stream(
            self.sync.stream(
                service, payload, arrays, timeout_s, from_pos=from_pos, window_bytes=window_bytes, copy=copy
            )
        )

    def stats(self) -> LinkStats:
        """Counters of this link."""
        return self.sync.stats()

    def move(self, endpoint: str, server_key: str | None = None) -> None:
        """Go on at another address; as edgebus.Link.move."""
        self.sync.move(endpoint, server_key)

    async def close(self, linger_s: float = 1.0) -> None:
        """Say goodbye and close; outstanding requests end as NodeClosed. Closing twice is fine."""
        self.sync.close(linger_s)  # lingers in the background

    async def __aenter__(self) -> Link:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _when_room(
        self, start: Callable[[float], calls.Pending], payload: bytes, arrays: Sequence[Array], timeout_s: float
    ) -> calls.Pending:
        """Start a request; with on_full = "wait" as soon as there is room for it, in what is left of its timeout."""
        if not self._waits:
            return start(timeout_s)
        timeout_s = seconds.deadline(timeout_s)
        num_bytes = len(payload) + sum(array.nbytes for array in arrays)
        until = time.monotonic() + timeout_s
        while True:
            if self.sync.has_room(num_bytes):
                try:
                    return start(max(1e-3, until - time.monotonic()))
                except QueueFull:
                    pass  # another loop or thread was quicker
            if time.monotonic() >= until:
                raise QueueFull(
                    f"{self.endpoint}: no room for {num_bytes} B within {timeout_s:.3g} s (max_outstanding_bytes): "
                    "wait for outcomes, or see Limits.on_full"
                )
            await asyncio.sleep(_ROOM_LOOK_S)
