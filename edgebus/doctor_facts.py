"""What a probe can find out about an endpoint, as data, and what a listener's first bytes are. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

GREETING_BYTES = 64


class Reach(StrEnum):
    """How a plain connection attempt ended."""

    CONNECTED = "connected"
    REFUSED = "refused"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    RESET = "reset"
    MISSING = "missing"  # an ipc path that is not there
    DENIED = "denied"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFacts:
    """What a key directory looks like from here."""

    directory: str
    error: str = ""  # what load_keys said, a line with its remedy
    public: str = ""
    public_file: str | None = None  # the key in node.key, None if that is missing
    directory_mode: int = 0o700
    owner_uid: int = 0
    our_uid: int = 0


class Greeting(NamedTuple):
    """What a listener said to a ZMTP greeting."""

    kind: str  # zmtp, silent, closed, http, tls, ssh, other
    version: tuple[int, int] = (0, 0)
    mechanism: str = ""
    shown: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """How a real link with our keys went. `outcome` is ok or the name of the error class."""

    outcome: str
    detail: str = ""
    peer_name: str = ""
    ping_refused: str = ""  # why, where edgebus.ping is not granted
    round_trips_s: tuple[float, ...] = ()
    burst_bytes: int = 0
    burst_s: float | None = None  # None: the burst was not answered whole
    stats_refused: str = ""  # code, where edgebus.stats is not to be had
    version: str = ""
    protocol: tuple[int, int] | None = None
    clock_skew_s: float | None = None
    clock_error_s: float = 0.0
    max_frame_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything known about one endpoint; what comes after a step that failed was not tried."""

    endpoint: str
    insecure: bool = False
    host: str = ""
    port: int = 0
    path: str = ""
    server_keys: tuple[str, ...] = ()
    keys: KeyFacts | None = None
    addresses: tuple[str, ...] = ()
    resolve_error: str = ""
    reach: Reach | None = None
    reach_error: str = ""
    connect_s: float = 0.0
    mss_bytes: int | None = None
    greeting: Greeting | None = None
    session: Session | None = None
    our_protocol: tuple[int, int] = (1, 1)
    our_max_frame_bytes: int = 0


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
