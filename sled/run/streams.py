"""Who waits for a verdict: a request that gets one, or a decode stream that gets one after the other."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from edgebus import EdgebusError, MessageTooLarge, Request, StreamEnded
from edgebus.serving import refuse, reply

log = logging.getLogger("sled.server")


class Asked:
    """A round that waits for its verdict.

    Args:
        request: of the bus.
        arrived_at: when it came, seconds.
        session: whose round it is.
        drafted: its drafts.
    """

    __slots__ = ("arrived_at", "drafted", "request", "session")

    def __init__(self, request: Request, arrived_at: float, session: bytes = b"", drafted: int = 0) -> None:
        self.request, self.arrived_at, self.session, self.drafted = request, arrived_at, session, drafted

    @property
    def gone(self) -> bool:
        """Whether nobody waits any more: cancelled, expired, or the peer is gone."""
        return self.request.remaining_s() <= 0

    def give(self, payload: bytes, *, last: bool) -> bool:
        """Give a verdict; `last` is always True here. Returns whether there is room for more."""
        assert last, "a round has one verdict"
        reply(self.request, payload)
        return True

    def refuse(self, code: str, detail: str, info: bytes = b"") -> None:
        """Answer no."""
        refuse(self.request, code, detail, info)


class Streamed(Asked):
    """A decode stream: each verdict is a part of it, in order; its answer, after the last one, is empty.

    What its receiver has no room for is held here, and the machine is to decode no further meanwhile: at most the
    verdicts of the forward that runs are held.

    Args:
        request: a stream.
        arrived_at: when it came, later when its last verdict was given or there was room again; seconds.
        session: whose stream it is.
        on_room: called with this once there is room again, on whichever thread drives the bus.
    """

    __slots__ = ("_ended", "_held", "_last", "_on_room")

    def __init__(
        self, request: Request, arrived_at: float, session: bytes, on_room: Callable[[Streamed], None]
    ) -> None:
        super().__init__(request, arrived_at, session)
        self._on_room = on_room
        self._held: deque[bytes] = deque()
        self._last = self._ended = False

    @property
    def gone(self) -> bool:
        """Whether nobody reads it any more."""
        return self._ended or super().gone

    def give(self, payload: bytes, *, last: bool) -> bool:
        """Push a verdict; after the last one the stream ends. Returns False if there is no room for more now."""
        if self._ended:
            return True  # the machine is told with the next step
        self._held.append(payload)
        self._last = self._last or last
        return self.flush()

    def flush(self) -> bool:
        """Push what is held; True if nothing is left. Otherwise `on_room` will be called."""
        try:
            while self._held:
                if not self.request.try_push(self._held[0]):
                    self.request.when_room(lambda: self._on_room(self))
                    return False
                self._held.popleft()
        except StreamEnded:
            self._end()
            return True
        except MessageTooLarge as error:
            self.refuse("too_large", str(error))
            return True
        except EdgebusError as error:
            log.warning("a part of a stream could not be sent: %s", error)
            self._end()
            return True
        if self._last and not self._ended:
            self._ended = True
            reply(self.request, b"")
        return True

    def refuse(self, code: str, detail: str, info: bytes = b"") -> None:
        """End the stream with a no; what is held is not sent: the device asks for it again from where it stands."""
        self._end()
        super().refuse(code, detail, info)

    def _end(self) -> None:
        self._ended = True
        self._held.clear()
