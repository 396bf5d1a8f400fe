"""For servers: answers that cannot be sent become refusals, refusals that cannot be sent become a line in the log."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from edgebus.arrays import Array
from edgebus.errors import EdgebusError, MessageTooLarge
from edgebus.inbox import Request

log = logging.getLogger(__name__)


def reply(request: Request, payload: bytes, arrays: Sequence[Array] = ()) -> None:
    """Answer a request; an answer that the peer does not accept is refused with code "too_large"."""
    try:
        request.reply(payload, arrays)
    except MessageTooLarge as error:
        refuse(request, "too_large", str(error))
    except EdgebusError as error:
        log.warning("an answer could not be sent: %s", error)


def refuse(request: Request, code: str, detail: str, info: bytes = b"") -> None:
    """Refuse a request."""
    try:
        request.refuse(code, detail, info)
    except EdgebusError as error:
        log.warning("a refusal (%s) could not be sent: %s", code, error)
