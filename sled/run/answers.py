"""Requests of the bus into the machine, its refusals back: everything but the target."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from edgebus import Request
from edgebus.payloads import Payload, decode, encode
from edgebus.serving import refuse, reply
from sled import messages
from sled.messages import Close, Decode, Described, Later, Open, Trace, Verify, Vocabulary
from sled.metrics import Board, ServerReport
from sled.run.preparing import Prepared, Preparer
from sled.run.streams import Asked, Streamed
from sled.server import Form, Refusal, Server, TargetShape
from sled.targets import Target
from sled.traces import Traces
from sled.types import Constraint, Message

log = logging.getLogger("sled.server")

MAX_CHARS_PER_TOKEN = 8  # twice what text has
RETRY_PREPARING_S = 0.5
OPENING_S = 0.02


class PromptEncoder(Protocol):
    """The tokenizer, as far as the server needs it."""

    def encode(self, text: str, *, chat: bool) -> list[int]:
        """Token ids of a prompt; ValueError if the model cannot take it so."""

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation; ValueError likewise."""


class ServedTarget(Target, Protocol):
    """A target together with what devices are told about it."""

    @property
    def described(self) -> Described: ...
    @property
    def vocabulary(self) -> Vocabulary: ...
    @property
    def shape(self) -> TargetShape: ...
    @property
    def codec(self) -> PromptEncoder: ...
    @property
    def engine(self) -> str: ...


class FormShelf:
    """The form compiled for the opening that the machine is given right now; what is not there is compiled at once.

    Args:
        form_of: compiles a constraint; None where there are none.
    """

    def __init__(self, form_of: Callable[[Constraint], Form] | None) -> None:
        self._form_of = form_of
        self.ready: Form | None = None

    def __call__(self, constraint: Constraint) -> Form:
        """A form of the machine's own.

        Raises:
            ValueError: constraints are off here, or this one cannot be compiled.
        """
        ready, self.ready = self.ready, None
        if ready is not None:
            return ready
        if self._form_of is None:
            raise ValueError("this server takes no constraints: leave the constraint out")
        return self._form_of(constraint)


