"""Which greeting a listener sends, asked over a plain connection of libzmq's own: nothing waits for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import zmq

from edgebus.rawzmq import EVENTS, POLLIN, ZmqSocket, get
from edgebus.sockets import Sockets
from edgebus.zmtp import GREETING_BYTES, SIGNATURE


class Question:
    """One connection, made once. It ends with the greeting, with whatever else comes, or when it is closed.

    Nothing is asked before `ask`; without a socket left for it, nothing is told.

    Args:
        sockets: those of the node; its lock is held in here.
        endpoint: tcp or ipc.
        tell: called once with the first bytes of the listener, at most a greeting; not if this is closed before.
    """

    def __init__(self, sockets: Sockets, endpoint: str, tell: Callable[[bytes], object]) -> None:
        self._sockets = sockets
        self._endpoint = endpoint
        self._tell = tell
        self._content = b""
        self._asked = False
        self._sock: ZmqSocket | None = None

    def ask(self) -> None:
        """Connect; to be called once."""
        with contextlib.suppress(zmq.ZMQError):
            self._sockets.open_raw(self._endpoint, self._take, self._keep)

    def close(self) -> None:
        """Nothing is told any more."""
        if self._sock is not None:
            self._sockets.close_raw(self._sock)
            self._sock = None

    def _keep(self, sock: ZmqSocket) -> None:
        self._sock = sock

    def _take(self, event: int) -> bool:
        while self._sock is not None and get(self._sock, EVENTS) & POLLIN:
            pieces = self._sock.recv_multipart(zmq.NOBLOCK)
            route, piece = pieces[0], pieces[-1]  # one of them alone: a signal handler raised between the two
            if not self._asked:  # an empty piece: it is connected
                self._asked = True
                with contextlib.suppress(zmq.ZMQError):  # gone already, which the next piece says
                    self._sock.send_multipart([route, SIGNATURE], zmq.NOBLOCK)
                continue
            self._content += piece[: GREETING_BYTES - len(self._content)]
            if not piece or len(self._content) == GREETING_BYTES:  # an empty one: the other side has closed
                self.close()
                self._tell(self._content)
        return False
