"""Messages without an end: what a connection has sent of one, and which connection to end when that is too much.

libzmq keeps the frames of a message until the last has come, and neither its high-water mark nor anything else bounds
them. But the kernel counts the bytes that came by a connection (RFC 4898; Linux tells them in TCP_INFO), and a port
those of the messages that were taken from it. The difference: messages that nobody has taken yet, or one without end.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from typing import Protocol

from edgebus.tcp import Came, Guard, Kernel

_log = logging.getLogger("edgebus")
MIB = 1 << 20
LOOK_S = 0.1
"""So often the memory of the process is looked at while somebody has dialled this node; the connections are when it has
grown by GROWN_BYTES, and now and then, since libzmq may fill memory that the process has already."""
CHOSEN_S = 1.0
"""So often if this node has chosen all its peers, or if a guard asks for a look when the memory has grown."""
SOON_S, EACH_S = 0.02, 0.005
"""Until the next look where there is much; and for each connection until all are looked at again."""
GROWN_BYTES = 16 * MIB
SILENT_LOOKS, TAKEN_AT_ONCE = 5, 16
"""Of a socket that is never read empty: who gave nothing in so many looks, and one more for each so many connections,
while others did, has no message that is whole. libzmq takes turns among connections, and a look is a turn at least."""
_HELD_S = 1.0  # so long whoever was held back waits at most for what came before to be read
_WARY_S = 60.0  # who was ended comes again, and fills memory that is there since the last time
_BEAT_BYTES, _BEAT_S = 130, 2.0
"""libzmq's own beats are bytes of no message, 82 for one from either end (with CURVE): what a connection is taken to
have sent beside messages grows by so much at most for each beat that is due, every 2 s at least."""
_HANDSHAKE_BYTES = 16384  # more than libzmq's own


class CountingPort(Protocol):
    """What messages of a socket come by (port.PlainPort)."""

    def take_counts(self) -> Iterable[tuple[int, int]]:
        """Descriptors and the bytes on the wire of messages taken from them since the last call."""

    def readable(self) -> bool:
        """Whether there is a message."""


class _Connection:
    """A connection, as far as it is known.

    Attributes:
        taken_bytes: of messages that were taken from it, as they were on the wire.
        recent_bytes: of those, since the last look.
        beside_bytes: what it is taken to have sent beside messages.
        beats: how many were due, when that was raised last.
        whole_bytes: that came before a message which was taken ended: of what came later alone one may have no end.
        looked_bytes: that had come at the last look, -1 if there was something to read: what is taken after that look
            is the end of what came before.
        gave: a message since the last look.
        silent_looks: in a row that found too much of it, since it did.
        has_greeted: it gave any.
    """

    __slots__ = (
        "beats",
        "beside_bytes",
        "fd",
        "gave",
        "has_greeted",
        "inode",
        "looked_bytes",
        "port",
        "recent_bytes",
        "silent_looks",
        "taken_bytes",
        "whole_bytes",
    )

    def __init__(self, fd: int, inode: int, port: CountingPort, beats: float) -> None:
        self.fd, self.inode, self.port = fd, inode, port
        self.taken_bytes = self.recent_bytes = self.beside_bytes = self.silent_looks = self.whole_bytes = 0
        self.looked_bytes = -1
        self.gave = self.has_greeted = False
        self.beats = beats

    def gave_bytes(self, num_bytes: int) -> None:
        """So many bytes of whole messages were taken from it."""
        if num_bytes:
            self.taken_bytes += num_bytes
            self.recent_bytes += num_bytes
            self.gave = self.has_greeted = True

    def unended_bytes(self, num_bytes: int, beats: float, *, is_read_empty: bool) -> int:
        """What it has sent of messages that were not taken, of so many bytes in all, when so many beats were due.

        Args:
            is_read_empty: when so many had come there was nothing to read.
        """
        if self.taken_bytes > num_bytes:
            self.taken_bytes -= self.recent_bytes  # some of that was of another, which had the descriptor before
        beside = num_bytes - self.taken_bytes
        self.beside_bytes = min(beside, self.beside_bytes + int(_BEAT_BYTES * (beats - self.beats)))
        self.beats, self.recent_bytes = beats, 0
        if self.gave:
            self.silent_looks = 0
            self.whole_bytes = max(self.whole_bytes, self.looked_bytes)
        self.gave = False
        self.looked_bytes = num_bytes if is_read_empty else -1
        return min(beside - self.beside_bytes, num_bytes - self.whole_bytes)


class Unended:
    """The connections of a node's TCP sockets; the runner's lock is held.

    Args:
        frame_bytes: largest frame; so much of an unfinished message a connection that has given one before may have.
        most_bytes: that all of them together may have beyond.
        beat_s: seconds between libzmq's beats.
        kernel: asked what came.
        guard: looks at the memory more often, and bounds what comes while nobody looks.
        touch: called when sockets are to be read although they may not say so.

    Attributes:
        look_at: when `look` is due; inf while there is no connection.
        num_ended: connections that were ended.
    """

    def __init__(
        self,
        frame_bytes: int,
        most_bytes: int,
        beat_s: float,
        kernel: Kernel | None = None,
        guard: Guard | None = None,
        touch: Callable[[], object] = lambda: None,
    ) -> None:
        self._frame_bytes, self._most_bytes, self._beat_s = frame_bytes, most_bytes, min(beat_s, _BEAT_S)
        self._kernel = kernel if kernel is not None else Kernel()
        self._guard, self._touch = guard, touch
        self._connections: dict[int, _Connection] = {}
        self._ports: dict[CountingPort, bool] = {}  # whether others dial them
        self._ends: dict[CountingPort, set[tuple[bool, int, str]]] = {}  # what the guard was told of each
        self._early: dict[int, int] = {}  # bytes of messages by descriptors of which nothing else is known yet
        self._earlier: dict[int, int] = {}  # likewise, when it was looked last: their news may wait behind much else
        self._resident_bytes = math.inf  # at the last look, or less since
        self._all_at = self._wary_until = -math.inf
        self._held_until = math.inf
        self._num_held_back = 0  # by a guard that is no more
        self.look_at = math.inf
        self.num_ended = 0

    def opened(
        self, fd: int, port: CountingPort, tcp_port: int, *, is_accepted: bool, now: float, address: str = ""
    ) -> None:
        """A connection is there, as libzmq said a moment ago of a socket with this local or remote port.

        Args:
            address: of the listening socket; empty if it listens at all.
        """
        found = self._kernel.came(fd)
        if found is None or tcp_port != (found.local_port if is_accepted else found.remote_port):
            return  # gone already, and the descriptor may be something of the application's
        known = self._connections.get(fd)
        if known is not None and known.inode == found.inode:
            return  # told twice: a signal handler raised, or the first news was of one that is gone by now
        self._ports[port] = is_accepted
        self._take_counts(port)  # with what the last one with this descriptor gave
        if self._guard is not None:
            end = is_accepted, tcp_port, address if is_accepted else found.remote.rpartition(":")[0]
            self._ends.setdefault(port, set()).add(end)
            if not self._guard.know(fd, found.inode, *end):
                self._num_held_back = self._guard.num_ever_paused
                self._guard = None  # no thread for it: we look ourselves
        connection = self._connections[fd] = _Connection(fd, found.inode, port, now / self._beat_s)
        connection.gave_bytes(self._early.pop(fd, 0) + self._earlier.pop(fd, 0))
        self.look_at = min(self.look_at, now + self._look_s(now))

    @property
    def num_held_back(self) -> int:
        """Connections that the guard has kept from sending while nobody read, ever."""
        return self._guard.num_ever_paused if self._guard is not None else self._num_held_back

    def closed(self, port: CountingPort) -> None:
        """A socket was closed."""
        self._ports.pop(port, None)
        for fd in [fd for fd, each in self._connections.items() if each.port is port]:
            del self._connections[fd]
        ends = self._ends.pop(port, set())
        if self._guard is not None:  # the application may have this address from now on
            kept = {end[:2] if end[0] else end for others in self._ends.values() for end in others}
            for end in ends:
                if (end[:2] if end[0] else end) not in kept:
                    self._guard.forget(*end)

    def look_soon(self) -> None:
        """The guard asks for a look: the next one is due, at every connection."""
        self.look_at = self._all_at = -math.inf

    def look(self, now: float) -> None:
        """Look at the memory of the process, and if it has grown at each connection; end who sends without end."""
        self.look_at = now + self._look_s(now)
        left_bytes = -1
        try:
            left_bytes = self._look(now)
        finally:  # a signal handler may have raised: the guard would take us for stuck
            self._tell_guard(left_bytes, now)
            if self._guard is not None and self._guard.num_paused:  # if only a listening socket: nobody else wakes us
                self.look_at = min(self.look_at, now + CHOSEN_S)
        if left_bytes < 0:
            return
        if left_bytes >= GROWN_BYTES or (self._guard is not None and self._guard.num_paused):
            self.look_at = self._all_at = now + SOON_S
        elif now < self._wary_until:
            self._all_at = now

    def _look(self, now: float) -> int:
        """Bytes of unended messages beyond what is allowed; -1 if there was no reason to look at connections."""
        for port in self._ports:
            self._take_counts(port)
        self._early, self._earlier = {}, self._early
        resident_bytes = self._kernel.resident_bytes()
        if resident_bytes < self._resident_bytes + GROWN_BYTES and now < self._all_at:
            self._resident_bytes = min(self._resident_bytes, resident_bytes)
            return -1
        left_bytes = self._look_at_all(now)
        self._resident_bytes, self._all_at = resident_bytes, now + max(CHOSEN_S, EACH_S * len(self._connections))
        return left_bytes

    def _tell_guard(self, left_bytes: int, now: float) -> None:
        """This was a look. Who was held back goes on when half of what is allowed is left, or nothing is to be read."""
        guard = self._guard
        if guard is None:
            return
        if not guard.num_paused:
            self._held_until = math.inf
        else:
            self._held_until = min(self._held_until, now + _HELD_S)
        resumes = now >= self._held_until or (
            guard.num_paused > 0
            and (0 <= left_bytes <= self._most_bytes // 2 or not any(self._is_readable(port) for port in self._ports))
        )
        guard.looked(resumes, left_bytes)
        if resumes:
            self._held_until = math.inf
            _log.warning(
                "edgebus: more came than may be unread, while nobody read: connections were held back until now, %d in "
                "all so far; a handler that computes for long, or keeps Python's lock, stops its node",
                guard.num_ever_paused,
            )

    def _is_readable(self, port: CountingPort) -> bool:
        """Whether there is something to read, which may not be told any more once it was asked."""
        if port.readable():
            self._touch()
            return True
        return False

    def _look_s(self, now: float) -> float:
        if not self._connections:
            return math.inf
        if self._guard is not None and now >= self._wary_until:
            return CHOSEN_S
        return LOOK_S if any(self._ports.values()) else CHOSEN_S

    def _take_counts(self, port: CountingPort) -> None:
        for fd, num_bytes in port.take_counts():
            connection = self._connections.get(fd)
            if connection is not None and connection.port is port:
                connection.gave_bytes(num_bytes)
            else:
                self._early[fd] = self._early.get(fd, 0) + num_bytes

    def _look_at_all(self, now: float) -> int:
        """Bytes of unended messages beyond what is allowed; so much at the most remains, unless it is not known yet."""
        over: list[tuple[int, _Connection, Came]] = []
        came = [(connection, self._kernel.came(connection.fd)) for connection in self._connections.values()]
        full = {port for port in self._ports if self._is_readable(port)}  # first what came, then whether it is read
        for connection, found in came:
            if found is None or found.inode != connection.inode:
                del self._connections[connection.fd]
                continue
            is_read_empty = connection.port not in full
            unended_bytes = connection.unended_bytes(found.num_bytes, now / self._beat_s, is_read_empty=is_read_empty)
            allowed_bytes = self._frame_bytes if connection.has_greeted else _HANDSHAKE_BYTES
            if unended_bytes <= allowed_bytes:
                connection.silent_looks = 0
            else:
                connection.silent_looks += 1
                over.append((unended_bytes - allowed_bytes, connection, found))
        silent_looks = SILENT_LOOKS + len(self._connections) // TAKEN_AT_ONCE
        total_bytes, ended = sum(item[0] for item in over), []
        for num_bytes, connection, found in sorted(over, key=lambda item: item[0], reverse=True):
            if total_bytes <= self._most_bytes:
                break
            if connection.silent_looks < silent_looks and connection.port in full:
                continue  # these may be whole messages that nobody has taken yet
            total_bytes -= num_bytes
            if self._kernel.end(connection.fd, connection.inode):
                ended.append((num_bytes, found.remote))
            del self._connections[connection.fd]  # last: what a signal handler interrupts here is looked at again
        self.num_ended += len(ended)
        if ended:
            self._wary_until = now + _WARY_S
            _log.warning(
                "edgebus: %s had sent %d MiB of a message without an end: its connection was ended, and %d others; "
                "a peer of this library's version 2 or later sends large contents in chunks",
                ended[0][1], ended[0][0] // MIB, len(ended) - 1,
            )  # fmt: skip
        return total_bytes
