"""A connection of the proxy: two sockets and the pipes between them."""

from __future__ import annotations

import contextlib
import errno
import math
import selectors
import socket
import struct
from collections.abc import Sequence

from edgebus.testing.pipe import Bucket, Pipe

HOST = "127.0.0.1"
TO_TARGET, TO_CLIENT = 0, 1
_CHUNK_BYTES = 64 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER, on, 0 s


class Connection:
    """Driven by the proxy: update, handle, write; then close.

    Args:
        client: the accepted socket.
        target: where to connect.
        buckets: of each direction.
        limit_bytes: most that is held for each direction.

    Attributes:
        pipes: to the target, and to the client.
        has_failed: the target was not there.
        is_over: nothing will come through any more.
    """

    def __init__(
        self, client: socket.socket, target: tuple[str, int], buckets: Sequence[Bucket], limit_bytes: int
    ) -> None:
        self.pipes = [Pipe(bucket, limit_bytes) for bucket in buckets]
        self.has_failed = False
        self.is_over = False
        server = socket.socket()
        self._sockets = [client, server]  # pipe 0 is read from 0 and written to 1, pipe 1 the other way
        self._is_connecting = True
        self._is_shut = [False, False]  # the end of a pipe is out
        self._closed = False
        self._registered = [0, 0]
        for one in self._sockets:
            one.setblocking(False)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if server.connect_ex(target) not in (0, errno.EINPROGRESS):
            self._fail()

    def update(self, selector: selectors.BaseSelector, *, now: float) -> float:
        """Say what it waits for; returns when it has something to do by itself."""
        if self._is_connecting:
            self._register(selector, TO_TARGET, selectors.EVENT_WRITE)
            return math.inf
        wakes_at = math.inf
        for way, pipe in enumerate(self.pipes):
            is_ready = len(pipe.ready(now=now)) > 0
            back = self.pipes[1 - way]
            wanted = (selectors.EVENT_WRITE if is_ready else 0) | (selectors.EVENT_READ if back.room else 0)
            self._register(selector, way, wanted)
            if not is_ready:  # or it is the socket that has to be waited for
                wakes_at = min(wakes_at, now if self._has_end(way, now) else pipe.next_at(now=now))
        return wakes_at

    def handle(self, one: socket.socket, events: int, *, now: float) -> None:
        """A socket can be read, or its connecting is over."""
        if self._closed:
            return
        index = self._sockets.index(one)
        if self._is_connecting:
            if one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._fail()
            self._is_connecting = False
        elif events & selectors.EVENT_READ and (room := self.pipes[index].room):
            try:
                data = one.recv(min(room, _CHUNK_BYTES))
            except BlockingIOError:
                return
            except OSError:
                self.pipes[index].end("reset", now=now)
                return
            if data:
                self.pipes[index].put(data, now=now)
            else:
                self.pipes[index].end("eof", now=now)

    def write(self, *, now: float) -> list[int]:
        """Let out what is due, ends too; returns bytes of each direction."""
        passed = [0, 0]
        if self._is_connecting or self.is_over:
            return passed
        for way, pipe in enumerate(self.pipes):
            passed[way] = self._write(way, pipe, now)
            if self._has_end(way, now):
                self._end(way, pipe)
        self.is_over = self.is_over or all(self._is_shut)
        return passed

    def abort(self) -> None:
        """Closing resets both ends."""
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)

    def close(self, selector: selectors.BaseSelector) -> None:
        """Let go of both sockets."""
        self._closed = True
        for way in (TO_TARGET, TO_CLIENT):
            self._register(selector, way, 0)
            self._sockets[1 - way].close()

    def _write(self, way: int, pipe: Pipe, now: float) -> int:
        num_bytes = 0
        while ready := pipe.ready(now=now):
            try:
                sent = self._sockets[1 - way].send(ready)
            except BlockingIOError:
                break
            except OSError:
                # Nobody reads there any more, and the other end hears of it by the other direction.
                pipe.discard()
                pipe.end("reset", now=now)
                self._is_shut[way] = True
                self.pipes[1 - way].end("reset", now=now)
                break
            pipe.took(sent)
            num_bytes += sent
        return num_bytes

    def _has_end(self, way: int, now: float) -> bool:
        return not self._is_shut[way] and self.pipes[way].is_over(now=now)

    def _end(self, way: int, pipe: Pipe) -> None:
        self._is_shut[way] = True
        if pipe.ended == "reset":
            self.abort()
            self.is_over = True
            return
        with contextlib.suppress(OSError):  # the other end is gone already
            self._sockets[1 - way].shutdown(socket.SHUT_WR)

    def _fail(self) -> None:
        self.has_failed = self.is_over = True
        self.abort()

    def _register(self, selector: selectors.BaseSelector, way: int, wanted: int) -> None:
        """For the socket that a direction is written to."""
        one, before = self._sockets[1 - way], self._registered[way]
        if wanted == before:
            return
        self._registered[way] = wanted
        if not wanted:
            selector.unregister(one)
        elif before:
            selector.modify(one, wanted, self)
        else:
            selector.register(one, wanted, self)


def port_of(target: int | str) -> int:
    """The port of a target on this machine.

    Raises:
        ValueError: it is none.
    """
    if isinstance(target, str):
        scheme, _, address = target.partition("://")
        host, _, port = address.rpartition(":")
        if scheme != "tcp" or host not in (HOST, "localhost") or not port.isdecimal():
            raise ValueError(f"a target is a port or tcp://{HOST}:PORT, on this machine, got {target!r}")
        target = int(port)
    if not 0 < target < 65536:
        raise ValueError(f"a port is 1..65535, got {target}")
    return target


def socket_at(port: int) -> socket.socket:
    """A socket that is bound and not listening: connections are refused, and nobody else gets the port."""
    place = socket.socket()
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    place.setblocking(False)
    place.bind((HOST, port))
    return place
