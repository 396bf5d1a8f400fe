"""The endpoints: OpenAI's, the page's, and one for whoever watches that we live."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sled.api.asks import Ask, chat_ask, completion_ask, no_such_model
from sled.api.errors import ApiError, as_api_error, bad_request
from sled.api.guard import Access, Guard, error_response, read_body
from sled.api.pool import Pool
from sled.api.replies import Kind
from sled.api.requests import ChatRequest, CompletionRequest, read_request
from sled.api.telling import Reply, Target

log = logging.getLogger("sled.api")

_STATIC = Path(__file__).with_name("static")
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_GONE = 499  # what others log too when a client hung up


def make_app(pool: Pool, target: Callable[[], Target], access: Access) -> Guard:
    """The application for an ASGI server.

    Args:
        pool: devices, started.
        target: what they ask, as it is now.
        access: who may ask them.
    """
    api = Api(pool, target)
    routes = [
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/completions", api.completions, methods=["POST"]),
        Route("/v1/models", api.models, methods=["GET"]),
        Route("/v1/models/{name:path}", api.model, methods=["GET"]),
        Route("/sled/events", api.events, methods=["POST"]),
        Route("/sled/info", api.info, methods=["GET"]),
        Route("/healthz", api.health, methods=["GET"]),
        Route("/static/{name}", api.static, methods=["GET"]),
        Route("/", api.page, methods=["GET"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _refused, Exception: _failed})
    return Guard(app, access)


class Api:
    """What the endpoints do."""

    def __init__(self, pool: Pool, target: Callable[[], Target]) -> None:
        self._pool, self._target = pool, target
        self._since = int(time.time())
        self._files = {path.name: path for path in _STATIC.iterdir() if path.suffix in _TYPES}

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        return await self._answer(request, "chat")

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        return await self._answer(request, "text")

    async def events(self, request: Request) -> Response:
        """POST /sled/events: one answer to the body of a chat request, and everything that happens to it."""
        try:
            target = self._target()
            ask = _ask("chat", await read_body(request), target)
            if len(ask.wanted) != 1:
                raise bad_request("n: events are told of one answer only", "n")
            reply = Reply("chat", ask, self._pool, target)
        except ApiError as error:
            return error_response(error)
        except ConnectionResetError:
            return Response(status_code=_GONE)
        return EventStream(reply, reply.events())

    async def _answer(self, request: Request, kind: Kind) -> Response:
        started = time.monotonic()
        try:
            target = self._target()
            ask = _ask(kind, await read_body(request), target)
            reply = Reply(kind, ask, self._pool, target)
        except ApiError as error:
            return error_response(error)
        except ConnectionResetError:
            return Response(status_code=_GONE)
        try:
            async with _while_there(request.receive, reply):
                if ask.stream:
                    await reply.begun()
                else:
                    whole = await reply.whole()
        except Exception as error:  # of whatever kind: clients get an error object
            reply.cancel()
            return error_response(as_api_error(error))
        except asyncio.CancelledError:
            reply.cancel()
            raise
        if ask.stream:
            return EventStream(reply, reply.pieces())
        if whole is None:
            return Response(status_code=_GONE)
        log.info("answered", extra={"tokens": reply.usage.completion, "took_s": round(time.monotonic() - started, 3)})
        return JSONResponse(whole)

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [self._model(name) for name in self._target().offer.names]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        name = request.path_params["name"]
        offer = self._target().offer
        if name not in offer.names:
            return error_response(no_such_model(name, offer))
        return JSONResponse(self._model(name))

    def _model(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": self._since, "owned_by": "sled"}

    async def info(self, request: Request) -> Response:
        """GET /sled/info: what the page shows beside the chat."""
        target = self._target()
        return JSONResponse(
            {
                "model": target.offer.names[0],
                "max_positions": target.offer.max_positions,
                "drafter": target.drafter,
                "server": target.server,
                "busy": self._pool.busy,
                "waiting": self._pool.waiting,
            }
        )

    async def health(self, request: Request) -> Response:
        """GET /healthz: 200 while requests are taken, 503 while this process ends."""
        if self._pool.draining:
            return JSONResponse({"status": "draining"}, 503)
        return JSONResponse({"status": "ok", "busy": self._pool.busy, "waiting": self._pool.waiting})

    async def page(self, request: Request) -> Response:
        """GET /: the chat page."""
        return self._file("index.html")

    async def static(self, request: Request) -> Response:
        """GET /static/NAME."""
        return self._file(request.path_params["name"])

    def _file(self, name: str) -> Response:
        path = self._files.get(name)
        if path is None:
            return error_response(ApiError(404, f"there is no file {name[:100]!r} here", code="not_found"))
        headers = {"content-security-policy": _CSP, "cache-control": "no-cache"}
        return FileResponse(path, media_type=_TYPES[path.suffix], headers=headers)


def _ask(kind: Kind, body: bytes, target: Target) -> Ask:
    seed = secrets.randbits(53)  # numbers that JavaScript keeps
    if kind == "chat":
        return chat_ask(read_request(ChatRequest, body), target.offer, seed)
    return completion_ask(read_request(CompletionRequest, body), target.offer, seed)


class EventStream(Response):
    """Server-sent events; when the client has gone, or all is said, nobody waits for the reply any more."""

    def __init__(self, reply: Reply, frames: AsyncIterator[bytes]) -> None:
        super().__init__(
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
            media_type="text/event-stream; charset=utf-8",
        )
        del self.headers["content-length"]
        self._reply, self._frames = reply, frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; one write for all that came together."""
        started = time.monotonic()
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with _while_there(receive, self._reply):
                async for frame in self._frames:
                    await send({"type": "http.response.body", "body": frame, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._reply.cancel()
        took_s = round(time.monotonic() - started, 3)
        log.info("streamed", extra={"tokens": self._reply.usage.completion, "took_s": took_s})


@contextlib.asynccontextmanager
async def _while_there(receive: Receive, reply: Reply) -> AsyncIterator[None]:
    """Cancel the reply as soon as the client hangs up."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        reply.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching


async def _refused(request: Request, error: Exception) -> Response:
    """Routes that are not there, or take another method."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    if error.status_code == 405:
        return error_response(ApiError(405, f"{path} takes another method than {request.method}", code="wrong_method"))
    if error.status_code == 404:
        return error_response(ApiError(404, f"there is no {path} here; see /v1/models", code="not_found"))
    return error_response(ApiError(error.status_code, error.detail))


async def _failed(request: Request, error: Exception) -> Response:
    """What we did not foresee."""
    return error_response(as_api_error(error))
