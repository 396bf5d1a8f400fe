"""NATS with nats-py through a nats-server of our own: requests for drafts, publications for tensors."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import nats

from bench.peers.contract import (
    ASK_S,
    PAYLOAD,
    SERVICE,
    WINDOW,
    Config,
    Draft,
    Ready,
    check_receipt,
    decode,
    encode,
    receipt,
    tensors_of,
)

_DRAFTS, _TENSORS, _ANSWERS = "bench.drafts", "bench.tensors", "bench.answers"
_PENDING_BYTES = 256 << 20


async def _serve(config: Config, ready: Ready) -> None:
    client = await nats.connect(config.endpoint, pending_size=_PENDING_BYTES)

    async def answer(message: Any) -> None:
        await message.respond(encode(decode(message.data)))

    async def take(message: Any) -> None:
        await client.publish(_ANSWERS, receipt(message.data))

    await client.subscribe(_DRAFTS, cb=answer)
    await client.subscribe(_TENSORS, cb=take, pending_bytes_limit=_PENDING_BYTES)
    await client.flush()
    ready(config.endpoint)
    await asyncio.Event().wait()


def serve(config: Config, ready: Ready) -> None:
    """Answer in an event loop."""
    asyncio.run(_serve(config, ready))


class Device:
    """A client in an event loop that runs while something is measured, and on a thread to keep it alive between."""

    def __init__(self, config: Config) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._run(self._connect(config.endpoint), ASK_S)

    def rounds(self, count: int, max_s: float) -> list[float]:
        """See contract."""
        return list(self._run(self._rounds(count, max_s), max_s + ASK_S))

    def stream(self, num_bytes: int, count: int, max_s: float) -> dict[str, float]:
        """See contract; the client takes bytes alone, so each tensor is copied into one."""
        return dict(self._run(self._stream(num_bytes, count, max_s), max_s + ASK_S))

    def close(self) -> None:
        """See contract."""
        self._run(self._client.close(), ASK_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Any, within_s: float) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(within_s)

    async def _connect(self, endpoint: str) -> None:
        self._client = await nats.connect(endpoint, pending_size=_PENDING_BYTES)
        self._answers = await self._client.subscribe(_ANSWERS)
        await self._client.flush()

    async def _rounds(self, count: int, max_s: float) -> list[float]:
        seconds: list[float] = []
        until = time.perf_counter() + max_s
        while len(seconds) < count and time.perf_counter() < until:
            before = time.perf_counter()
            answer = await self._client.request(_DRAFTS, encode(Draft(1, SERVICE, PAYLOAD)), timeout=ASK_S)
            got = decode(answer.data).payload
            seconds.append(time.perf_counter() - before)
            assert got == PAYLOAD
        return seconds

    async def _stream(self, num_bytes: int, count: int, max_s: float) -> dict[str, float]:
        tensors = tensors_of(num_bytes)
        sent = done = 0
        begun = time.perf_counter()
        while True:
            while sent < count and sent - done < WINDOW and time.perf_counter() - begun < max_s:
                await self._client.publish(_TENSORS, tensors.stamped(sent).tobytes())
                sent += 1
            if done == sent:
                return {"count": done, "seconds": time.perf_counter() - begun}
            check_receipt((await self._answers.next_msg(ASK_S)).data, done)
            done += 1


connect = Device
