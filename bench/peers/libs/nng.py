"""nng over loopback tcp: a pair of Pair0 sockets for drafts and another for tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pynng

from bench.peers.contract import (
    ASK_S,
    SERVICE,
    Config,
    Draft,
    Ready,
    decode,
    encode,
    receipt,
    streamed,
    timed,
)


def _pair(**how: Any) -> pynng.Pair0:
    pair = pynng.Pair0(recv_max_size=0, **how)  # 0: no bound, a tensor is above the default
    pair.tcp_nodelay = True
    return pair


def _answer_all(pair: pynng.Pair0, answer: Callable[[bytes], bytes]) -> None:
    while True:
        pair.send(answer(pair.recv()))


def serve(config: Config, ready: Ready) -> None:
    """Answer one device, each kind of message on a thread of its own."""
    pairs = [_pair(listen="tcp://127.0.0.1:0") for _ in range(2)]
    threading.Thread(target=_answer_all, args=(pairs[1], receipt), daemon=True).start()
    ready(" ".join(f"tcp://{pair.listeners[0].local_address}" for pair in pairs))
    _answer_all(pairs[0], lambda raw: encode(decode(raw)))


class Device:
    """The other ends."""

    def __init__(self, config: Config) -> None:
        self._drafts, self._tensors = (
            _pair(dial=place, block_on_dial=True, recv_timeout=int(ASK_S * 1000))
            for place in config.endpoint.split(" ")
        )

    def rounds(self, count: int, max_s: float) -> list[float]:
        """See contract."""
        return timed(self._ask, count, max_s)

    def stream(self, num_bytes: int, count: int, max_s: float) -> dict[str, float]:
        """See contract; the binding takes bytes alone, so each tensor is copied into one."""
        return streamed(
            lambda tensor: self._tensors.send(tensor.tobytes()), self._tensors.recv, num_bytes, count, max_s
        )

    def close(self) -> None:
        """See contract."""
        self._drafts.close()
        self._tensors.close()

    def _ask(self, payload: bytes) -> bytes:
        self._drafts.send(encode(Draft(1, SERVICE, payload)))
        return decode(self._drafts.recv()).payload


connect = Device
