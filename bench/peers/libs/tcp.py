"""Raw TCP: a length before each message, blocking sockets, TCP_NODELAY."""

from __future__ import annotations

import socket
import struct
from typing import Any

from bench.peers.contract import (
    ASK_S,
    PAYLOAD,
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

_LENGTH = struct.Struct("<IB")  # of the body, and whether it is a tensor


def _receive(peer: socket.socket) -> tuple[bool, bytes | bytearray] | None:
    head = peer.recv(_LENGTH.size, socket.MSG_WAITALL)
    if len(head) < _LENGTH.size:
        return None
    length, is_tensor = _LENGTH.unpack(head)
    if not is_tensor:
        return False, peer.recv(length, socket.MSG_WAITALL)
    body = bytearray(length)
    peer.recv_into(body, length, socket.MSG_WAITALL)
    return True, body


def serve(config: Config, ready: Ready) -> None:
    """Answer one device."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ready(str(listener.getsockname()[1]))
        peer, _ = listener.accept()
        with peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while (message := _receive(peer)) is not None:
                is_tensor, body = message
                answer = receipt(body) if is_tensor else encode(decode(body))
                peer.sendall(_LENGTH.pack(len(answer), False) + answer)


class Device:
    """A connected socket."""

    def __init__(self, config: Config) -> None:
        self._peer = socket.create_connection(("127.0.0.1", int(config.endpoint)), ASK_S)
        self._peer.settimeout(None)  # a timeout would cost a poll before each call
        self._peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def rounds(self, count: int, max_s: float) -> list[float]:
        """See contract."""
        return timed(self._ask, count, max_s)

    def stream(self, num_bytes: int, count: int, max_s: float) -> dict[str, float]:
        """See contract."""
        return streamed(self._send_tensor, self._answer, num_bytes, count, max_s)

    def close(self) -> None:
        """See contract."""
        self._peer.close()

    def _ask(self, payload: bytes) -> bytes:
        body = encode(Draft(1, SERVICE, payload))
        self._peer.sendall(_LENGTH.pack(len(body), False) + body)
        return decode(self._answer()).payload

    def _send_tensor(self, tensor: Any) -> None:
        self._peer.sendall(_LENGTH.pack(tensor.nbytes, True))
        self._peer.sendall(tensor)

    def _answer(self) -> bytes | bytearray:
        message = _receive(self._peer)
        assert message is not None, f"the server hung up after {len(PAYLOAD)} B"
        return message[1]


connect = Device
