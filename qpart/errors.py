"""Errors of qpart: what went wrong, whose fault it is, and what to do."""

from __future__ import annotations

from functools import partial
from typing import Any

from edgebus.errors import LocalError, RemoteError


class QpartError(LocalError):
    """Base of what this side did or asked wrongly."""


class ShapeMismatch(QpartError, ValueError):
    """A tensor does not have the shape which the network, or the segment, says."""


class UnknownOperation(QpartError):
    """The network contains an operation that cannot be planned and shipped."""


class UnsupportedModel(QpartError):
    """The model cannot be taken in: several inputs or outputs, no fixed shapes, or values that are not finite."""


class ArtefactError(QpartError):
    """A file is not a calibrated model, is damaged, or was written by another version."""


class RequestError(QpartError, ValueError):
    """A number in a request or profile is out of range."""


class Infeasible(QpartError):
    """No plan satisfies the request.

    Attributes:
        constraint: the one that binds: "accuracy", "memory" or "raw_input_stays".
        nearest_accuracy: the smallest accuracy drop for which there is a plan, or None if there is none at all.
    """

    def __init__(self, message: str, *, constraint: str, nearest_accuracy: float | None) -> None:
        super().__init__(message)
        self.constraint = constraint
        self.nearest_accuracy = nearest_accuracy

    def __reduce__(self) -> tuple[Any, ...]:
        named = partial(Infeasible, constraint=self.constraint, nearest_accuracy=self.nearest_accuracy)
        return named, self.args


class SegmentRejected(RemoteError):
    """A segment or piece from the server does not match its hash, its sizes, or the closed list of operations."""


class UnknownModel(RemoteError):
    """The server does not have this model (any more), or another version of it."""


class ProtocolError(RemoteError):
    """The other side sent what its version of the protocol does not allow."""
