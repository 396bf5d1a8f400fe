"""What a request is answered with when it cannot be: OpenAI's error objects.

Pure.
"""

from __future__ import annotations

from typing import Any

import edgebus
from sled.errors import ParameterError, PromptTooLong, ServerBusy, TargetChanged

_BAD_REQUESTS = frozenset({"invalid", "prompt_too_long", "window_too_long", "too_large"})
_RETRY_S = 5.0


class ApiError(Exception):
    """An answer other than 200.

    Args:
        status: of HTTP.
        message: one line for people, with the remedy.
        param: the field of the request it is about.
        code: for programs.
        kind: OpenAI's `type`.
        retry_after_s: when to ask again; 0 says nothing about it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.kind = status, message, param, code, kind
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """What goes along in the head of the answer."""
        return {"retry-after": str(max(1, round(self.retry_after_s)))} if self.retry_after_s else {}


class ShuttingDown(edgebus.LocalError):
    """This process ends: the answer was broken off, or not begun."""


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the caller's mistake."""
    return ApiError(400, message, param=param, code=code)


def unavailable(message: str, code: str, retry_after_s: float = _RETRY_S) -> ApiError:
    """503: not now."""
    return ApiError(503, message, code=code, kind="server_error", retry_after_s=retry_after_s)


def unverified(count: int) -> ApiError:
    """503: the server was lost, and what its device has drafted since is not the target's word."""
    return unavailable(
        f"the server was lost, and {count} drafted tokens are unverified: ask again, or see them at /sled/events",
        "unverified",
    )


def as_api_error(error: BaseException) -> ApiError:  # noqa: PLR0911 - a table
    """What a failed answer looks like to an HTTP client; texts of errors that we did not foresee stay with us."""
    match error:
        case ApiError():
            return error
        case PromptTooLong():
            return bad_request(str(error), "messages", "context_length_exceeded")
        case ParameterError():
            return bad_request(str(error))
        case ServerBusy():
            return unavailable(str(error), "server_busy", error.retry_after_s or 1.0)
        case TargetChanged():
            return unavailable(f"{error}; ask again for an answer of the new one", "target_changed", 1.0)
        case edgebus.Refused() if error.code in _BAD_REQUESTS:
            return bad_request(error.detail or str(error), code=error.code)
        case edgebus.Refused() if error.code == "target_failed":
            return ApiError(500, str(error), code=error.code, kind="server_error")
        case ShuttingDown():
            return unavailable(str(error), "shutting_down")
        case edgebus.RemoteError():
            return unavailable(str(error), "server_unreachable")
        case edgebus.EdgebusError():
            return ApiError(500, str(error), code="device_failed", kind="server_error")
        case _:
            return ApiError(500, "the device failed; its log says why", code="internal_error", kind="server_error")
