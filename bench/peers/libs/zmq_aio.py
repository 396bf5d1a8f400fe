"""zmq.asyncio with a msgspec codec: as zmq_raw, both ends in an event loop."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import zmq
import zmq.asyncio

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

_HEADER = encode(Draft(1, "tensor", b""))


async def _answer_drafts(router: zmq.asyncio.Socket) -> None:
    while True:
        route, raw = await router.recv_multipart()
        await router.send_multipart([route, encode(decode(raw))])


async def _answer_tensors(router: zmq.asyncio.Socket) -> None:
    while True:
        route, _, tensor = await router.recv_multipart(copy=False)
        await router.send_multipart([route.bytes, receipt(tensor.buffer)])


async def _serve(ready: Ready) -> None:
    routers = [zmq.asyncio.Context.instance().socket(zmq.ROUTER) for _ in range(2)]
    ready(" ".join(f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}" for router in routers))
    await asyncio.gather(_answer_drafts(routers[0]), _answer_tensors(routers[1]))


def serve(config: Config, ready: Ready) -> None:
    """Answer in an event loop: each kind of message has its socket, so that only tensors go without a copy."""
    asyncio.run(_serve(ready))


class Device:
    """Two DEALERs in an event loop that runs while something is measured."""

    def __init__(self, config: Config) -> None:
        self._runner = asyncio.Runner()
        self._context = zmq.asyncio.Context()
        self._peer, self._bulk = (self._dealer(place) for place in config.endpoint.split(" "))

    def rounds(self, count: int, max_s: float) -> list[float]:
        """See contract."""
        return self._runner.run(self._rounds(count, max_s))

    def stream(self, num_bytes: int, count: int, max_s: float) -> dict[str, float]:
        """See contract."""
        return self._runner.run(self._stream(num_bytes, count, max_s))

    def close(self) -> None:
        """See contract."""
        self._context.destroy(0)
        self._runner.close()

    def _dealer(self, endpoint: str) -> zmq.asyncio.Socket:
        dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.RCVTIMEO, int(ASK_S * 1000))
        dealer.connect(endpoint)
        return dealer

    async def _rounds(self, count: int, max_s: float) -> list[float]:
        seconds: list[float] = []
        until = time.perf_counter() + max_s
        while len(seconds) < count and time.perf_counter() < until:
            before = time.perf_counter()
            await self._peer.send(encode(Draft(1, SERVICE, PAYLOAD)))
            answer = decode(await self._peer.recv()).payload
            seconds.append(time.perf_counter() - before)
            assert answer == PAYLOAD
        return seconds

    async def _stream(self, num_bytes: int, count: int, max_s: float) -> dict[str, Any]:
        tensors = tensors_of(num_bytes)
        sent = done = 0
        begun = time.perf_counter()
        while True:
            while sent < count and sent - done < WINDOW and time.perf_counter() - begun < max_s:
                await self._bulk.send_multipart([_HEADER, tensors.stamped(sent)], copy=False)
                sent += 1
            if done == sent:
                return {"count": done, "seconds": time.perf_counter() - begun}
            check_receipt(await self._bulk.recv(), done)
            done += 1


connect = Device
