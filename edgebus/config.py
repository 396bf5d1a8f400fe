"""The bounds a node works within, built once and passed down."""

from __future__ import annotations

from dataclasses import dataclass, fields

from edgebus.errors import ConfigError

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
    cache_count: int = 1024
    cache_bytes: int = 8 * 1024 * 1024
    heartbeat_s: float = 2.0
    silence_s: float = 5.0
    resend_s: float = 1.0
    forget_s: float = 60.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ConfigError(f"{field.name} must be positive, got {getattr(self, field.name)!r}")
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
