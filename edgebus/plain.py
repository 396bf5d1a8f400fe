"""What listens at an endpoint, found out with a plain socket: bounded, and nothing of us is shown but a greeting."""

from __future__ import annotations

import socket
import time

from edgebus.errors import ConfigError
from edgebus.zmtp import GREETING_BYTES, SIGNATURE, parse_greeting


def host_port_path(endpoint: str) -> tuple[str, int, str]:
    """The parts of tcp://HOST:PORT, or of ipc://PATH; the other ones are empty.

    Raises:
        ConfigError: neither.
    """
    kind, mark, rest = endpoint.partition("://")
    if kind == "ipc" and rest:
        return "", 0, rest
    host, colon, port = rest.rpartition(":")
    if kind != "tcp" or not mark or not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"endpoint {endpoint!a} is not tcp://HOST:PORT or ipc://PATH")
    return host.removeprefix("[").removesuffix("]"), int(port), ""


def open_plain(host: str, port: int, path: str, timeout_s: float) -> socket.socket:
    """A connection, to a path where there is one.

    Raises:
        OSError: there is nobody.
    """
    if not path:
        return socket.create_connection((host, port), timeout_s)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout_s)
    try:
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def exchange(host: str, port: int, path: str, content: bytes, timeout_s: float) -> tuple[bytes, bool]:
    """What a listener answers, up to a greeting's size, and whether it ended the connection itself."""
    answer, until = b"", time.monotonic() + timeout_s
    try:
        with open_plain(host, port, path, timeout_s) as sock:
            sock.sendall(content)
            while len(answer) < GREETING_BYTES:
                sock.settimeout(max(0.001, until - time.monotonic()))
                piece = sock.recv(GREETING_BYTES - len(answer))
                if not piece:
                    return answer, True
                answer += piece
    except TimeoutError:
        return answer, False
    except (OSError, UnicodeError):  # UnicodeError: a name that cannot be one
        return answer, True
    return answer, False


def speaks_zmtp(endpoint: str, timeout_s: float) -> bool:
    """Whether a node, or another program on libzmq, listens there and greets; a proxy before nobody does not.

    Args:
        endpoint: tcp://HOST:PORT or ipc://PATH; anything else is False.
        timeout_s: to connect, and once more for the greeting.
    """
    try:
        where = host_port_path(endpoint)
    except ConfigError:
        return False
    return parse_greeting(*exchange(*where, SIGNATURE, timeout_s)).kind == "zmtp"
