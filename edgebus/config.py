"""The bounds a node works within, built once and passed down."""

from __future__ import annotations

from dataclasses import dataclass, fields

from edgebus import whole
from edgebus.errors import ConfigError

_MOST = {"max_frames": 2**20}  # of whole numbers; others are at most
_MOST_OTHERS = 2**48
HEADER_CAP_BYTES = 65_536  # protocol constant: no header is larger, whatever a peer advertises


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one node; the first three are advertised to the peer, which refuses to exceed them.

    Args:
        max_header_bytes: largest header accepted, at most 65536.
        max_frame_bytes: largest payload or array frame accepted.
        max_frames: most frames in one message, header included.
        max_peers: most links kept at once, dialled and accepted together.
        max_links_per_key: most accepted links of one key; on a plaintext node, which sees no keys, max_peers only.
        max_pending: most requests of one link waiting for an answer.
        max_pending_bytes: most bytes in the requests of one link waiting for an answer. A key may thus hold
            max_links_per_key times this much; a node with little memory lowers both.
        max_outstanding_bytes: most bytes in our own requests of one link without an outcome, sent or waiting.
        on_full: what a request over that does: "refuse" raises QueueFull, "drop_oldest" ends the oldest that were never
            sent as refused "queue_full", "wait" holds the caller until there is room or its deadline is over.
        bulk_from_bytes: contents of this size and more go in chunks on the bulk lane.
        bulk_bytes: bytes a peer may send on the bulk lane without credit; another such amount may be held per link.
        share_bytes: shared memory for arrays to peers on the same host; 0 sends them through sockets.
        share_from_bytes: arrays that together have this size go through shared memory.
        cache_count: answers kept per peer for duplicates.
        cache_bytes: bytes of answers kept per peer for duplicates.
        heartbeat_s: ping a peer that has been silent this long.
        silence_s: take the link for down after this much silence.
        resend_s: first resend of an unanswered request; doubles up to eight times this.
        forget_s: keep what is known of a silent peer this long.

    Raises:
        ConfigError: a bound is not positive, or contradicts another.
    """

    max_header_bytes: int = HEADER_CAP_BYTES
    max_frame_bytes: int = 16 * 1024 * 1024
    max_frames: int = 64
    max_peers: int = 256
    max_links_per_key: int = 32
    max_pending: int = 1024
    max_pending_bytes: int = 64 * 1024 * 1024
    max_outstanding_bytes: int = 64 * 1024 * 1024
    on_full: str = "refuse"
    bulk_from_bytes: int = 64 * 1024
    bulk_bytes: int = 32 * 1024 * 1024
    share_bytes: int = 256 * 1024 * 1024
    share_from_bytes: int = 64 * 1024
    cache_count: int = 1024
    cache_bytes: int = 8 * 1024 * 1024
    heartbeat_s: float = 2.0
    silence_s: float = 4.0
    resend_s: float = 1.0
    forget_s: float = 60.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name != "on_full":
                object.__setattr__(self, field.name, _checked(field.name, getattr(self, field.name)))
        if self.on_full not in ("refuse", "drop_oldest", "wait"):
            raise ConfigError(f"on_full is {self.on_full!r}, expected refuse, drop_oldest or wait")
        if self.max_header_bytes > HEADER_CAP_BYTES:
            raise ConfigError(
                f"max_header_bytes is {self.max_header_bytes}, the protocol caps it at {HEADER_CAP_BYTES}"
            )
        if self.max_header_bytes < 8192:
            raise ConfigError(f"max_header_bytes is {self.max_header_bytes}, the longest refusal needs 8192")
        if self.max_pending_bytes < self.max_frame_bytes:
            raise ConfigError(
                f"max_pending_bytes is {self.max_pending_bytes}, not enough for one frame of {self.max_frame_bytes} B"
            )
        if self.max_frames < 2:
            raise ConfigError(f"max_frames is {self.max_frames}, a request has at least 2 (header, payload)")
        if self.silence_s <= self.heartbeat_s:
            raise ConfigError(f"silence_s {self.silence_s} must be above heartbeat_s {self.heartbeat_s}")


def _checked(name: str, value: object) -> float:
    """A bound as the number that it is worked with."""
    if name.endswith("_s"):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{name} must be seconds, got {value!r}")
        if not value > 0:
            raise ConfigError(f"{name} must be positive, got {value!r}")
        return value
    most = _MOST.get(name, _MOST_OTHERS)
    try:
        number = whole.number(value, name, -most, most)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from None
    if number < (0 if name == "share_bytes" else 1):
        raise ConfigError(f"{name} must be positive, got {value!r}")
    return number


def check_transport(endpoint: str) -> None:
    """Raise ConfigError for an endpoint of no transport we have, TypeError for none at all."""
    if not isinstance(endpoint, str):
        raise TypeError(f"endpoint must be a string such as tcp://127.0.0.1:7000, got {endpoint!r}")
    if not endpoint.startswith(("tcp://", "ipc://", "inproc://")):
        raise ConfigError(f"endpoint {endpoint!r} is not tcp://HOST:PORT, ipc://PATH or inproc://NAME")
    port = endpoint.rpartition(":")[2]
    is_port = port == "*" or (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) < 65_536)
    if endpoint.startswith("tcp://") and not is_port:
        raise ConfigError(f"endpoint {endpoint!r} has no port of 0..65535, or * for any")
    if "\0" in endpoint:
        raise ConfigError(f"endpoint {endpoint!r} has a NUL in it")
    try:
        endpoint.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"endpoint {endpoint!r} is not UTF-8") from None
