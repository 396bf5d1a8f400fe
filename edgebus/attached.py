"""What is looked at for every message: a link's front, its routes, its traffic. Compiled with types: attached.pxd."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from edgebus.bulk import credit_step
from edgebus.handed import PlainReader, PlainWriter
from edgebus.link_states import State
from edgebus.pace import LEAST_BYTES

if TYPE_CHECKING:
    from edgebus.answerer import Answerer
    from edgebus.bulk import BulkSender
    from edgebus.bulk_receiver import BulkReceiver
    from edgebus.hub import Judge
    from edgebus.link import LinkMachine
    from edgebus.link_states import Event
    from edgebus.messages import Message, Request, WireLimits
    from edgebus.pace import Pace
    from edgebus.requests import Caller
    from edgebus.shm.board import Board
    from edgebus.shm.pipes import Pipes
    from edgebus.taps import TapEvent

WHOLE_WINDOW_BYTES = 4 * 1024 * 1024
"""A sender with this window loses nothing by credit that comes 5 ms late, whatever the receiver's is."""
_UP = State.UP
Route = tuple[int, bytes]
"""Where frames come from and go to: a socket, and on a listening one the connection's routing id."""


class NearLane:
    """One end of a near lane (near.py).

    Args:
        attached: whose it is.
        route: what its messages seem to come by.
        pipes: our end.
    """

    def __init__(self, attached: Attached, route: Route, pipes: Pipes) -> None:
        self.attached = attached
        self.route = route
        self.pipes = pipes
        self.offered = b""  # what the peer finds it by, if we made it
        self.half_taken: list[bytes] | None = None  # a message in the middle of which a signal handler raised
        self.board: Board | None = None  # ours
        self.peer_board: memoryview | None = None
        self.reader, self.writer = open_reader(), open_writer()
        self.checked_limits: WireLimits | None = None  # those of the peer that suit whatever goes the short way


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

    def took(self, frame_bytes: int, content_bytes: int) -> None:
        """A message was received and taken in: counted last, for one that a signal handler interrupts comes again."""
        self.messages_received += 1
        self.bytes_received += frame_bytes
        self.content_bytes_received += content_bytes


class LinkFront:
    """The part of a LinkMachine that the short way of small messages needs.

    Attributes:
        caller, answerer, sender, receiver, pace: its halves.
        state, version, peer_limits: what was agreed with the peer.
        heard_at: when anything came from it last, monotonic seconds.
        is_local: frames change hands inside this process: nothing is gained by chunks.
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

    def __init__(self) -> None:
        self.is_local = False
        self._bulk_up = False
        self._lane_messages: list[tuple[int, Message]] = []
        self._small_answers = 0
        self.failed = 0  # messages given up in here by a fault of ours

    def takes_whole(self, total_bytes: int, now: float) -> bool:
        """True if a large content may go now, in one message with its header; `went_whole` is to follow."""
        if not self._bulk_up or self._lane_messages or self.state is not _UP or self.version < 2 or self.is_local:
            return False
        chunk_bytes, window_bytes, whole = self._allowed(now)
        return whole and self.sender.has_room_for_whole(total_bytes, chunk_bytes, window_bytes)

    def went_whole(self, message: Message, total_bytes: int, now: float) -> None:
        """A content that takes_whole allowed has been sent."""
        self.sender.sent_whole(message, total_bytes, 1, now)
        self.pace.sent(self.sender.credited_bytes + self.sender.in_flight_bytes, now)

    def whole_answered(self, request_id: int, now: float) -> bool:
        """A request was answered: what that says of the bulk lane. False if its content is still being sent."""
        if self.sender.answered(request_id, now):
            self._paced(now)
        elif self.sender.sends(request_id):
            return False  # the rest of its content is not wanted, which the peer has to be told
        elif self.caller.is_small(request_id):
            self.pace.small(now)
        return True

    def _allowed(self, now: float) -> tuple[int, int, bool]:
        """Bytes of a chunk, bytes on their way, and whether contents may go whole."""
        if self.answerer.small_answers != self._small_answers:
            self._small_answers = self.answerer.small_answers
            self.pace.small(now)
        chunk_bytes, window_bytes = self.pace.chunk_and_window(now)
        limits = self.peer_limits
        if limits is None:
            return chunk_bytes, window_bytes, False
        if limits.bulk_bytes:
            # The receiver gives credit after a step of its own window, however small ours is.
            step_bytes = credit_step(limits.bulk_bytes)
            window_bytes = min(max(window_bytes, step_bytes + LEAST_BYTES), limits.bulk_bytes)
            chunk_bytes = min(chunk_bytes, limits.max_frame_bytes, max(1, window_bytes - step_bytes))
        # What goes whole is credited late: not under a window that a quarter of the receiver's would stop.
        return chunk_bytes, window_bytes, self._bulk_up and window_bytes >= min(limits.bulk_bytes, WHOLE_WINDOW_BYTES)

    def _paced(self, now: float) -> None:
        self.pace.credited(self.sender.credited_bytes, now, self.sender.in_flight_bytes > 0)


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


open_reader: Callable[[], PlainReader] = PlainReader
open_writer: Callable[[], PlainWriter] = PlainWriter
try:
    from edgebus import _handed

    open_reader, open_writer = _handed.Reader, _handed.Writer
except ImportError:  # not built
    pass
