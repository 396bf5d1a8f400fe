"""The two ends of a stream, pure: parts in order, within a window of bytes, kept until the caller has them.

Rules: docs/spec/bus-wire.md, section 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from edgebus.messages import ArraySpec, Message, Part

Specs = tuple[ArraySpec, ...]
Frames = tuple[bytes, ...]

MIN_WINDOW_BYTES = 64 * 1024
"""No server keeps less than this on its way if its caller allows it, so a caller acknowledges that often."""
MAX_PARTS_AHEAD = 4096
"""Parts on their way at once, however small: what bounds the memory for their headers."""


class Arrival(NamedTuple):
    """One part as the caller gets it."""

    pos: int
    specs: Specs
    frames: Frames


def content_bytes(frames: Frames) -> int:
    """Bytes of some frames."""
    return sum(map(len, frames))


@dataclass(slots=True)
class OutStream:
    """The serving end: parts that the caller has not acknowledged yet.

    Args:
        window_bytes: at most so much is kept; one part more than the window goes alone.
        next_pos: position of the next part.
    """

    window_bytes: int
    next_pos: int = 0
    unacked: dict[int, Message] = field(default_factory=dict)
    unacked_bytes: int = 0
    wants_room: bool = False
    resent_at: float = -math.inf
    refused_bytes: int = 1  # size of the part that had no room

    def has_room(self, num_bytes: int) -> bool:
        """True if a part of this size may be pushed now."""
        if not self.unacked:
            return True
        # The part that crosses the window goes: held back, it could wait for an acknowledgement that is not due yet.
        return self.unacked_bytes < self.window_bytes and len(self.unacked) < MAX_PARTS_AHEAD

    def push(self, request_id: int, specs: Specs, frames: Frames) -> Message:
        """Take the next part; the caller of this made sure that there is room."""
        message = Message(Part(request_id, self.next_pos, specs), frames)
        self.unacked[self.next_pos] = message
        self.unacked_bytes += content_bytes(frames)
        self.next_pos += 1
        return message

    def acknowledge(self, pos: int) -> bool:
        """The caller has everything below pos; True if that made room somebody waits for."""
        freed = False
        while self.unacked and (oldest := next(iter(self.unacked))) < pos:
            self.unacked_bytes -= content_bytes(self.unacked.pop(oldest).frames)
            freed = True
        if freed and self.wants_room:
            self.wants_room = False
            return True
        return False


@dataclass(slots=True)
class InStream:
    """The calling end: puts parts in order and says when to acknowledge.

    Args:
        window_bytes: what the server was told; twice that much is kept of parts out of order, the rest is dropped.
        next_pos: first part wanted.
    """

    window_bytes: int
    next_pos: int = 0
    end_pos: int | None = None
    consumed_pos: int = 0
    _early: dict[int, Arrival] = field(default_factory=dict)
    _early_bytes: int = 0
    _held_bytes: int = 0  # in order and unread
    _unread_bytes: dict[int, int] = field(default_factory=dict)
    _since_ack_bytes: int = 0
    _acked_pos: int = 0
    duplicates: int = 0

    def __post_init__(self) -> None:
        self.consumed_pos = self._acked_pos = self.next_pos

    def receive(self, pos: int, specs: Specs, frames: Frames) -> list[Arrival]:
        """Take a part as it comes; returns those that are in order now."""
        if pos < self.next_pos or pos in self._early:
            self.duplicates += 1
            return []
        # Apart, or a large part that came early would keep out those that are missing before it.
        is_next = pos == self.next_pos
        held_bytes, num_held = (
            (self._held_bytes, len(self._unread_bytes)) if is_next else (self._early_bytes, len(self._early))
        )
        if held_bytes > 2 * self.window_bytes or num_held >= 2 * MAX_PARTS_AHEAD:
            return []  # far more than we allowed: it is sent again when its turn comes
        self._early[pos] = Arrival(pos, specs, frames)
        self._early_bytes += content_bytes(frames)
        ready = []
        while (arrival := self._early.pop(self.next_pos, None)) is not None:
            self._unread_bytes[self.next_pos] = size = content_bytes(arrival.frames)
            self._early_bytes -= size
            self._held_bytes += size
            self.next_pos += 1
            ready.append(arrival)
        return ready

    def consume(self, pos: int) -> int | None:
        """The application took all parts below pos; returns the position to acknowledge, if it is time to."""
        while self.consumed_pos < pos:
            size = self._unread_bytes.pop(self.consumed_pos, 0)
            self._held_bytes -= size
            self._since_ack_bytes += size
            self.consumed_pos += 1
        ahead = self.consumed_pos - self._acked_pos
        # The server's window may be smaller than what it was told.
        if 2 * self._since_ack_bytes >= min(self.window_bytes, MIN_WINDOW_BYTES) or 2 * ahead >= MAX_PARTS_AHEAD:
            self._since_ack_bytes = 0
            self._acked_pos = self.consumed_pos
            return self.consumed_pos
        return None

    def acknowledge(self) -> int:
        """The position to acknowledge now, whatever has been told before."""
        self._since_ack_bytes = 0
        self._acked_pos = self.consumed_pos
        return self.consumed_pos

    def start_over(self) -> None:
        """Another life of the server goes on from next_pos: nothing of the earlier one that is out of order counts."""
        self._early_bytes = 0
        self._early.clear()
        self.end_pos = None

    @property
    def complete(self) -> bool:
        """True once the end is known and everything before it is here."""
        return self.end_pos is not None and self.next_pos >= self.end_pos
