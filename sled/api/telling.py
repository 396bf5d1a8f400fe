"""A request's answers as they come from the pool, made into replies: whole, in pieces, or event by event."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from sled.api.asks import Ask, Offer
from sled.api.errors import as_api_error, unverified
from sled.api.outbox import Outbox
from sled.api.pool import Ended, Failed, Job, Pool, Told
from sled.api.replies import DONE, KEEP_ALIVE, Kind, Pieces, Usage, Writer, sse
from sled.events import Event
from sled.run.device import Answer
from sled.types import Token

KEEP_ALIVE_S = 15.0


@dataclass(frozen=True, slots=True)
class Target:
    """What is known of the target, and of the device that asks it."""

    offer: Offer
    target_id: bytes
    pieces: Pieces
    drafter: str
    server: str


@dataclass(slots=True)
class _Choice:
    text: str = ""
    reason: str = ""
    tokens: list[Token] = field(default_factory=list)


class Reply:
    """The answers to one request.

    Args:
        ask: the request.
        pool: who answers.
        target: what answers.

    Raises:
        ApiError: too many requests wait already.
    """

    def __init__(self, kind: Kind, ask: Ask, pool: Pool, target: Target) -> None:
        self._ask, self._kind, self._target = ask, kind, target
        self._outbox: Outbox[Told] = Outbox(asyncio.get_running_loop())
        self._writer = Writer(
            kind,
            reply_id=secrets.token_hex(12),
            created=int(time.time()),
            model=target.offer.names[0],
            target_id=target.target_id,
            pieces=target.pieces,
        )
        self.usage = Usage()
        self._left = len(ask.wanted)
        self._early: list[Told] = []
        self._jobs = [Job(wanted, self._outbox) for wanted in ask.wanted]
        self.ahead = pool.submit(self._jobs)

    def cancel(self) -> None:
        """Nobody wants the rest."""
        self._outbox.close()
        for job in self._jobs:
            job.cancel()

    async def begun(self) -> None:
        """Wait until the first answer has begun, so that what fails before it has a status of its own.

        Raises:
            Exception: why it has not.
        """
        self._early = await self._outbox.take()
        if self._early and isinstance(self._early[0][1], Failed):
            raise self._early[0][1].error

    async def whole(self) -> dict[str, Any] | None:
        """The reply at once; None if it was cancelled.

        Raises:
            Exception: what broke an answer off.
        """
        choices = {wanted.index: _Choice(self._echo(wanted.index)) for wanted in self._ask.wanted}
        async for index, event in self._events():
            choice = choices[index]
            match event:
                case Token():
                    choice.tokens.append(event)
                case Failed():
                    raise event.error
                case Ended():
                    _check_verified(event.answer)
                    self._count(event.answer)
                    choice.text += event.answer.text
                    choice.reason = event.answer.finish_reason
        if self._left:
            return None
        told = [
            self._writer.choice(index, each.text, each.reason, each.tokens, logprobs=self._ask.logprobs)
            for index, each in sorted(choices.items())
        ]
        return self._writer.whole(told, self.usage, self._ask.seed)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The reply as a stream of OpenAI's chunks."""
        offsets: dict[int, int] = {}
        async for batch in self._batches():
            frames = bytearray()
            for index, event in batch or ():
                if index not in offsets:
                    offsets[index] = 0
                    frames += self._first(index)
                match event:
                    case Token() if event.text or (self._ask.logprobs and self._target.pieces(event.id)):
                        delta = self._writer.delta(
                            index, event.text, [event], logprobs=self._ask.logprobs, offset=offsets[index]
                        )
                        frames += self._chunk(delta)
                        offsets[index] += len(event.text)
                    case Failed():
                        yield bytes(frames) + sse(as_api_error(event.error).body)
                        return
                    case Ended() if not event.answer.finish_reason:
                        yield bytes(frames) + sse(unverified(len(event.answer.unverified)).body)
                        return
                    case Ended():
                        self._count(event.answer)
                        rest = event.answer.text[offsets[index] :]
                        if rest:  # what was held back as the beginning of a stop text
                            frames += self._chunk(self._writer.delta(index, rest))
                        frames += self._chunk(self._writer.delta(index, "", reason=event.answer.finish_reason))
            yield bytes(frames) if batch else KEEP_ALIVE
        if not self._left:
            yield (sse(self._writer.usage_chunk(self.usage, self._ask.seed)) if self._ask.usage else b"") + DONE

    async def events(self) -> AsyncIterator[bytes]:
        """Everything that happens to the one answer, as the chat page wants it."""
        yield sse({"type": "Queued", "ahead": self.ahead, "seed": str(self._ask.seed)})
        async for batch in self._batches():
            frames = bytearray()
            for _, event in batch or ():
                match event:
                    case Failed():
                        yield bytes(frames) + sse({"type": "Error", **as_api_error(event.error).body})
                        return
                    case Ended():
                        self._count(event.answer)
                        frames += sse(_ending(event.answer, self.usage))
                    case _:
                        frames += sse(_plain(event))
            yield bytes(frames) if batch else KEEP_ALIVE

    async def _events(self) -> AsyncIterator[Told]:
        async for batch in self._batches():
            for told in batch or ():
                yield told

    async def _batches(self) -> AsyncIterator[list[Told] | None]:
        """What has come since the last look, until all answers have ended; None after a while of nothing."""
        batch, self._early = self._early, []
        while self._left:
            if batch:
                self._left -= sum(isinstance(event, Ended) for _, event in batch)
                yield batch
            if not self._left:
                return
            try:
                batch = await asyncio.wait_for(self._outbox.take(), KEEP_ALIVE_S)
            except TimeoutError:
                batch = []
                yield None
                continue
            if not batch:
                return

    def _first(self, index: int) -> bytes:
        echo = self._echo(index)
        if self._kind == "chat":
            return self._chunk(self._writer.delta(index, "", first=True))
        return self._chunk(self._writer.delta(index, echo)) if echo else b""

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        usage = {"usage": None} if self._ask.usage else {}
        return sse(self._writer.chunk([choice]) | usage)

    def _echo(self, index: int) -> str:
        if not self._ask.echo:
            return ""
        prompt = self._ask.wanted[index].prompt
        if isinstance(prompt, str):
            return prompt
        return b"".join(self._target.pieces(each) for each in prompt if isinstance(each, int)).decode(
            "utf-8", "replace"
        )

    def _count(self, answer: Answer) -> None:
        self.usage.add(len(answer.prompt_tokens), len(answer.tokens), answer.stats)


def _check_verified(answer: Answer) -> None:
    if not answer.finish_reason:
        raise unverified(len(answer.unverified))


def _plain(event: Event) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(event)
    return {"type": type(event).__name__, **plain}


def _ending(answer: Answer, usage: Usage) -> dict[str, Any]:
    return {
        "type": "Answer",
        "finish_reason": answer.finish_reason,
        "text": answer.text,
        "unverified_text": answer.unverified_text,
        "stats": msgspec.to_builtins(answer.stats),
        "usage": usage.told(),
    }
