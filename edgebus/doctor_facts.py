"""What a probe can find out about an endpoint, as data. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from edgebus.zmtp import Greeting


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
