"""How much libzmq may hold for one connection, or is read of one before others: bytes and messages."""

from __future__ import annotations

from edgebus.config import Limits

LARGE_BYTES = 64 * 1024
"""Messages of so much stand in libzmq's queue for what they are, not for what many of them are."""
DRAIN_BYTES = 256 << 20
"""Of large messages so much is read in a row while no small one comes: what nobody has read is bounded only by how soon
it is read, and what is refused is freed at once."""
LOOK_BYTES = 1 << 20
"""After so much of them libzmq is asked what has come by connections that had nothing. As long as one has, it looks for
that once in 100 frames: behind a peer that floods, a small message of another would wait for 66 MiB of 2 MiB each."""
UNREAD_BYTES = 256 << 20
LEAST_UNREAD = 128
"""Frames of the largest size that a listener lets libzmq receive for one connection before they are read: so many
bytes of them, if that is not fewer than so many frames. 1000, libzmq's own bound, made 2 GB of frames of 2 MiB. Fewer
than 128 make libzmq stop and go on so often that many small messages in a row pay for it (32: half as much again)."""
UNENDED_PENDING = 4
"""So many times `max_pending_bytes` all connections together may have sent of messages that have no end yet."""


def most_unread(limits: Limits) -> int:
    """Messages that libzmq may receive for one connection of a listener before anybody reads them."""
    return max(LEAST_UNREAD, min(1000, UNREAD_BYTES // limits.max_frame_bytes))


def most_sending_bytes(limits: Limits) -> int:
    """Bytes of large messages that libzmq may have for one connection: whatever its peer claims to take.

    Twice the window, so that what is sent again has room behind what it is sent again for.
    """
    return max(1 << 20, limits.max_outstanding_bytes, 2 * limits.bulk_bytes)
