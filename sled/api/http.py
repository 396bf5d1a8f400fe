"""The HTTP server: uvicorn, with patience for clients bounded, and an end that a signal asks for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgebus.errors import BindError
from sled.api.errors import bad_request
from sled.api.pool import Pool

HEADERS_WITHIN_S = 15.0
STALLED_AFTER_S = 30.0
_MAX_CONNECTIONS = 256


class Protocol(H11Protocol):
    """A connection: it ends if its request does not come, or if what is sent is not taken, for too long."""

    _deadline: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        super().data_received(data)
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        for timer in (self._deadline, self._stall):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """See asyncio.Protocol: more waits to be sent than should."""
        super().pause_writing()
        self._stall = self.loop.call_later(STALLED_AFTER_S, self.transport.abort)

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()

    def send_400_response(self, msg: str) -> None:
        """An error object for what is no HTTP, if it is our turn to speak at all."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()  # in the middle of an answer nothing else can be said
            return
        body = json.dumps(bad_request(f"{msg} Send HTTP/1.1.").body).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _expect_request(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEADERS_WITHIN_S, self.transport.abort)


class HttpServer(uvicorn.Server):
    """Serves an application on a bound socket until a signal, or `stop`, ends it.

    Args:
        app: what is served.
        pool: whose answers are let finish at the end.
        drain_s: for how long.
    """

    def __init__(self, app: ASGIApp, pool: Pool, drain_s: float) -> None:
        config = uvicorn.Config(
            app,
            http=Protocol,
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_graceful_shutdown=int(drain_s) + 3,
        )
        super().__init__(config)
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        self._pool, self._drain_s = pool, drain_s
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn.Server."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal lets answers finish, the second breaks them off."""
        if self.should_exit:
            self._soon(self._pool.cut)
        else:
            self.stop()

    def stop(self) -> None:
        """End, from any thread."""
        self.should_exit = True
        self._soon(self._drain)

    def _soon(self, act: Callable[[], None]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended already
                self._loop.call_soon_threadsafe(act)

    def _drain(self) -> None:
        assert self._loop is not None
        self._pool.drain()
        self._loop.call_later(self._drain_s, self._pool.cut)

    def serve_on(self, listening: socket.socket) -> None:
        """Serve until the end."""
        self.run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        BindError: the address is taken, or not ours.
    """
    try:
        found: list[Any] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except OSError as error:
        raise BindError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --http") from None
