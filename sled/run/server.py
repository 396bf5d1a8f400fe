"""The server's shell: requests from the bus into the machine, its steps through the target, verdicts back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from edgebus import Inbox, Request
from edgebus.payloads import decode, encode
from edgebus.serving import refuse, reply
from sled import messages
from sled.acceptance import RoundRows
from sled.messages import Close, Decode, Described, Open, Verify, Vocabulary
from sled.server import Answer as MachineAnswer
from sled.server import Refusal, Server, ServerLimits, Step, TargetShape
from sled.targets import Target
from sled.types import Chunk, Sampling

log = logging.getLogger(__name__)

_IDLE_WAIT_S = 0.2
_REQUESTS_S = 0.02
_MAX_CHARS_PER_TOKEN = 8  # twice what text has


class PromptEncoder(Protocol):
    """The tokenizer, as far as the server needs it."""

    def encode(self, text: str, *, chat: bool) -> list[int]:
        """Token ids of a prompt; ValueError if the model cannot take it so."""


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


class TargetServer:
    """Serves one target to every device; `run` is its loop.

    Args:
        inbox: where the services of `sled.messages` arrive, `node.serve(*messages.SERVICES)`.
        target: the model.
        limits: bounds on sessions and batches.
        clock: seconds, for what is idle.
    """

    def __init__(
        self,
        inbox: Inbox,
        target: ServedTarget,
        limits: ServerLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._target = target
        self._machine: Server[Request] = Server(target.shape, limits)
        self._inbox = inbox
        self._clock = clock
        self._vocabulary = encode(target.vocabulary)
        self._described = encode(target.described)
        self._stopping = False

    def run(self) -> None:
        """Serve until `stop` is called. A request or forward that fails costs itself, never the loop."""
        busy = False
        try:
            while not self._stopping:
                self._take_requests(_IDLE_WAIT_S if not busy else 0.0)
                busy = self.step()
        finally:
            for request in self._machine.give_up():
                refuse(request, "closing", "the server is stopping; go on at another one, or here when it is back")
            self._inbox.close()

    def stop(self) -> None:
        """End `run` after the step in flight; safe from signal handlers and other threads."""
        self._stopping = True

    def handle(self, request: Request) -> None:
        """Answer a request, or put its round where the next step finds it."""
        try:
            answer = self._answer(request)
        except Refusal as refusal:
            _refuse(request, refusal)
        except ValueError as error:
            refuse(request, "invalid", str(error).replace("\n", " "))
        except Exception:
            log.exception("%s failed", request.service)
            refuse(request, "internal", "the server failed on this request; its log has the reason")
        else:
            if answer is not None:
                reply(request, answer)
        self._tell(self._machine.take_answers())

    def step(self) -> bool:
        """Compute one forward and send its verdicts; False if there was nothing to do."""
        self._machine.withdraw(lambda request: request.remaining_s() <= 0)
        step = self._machine.next_step(now=self._clock())
        if step is None:
            self._machine.expire(now=self._clock())
            return False
        alone = len(step.chunks) == 1
        if not self._compute(step, last=alone):
            for part in [] if alone else self._machine.isolate(step):
                self._compute(part, last=True)
        return True

    def _take_requests(self, wait_s: float) -> None:
        """Handle what has arrived, for a bounded time: rounds that wait must not wait for a queue of others."""
        request = self._inbox.get(timeout_s=wait_s)
        until = self._clock() + _REQUESTS_S
        while request is not None:
            self.handle(request)
            request = self._inbox.get(timeout_s=0.0) if self._clock() < until else None

    def _compute(self, step: Step[Request], *, last: bool) -> bool:
        """One forward; False if it failed, and then, on the last try, its rounds are refused."""
        began_at = self._clock()
        try:
            decisions = self._target.verify(step.chunks, step.rounds)
        except Exception:
            if last:
                log.exception("forward failed, rounds refused: %d", sum(step.verify))
                for request in self._machine.fail(step):
                    refuse(request, "target_failed", "the target could not compute this round; try again")
            return False
        now = self._clock()
        self._tell(self._machine.complete(step, decisions, now=now, took_s=now - began_at))
        return True

    def _tell(self, answers: Sequence[MachineAnswer[Request]]) -> None:
        for answer in answers:
            for request in answer.tickets:
                if answer.refusal is not None:
                    _refuse(request, answer.refusal)
                elif not answer.last:
                    request.push(encode(answer.verdict))
                else:
                    reply(request, encode(answer.verdict))

    def _answer(self, request: Request) -> bytes | None:
        """The reply's payload, or None if it comes with a later step."""
        now, owner = self._clock(), request.peer.key or request.peer.id
        match request.service:
            case messages.DESCRIBE:
                return self._described
            case messages.VOCABULARY:
                return self._vocabulary
            case messages.OPEN:
                message = decode(Open, request.payload)
                prompt = message.prompt
                tokens = self._encode(prompt, message.chat) if isinstance(prompt, str) else prompt
                return encode(self._machine.open(owner, message, tokens, now=now))
            case messages.VERIFY:
                verdict = self._machine.verify(owner, decode(Verify, request.payload), request, now=now)
                return encode(verdict) if verdict is not None else None
            case messages.DECODE:
                self._machine.decode(owner, decode(Decode, request.payload), request, now=now)
                return None
            case _:
                for waiting in self._machine.close(owner, decode(Close, request.payload).session):
                    refuse(waiting, "session_unknown", "the session was closed while this round waited")
                return b""

    def _encode(self, text: str, chat: bool) -> list[int]:
        limit = _MAX_CHARS_PER_TOKEN * self._target.shape.max_positions
        if len(text) > limit:  # tokenising holds up everybody's rounds
            raise Refusal("prompt_too_long", f"{len(text)} characters, the target takes {limit}; shorten the prompt")
        return self._target.codec.encode(text, chat=chat)


def warm_up(target: Target) -> None:
    """One small forward, so that the first device does not pay for it."""
    rows = RoundRows((), Sampling(), 2, (0, 0), 2)
    (decision,) = target.verify([Chunk(bytes(8), (0, 0), 0, 1, (0,))], [rows])
    assert decision.finite


def _refuse(request: Request, refusal: Refusal) -> None:
    info = msgspec.msgpack.encode(refusal.info) if refusal.info is not None else b""
    refuse(request, refusal.code, refusal.detail, info)
