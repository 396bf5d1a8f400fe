"""Messages as they go by, for whoever listens: recorders, `edgebus tap`. Pure."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from edgebus import messages as m
from edgebus.attached import Attached, Route
from edgebus.interrupts import is_of_signal

_log = logging.getLogger("edgebus")


class TapEvent(NamedTuple):
    """A message as it went by.

    Attributes:
        at: monotonic seconds.
        direction: seen from this node.
        peer_id, peer_key, peer_name: the other end.
        lane: "control" or "bulk".
        header: decoded; not to be changed.
        sizes: bytes of the content frames.
        frames: the content itself; not to be kept longer than needed, nor changed.
    """

    at: float
    direction: Literal["in", "out"]
    peer_id: str
    peer_key: str | None
    peer_name: str
    lane: Literal["control", "bulk"]
    header: m.Header
    sizes: tuple[int, ...]
    frames: tuple[Any, ...]


def tell(
    taps: list[Callable[[TapEvent], None]],
    direction: Literal["in", "out"],
    attached: Attached,
    route: Route,
    message: m.Message,
    now: float,
) -> None:
    """Show a message of a link to all that listen; one that fails is removed."""
    lane: Literal["control", "bulk"] = "bulk" if route == attached.bulk_route else "control"
    sizes = tuple(map(len, message.frames))
    who = (attached.peer_id, attached.key, attached.link.peer_name)
    event = TapEvent(now, direction, *who, lane, message.header, sizes, message.frames)
    for tap in list(taps):
        try:
            tap(event)
        except Exception as error:  # a fault of a listener must not cost the message
            if is_of_signal(error):
                raise
            _log.exception("edgebus: a tap failed and was removed")
            taps.remove(tap)
