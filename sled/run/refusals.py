"""A server's answers as a device reads them, its refusals as a device's errors."""

from __future__ import annotations

from typing import TypeVar

import msgspec

import edgebus
from edgebus.payloads import Payload, decode
from sled.errors import PromptTooLong, ProtocolError, ServerBusy, SessionUnknown, StaleBase, TargetChanged
from sled.messages import Later

_M = TypeVar("_M", bound=Payload)


def decoded(kind: type[_M], payload: bytes) -> _M:
    """A server's answer.

    Raises:
        ProtocolError: it is not what we know.
    """
    try:
        return decode(kind, payload)
    except ValueError as error:
        raise ProtocolError(f"{error}; check that device and server run the same version") from None


def as_error(refused: edgebus.Refused) -> edgebus.EdgebusError:
    """What a refusal means to us; codes without an error of their own stay refusals."""
    match refused.code:
        case "session_unknown":
            return SessionUnknown(refused.detail)
        case "prompt_too_long":
            return PromptTooLong(refused.detail)
        case "busy":
            advice = later(refused)
            return ServerBusy(refused.detail, advice.after_s, advice.servers)
        case "target_changed":
            return TargetChanged(refused.detail)
        case "stale_base":
            return StaleBase(refused.detail, _length(refused.info))
        case _:
            return refused


def later(error: Exception) -> Later:
    """When to ask again, and whom else, as far as a refusal says; the bus's own refusals say nothing."""
    if isinstance(error, ServerBusy):
        return Later(error.retry_after_s, error.servers)
    if isinstance(error, edgebus.Refused) and error.info:
        try:
            return decode(Later, error.info)
        except ValueError:
            return Later(0.0)
    return Later(0.0)


def _length(info: bytes) -> int:
    try:
        return max(0, msgspec.msgpack.decode(info, type=int)) if info else 0
    except msgspec.DecodeError:
        return 0
