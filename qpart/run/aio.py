"""The device for asyncio: the same answers and errors, awaited. Each device has a thread of its own.

    async with await qpart.AsyncDevice.open("tcp://10.0.0.5:5556", server_key="server.key", keys="keys") as device:
        await device.prepare(request)
        async for logits in device.infer_stream(images):
            print(logits.argmax(axis=1))

A task that is cancelled while it waits cancels what it waits for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

import numpy.typing as npt

from qpart.messages import Planned
from qpart.profile import Request
from qpart.quantiser import Floats
from qpart.run.device import Device

T = TypeVar("T")


class AsyncDevice:
    """A device whose answers are awaited; made by `AsyncDevice.open`. One thing at a time.

    Attributes:
        sync: the device underneath; its methods block, and belong to its thread.
    """

    def __init__(self, device: Device, thread: ThreadPoolExecutor) -> None:
        self.sync, self._thread = device, thread

    @classmethod
    async def open(cls, server: str | Sequence[str], **options: Any) -> AsyncDevice:
        """Connect to a server; cancelling this leaves nothing open.

        Args:
            server, options: as `Device` takes them.

        Raises:
            As Device.
        """
        thread = ThreadPoolExecutor(1, "qpart-device")
        future = thread.submit(lambda: Device(server, **options))
        try:
            return cls(await asyncio.wrap_future(future), thread)
        except BaseException:
            future.add_done_callback(_close)
            thread.shutdown(wait=False)
            raise

    async def prepare(self, request: Request, *, explain: bool = False) -> Planned:
        """As `Device.prepare`; what is being fetched is fetched to its end, whoever waits for it."""
        return await self._do(lambda: self.sync.prepare(request, explain=explain))

    async def infer(self, inputs: npt.NDArray[Any]) -> Floats:
        """As `Device.infer`."""
        return await self._do(lambda: self.sync.infer(inputs))

    async def infer_stream(self, inputs: Iterable[npt.NDArray[Any]], depth: int = 2) -> AsyncIterator[Floats]:
        """As `Device.infer_stream`; the inputs are taken on the device's thread, where waiting for them harms nobody.

        Leaving the loop early needs `aclose()` (`contextlib.aclosing`), as any asynchronous generator does.
        """
        stream = await self._do(lambda: self.sync.infer_stream(inputs, depth))
        try:
            while (logits := await self._do(lambda: next(stream, None))) is not None:
                yield logits
        finally:
            stream.cancel()
            await asyncio.shield(asyncio.wrap_future(self._thread.submit(stream.close)))

    async def close(self) -> None:
        """Give up what is on its way and close the links."""
        self.sync.cancel()
        await asyncio.wrap_future(self._thread.submit(self.sync.close))
        self._thread.shutdown(wait=False)

    async def __aenter__(self) -> AsyncDevice:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _do(self, function: Callable[[], T]) -> T:
        """Have the device's thread do something; cancelling the task gives up what the device waits for."""
        future = self._thread.submit(function)
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            self.sync.cancel()
            raise


def _close(opened: Future[Device]) -> None:
    """Close a device that nobody waits for any more."""
    if not opened.cancelled() and opened.exception() is None:
        opened.result().close()
