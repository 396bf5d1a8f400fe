"""What a library has to offer to be measured, and the few pieces that all of them share.

A module of libs/ has `serve(config, ready)`, which answers until its process ends, and `connect(config)`, which gives a
Device. Where leaving has to be orderly it has `end()` as well, which lets serve() return. A device process calls the
methods of its Device by name; the methods that a workload needs beyond `rounds` and `stream` are named there.
registry.py says which distributions and programs each needs.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

WINDOW = 4  # tensors on their way at once
PAYLOAD = bytes(range(200))  # of a draft
ASK_S = 10.0  # longest wait for one answer
MANY = 1 << 30  # tensors: until told to stop, or out of time
SERVICE, BULK = "draft", "tensor"
Tensor = npt.NDArray[np.float32]


class Draft(msgspec.Struct, array_like=True):
    """What a library without messages of its own carries: an id, a service and the payload."""

    id: int
    service: str
    payload: bytes


encode: Callable[[Draft], bytes] = msgspec.msgpack.Encoder().encode
decode: Callable[[Any], Draft] = msgspec.msgpack.Decoder(Draft).decode


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What a server or device process is told.

    Args:
        lib: module of libs/.
        flavour: which way of that library, "" if there is one.
        secure: with CURVE.
        directory: where keys and sockets may lie; private to this run.
        endpoint: where the server (or broker) is; a device is told what the server announced.
        core: the core to stay on, None for any.
        links: how many links a server has to expect.
        shared_memory: whether tensors may go through memory that both processes see.
    """

    lib: str
    flavour: str = ""
    secure: bool = False
    directory: str = ""
    endpoint: str = ""
    core: int | None = None
    links: int = 1
    shared_memory: bool = False


Ready = Callable[[str], None]


class Device(Protocol):
    """One end of a connection, asked for what is measured."""

    def rounds(self, count: int, max_s: float) -> list[float]:
        """Seconds of each of `count` round trips of a draft, one after the other."""
        ...

    def stream(self, num_bytes: int, count: int, max_s: float) -> dict[str, float]:
        """Send `count` tensors with WINDOW on their way, each acknowledged once it was read."""
        ...

    def close(self) -> None:
        """Let go of sockets and threads."""
        ...


def timed(ask: Callable[[bytes], bytes], count: int, max_s: float) -> list[float]:
    """Seconds of each round trip, until there are `count` or max_s seconds are over; every answer is checked."""
    seconds = []
    until = time.perf_counter() + max_s
    for _ in range(count):
        before = time.perf_counter()
        answer = ask(PAYLOAD)
        after = time.perf_counter()
        assert answer == PAYLOAD
        seconds.append(after - before)
        if after > until:
            break
    return seconds


class Tensors:
    """As many tensors as may be on their way, each stamped with its position before it goes.

    The values are random, so that every page is there; a place is used again only after its tensor was acknowledged.
    """

    def __init__(self, num_bytes: int) -> None:
        values = np.random.default_rng(1).random((WINDOW, num_bytes // 4), np.float32)
        self._places = list(values)

    def stamped(self, pos: int) -> Tensor:
        """The tensor to send as number `pos`, a view that may be frozen."""
        place: Tensor = self._places[pos % WINDOW]
        place[0] = place[-1] = pos
        return place.view()


@lru_cache(maxsize=2)
def tensors_of(num_bytes: int) -> Tensors:
    """The tensors of one size; made once, so that a measurement after a warm-up does not pay for them."""
    return Tensors(num_bytes)


def free_port() -> int:
    """A loopback port that nobody listens on, for libraries that cannot choose one themselves."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def receipt(data: Any) -> bytes:
    """What a server answers to a tensor: the number it reads at both ends.

    Args:
        data: a buffer or an array.
    """
    values = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.float32)
    assert values[0] == values[-1], "the tensor was overwritten on its way"
    return values[:1].tobytes()


def check_receipt(data: Any, pos: int) -> None:
    """Hold a receipt against the tensor it is for."""
    assert np.frombuffer(data, np.float32)[0] == pos, f"receipt of another tensor than {pos}"


def streamed(
    send: Callable[[Tensor], Any],
    receive: Callable[[], Any],
    num_bytes: int,
    count: int,
    max_s: float,
    going_on: Callable[[], bool] = lambda: True,
) -> dict[str, float]:
    """Send tensors with WINDOW on their way; receipts come in order.

    Args:
        send: hands one over.
        receive: waits for the next receipt.
        num_bytes: of a tensor.
        count: at most so many.
        max_s: none is begun later than this.
        going_on: asked before each.

    Returns:
        count and seconds.
    """
    tensors = tensors_of(num_bytes)
    sent = done = 0
    begun = time.perf_counter()
    while True:
        while sent < count and sent - done < WINDOW and time.perf_counter() - begun < max_s and going_on():
            send(tensors.stamped(sent))
            sent += 1
        if done == sent:
            return {"count": done, "seconds": time.perf_counter() - begun}
        check_receipt(receive(), done)
        done += 1


def beside(
    rounds: Callable[[], list[float]], stream: Callable[[Callable[[], bool]], dict[str, float]]
) -> dict[str, Any]:
    """Round trips while another thread streams, begun once its window has been full.

    Args:
        rounds: measures the round trips.
        stream: streams tensors; what it is given says whether to go on.

    Returns:
        rounds, and what the stream returned for its whole time.
    """
    full, ended = threading.Event(), threading.Event()
    results: list[dict[str, float]] = []
    begun = 0

    def going_on() -> bool:
        nonlocal begun
        begun += 1
        if begun > 2 * WINDOW:
            full.set()
        return not ended.is_set()

    def work() -> None:
        try:
            results.append(stream(going_on))
        finally:
            full.set()  # it failed: do not wait for it

    thread = threading.Thread(target=work)
    thread.start()
    try:
        full.wait(ASK_S)
        seconds = rounds()
    finally:
        ended.set()
        thread.join()
    return {"rounds": seconds, **results[0]}
