"""`sled api` put together: devices, the application, the socket."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from edgebus.errors import ConfigError, KeyFileError
from sled.api.app import make_app
from sled.api.asks import Offer
from sled.api.guard import Access, hosts_of
from sled.api.http import HttpServer, listen
from sled.api.pool import Pool
from sled.api.telling import Target
from sled.run.device import Device

_LEAST_TOKEN = 16
_MOST_TOKENS_BYTES = 1 << 20


class Listening(NamedTuple):
    """What is told once requests are answered."""

    url: str
    model: str
    drafter: str


def run_api(
    open_device: Callable[[], Device],
    *,
    http: str,
    token_file: Path | None,
    origins: Sequence[str],
    hosts: Sequence[str],
    aliases: Sequence[str],
    parallel: int,
    queue: int,
    drain_s: float,
    ready: Callable[[Listening, HttpServer], None],
) -> None:
    """Answer HTTP requests until a signal ends it.

    Args:
        open_device: makes a device.
        http: HOST:PORT; port 0 takes a free one.
        token_file: bearer tokens, one a line; needed where others than this machine can ask.
        origins: pages of other origins that may ask, or "*".
        hosts: names by which this server is asked, besides those of loopback.
        aliases: further names of the model.
        parallel: devices, and so answers at once.
        queue: requests that may wait.
        drain_s: how long answers go on after SIGTERM.
        ready: called once it answers.

    Raises:
        ConfigError: settings that do not go together.
        EdgebusError: the server cannot be reached, the address not be bound.
    """
    host, port = read_address(http)
    access = Access(read_tokens(token_file) if token_file else (), hosts_of([host, *hosts]), frozenset(origins))
    with listen(host, port) as listening:
        check_exposure(listening, access)
        pool = Pool(open_device, parallel=parallel, queue=queue)
        try:
            pool.start()
            target = describe(pool.newest, aliases)
            app = make_app(pool, lambda: describe(pool.newest, aliases), access)
            server = HttpServer(app, pool, drain_s)
            ready(Listening(_url(host, listening), target.offer.names[0], target.drafter), server)
            server.serve_on(listening)
        finally:
            pool.close()


def describe(device: Device, aliases: Sequence[str] = ()) -> Target:
    """What a device knows of its target."""
    described = device.target
    offer = Offer((described.name, *(name for name in aliases if name != described.name)), described.max_positions)
    return Target(offer, described.target_id, device.piece, device.drafter.name, device.server)


def read_address(text: str) -> tuple[str, int]:
    """HOST:PORT, [HOST]:PORT for IPv6.

    Raises:
        ConfigError: it is neither.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise ConfigError(f"--http is {text!r}, give HOST:PORT, e.g. 127.0.0.1:8000")
    return host, int(port)


def read_tokens(path: Path) -> tuple[str, ...]:
    """Bearer tokens, one a line; empty lines and those that begin with # say nothing.

    Raises:
        KeyFileError: the file cannot be read, can be read by others, or holds no good token.
    """
    try:
        with path.open(encoding="ascii") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise KeyFileError(f"{path} can be read by others; chmod 600 {path}")
            text = file.read(_MOST_TOKENS_BYTES + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(f"cannot read tokens from {path}: {error}; give one token a line, in ASCII") from None
    if len(text) > _MOST_TOKENS_BYTES:
        raise KeyFileError(f"{path} is over {_MOST_TOKENS_BYTES >> 20} MiB; keep the tokens that are in use")
    lines = [line.strip() for line in text.splitlines()]
    tokens = tuple(line for line in lines if line and not line.startswith("#"))
    if not tokens or any(len(token) < _LEAST_TOKEN or " " in token for token in tokens):
        raise KeyFileError(
            f"{path} needs tokens of {_LEAST_TOKEN} characters or more, one a line; `openssl rand -hex 24` makes one"
        )
    return tokens


def check_exposure(listening: socket.socket, access: Access) -> None:
    """Others than this machine need a token.

    Raises:
        ConfigError: they could ask without.
    """
    address = listening.getsockname()[0]
    if not access.tokens and not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        raise ConfigError(f"{address} can be reached from other machines; give --token-file, or listen on 127.0.0.1")


def _url(host: str, listening: socket.socket) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listening.getsockname()[1]}"
