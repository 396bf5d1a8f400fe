"""A node behind a real socket, and whoever says anything to its port: what libzmq reads before any of our code does.

`say(data)` opens a connection, sends the bytes and closes; now and then an honest peer must still be answered.
"""

from __future__ import annotations

import contextlib
import functools
import socket

import msgpack

import edgebus

_HONEST_EVERY = 50
_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(16 + 1 + 31)
_READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"


class SocketWorld:
    """A node that answers, and an honest peer of it."""

    def __init__(self) -> None:
        self.node = edgebus.Node("server", insecure=True)
        self.device = edgebus.Node("device", insecure=True)
        self.node.handle("echo", lambda request: request.reply(request.payload))
        self.endpoint = self.node.bind("tcp://127.0.0.1:0")
        self.address = ("127.0.0.1", int(self.endpoint.rpartition(":")[2]))
        self.link = self.device.connect(self.endpoint)
        self.num_said = 0

    def say(self, data: bytes) -> None:
        """Send bytes to the port."""
        connection = socket.create_connection(self.address, timeout=5.0)
        with connection, contextlib.suppress(OSError):  # that the node hangs up is its right
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(0.02)
            with contextlib.suppress(TimeoutError):
                while connection.recv(65_536):
                    pass
        self.num_said += 1
        if self.num_said % _HONEST_EVERY == 0:
            assert self.link.request("echo", b"still there", timeout_s=10.0).payload == b"still there"


@functools.cache
def _world() -> SocketWorld:
    return SocketWorld()


def say(data: bytes) -> None:
    """Say something to the one node of this process."""
    _world().say(data)


def zmtp(*messages: list[bytes]) -> bytes:
    """A connection of ZMTP 3.1 without security, with these messages."""
    said = _GREETING + b"\x04" + bytes([len(_READY)]) + _READY
    for frames in messages:
        for index, frame in enumerate(frames):
            more = index < len(frames) - 1
            long = len(frame) > 255
            said += bytes([more + 2 * long]) + len(frame).to_bytes(8 if long else 1, "big") + frame
    return said


def hello() -> list[bytes]:
    """A greeting of version 1."""
    return [msgpack.packb([1, 1, 1, "raw", bytes(16), 1, [65536, 16777216, 64]])]
