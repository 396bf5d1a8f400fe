"""The greeting of ZMTP 3.1 (RFC 37), with which every connection of libzmq begins, read from bytes. Pure."""

from __future__ import annotations

from typing import NamedTuple

GREETING_BYTES = 64
SIGNATURE = b"\xff" + bytes(8) + b"\x7f" + bytes((3, 1))
"""How a greeting begins: to a mechanism that is not its own, libzmq closes before it says which it has."""


class Greeting(NamedTuple):
    """What a listener said to a ZMTP greeting."""

    kind: str  # zmtp, silent, closed, http, tls, ssh, other
    version: tuple[int, int] = (0, 0)
    mechanism: str = ""
    shown: str = ""


def parse_greeting(content: bytes, closed: bool) -> Greeting:
    """What the first bytes of a listener are.

    Args:
        content: at most a few hundred bytes.
        closed: True if the listener ended the connection after them.

    Source: ZMTP 3.1 (RFC 37), section "Greeting".

    >>> parse_greeting(b"SSH-2.0-OpenSSH", closed=False).kind
    'ssh'
    """
    shown = ascii(content[:60].decode("latin-1"))[1:-1]
    if not content:
        return Greeting("closed" if closed else "silent")
    if content[0] == 0xFF and content[9:10] in (b"\x7f", b""):
        if len(content) < 12:
            return Greeting("zmtp", (0, 0), "", shown)
        mechanism = content[12:32].rstrip(b"\0").decode("latin-1") if len(content) >= 32 else ""
        return Greeting("zmtp", (content[10], content[11]), ascii(mechanism)[1:-1], shown)
    for kind, marks in (
        ("http", (b"HTTP/", b"<!DOC", b"<html")),
        ("ssh", (b"SSH-",)),
        ("tls", (b"\x15\x03", b"\x16\x03")),
    ):
        if content.startswith(marks):
            return Greeting(kind, shown=shown)
    return Greeting("other", shown=shown)
