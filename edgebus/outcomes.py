"""What the two halves of requests tell: outcomes to the caller, work to the answerer. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from edgebus.messages import Terms
from edgebus.streams import Arrival, Frames, Specs

if TYPE_CHECKING:
    from edgebus.answerer import Answerer


class Outcome(StrEnum):
    """How a request ended, seen from the caller."""

    ANSWERED = "answered"
    REFUSED = "refused"
    EXPIRED = "expired"
    UNKNOWN = "unknown"
    CANCELLED = "cancelled"


class Settled(NamedTuple):
    """Event of the caller: the one outcome of the request known as `ref`."""

    ref: object
    outcome: Outcome
    code: str = ""
    detail: str = ""
    specs: Specs = ()
    frames: Frames = ()


class Arrived(NamedTuple):
    """Event of the answerer: execute this, once. The answer goes to that very answerer.

    A link that was greeted by another incarnation has another answerer, whose ids start anew.
    """

    id: int
    service: str
    expires_at: float
    specs: Specs
    frames: Frames
    answerer: Answerer
    terms: Terms | None = None


class PartArrived(NamedTuple):
    """Event of the caller: the next part, in order, of the stream known as `ref`."""

    ref: object
    arrival: Arrival


class Superseded(NamedTuple):
    """Event of the answerer: a request of the same stream at a higher position is here; drop this if it still waits."""

    id: int
    service: str
    answerer: Answerer


class Room(NamedTuple):
    """Event of the answerer: the stream of this request can take more parts, or has ended."""

    id: int
    answerer: Answerer


class Withdrawn(NamedTuple):
    """Event of the answerer: nobody waits for this answer any more, or it was given for the handler."""

    id: int
    service: str
    answerer: Answerer


Event = Settled | Arrived | Withdrawn | PartArrived | Superseded | Room
