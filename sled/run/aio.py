"""The device for asyncio: the same answers, tokens and errors, awaited. Each device has a thread of its own.

    async with await sled.AsyncDevice.open("tcp://10.0.0.5:5555", server_key="server.key", keys="keys") as device:
        async for token in device.generate("Why is the sky blue?"):
            print(token.text, end="", flush=True)

A task that is cancelled while it waits for a token cancels the answer: the device is free at once, and the server
forgets the session. That is how asyncio's timeouts end an answer, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from edgebus.aio.loops import FAIR, Bell, post
from sled.errors import ParameterError
from sled.run.device import Answer, Device, Stream
from sled.run.pump import Pump, Worker
from sled.types import Message, Token

if TYPE_CHECKING:
    from sled.device import Conversation
    from sled.drafters import Drafter
    from sled.events import Event
    from sled.messages import Described

T = TypeVar("T")


class AsyncDevice:
    """A device whose answers are awaited; made by `AsyncDevice.open`. One answer at a time.

    Attributes:
        sync: the device underneath; its methods block, and belong to its thread.
    """

    def __init__(self, device: Device, worker: Worker) -> None:
        self.sync = device
        self._worker = worker
        self._current: Pump[Any] | None = None
        self._closed = False

    @classmethod
    async def open(cls, server: str | Sequence[str], **options: Any) -> AsyncDevice:
        """Connect to a server and load the drafter; cancelling this leaves nothing open.

        Args:
            server: endpoint, or several of the same target.
            options: as `sled.Device` takes them.

        Raises:
            As sled.Device.
        """
        worker = Worker("sled-device")
        made: list[Device] = []
        try:
            await _done_by(worker, lambda: made.append(Device(server, **options)))
            return cls(made[0], worker)
        except BaseException:
            worker.do(lambda: _close_all(made))  # also one that comes when nobody waits any more
            worker.end()
            raise

    @property
    def target(self) -> Described:
        """What the server has said about its model."""
        return self.sync.target

    @property
    def drafter(self) -> Drafter:
        """What drafts."""
        return self.sync.drafter

    @property
    def server(self) -> str:
        """Endpoint of the server that is asked now."""
        return self.sync.server

    def generate(self, prompt: str | list[int] | Conversation, **options: Any) -> AsyncStream:
        """An answer, to iterate over or to await as a whole; it begins when somebody does.

        Args:
            prompt, options: as `sled.Device.generate` takes them.

        Raises:
            ParameterError: a value out of range.
        """
        return AsyncStream(self, self.sync.generate(prompt, **options))

    def chat(self, messages: Sequence[Message | Mapping[str, str]], **options: Any) -> AsyncStream:
        """The next answer of a conversation; as `sled.Device.chat`."""
        return AsyncStream(self, self.sync.chat(messages, **options))

    def resume(self, path: str | Path, **options: Any) -> AsyncStream:
        """Go on with a saved answer; as `sled.Device.resume`."""
        return AsyncStream(self, self.sync.resume(path, **options))

    async def close(self) -> None:
        """Break off what is running and close the links; closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        if self._current is not None:
            self._current.cancel()
        try:
            await _done_by(self._worker, self.sync.close)
        finally:
            self._worker.end()
        self._worker.join()  # it has nothing left to do

    async def __aenter__(self) -> AsyncDevice:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        if not self._closed:
            self._worker.do(self.sync.close)
            self._worker.end()

    def _start(self, pump: Pump[Any]) -> None:
        if self._closed:
            raise ParameterError("this device is closed; open another one")
        if self._current is not None and not self._current.over and not self._current.cancelled:
            raise ParameterError("this device is busy with another answer; finish it, or close() it first")
        self._current = pump
        self._worker.do(pump.run)


class AsyncStream:
    """One answer: `async for` its tokens, or its `events()`; `await answer()` for the whole.

    Tokens come as the thread of the device gets them, which is at most `sled.run.pump.AHEAD` ahead of the loop: an
    application that reads slowly slows the answer down, and fills no memory. One that stops reading calls `close()`, or
    uses `async with`.
    """

    def __init__(self, device: AsyncDevice, sync: Stream) -> None:
        self._device, self.sync = device, sync
        self._taken: _Taken[Any] | None = None

    def __aiter__(self) -> _Taken[Token]:
        sync = self.sync  # the pump must not know us: a stream that is forgotten ends
        return self._items(lambda: iter(sync))

    def events(self) -> _Taken[Event]:
        """All that happens to the answer, as `sled.Stream.events` tells it."""
        return self._items(self.sync.events)

    async def answer(self) -> Answer:
        """Wait for the end of the answer and return it.

        Raises:
            AnswerIncomplete: it was broken off.
        """
        async for _ in self:
            pass
        return self.sync.answer()  # the pump is over: nothing in it waits, and the worker may have other work, or none

    async def close(self) -> None:
        """Break the answer off; when this returns the server's session is closed."""
        if self._taken is not None:
            await self._taken.close()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _items(self, items: Callable[[], Any]) -> _Taken[Any]:
        if self._taken is None:
            bell = Bell()
            pump = Pump[Any](self.sync, items, on_news=bell.ring_all)
            self._device._start(pump)
            self._taken = _Taken(pump, bell)
        return self._taken


class _Taken(Generic[T]):
    """What a pump brings, for a loop. It is not what the pump knows of: one that is forgotten cancels the pump."""

    def __init__(self, pump: Pump[T], bell: Bell) -> None:
        self._pump, self._bell, self._count = pump, bell, 0

    def __aiter__(self) -> _Taken[T]:
        return self

    async def __anext__(self) -> T:
        pump = self._pump
        self._count += 1
        try:
            if self._count % FAIR == 0:
                await asyncio.sleep(0)  # other tasks get their turn while many items wait
            await self._bell.wait(lambda: pump.ready)
        except asyncio.CancelledError:
            pump.cancel()
            raise
        item = pump.take(0.0)
        if item is None:
            raise StopAsyncIteration
        return item

    async def close(self) -> None:
        self._pump.cancel()
        await self._bell.wait(lambda: self._pump.over)

    def __del__(self) -> None:
        self._pump.cancel()


def _close_all(devices: Sequence[Device]) -> None:
    for device in devices:
        device.close()


async def _done_by(worker: Worker, function: Callable[[], T]) -> T:
    """Have a worker call something, and wait for it; cancelling this does not stop the worker."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast(T, result))

    def run() -> None:
        try:
            result = function()
        except BaseException as error:
            post(loop, tell, None, error)
        else:
            post(loop, tell, result, None)

    worker.do(run)
    return await future
