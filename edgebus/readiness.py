"""Who reads what has become readable, and what may be without saying so. No lock: the runner's is held.

The descriptors of libzmq's sockets are edge-triggered, so whoever has touched one looks whether it became readable.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from edgebus.port import PlainPort, open_poller
from edgebus.rawzmq import ZmqSocket


class Opened:
    """An open socket of ours."""

    def __init__(self, sock: ZmqSocket, socket_id: int, fd: int, port: PlainPort) -> None:
        self.sock = sock
        self.socket_id = socket_id
        self.fd = fd
        self.port = port
        self.tcp_port = 0  # of its endpoint
        self.crowd = 0  # how many messages more to take at once: none while they come one by one


class MessageTaker:
    """Who reads messages from sockets."""

    def take(self, opened: Opened, event: int) -> bool:
        """Read from a socket; True if there may be more. `event` is 0 if that is a guess."""
        raise NotImplementedError


class DescriptorTaker:
    """Who reads what comes by a descriptor."""

    def take(self, event: int) -> bool:
        """Read what is there; `event` is 0 if that is a guess. True: there may be more."""
        raise NotImplementedError


Taker = Callable[[int], bool]
"""Reads what is there; its argument is 0 if that is a guess. True: there may be more."""


class Readiness:
    """The descriptors that are watched, by whoever reads them.

    Attributes:
        messages: reads messages from a socket; set by whoever handles them, before the first socket is opened.
        touched: descriptors whose sockets may be readable without saying so.
    """

    messages: MessageTaker

    def __init__(self) -> None:
        self._poller = open_poller()
        self._takers: dict[int, Taker | Opened | DescriptorTaker] = {}  # by file descriptor
        self.touched: set[int] = set()

    def watch_fd(self, fd: int, take: Taker | Opened | DescriptorTaker) -> None:
        """Have `take` called when a descriptor is readable; it returns True if there may be more."""
        self._takers[fd] = take
        self._poller.register(fd)

    def unwatch_fd(self, fd: int) -> None:
        """Forget a descriptor, before it is closed; nothing happens if it is not watched."""
        if fd in self._takers:
            with suppress(FileNotFoundError):  # not yet, or not any more: a signal handler has raised
                self._poller.unregister(fd)
            self.touched.discard(fd)
            self._takers.pop(fd, None)

    def poll(self, timeout_s: float) -> list[tuple[int, int]]:
        """Wait until something is readable, inf is for ever; the only method that may be called without the lock."""
        try:
            return self._poller.poll(timeout_s)
        except (ValueError, OSError):
            if not self._poller.closed:  # that of a signal handler
                raise
            return []

    def take(self, ready: list[tuple[int, int]]) -> None:
        """Read what is there, some messages of each; an event of 0 is a guess."""
        takers, left = self._takers, len(ready)
        try:
            for fd, event in ready:
                # A descriptor may have been closed by what another one brought in this turn.
                taker = takers.get(fd)
                if type(taker) is Opened:
                    if self.messages.take(taker, event):
                        self.touched.add(fd)
                elif isinstance(taker, DescriptorTaker):
                    if taker.take(event):
                        self.touched.add(fd)
                elif taker is not None and taker(event):  # type: ignore[operator]
                    self.touched.add(fd)
                left -= 1
        finally:
            if left:  # an exception of a signal handler: what was not read empty may never tell again
                self.touched.update([fd for fd, _ in ready[len(ready) - left :] if fd in takers])

    def take_touched(self) -> None:
        """Read from sockets that may be readable although no descriptor tells: touched, or not read empty."""
        touched = [(fd, 0) for fd in self.touched]
        try:
            self.touched.clear()
            self.take(touched)
        except BaseException:
            self.touched.update([fd for fd, _ in touched if fd in self._takers])
            raise
