"""Raw pyzmq with a msgspec codec: DEALER and ROUTER, tensors out of band with copy=False, with or without CURVE."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import zmq

from bench.peers.contract import (
    ASK_S,
    MANY,
    PAYLOAD,
    SERVICE,
    WINDOW,
    Config,
    Draft,
    Ready,
    beside,
    check_receipt,
    decode,
    encode,
    receipt,
    streamed,
    tensors_of,
    timed,
)

_KEY_FILE = "server.keys"
_HEADER = encode(Draft(1, "tensor", b""))
HEARTBEAT_MS = 2000


def _router(context: zmq.Context[Any], config: Config, keys: tuple[bytes, bytes] | None) -> zmq.Socket[bytes]:
    router: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, 0)
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    if config.links > 1:
        # what edgebus does for its peers: 0 is no bound, a backlog for all of them at once, a beat for each
        router.setsockopt(zmq.BACKLOG, config.links)
    if config.flavour == "beating":
        router.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        router.setsockopt(zmq.HEARTBEAT_TIMEOUT, 5000)
    if keys is not None:
        router.curve_server, router.curve_secretkey = True, keys[1]
    return router


def _answer_all(router: zmq.Socket[bytes]) -> None:
    # each frame the way that is fastest for it: small ones are cheaper copied
    while True:
        route, head = router.recv(), router.recv()
        answer = receipt(router.recv(copy=False).buffer) if router.rcvmore else encode(decode(head))
        router.send_multipart([route, answer])


def serve(config: Config, ready: Ready) -> None:
    """Answer on two sockets, one thread each; a device that has one connection uses the first."""
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 1023 + 2 * config.links)
    keys = zmq.curve_keypair() if config.secure else None
    if keys is not None:
        (Path(config.directory) / _KEY_FILE).write_bytes(keys[0])
    routers = [_router(context, config, keys) for _ in range(2)]
    ports = [router.bind_to_random_port("tcp://127.0.0.1") for router in routers]
    threading.Thread(target=_answer_all, args=(routers[1],), daemon=True).start()
    ready(" ".join(f"tcp://127.0.0.1:{port}" for port in ports))
    _answer_all(routers[0])


class Device:
    """DEALERs to one server."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 4096)
        self._drafts, self._bulk = config.endpoint.split(" ")
        self._peer = self._dealer(self._drafts)
        self._held: list[zmq.Socket[bytes]] = []

    def rounds(self, count: int, max_s: float) -> list[float]:
        """See contract."""
        return timed(self._ask, count, max_s)

    def stream(self, num_bytes: int, count: int, max_s: float) -> dict[str, float]:
        """See contract."""
        return streamed(self._send_tensor, self._peer.recv, num_bytes, count, max_s)

    def beside(self, count: int, num_bytes: int, max_s: float, sockets: int) -> dict[str, Any]:
        """Round trips of drafts while tensors go to the same server, through one socket or a second one."""
        return (self._beside_one if sockets == 1 else self._beside_two)(count, num_bytes, max_s)

    def hold(self, links: int) -> int:
        """Connect `links` more sockets and see that each gets an answer."""
        for _ in range(links):
            dealer = self._dealer(self._drafts)
            self._held.append(dealer)
            dealer.send(encode(Draft(1, SERVICE, PAYLOAD)))
            assert decode(dealer.recv()).payload == PAYLOAD
        return len(self._held)

    def waves(self, count: int, depth: int, max_s: float) -> dict[str, float]:
        """Every held socket sends `depth` drafts, then waits for their answers; the next wave begins then."""
        begun = time.perf_counter()
        done = 0
        for pos in range(count):
            for dealer in self._held * depth:
                dealer.send(encode(Draft(pos, SERVICE, PAYLOAD)))
            for dealer in self._held * depth:
                assert decode(dealer.recv()).payload == PAYLOAD
            done += len(self._held) * depth
            if time.perf_counter() - begun > max_s:
                break
        return {"count": done, "seconds": time.perf_counter() - begun}

    def close(self) -> None:
        """See contract."""
        self._context.destroy(0)

    def _dealer(self, endpoint: str) -> zmq.Socket[bytes]:
        dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.RCVTIMEO, int(ASK_S * 1000))
        if self._config.secure:
            dealer.curve_publickey, dealer.curve_secretkey = zmq.curve_keypair()
            dealer.curve_serverkey = (Path(self._config.directory) / _KEY_FILE).read_bytes()
        dealer.connect(endpoint)
        return dealer

    def _ask(self, payload: bytes) -> bytes:
        self._peer.send(encode(Draft(1, SERVICE, payload)))
        return decode(self._peer.recv()).payload

    def _send_tensor(self, tensor: Any) -> None:
        self._peer.send(_HEADER, zmq.SNDMORE)
        self._peer.send(tensor, copy=False)

    def _beside_one(self, count: int, num_bytes: int, max_s: float) -> dict[str, Any]:
        """One socket has one thread: it keeps the window full and sends a draft whenever the last was answered."""
        tensors = tensors_of(num_bytes)
        seconds: list[float] = []
        sent = done = 0
        begun = time.perf_counter()
        asked_at = None
        while len(seconds) < count and time.perf_counter() - begun < max_s:
            while sent - done < WINDOW:
                self._send_tensor(tensors.stamped(sent))
                sent += 1
            if asked_at is None:
                asked_at = time.perf_counter()
                self._peer.send(encode(Draft(1, SERVICE, PAYLOAD)))
            answer = self._peer.recv()
            if len(answer) == 4:
                check_receipt(answer, done)
                done += 1
            else:
                assert decode(answer).payload == PAYLOAD
                seconds.append(time.perf_counter() - asked_at)
                asked_at = None
        spent = time.perf_counter() - begun
        for _ in range(sent - done + (asked_at is not None)):
            self._peer.recv()
        return {"rounds": seconds, "count": done, "seconds": spent}

    def _beside_two(self, count: int, num_bytes: int, max_s: float) -> dict[str, Any]:
        second = self._dealer(self._bulk)

        def send(tensor: Any) -> None:
            second.send(_HEADER, zmq.SNDMORE)
            second.send(tensor, copy=False)

        try:
            return beside(
                lambda: self.rounds(count, max_s),
                lambda going_on: streamed(send, second.recv, num_bytes, MANY, 2 * max_s, going_on),
            )
        finally:
            second.close(0)


connect = Device
