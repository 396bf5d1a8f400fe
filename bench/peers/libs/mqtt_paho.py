"""MQTT with paho-mqtt at QoS 0, through a mosquitto of our own."""

from __future__ import annotations

import queue
import threading
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

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

_DRAFTS, _TENSORS, _ANSWERS = "bench/drafts", "bench/tensors", "bench/answers"


def _client(endpoint: str, topics: tuple[str, ...], take: Any) -> mqtt.Client:
    """A connected client, its loop on a thread of its own, subscribed when this returns."""
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.max_queued_messages_set(0)
    subscribed = threading.Event()

    def connected(*_: Any) -> None:
        client.subscribe([(topic, 0) for topic in topics])

    client.on_connect = connected
    client.on_subscribe = lambda *_: subscribed.set()
    client.on_message = take
    host, port = endpoint.split(":")
    client.connect(host, int(port))
    client.loop_start()
    assert subscribed.wait(ASK_S), f"the broker at {endpoint} did not take the subscription in {ASK_S:.0f} s"
    return client


def serve(config: Config, ready: Ready) -> None:
    """Answer what comes over the broker."""

    def take(client: mqtt.Client, _: Any, message: mqtt.MQTTMessage) -> None:
        tensor = message.topic == _TENSORS
        client.publish(_ANSWERS, receipt(message.payload) if tensor else encode(decode(message.payload)))

    kept = _client(config.endpoint, (_DRAFTS, _TENSORS), take)
    ready(config.endpoint)
    threading.Event().wait()
    assert kept


class Device:
    """A client of the same broker."""

    def __init__(self, config: Config) -> None:
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._client = _client(config.endpoint, (_ANSWERS,), lambda _, __, message: self._answers.put(message.payload))

    def rounds(self, count: int, max_s: float) -> list[float]:
        """See contract."""
        return timed(self._ask, count, max_s)

    def stream(self, num_bytes: int, count: int, max_s: float) -> dict[str, float]:
        """See contract; the client takes bytes alone, so each tensor is copied into one."""
        return streamed(
            lambda tensor: self._client.publish(_TENSORS, tensor.tobytes()), self._receive, num_bytes, count, max_s
        )

    def close(self) -> None:
        """See contract."""
        self._client.disconnect()
        self._client.loop_stop()

    def _receive(self) -> bytes:
        return self._answers.get(timeout=ASK_S)

    def _ask(self, payload: bytes) -> bytes:
        self._client.publish(_DRAFTS, encode(Draft(1, SERVICE, payload)))
        return decode(self._receive()).payload


connect = Device
