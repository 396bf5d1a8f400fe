"""What is looked at for every message: a link's front, its routes, its traffic. Compiled with types: attached.pxd."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgebus.answerer import Answerer
    from edgebus.bulk import BulkSender
    from edgebus.bulk_receiver import BulkReceiver
    from edgebus.hub import Judge, TapEvent
    from edgebus.link import LinkMachine
    from edgebus.link_states import Event, State
    from edgebus.messages import Message, Request, WireLimits
    from edgebus.near import NearLane
    from edgebus.pace import Pace
    from edgebus.requests import Caller

Route = tuple[int, bytes]
"""Where frames come from and go to: a socket, and on a listening one the connection's routing id."""


class Traffic:
    """What went over one link, in bytes of frames and in messages; content is payloads and arrays without headers."""

    def __init__(self) -> None:
        self.bytes_sent = 0
        self.bytes_received = 0
        self.messages_sent = 0
        self.messages_received = 0
        self.malformed = 0
        self.content_bytes_sent = 0
        self.content_bytes_received = 0
        self.copied_bytes_sent = 0


class LinkFront:
    """The part of a LinkMachine that the short way of small messages needs.

    Attributes:
        caller, answerer, sender, receiver, pace: its halves.
        state, version, peer_limits: what was agreed with the peer.
        heard_at: when anything came from it last, monotonic seconds.
    """

    caller: Caller
    answerer: Answerer
    sender: BulkSender
    receiver: BulkReceiver
    pace: Pace
    state: State
    version: int
    peer_limits: WireLimits | None
    heard_at: float


class HubFront:
    """The part of a Hub that every message passes.

    Attributes:
        by_route: links by the routes that they have now.
        taps, judge: who is shown every message, and who says what a peer may ask for.
        outbox, news: what is to be sent and to be told; empty when there is nothing to do.
        first_timer_at: at or before the next timer, monotonic seconds.
        unroutable: messages that had nowhere to go.
    """

    by_route: dict[Route, Attached]
    taps: list[Callable[[TapEvent], None]]
    judge: Judge | None
    outbox: list[tuple[Route, Attached | None, Message]]
    news: list[tuple[Attached, Event]]
    first_timer_at: float
    unroutable: int


class Attached:
    """A link with its routes, the key it is bound to and its traffic.

    Args:
        link: the machine.
        route: of its control lane.
        key: of the peer, None if insecure.
        peer_id: stable for the life of the link.
        hello_id: incarnation the peer greeted with; None on a link this node dialled.
    """

    def __init__(
        self, link: LinkMachine, route: Route, key: str | None, peer_id: str, hello_id: bytes | None, traffic: Traffic
    ) -> None:
        self.link = link
        self.route = route
        self.key = key
        self.peer_id = peer_id
        self.hello_id = hello_id
        self.traffic = traffic
        self.bulk_route: Route | None = None
        self.near: NearLane | None = None  # what speaks of shared memory goes this way
        self.sharing = "unknown"  # whether the peer sees our shared memory: unknown, asked, yes, no
        self.shared_with = b""  # incarnation of the peer that was asked
        self.scheduled_at = math.inf

    def is_new(self, request: Request) -> bool:
        """True for a request of an accepted peer that is not known yet: a resend is not judged again."""
        return self.hello_id is not None and not self.link.answerer.knows(request.id)
