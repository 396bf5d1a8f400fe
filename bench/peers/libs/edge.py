"""edgebus: a node that serves, a node that dials; insecure or with CURVE, through shared memory or not."""

from __future__ import annotations

import inspect
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

import edgebus
from bench.peers.contract import (
    ASK_S,
    BULK,
    MANY,
    PAYLOAD,
    SERVICE,
    Config,
    Ready,
    Tensor,
    beside,
    check_receipt,
    receipt,
    streamed,
    tensors_of,
    timed,
)

_READ = "bench.read"  # a tensor whose answer tells when it was read
_SERVER_KEYS = "server"


def _limits(config: Config) -> edgebus.Limits:
    """Room for a window of tensors and for all links; shared memory only where it is what is measured.

    Raw pyzmq bounds what is on its way by a thousand messages. With our 32 MiB of default two tensors of 16 MiB fill
    the window, and four on their way cost a twentieth of the throughput (docs/adr/0008).
    """
    wanted: dict[str, Any] = {
        "max_frame_bytes": 32 << 20,
        "max_pending_bytes": 256 << 20,
        "max_outstanding_bytes": 256 << 20,
        "bulk_bytes": 128 << 20,
        "max_peers": max(256, config.links + 16),
        "max_links_per_key": max(32, config.links + 16),
    }
    if not config.shared_memory:
        wanted["share_bytes"] = 0
    known = {item.name for item in fields(edgebus.Limits)}  # an older version can be measured too
    return edgebus.Limits(**{name: value for name, value in wanted.items() if name in known})


def _node(config: Config, name: str) -> edgebus.Node:
    if not config.secure:
        return edgebus.Node(name, insecure=True, limits=_limits(config))
    directory = Path(config.directory) / (name if name == _SERVER_KEYS else f"{name}-{os.getpid()}")
    keys = edgebus.generate_keys(directory)
    allow = edgebus.AllowList.any() if name == _SERVER_KEYS else None
    return edgebus.Node(name, keys=keys, allow=allow, limits=_limits(config))


def serve(config: Config, ready: Ready) -> None:
    """Answer drafts and tensors on one thread, as they come."""
    with _node(config, _SERVER_KEYS) as node:
        inbox = node.serve(SERVICE, BULK, _READ)
        ready(node.bind("tcp://127.0.0.1:0"))
        while (request := inbox.get(None)) is not None:
            if not request.arrays:
                request.reply(request.payload)
                continue
            answer = receipt(request.arrays[0])
            if request.service == _READ:
                answer += np.float64(time.perf_counter()).tobytes()
            request.reply(answer)
            del request  # with its view of the tensor, as iceoryx2's sample is: the next one finds the memory free


class Device:
    """A node with a link to the server, and more of them where many are measured."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._server_key = None
        if config.secure:
            self._server_key = edgebus.read_public_key(Path(config.directory) / _SERVER_KEYS / "node.key")
        self._node = _node(config, "device")
        self._link = self._node.connect(config.endpoint, self._server_key, timeout_s=ASK_S)
        self._held: list[edgebus.Link] = []
        self._owned: dict[str, Any] = (
            {"copy": False} if "copy" in inspect.signature(self._link.send_request).parameters else {}
        )

    def rounds(self, count: int, max_s: float) -> list[float]:
        """See contract."""
        return timed(lambda payload: self._link.request(SERVICE, payload).payload, count, max_s)

    def stream(self, num_bytes: int, count: int, max_s: float) -> dict[str, float]:
        """See contract."""
        return self._stream(num_bytes, count, max_s, lambda: True)

    def beside(self, count: int, num_bytes: int, max_s: float) -> dict[str, Any]:
        """Round trips of drafts while another thread sends tensors over the same link."""
        return beside(
            lambda: self.rounds(count, max_s),
            lambda going_on: self._stream(num_bytes, MANY, 2 * max_s, going_on),
        )

    def hand_over(self, num_bytes: int, count: int, max_s: float, loan: bool = False) -> dict[str, list[float]]:
        """Seconds from before the call until the server had read both ends, and until its answer was here.

        With `loan` the tensor is filled in memory that both see, and the time is from when it is full.
        """
        tensors = tensors_of(num_bytes)
        one_way, answered = [], []
        until = time.perf_counter() + max_s
        for pos in range(count):
            tensor = tensors.stamped(pos)
            if loan:
                loaned = self._link.loan(tensor.shape, tensor.dtype)
                loaned[...] = tensor
                tensor = loaned
            before = time.perf_counter()
            answer = self._link.request(_READ, arrays=[tensor], timeout_s=ASK_S, **self._owned).payload
            after = time.perf_counter()
            check_receipt(answer[:4], pos)
            one_way.append(float(np.frombuffer(answer[4:])[0]) - before)
            answered.append(after - before)
            if after > until:
                break
        return {"one_way": one_way, "answered": answered}

    def hold(self, links: int) -> int:
        """Dial `links` more links and see that each gets an answer."""
        for _ in range(links):
            link = self._node.connect(self._config.endpoint, self._server_key, timeout_s=ASK_S)
            self._held.append(link)
            assert link.request(SERVICE, PAYLOAD).payload == PAYLOAD
        return len(self._held)

    def waves(self, count: int, depth: int, max_s: float) -> dict[str, float]:
        """Every held link sends `depth` drafts, then waits for their answers; the next wave begins then."""
        begun = time.perf_counter()
        done = 0
        for _ in range(count):
            for pending in [link.send_request(SERVICE, PAYLOAD) for link in self._held * depth]:
                assert pending.result().payload == PAYLOAD
            done += len(self._held) * depth
            if time.perf_counter() - begun > max_s:
                break
        return {"count": done, "seconds": time.perf_counter() - begun}

    def close(self) -> None:
        """See contract."""
        self._node.close()

    def _stream(self, num_bytes: int, count: int, max_s: float, going_on: Callable[[], bool]) -> dict[str, float]:
        waiting: deque[edgebus.Pending] = deque()

        def send(tensor: Tensor) -> None:
            waiting.append(self._link.send_request(BULK, arrays=[tensor], timeout_s=ASK_S, **self._owned))

        return streamed(send, lambda: waiting.popleft().result().payload, num_bytes, count, max_s, going_on)


connect = Device