class Desk:
    """Answers requests, or puts their rounds where the next step finds them; every request has an outcome.

    Args:
        machine: of the server.
        target: what is served.
        preparer: tokenises and compiles.
        shelf: the machine's `form_of`.
        board: counts.
        traces: rings of rounds.
        clock: seconds.
        report: the server's numbers now.
        on_room: called, on any thread, when a stream without room has some again.
        others: further servers of the same target, (endpoint, public key).
    """

    def __init__(
        self,
        machine: Server[Asked],
        target: ServedTarget,
        preparer: Preparer,
        shelf: FormShelf,
        *,
        board: Board,
        traces: Traces,
        clock: Callable[[], float],
        report: Callable[[], ServerReport],
        on_room: Callable[[Streamed], None],
        others: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._machine, self._preparer, self._shelf = machine, preparer, shelf
        self._board, self._traces, self._clock = board, traces, clock
        self._report, self._on_room = report, on_room
        self._others = list(others)
        self._max_chars = MAX_CHARS_PER_TOKEN * target.shape.max_positions
        self._vocabulary = encode(target.vocabulary)
        self._described = encode(target.described)

    def handle(self, request: Request) -> None:
        """Answer a request, or take it in; what it raises is its own refusal."""
        self._guard(request, lambda: self._answer(request))
        self.handle_prepared()

    def handle_prepared(self) -> None:
        """Open sessions whose prompts have been tokenised, for a bounded time: answers in forms are read again here."""
        until = self._clock() + OPENING_S
        while (job := self._preparer.take()) is not None:
            if job.request.remaining_s() > 0:
                self._guard(job.request, lambda job=job: self._open(job))  # type: ignore[misc]
            if self._clock() >= until:
                self._preparer.remind()
                return

    def refuse(self, ticket: Asked, code: str, detail: str, after_s: float | None = None) -> None:
        """Refuse whoever waits with this ticket."""
        self._board.refused(code)
        ticket.refuse(code, detail, self._later(after_s))

    def refuse_with(self, ticket: Asked, refusal: Refusal) -> None:
        """Refuse with what the machine says."""
        self._board.refused(refusal.code)
        ticket.refuse(refusal.code, refusal.detail, self._info(refusal))

    def _refuse_request(self, request: Request, refusal: Refusal) -> None:
        self._board.refused(refusal.code)
        refuse(request, refusal.code, refusal.detail, self._info(refusal))

    def _info(self, refusal: Refusal) -> bytes:
        if refusal.code == "stale_base":
            return msgspec.msgpack.encode(refusal.info)
        return self._later(refusal.info)

    def _later(self, after_s: float | None) -> bytes:
        return b"" if after_s is None else encode(Later(min(86_400.0, max(0.0, after_s)), self._others[:16]))

    def _guard(self, request: Request, answer: Callable[[], bytes | None]) -> None:
        try:
            content = answer()
        except Refusal as refusal:
            self._refuse_request(request, refusal)
        except ValueError as error:
            self._refuse_request(request, Refusal("invalid", str(error).replace("\n", " ")))
        except Exception:
            log.exception("%s failed", request.service)
            self._refuse_request(
                request, Refusal("internal", "the server failed on this request; its log has the reason")
            )
        else:
            if content is not None:
                reply(request, content)

    def _answer(self, request: Request) -> bytes | None:  # noqa: PLR0911 - one return for each service
        """The reply's payload, or None if it comes later."""
        now, owner = self._clock(), request.peer.key or request.peer.id
        match request.service:
            case messages.DESCRIBE:
                return self._described
            case messages.VOCABULARY:
                return self._vocabulary
            case messages.OPEN:
                return self._take_opening(request, owner)
            case messages.VERIFY:
                round_ = decode(Verify, request.payload)
                asked = Asked(request, now, round_.session, len(round_.draft))
                arrived_at = request.arrived_at if self._clock is time.monotonic else None  # the inbox's clock
                return _encoded(self._machine.verify(owner, round_, asked, now=now, arrived_at=arrived_at))
            case messages.DECODE:
                stream = decode(Decode, request.payload)
                if not request.is_stream:
                    raise ValueError("sled.decode is a stream: ask for it with link.stream")
                self._machine.decode(owner, stream, Streamed(request, now, stream.session, self._on_room), now=now)
                return None
            case messages.STATS:
                return encode(self._report())
            case messages.TRACE:
                trace = decode(Trace, request.payload)
                traced = self._traces.of(trace.session, owner, trace.last)
                if traced is None:
                    raise Refusal("session_unknown", "no trace of such a session of yours here")
                return encode(traced)
            case _:
                for waiting in self._machine.close(owner, decode(Close, request.payload).session):
                    self.refuse(waiting, "session_unknown", "the session was closed while this round waited")
                return b""

    def _take_opening(self, request: Request, owner: str) -> bytes | None:
        message = decode(Open, request.payload)
        if message.messages and message.prompt:
            raise ValueError("a prompt and messages: give one of them")
        num_chars = len(message.prompt) if isinstance(message.prompt, str) else 0
        num_chars += sum(len(each.content) for each in message.messages)
        if num_chars > self._max_chars:
            raise Refusal(
                "prompt_too_long", f"{num_chars} characters, the target takes {self._max_chars}; shorten the prompt"
            )
        if not isinstance(message.prompt, str) and message.sampling.constraint is None:
            return self._open(Prepared(request, owner, message, message.prompt))
        if not self._preparer.submit(request, owner, message):
            raise Refusal("busy", "too many prompts wait to be tokenised; ask again later", RETRY_PREPARING_S)
        return None

    def _open(self, job: Prepared) -> bytes:
        if job.error is not None:
            raise job.error
        assert job.tokens is not None, "nobody waits for what was not prepared"
        now = self._clock()
        self._shelf.ready = job.form
        try:
            opened = self._machine.open(job.owner, job.message, job.tokens, now=now)
        finally:
            self._shelf.ready = None
        self._traces.opened(job.message.session, job.owner, now=now)
        return encode(opened)


def prompt_ids(codec: PromptEncoder, message: Open) -> list[int]:
    """Token ids of what an opening asks to continue.

    Raises:
        ValueError: the model cannot take it so.
    """
    if message.messages:
        return codec.encode_chat(message.messages)
    return codec.encode(message.prompt, chat=message.chat) if isinstance(message.prompt, str) else message.prompt


def _encoded(payload: Payload | None) -> bytes | None:
    return encode(payload) if payload is not None else None
