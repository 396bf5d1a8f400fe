"""Answers GET /metrics and GET /healthy on a local address, one connection at a time, each within a deadline."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable

from edgebus.daemon.metrics import CONTENT_TYPE
from edgebus.errors import BindError, ConfigError

REQUEST_BYTES = 8192
REQUEST_WITHIN_S = 2.0
_log = logging.getLogger("edgebus.node")


class MetricsServer:
    """A listening socket and the thread that serves it; whoever is slow is cut, so that the next one gets its turn.

    Args:
        address: HOST:PORT, [HOST]:PORT for IPv6; port 0 takes a free one.
        render: gives the text; what it raises becomes status 500.

    Raises:
        ConfigError: not an address.
        BindError: the address is taken.
    """

    def __init__(self, address: str, render: Callable[[], str]) -> None:
        self._render = render
        host, port = split_address(address)
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, port), family=family, backlog=16)
        except OSError as error:
            raise BindError(
                f'cannot serve metrics at {address}: {error.strerror}; choose another address, or metrics = "off"'
            ) from None
        bound = self._socket.getsockname()
        self.address = f"[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"{bound[0]}:{bound[1]}"
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="edgebus-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._thread.join(REQUEST_WITHIN_S + 1.0)
        self._socket.close()

    def _run(self) -> None:
        while not self._closing:
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                if not self._closing:
                    _log.warning("metrics: cannot accept a connection: %s", error)
                    time.sleep(0.1)  # out of descriptors, say: others will give some back
                continue
            with connection, contextlib.suppress(OSError):
                self._serve(connection)

    def _serve(self, connection: socket.socket) -> None:
        line = _request_line(connection, time.monotonic() + REQUEST_WITHIN_S)
        if line is None:
            return
        method, path = line
        status, text, kind = "200 OK", "", "text/plain; charset=utf-8"
        if method not in ("GET", "HEAD"):
            status, text = "405 Method Not Allowed", "only GET\n"
        elif path == "/metrics":
            status, text, kind = self._metrics()
        elif path == "/healthy":
            status, _, _ = self._metrics()
            text = "ok\n" if status.startswith("200") else "the node does not answer\n"
        else:
            status, text = "404 Not Found", "try /metrics or /healthy\n"
        body = text.encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        connection.settimeout(REQUEST_WITHIN_S)
        connection.sendall(head.encode() + (b"" if method == "HEAD" else body))

    def _metrics(self) -> tuple[str, str, str]:
        try:
            return "200 OK", self._render(), CONTENT_TYPE
        except Exception as error:  # a node that is stuck must show as such, and not end this thread
            _log.warning("metrics: %s", error)
            return "500 Internal Server Error", f"{type(error).__name__}\n", "text/plain; charset=utf-8"


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT or [HOST]:PORT.

    Raises:
        ConfigError: anything else.

    >>> split_address("[::1]:9464")
    ('::1', 9464)
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{address!a} is not HOST:PORT, such as 127.0.0.1:9464")
    return host, int(port)


def _request_line(connection: socket.socket, until: float) -> tuple[str, str] | None:
    """Method and path, once the whole head is there; None if it is too long, too slow or nonsense."""
    head = b""
    while b"\r\n\r\n" not in head and b"\n\n" not in head:
        left_s = until - time.monotonic()
        if left_s <= 0 or len(head) > REQUEST_BYTES:
            return None
        connection.settimeout(left_s)
        piece = connection.recv(REQUEST_BYTES)
        if not piece:
            return None
        head += piece
    words = head.split(b"\n", 1)[0].split()
    if len(words) != 3:
        return None
    return words[0].decode("latin-1"), words[1].partition(b"?")[0].decode("latin-1")
