"""iceoryx2 on one host: slices of bytes published through shared memory, each announced by an event."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from typing import Any

import iceoryx2 as iox2
import numpy as np

from bench.peers.contract import (
    ASK_S,
    SERVICE,
    WINDOW,
    Config,
    Draft,
    Ready,
    check_receipt,
    decode,
    encode,
    receipt,
    streamed,
    tensors_of,
    timed,
)

MAX_BYTES = 16 << 20
_SMALL_BYTES = 1024
_Bytes = iox2.Slice[ctypes.c_uint8]
_WAIT_S = 0.5
_ending, _ended = threading.Event(), threading.Event()


class _Way:
    """One direction: a publisher or subscriber for slices, and an event that says one is there."""

    def __init__(self, node: Any, name: str, max_bytes: int, *, sends: bool) -> None:
        def service(kind: str) -> Any:
            return node.service_builder(iox2.ServiceName.new(f"{name}/{kind}"))

        slices = (
            service("slices")
            .publish_subscribe(_Bytes)
            .subscriber_max_buffer_size(2 * WINDOW)
            .subscriber_max_borrowed_samples(2)
            .enable_safe_overflow(False)
            .open_or_create()
        )
        event = service("event").event().open_or_create()
        if sends:
            self._publisher = slices.publisher_builder().initial_max_slice_len(max_bytes).create()
            self._notifier = event.notifier_builder().create()
        else:
            self._subscriber = slices.subscriber_builder().create()
            self._listener = event.listener_builder().create()

    def send(self, data: Any, num_bytes: int) -> None:
        """Copy `data`, an address or bytes, into shared memory, hand it over and say so."""
        sample = self.loan(num_bytes)
        ctypes.memmove(sample.payload_ptr, data, num_bytes)
        self.hand_over(sample)

    def loan(self, num_bytes: int) -> Any:
        """Shared memory to be filled."""
        return self._publisher.loan_slice_uninit(num_bytes)

    def hand_over(self, sample: Any) -> None:
        """Publish what was filled, and say so."""
        sample.assume_init().send()
        self._notifier.notify()

    def receive(self, within_s: float) -> Any:
        """The next sample, None if there is none in time."""
        until = time.monotonic() + within_s
        while (sample := self._subscriber.receive()) is None:
            left_s = until - time.monotonic()
            if left_s <= 0:
                return None
            self._listener.timed_wait(iox2.Duration.from_secs_f64(left_s))
        return sample


def _view(sample: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(sample.payload().as_memory_view(), np.uint8)


def _node(config: Config) -> Any:
    iox2.set_log_level(iox2.LogLevel.Error)
    own = iox2.config.default()
    own.global_cfg.root_path = iox2.Path.new(config.directory)
    return iox2.NodeBuilder.new().config(own).create(iox2.ServiceType.Ipc)


def end() -> None:
    """Have serve() return, which removes what lies in shared memory; a process that just ends leaves it."""
    _ending.set()
    _ended.wait(2 * _WAIT_S)


def serve(config: Config, ready: Ready) -> None:
    """Answer drafts with drafts, tensors with receipts and the time they were read."""
    name = f"bench/{os.getpid()}"
    node = _node(config)
    asked = _Way(node, f"{name}/asked", MAX_BYTES, sends=False)
    answered = _Way(node, f"{name}/answered", _SMALL_BYTES, sends=True)
    ready(name)
    while not _ending.is_set():
        if (sample := asked.receive(_WAIT_S)) is None:
            continue
        data = _view(sample)
        if data.nbytes <= _SMALL_BYTES:
            answer = encode(decode(data))
        else:
            answer = receipt(data.view(np.float32)) + np.float64(time.perf_counter()).tobytes()
        answered.send(answer, len(answer))
        del data
        sample.delete()
    del asked, answered, node
    _ended.set()


class Device:
    """The other ends."""

    def __init__(self, config: Config) -> None:
        self._node = _node(config)
        self._asked = _Way(self._node, f"{config.endpoint}/asked", MAX_BYTES, sends=True)
        self._answered = _Way(self._node, f"{config.endpoint}/answered", _SMALL_BYTES, sends=False)

    def rounds(self, count: int, max_s: float) -> list[float]:
        """See contract."""
        return timed(self._ask, count, max_s)

    def stream(self, num_bytes: int, count: int, max_s: float) -> dict[str, float]:
        """See contract."""
        return streamed(self._send_tensor, lambda: self._receive()[:4], num_bytes, count, max_s)

    def hand_over(self, num_bytes: int, count: int, max_s: float, loan: bool = False) -> dict[str, list[float]]:
        """Seconds from before the copy until the server had read both ends, and until its answer was here.

        With `loan` the time is from when the loaned memory is full.
        """
        tensors = tensors_of(num_bytes)
        one_way, answered = [], []
        until = time.perf_counter() + max_s
        for pos in range(count):
            tensor = tensors.stamped(pos)
            sample = self._asked.loan(num_bytes) if loan else None
            if sample is not None:
                ctypes.memmove(sample.payload_ptr, tensor.ctypes.data, num_bytes)
            before = time.perf_counter()
            if sample is not None:
                self._asked.hand_over(sample)
            else:
                self._send_tensor(tensor)
            answer = self._receive()
            after = time.perf_counter()
            check_receipt(answer[:4], pos)
            one_way.append(float(np.frombuffer(answer[4:])[0]) - before)
            answered.append(after - before)
            if after > until:
                break
        return {"one_way": one_way, "answered": answered}

    def close(self) -> None:
        """See contract."""
        del self._asked, self._answered, self._node

    def _send_tensor(self, tensor: Any) -> None:
        self._asked.send(tensor.ctypes.data, tensor.nbytes)

    def _receive(self) -> bytes:
        sample = self._answered.receive(ASK_S)
        assert sample is not None, f"no answer after {ASK_S:.0f} s"
        data = _view(sample).tobytes()
        sample.delete()
        return data

    def _ask(self, payload: bytes) -> bytes:
        raw = encode(Draft(1, SERVICE, payload))
        self._asked.send(raw, len(raw))
        return decode(self._receive()).payload


connect = Device
