"""pyzmq's functions without their wrappers, which check and convert at every call what never changes here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import zmq
import zmq.backend

ZmqSocket = zmq.Socket[bytes]
send: Callable[..., Any] = zmq.backend.Socket.send
recv: Callable[..., Any] = zmq.backend.Socket.recv
get: Callable[..., Any] = zmq.backend.Socket.get
NOBLOCK = int(zmq.NOBLOCK)
MORE = int(zmq.NOBLOCK) | int(zmq.SNDMORE)
EVENTS, POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)
ZERO_COPY_BYTES = 128 * 1024
"""Below, copying is cheaper than telling libzmq whom to ask for the memory."""
BURST = 64
"""Messages taken from one socket before the others get their turn."""


def take_rest(sock: Any, frames: list[Any]) -> None:
    """Receive the frames after the first: large ones stay in the memory libzmq received them into."""
    more = True
    while more:
        frame = recv(sock, NOBLOCK, False)
        more = frame.more
        frames.append(frame.buffer if len(frame) >= ZERO_COPY_BYTES else frame.bytes)
