"""Who may ask: Host and Origin against pages of others, bearer tokens, the size and the pace of bodies."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sled.api.errors import ApiError

MAX_BODY_BYTES = 8 << 20
BODY_WITHIN_S = 30.0
_OPEN_PATHS = ("/", "/healthz")  # and /static/: what anybody may see
_CORS_HEADERS = ("authorization, content-type", "GET, POST, OPTIONS", "600")


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Args:
        tokens: bearer tokens, one of which a request must carry; none: anybody.
        hosts: names this server is asked by, besides those of loopback; looked at only without tokens.
        origins: pages of other origins that may ask, or "*".
    """

    tokens: tuple[str, ...] = ()
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    _digests: list[bytes] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._digests.extend(_digest(token) for token in self.tokens)

    def host_is_ours(self, host: str) -> bool:
        """Whether a Host header names us: a page whose name leads here (DNS rebinding) sends its own."""
        name = _name_of(host)
        return bool(self.tokens) or is_loopback(name) or name in self.hosts

    def origin_may_ask(self, origin: str | None, host: str) -> bool:
        """Whether a request that a page of this origin made may be answered."""
        if origin is None or origin in self.origins or "*" in self.origins:
            return True
        return urlsplit(origin).netloc.lower() == host.lower() != ""

    def knows(self, authorization: str) -> bool:
        """Whether the token of an Authorization header is one of ours; the time it takes tells nothing of them."""
        if not self.tokens:
            return True
        scheme, _, token = authorization.partition(" ")
        given = _digest(token.strip())
        found = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == "bearer" and any(found)


class Guard:
    """ASGI middleware: looks at every request before anything else does."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        foreign = origin if origin in self._access.origins or "*" in self._access.origins else None

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                add_headers(MutableHeaders(scope=message), foreign)
            await send(message)

        try:
            self._check(scope, headers, origin)
        except ApiError as error:
            await error_response(error)(scope, receive, send_guarded)
            return
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await _preflight(headers, foreign)(scope, receive, send_guarded)
            return
        if not self._access.knows(headers.get("authorization", "")) and not _is_open(scope["path"]):
            await error_response(_unauthorized("authorization" in headers))(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)

    def _check(self, scope: Scope, headers: Headers, origin: str | None) -> None:
        host = headers.get("host", "")
        if not self._access.host_is_ours(host):
            raise ApiError(
                403,
                f"this server is not called {host[:100]!r}; ask it as localhost, or start it with --allow-host",
                code="wrong_host",
            )
        if not self._access.origin_may_ask(origin, host):
            raise ApiError(
                403,
                f"pages of {(origin or '')[:100]!r} may not ask here; start the server with --cors",
                code="wrong_origin",
            )


def add_headers(headers: MutableHeaders, foreign: str | None) -> None:
    """What every answer says to browsers."""
    headers["x-content-type-options"] = "nosniff"
    headers["referrer-policy"] = "no-referrer"
    if foreign is not None:
        headers["access-control-allow-origin"] = foreign
        headers.add_vary_header("Origin")
    else:
        headers["cross-origin-resource-policy"] = "same-origin"


async def read_body(request: Request) -> bytes:
    """The body of a request.

    Raises:
        ApiError: 408, it comes too slowly; 413, it is too large; 415, it says it is no JSON.
        ConnectionResetError: the client has gone.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"the body is {kind[:100]!r}; send application/json", code="unsupported_content_type")
    told = request.headers.get("content-length", "0")
    if told.isdigit() and int(told) > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionResetError
                body += message.get("body", b"")
                if len(body) > MAX_BODY_BYTES:
                    raise _too_large()
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        raise ApiError(
            408, f"the body did not come within {BODY_WITHIN_S:.0f} s; send it at once", code="body_too_slow"
        ) from None


def error_response(error: ApiError) -> Response:
    """An error as an answer; after one about the body the connection ends, since the rest of it may still come."""
    headers = error.headers | ({"connection": "close"} if error.status in (408, 413, 415) else {})
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error.body, error.status, headers)


def is_loopback(name: str) -> bool:
    """Whether a name or address of a Host header can only mean this machine."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _name_of(host: str) -> str:
    """The name in a Host header, without port and brackets, in lower case; empty if it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_open(path: str) -> bool:
    return path in _OPEN_PATHS or path.startswith("/static/")


def _preflight(headers: Headers, foreign: str | None) -> Response:
    if foreign is None:
        return Response(status_code=204)
    wanted = headers.get("access-control-request-headers", _CORS_HEADERS[0])
    told = {
        "access-control-allow-headers": wanted,
        "access-control-allow-methods": _CORS_HEADERS[1],
        "access-control-max-age": _CORS_HEADERS[2],
    }
    if headers.get("access-control-request-private-network") == "true":
        told["access-control-allow-private-network"] = "true"
    return Response(status_code=204, headers=told)


def _unauthorized(given: bool) -> ApiError:
    message = (
        "Incorrect API key provided; give a token of this server's --token-file"
        if given
        else "You didn't provide an API key; send `Authorization: Bearer TOKEN`, one of this server's --token-file"
    )
    return ApiError(401, message, code="invalid_api_key")


def _too_large() -> ApiError:
    return ApiError(413, f"the body is over {MAX_BODY_BYTES} bytes; send less", code="body_too_large")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def hosts_of(names: Iterable[str]) -> frozenset[str]:
    """Names as they are compared with Host headers."""
    return frozenset(name for name in (_name_of(each) for each in names) if name)
