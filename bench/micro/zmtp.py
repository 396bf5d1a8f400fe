"""A peer that speaks ZMTP byte by byte (RFC 37, CURVE of RFC 26), for what libzmq would not send: parts without an end.

CURVE's cryptography is that of the libsodium which pyzmq brings along.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from pathlib import Path

import zmq
from zmq.utils import z85

MORE, LONG, COMMAND = 1, 2, 4


def _sodium() -> ctypes.CDLL | None:
    beside = Path(zmq.__file__).parent.parent / "pyzmq.libs"
    found = next(iter(beside.glob("libsodium*")), None)
    return None if found is None else ctypes.CDLL(str(found))


class Plain:
    """A connection to a listening endpoint with the NULL mechanism.

    Args:
        endpoint: `tcp://HOST:PORT`.

    Raises:
        OSError: it was ended.
    """

    mechanism = b"NULL"

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        self.sock = socket.create_connection((host, int(port)), 10)
        self._came = b""
        self.sock.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x01" + self.mechanism.ljust(20, b"\0") + bytes(32))
        self._take(64)
        self._shake_hands()

    def _shake_hands(self) -> None:
        self._send(COMMAND, b"\5READY" + _property(b"Socket-Type", b"DEALER") + _property(b"Identity", b""))
        self.receive()

    def _take(self, num_bytes: int) -> bytes:
        while len(self._came) < num_bytes:
            piece = self.sock.recv(65536)
            if not piece:
                raise ConnectionResetError("the connection was ended")
            self._came += piece
        taken, self._came = self._came[:num_bytes], self._came[num_bytes:]
        return taken

    def _send(self, flags: int, body: bytes) -> None:
        head = struct.pack(">BB", flags, len(body)) if len(body) <= 255 else struct.pack(">BQ", flags | LONG, len(body))
        self.sock.sendall(head + body)

    def receive(self) -> bytes:
        """The body of the next frame or command, as it is on the wire."""
        flags = self._take(1)[0]
        size = struct.unpack(">Q", self._take(8))[0] if flags & LONG else self._take(1)[0]
        return self._take(size)

    def send(self, body: bytes, *, more: bool) -> None:
        """Send a frame of a message; with `more` another one follows."""
        self._send(MORE if more else 0, body)

    def close(self) -> None:
        """End the connection."""
        self.sock.close()


class Curve(Plain):
    """Likewise with the CURVE mechanism.

    Args:
        endpoint: `tcp://HOST:PORT`.
        server_key, public, secret: of the server, and ours, in Z85.

    Raises:
        LookupError: this pyzmq brings no libsodium.
        OSError: the server does not let this key in, or the connection was ended.
    """

    mechanism = b"CURVE"

    def __init__(self, endpoint: str, server_key: str, public: str, secret: str) -> None:
        sodium = _sodium()
        if sodium is None:
            raise LookupError("this pyzmq brings no libsodium: install its wheel from PyPI")
        self._sodium, self._nonce, self._shared = sodium, 0, bytes(32)
        self._keys = tuple(z85.decode(key) for key in (server_key, public, secret))
        super().__init__(endpoint)

    def _box(self, content: bytes, nonce: bytes, public: bytes, secret: bytes) -> bytes:
        out = ctypes.create_string_buffer(len(content) + 16)
        self._sodium.crypto_box_easy(out, content, ctypes.c_ulonglong(len(content)), nonce, public, secret)
        return out.raw

    def _open(self, boxed: bytes, nonce: bytes, public: bytes, secret: bytes) -> bytes:
        out = ctypes.create_string_buffer(len(boxed))
        if self._sodium.crypto_box_open_easy(out, boxed, ctypes.c_ulonglong(len(boxed)), nonce, public, secret):
            raise ConnectionError("a box of the handshake does not open")
        return out.raw[: len(boxed) - 16]

    def _next(self) -> bytes:
        self._nonce += 1
        return struct.pack(">Q", self._nonce)

    def _shake_hands(self) -> None:
        server_key, public, secret = self._keys
        mine, mine_secret = ctypes.create_string_buffer(32), ctypes.create_string_buffer(32)
        self._sodium.crypto_box_keypair(mine, mine_secret)
        short = self._next()
        signature = self._box(bytes(64), b"CurveZMQHELLO---" + short, server_key, mine_secret.raw)
        self._send(COMMAND, b"\5HELLO\1\0" + bytes(72) + mine.raw + short + signature)
        welcome = self.receive()
        if not welcome.startswith(b"\7WELCOME"):
            raise ConnectionError(f"the server said {welcome[:40]!r}")
        opened = self._open(welcome[24:], b"WELCOME-" + welcome[8:24], server_key, mine_secret.raw)
        theirs, cookie = opened[:32], opened[32:]
        vouch = self._box(mine.raw + server_key, b"VOUCH---" + bytes(16), theirs, secret)
        metadata = _property(b"Socket-Type", b"DEALER") + _property(b"Identity", b"")
        short = self._next()
        content = public + bytes(16) + vouch + metadata
        boxed = self._box(content, b"CurveZMQINITIATE" + short, theirs, mine_secret.raw)
        self._send(COMMAND, b"\x08INITIATE" + cookie + short + boxed)
        ready = self.receive()
        if not ready.startswith(b"\5READY"):
            raise ConnectionError(f"the server said {ready[:40]!r}")
        shared = ctypes.create_string_buffer(32)
        self._sodium.crypto_box_beforenm(shared, theirs, mine_secret.raw)
        self._shared = shared.raw

    def send(self, body: bytes, *, more: bool) -> None:
        """Send a frame of a message; with `more` another one follows."""
        short, content = self._next(), bytes([MORE if more else 0]) + body
        out = ctypes.create_string_buffer(len(content) + 16)
        nonce = b"CurveZMQMESSAGEC" + short
        self._sodium.crypto_box_easy_afternm(out, content, ctypes.c_ulonglong(len(content)), nonce, self._shared)
        self._send(0, b"\7MESSAGE" + short + out.raw)


def _property(name: bytes, value: bytes) -> bytes:
    return struct.pack(">B", len(name)) + name + struct.pack(">I", len(value)) + value
