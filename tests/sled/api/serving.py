"""`sled api` in this process: a toy target served over the bus, a pool of devices, HTTP on a free port."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from sled.api.app import make_app
from sled.api.guard import Access
from sled.api.http import HttpServer, listen
from sled.api.pool import Pool
from sled.api.serve import describe


@dataclass
class Api:
    """A running server."""

    url: str
    pool: Pool
    server: HttpServer
    thread: threading.Thread

    def connect(self) -> socket.socket:
        where = urlsplit(self.url)
        return socket.create_connection((where.hostname, where.port), timeout=20)

    def ask(self, path: str, body=None, *, method="", **headers) -> Response:
        """One request on a connection of its own, written by hand."""
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        head = {"host": urlsplit(self.url).netloc, "content-length": str(len(data)), "connection": "close"}
        head |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"{method or ('GET' if body is None else 'POST')} {path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in head.items() if value is not None]
        with self.connect() as raw:
            raw.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + data)
            return read_response(raw)


@dataclass
class Response:
    """What came back, until the connection ended."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        """The error object, which must be complete."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        return error


def read_response(raw: socket.socket) -> Response:
    data = b"".join(iter(lambda: raw.recv(65536), b""))
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = _unchunked(body)
    return Response(int(status.split()[1]), headers, body)


def _unchunked(data: bytes) -> bytes:
    out = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        out, data = out + data[: int(size, 16)], data[int(size, 16) + 2 :]
    return out


@contextmanager
def serving_http(open_device, *, access=None, aliases=(), drain_s=5.0, **pool_options):
    """Serve HTTP until the block ends."""
    pool = Pool(open_device, **pool_options)
    with listen("127.0.0.1", 0) as listening:
        try:
            pool.start()
            app = make_app(pool, lambda: describe(pool.newest, aliases), access or Access())
            server = HttpServer(app, pool, drain_s)
            thread = threading.Thread(target=server.serve_on, args=(listening,), name="http")
            thread.start()
            try:
                yield Api(f"http://127.0.0.1:{listening.getsockname()[1]}", pool, server, thread)
            finally:
                server.stop()
                thread.join(30)
                assert not thread.is_alive()
        finally:
            pool.close()
