"""pyzmq's functions without their wrappers, which check and convert at every call what never changes here."""

from __future__ import annotations

import contextlib
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
KEEP_BYTES = 32 * 1024
"""From here on a received frame stays in the memory that libzmq took for it alone."""
BURST = 64
"""Messages taken from one socket before the others get their turn."""


def end_message(sock: Any) -> None:
    """After an exception of a signal handler: what has begun to go out is ended, or the next message would go on in it.

    That one may be for another peer. If nothing has begun this is a message to nobody, or one that is none.
    """
    with contextlib.suppress(zmq.ZMQError):
        send(sock, b"", NOBLOCK)
