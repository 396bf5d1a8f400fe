"""One device of a fleet: it speaks the protocol itself (docs/spec/sled-protocol.md), and takes its board's time."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import edgebus
from edgebus.payloads import decode, encode
from sled import messages
from sled.errors import ServerBusy
from sled.history import History
from sled.messages import Close, Decode, Open, Opened, Verdict, Verify
from sled.run.refusals import as_error
from sled.swarm.profiles import Profile
from sled.swarm.report import Tried
from sled.types import Sampling, Terms

if TYPE_CHECKING:
    from edgebus import aio

MAX_BUSY = 200
_CLOSE_S = 1.0
SHORTEST_S = 1e-4  # pauses that no timer keeps
Arrived = Callable[[int], None]
_clock, _sleep = time.perf_counter, asyncio.sleep


class Question(NamedTuple):
    """What is asked: a prompt with a number, and how the answer is to be."""

    number: int
    prompt: str | list[int]
    sampling: Sampling
    max_tokens: int
    rate: float


class Drafts(Protocol):
    """Where drafts come from."""

    def draft(self, question: Question, text: Sequence[int], done: int, limit: int) -> Awaitable[list[int]]:
        """Tokens that may follow `text`, which ends with the answer's first `done` tokens; at most `limit`."""


class Guest:
    """A device with a board's pace.

    Args:
        link: to the server; several devices may share one.
        profile: of the board.
        drafts: what it drafts.
        window: drafts per round at most.
        obey: draft no more than the server's limit, and have it decode where that is 0; else `window` alone counts.
        timeout_s: for each request but streams.
        tried: where what happens is counted.
    """

    def __init__(
        self,
        link: aio.Link,
        profile: Profile,
        drafts: Drafts,
        *,
        window: int,
        timeout_s: float,
        tried: Tried,
        obey: bool = True,
    ) -> None:
        self.profile, self.tried = profile, tried
        self._link, self._drafts, self._window, self._timeout_s = link, drafts, window, timeout_s
        self._obey = obey

    async def answer(self, question: Question, arrived: Arrived) -> list[int]:
        """One answer; `arrived` is called with the number of tokens that came."""
        session = secrets.token_bytes(8)
        terms = Terms(max_tokens=question.max_tokens, rate=question.rate)
        is_text = isinstance(question.prompt, str)
        asked = Open(session, question.sampling, question.prompt, is_text, terms=terms)
        try:
            text = _Text(session, await self._open(asked), question, arrived)
            ahead_s = 0.0
            while not text.over:
                limit = min(self._window, text.limit) if self._obey else self._window
                if limit == 0:
                    await self._stream(text)
                    ahead_s = 0.0
                else:
                    ahead_s = await self._round(question, text, min(limit, text.left - 1), ahead_s)
        except BaseException:
            with contextlib.suppress(edgebus.EdgebusError):  # given up: the link may be closed next, so wait for it
                await self._link.request(messages.CLOSE, encode(Close(session)), timeout_s=_CLOSE_S)
            raise
        with contextlib.suppress(edgebus.EdgebusError):  # over: nobody waits for this
            await self._link.send_request(messages.CLOSE, encode(Close(session)), timeout_s=self._timeout_s)
        return text.answer

    async def _round(self, question: Question, text: _Text, limit: int, ahead_s: float) -> float:
        """Draft, ask, and take the verdict; returns how much of the drafting for the next round is done by then.

        While a round is away the board goes on drafting behind it: first what it hopes to be the target's own token.
        """
        drafts = await self._drafts.draft(question, text.history.tokens, len(text.answer), limit + 1)
        draft, hope = drafts[:limit], drafts[limit:]
        one_s = 1.0 / self.profile.draft_tokens_per_s
        await _pause(max(0.0, len(draft) * one_s - ahead_s) + self.profile.delay_s)
        began, base = _clock(), len(text.history)
        request = encode(Verify(text.session, base, text.history.digest(base), draft))
        try:
            reply = await self._link.request(messages.VERIFY, request, timeout_s=self._timeout_s)
        except edgebus.Refused as refused:
            raise as_error(refused) from None
        await _pause(self.profile.delay_s)
        verdict, before = decode(Verdict, reply.payload), len(text.answer)
        text.take(verdict)
        new = text.answer[before:]
        tried, accepted = self.tried, min(verdict.accepted, len(draft))
        tried.rounds += 1
        tried.drafted += len(draft)
        tried.accepted += accepted
        tried.batches += verdict.batch
        tried.tokens += len(new)
        spent_s = min(_clock() - began, (self._window + 1) * one_s) if draft else 0.0
        if hope and accepted == len(draft) and new[-1:] == hope:
            return max(0.0, spent_s - one_s)
        tried.dropped += int(spent_s / one_s)
        return 0.0

    async def _stream(self, text: _Text) -> None:
        """Have the server decode, until it wants drafts again or the answer is over."""
        base = len(text.history)
        request = encode(Decode(text.session, base, text.history.digest(base), text.left))
        async with self._link.stream(messages.DECODE, request) as stream:  # as long as it takes: the run is bounded
            async for part in stream:
                count = text.take(decode(Verdict, part.payload))
                self.tried.streamed += count
                self.tried.tokens += count
            try:
                last = (await stream.result()).payload
            except edgebus.Refused as refused:
                raise as_error(refused) from None
            if last:
                count = text.take(decode(Verdict, last))
                self.tried.streamed += count
                self.tried.tokens += count

    async def _open(self, message: Open) -> Opened:
        """Open a session; a server that is full is asked again when it says."""
        for _ in range(MAX_BUSY):
            try:
                reply = await self._link.request(messages.OPEN, encode(message), timeout_s=self._timeout_s)
            except edgebus.Refused as refused:
                error = as_error(refused)
                if not isinstance(error, ServerBusy):
                    raise error from None
                self.tried.busy += 1
                await _sleep(min(1.0, max(0.02, error.retry_after_s)))
            else:
                return decode(Opened, reply.payload)
        raise ServerBusy(
            "the server took no session for a long time; raise its max_sessions, or max_sessions_per_device for one key"
        )


async def _pause(seconds: float) -> None:
    if seconds > SHORTEST_S:
        await _sleep(seconds)


class _Text:
    """One session's text as its device knows it."""

    def __init__(self, session: bytes, opened: Opened, question: Question, arrived: Arrived) -> None:
        self.session, self.history = session, History(opened.prompt_tokens)
        self.limit, self.over = opened.window_limit, False
        self.answer: list[int] = []
        self._wanted, self._arrived = question.max_tokens, arrived

    @property
    def left(self) -> int:
        return self._wanted - len(self.answer)

    def take(self, verdict: Verdict) -> int:
        """Commit what the server decided; returns how many tokens that is."""
        if verdict.base != len(self.history):
            raise edgebus.LinkLost(f"a verdict for length {verdict.base}, we stand at {len(self.history)}")
        tokens = verdict.tokens[: self.left]
        self.history.extend(tokens)
        self.answer += tokens
        self.limit = verdict.window_limit
        self.over = bool(verdict.finish) or self.left <= 0
        if tokens:
            self._arrived(len(tokens))
        return len(tokens)
