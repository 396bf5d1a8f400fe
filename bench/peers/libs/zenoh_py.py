"""zenoh over loopback tcp, without scouting: a query answered by a queryable, or a pair of subscribers."""

from __future__ import annotations

import json
import threading
import time

import zenoh

from bench.peers.contract import (
    ASK_S,
    SERVICE,
    Config,
    Draft,
    Ready,
    decode,
    encode,
    free_port,
    receipt,
    streamed,
    timed,
)

_QUERY, _DRAFTS, _TENSORS, _ANSWERS = "bench/query", "bench/drafts", "bench/tensors", "bench/answers"


def _session(key: str, endpoint: str) -> zenoh.Session:
    own = zenoh.Config()
    own.insert_json5("mode", '"peer"')
    own.insert_json5("scouting/multicast/enabled", "false")
    own.insert_json5("scouting/gossip/enabled", "false")
    own.insert_json5("transport/shared_memory/enabled", "false")  # by default large messages leave tcp on one host
    own.insert_json5(f"{key}/endpoints", json.dumps([endpoint]))
    if key == "connect":
        own.insert_json5("listen/endpoints", "[]")
    return zenoh.open(own)


def _publisher(session: zenoh.Session, key: str) -> zenoh.Publisher:
    # express: small messages leave at once instead of waiting for a batch
    return session.declare_publisher(key, congestion_control=zenoh.CongestionControl.BLOCK, express=True)


def serve(config: Config, ready: Ready) -> None:
    """Answer queries and publications until the process ends."""
    endpoint = f"tcp/127.0.0.1:{free_port()}"
    session = _session("listen", endpoint)
    answers = _publisher(session, _ANSWERS)

    def answer(query: zenoh.Query) -> None:
        assert query.payload is not None
        query.reply(_QUERY, encode(decode(query.payload.to_bytes())), express=True)

    kept = (
        session.declare_queryable(_QUERY, answer),
        session.declare_subscriber(_DRAFTS, lambda sample: answers.put(encode(decode(sample.payload.to_bytes())))),
        session.declare_subscriber(_TENSORS, lambda sample: answers.put(receipt(sample.payload.to_bytes()))),
    )
    ready(endpoint)
    threading.Event().wait()
    assert kept


class Device:
    """A session that knows the server's address."""

    def __init__(self, config: Config) -> None:
        self._session = _session("connect", config.endpoint)
        self._answers = self._session.declare_subscriber(_ANSWERS)
        self._drafts, self._tensors = (_publisher(self._session, key) for key in (_DRAFTS, _TENSORS))
        self._querier = self._session.declare_querier(_QUERY)
        self._ask = self._query if config.flavour == "query" else self._publish
        until = time.monotonic() + ASK_S
        while not (self._drafts.matching_status and self._tensors.matching_status and self._querier.matching_status):
            assert time.monotonic() < until, f"no subscriber at {config.endpoint} after {ASK_S:.0f} s"
            time.sleep(0.01)
        time.sleep(0.2)  # the way back has to be known over there too, which nothing here tells

    def rounds(self, count: int, max_s: float) -> list[float]:
        """See contract."""
        return timed(self._ask, count, max_s)

    def stream(self, num_bytes: int, count: int, max_s: float) -> dict[str, float]:
        """See contract; the binding takes bytes alone, so each tensor is copied into one."""
        return streamed(
            lambda tensor: self._tensors.put(tensor.tobytes()),
            self._receive,
            num_bytes,
            count,
            max_s,
        )

    def close(self) -> None:
        """See contract."""
        self._session.close()  # type: ignore[no-untyped-call]

    def _query(self, payload: bytes) -> bytes:
        reply = self._querier.get(payload=encode(Draft(1, SERVICE, payload))).recv()
        assert reply.ok is not None
        return decode(reply.ok.payload.to_bytes()).payload

    def _publish(self, payload: bytes) -> bytes:
        self._drafts.put(encode(Draft(1, SERVICE, payload)))
        return decode(self._receive()).payload

    def _receive(self) -> bytes:
        return self._answers.recv().payload.to_bytes()


connect = Device
