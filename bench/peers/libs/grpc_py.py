"""gRPC without generated code: generic handlers over bytes, unary calls or one bidirectional stream."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc

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

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
]
_UNARY, _STREAM, _TENSORS = "/bench.Peers/Ask", "/bench.Peers/AskMany", "/bench.Peers/Tensors"


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The three methods, whose messages are bytes."""

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a method."""
        return {
            _UNARY: grpc.unary_unary_rpc_method_handler(lambda raw, _: encode(decode(raw))),
            _STREAM: grpc.stream_stream_rpc_method_handler(lambda raws, _: (encode(decode(raw)) for raw in raws)),
            _TENSORS: grpc.stream_stream_rpc_method_handler(lambda raws, _: (receipt(raw) for raw in raws)),
        }.get(handler_call_details.method)


def serve(config: Config, ready: Ready) -> None:
    """Answer until the process ends."""
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=(_Handlers(),), options=_OPTIONS)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    ready(f"127.0.0.1:{port}")
    threading.Event().wait()


class _Stream:
    """One bidirectional call, fed through a queue."""

    def __init__(self, channel: Any, method: str) -> None:
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._answers = channel.stream_stream(method)(self._outgoing())

    def send(self, message: bytes) -> None:
        """Queue one."""
        self._queue.put(message)

    def receive(self) -> bytes:
        """The next answer."""
        return bytes(next(self._answers))

    def close(self) -> None:
        """End the call."""
        self._queue.put(None)
        self._answers.cancel()

    def _outgoing(self) -> Iterator[bytes]:
        while (message := self._queue.get()) is not None:
            yield message


class Device:
    """A channel with one call of each kind."""

    def __init__(self, config: Config) -> None:
        self._channel = grpc.insecure_channel(config.endpoint, options=_OPTIONS)
        grpc.channel_ready_future(self._channel).result(ASK_S)
        self._unary = self._channel.unary_unary(_UNARY)
        self._drafts, self._tensors = _Stream(self._channel, _STREAM), _Stream(self._channel, _TENSORS)
        self._ask = self._ask_unary if config.flavour == "unary" else self._ask_stream

    def rounds(self, count: int, max_s: float) -> list[float]:
        """See contract."""
        return timed(self._ask, count, max_s)

    def stream(self, num_bytes: int, count: int, max_s: float) -> dict[str, float]:
        """See contract; a message is bytes, so each tensor is copied into one."""
        return streamed(
            lambda tensor: self._tensors.send(tensor.tobytes()), self._tensors.receive, num_bytes, count, max_s
        )

    def close(self) -> None:
        """See contract."""
        self._drafts.close()
        self._tensors.close()
        self._channel.close()

    def _ask_unary(self, payload: bytes) -> bytes:
        return decode(self._unary(encode(Draft(1, SERVICE, payload)), timeout=ASK_S)).payload

    def _ask_stream(self, payload: bytes) -> bytes:
        self._drafts.send(encode(Draft(1, SERVICE, payload)))
        return decode(self._drafts.receive()).payload


connect = Device
