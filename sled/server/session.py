"""One device's text on the server, and what is asked and answered about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from sled.acceptance import RoundRows
from sled.history import History
from sled.messages import Verdict
from sled.pages import PageTable
from sled.scheduler import Promise, Queue
from sled.server.checks import StopTexts
from sled.server.limits import Refusal
from sled.types import Chunk, FinishReason, Logprob, Sampling, SparseLaw, Terms

Ticket = TypeVar("Ticket")
_MAX_LOGPROBS = 1024


class Form(Protocol):
    """A form that an answer keeps to (`sled.constraint` makes them)."""

    @property
    def finished(self) -> bool:
        """Whether the answer is complete: no token may follow."""

    def allowed(self, draft: Sequence[int]) -> NDArray[np.uint32]:
        """(len(draft) + 1, ceil(vocab / 32)), see `sled.acceptance.RoundRows.allowed`."""

    def commit(self, tokens: Sequence[int]) -> None:
        """Go on with these tokens; ValueError if the form forbids one."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[Ticket]):
    """What requests are told: a verdict, or a refusal if there is one.

    Args:
        tickets: of the requests.
        verdict: empty where they are refused.
        last: False for a part of a stream that goes on.
        refusal: why there is no verdict.
    """

    tickets: list[Ticket]
    verdict: Verdict
    last: bool = True
    refusal: Refusal | None = None


@dataclass(slots=True)
class Round(Generic[Ticket]):
    """A round that waits; a retry of it joins its tickets."""

    draft: tuple[int, ...]
    tickets: list[Ticket]
    law: SparseLaw | None
    asked_at: float


@dataclass(slots=True)
class Held(Generic[Ticket]):
    """A round that hangs on the hope that the one being decided commits what its device thinks."""

    round: Round[Ticket]
    base: int
    digest: bytes


@dataclass(slots=True)
class Stream(Generic[Ticket]):
    """A decode stream: told up to one position, ends at another."""

    ticket: Ticket
    told: int
    end: int
    asked_at: float
    may_draft: bool
    paused: bool = False


@dataclass(slots=True, eq=False)
class Session(Generic[Ticket]):
    """One device's text on the server.

    Args:
        id: 8 bytes.
        owner: the device.
        sampling: how the answer is sampled.
        terms: when it ends.
        history: prompt and answer so far.
        num_prompt: tokens of the prompt.
        max_length: length at which the answer ends.
        promise: the rate it gets.
        table: its pages.
        stops: the stop texts and how far they have been met.
        form: what the answer must look like.
        number: of its request, unique; orders what is equally due.
        retold_from: where the last round or stream began; from here on tokens are told again to who lost them.
    """

    id: bytes
    owner: str
    sampling: Sampling
    terms: Terms
    history: History
    num_prompt: int
    max_length: int
    promise: Promise
    table: PageTable
    stops: StopTexts
    form: Form | None
    used_at: float
    cached: int = 0
    prefill_ahead: bool = True
    failures: int = 0
    finish: FinishReason = ""
    limit: int = 0
    round: Round[Ticket] | None = None
    held: Held[Ticket] | None = None
    stream: Stream[Ticket] | None = None
    last: Verdict | None = None
    retold_from: int | None = None
    logprobs: list[Logprob] = field(default_factory=list)
    told_at: float | None = None
    due: float = 0.0
    number: int = 0
    queue: Queue[Session[Ticket]] | None = None
    queued_tokens: int = 0
    computing: bool = False
    gone: bool = False

    @property
    def uncached(self) -> int:
        """Committed tokens whose keys and values are not computed yet."""
        return len(self.history) - self.cached

    @property
    def interval_s(self) -> float:
        """Seconds a token at the promised rate."""
        return 1.0 / self.promise.rate

    @property
    def wants_token(self) -> bool:
        """Whether somebody waits for what comes next."""
        return self.round is not None or (self.stream is not None and not self.stream.paused)

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for anything."""
        return self.round is None and self.stream is None

    @property
    def num_drafts(self) -> int | None:
        """Drafts that wait; None if no token is wanted."""
        if self.round is not None:
            return len(self.round.draft)
        return 0 if self.wants_token else None

    @property
    def tickets(self) -> list[Ticket]:
        """Of everybody who waits."""
        tickets = list(self.round.tickets) if self.round is not None else []
        tickets += self.held.round.tickets if self.held is not None else []
        return [*tickets, self.stream.ticket] if self.stream is not None else tickets

    def extend(self, tokens: Sequence[int], stop_ids: frozenset[int]) -> int:
        """Commit further tokens of the answer, up to where it ends; returns how many.

        Raises:
            ValueError: the form forbids one; those before it are committed.
        """
        if self.form is not None or self.terms.stop:
            return self._extend_watched(tokens, stop_ids)
        count = min(len(tokens), self.max_length - len(self.history)) if not self.finish else 0
        for index in range(count):
            if tokens[index] in stop_ids:
                self.finish, count = "stop", index + 1
                break
        self.history.extend(tokens[:count])
        if not self.finish and len(self.history) >= self.max_length:
            self.finish = "length"
        return count

    def _extend_watched(self, tokens: Sequence[int], stop_ids: frozenset[int]) -> int:
        """The same token by token, so that an end does not depend on how tokens come together."""
        for index, token in enumerate(tokens):
            if self.finish:
                return index
            if token in stop_ids:
                self.finish = "stop"
            elif self.form is not None:
                self.form.commit([token])
            self.history.extend((token,))
            if self.stops.ends_with(token) or (self.form is not None and self.form.finished):
                self.finish = "stop"
            elif not self.finish and len(self.history) >= self.max_length:
                self.finish = "length"
        return len(tokens)

    def keep_logprobs(self, logprobs: Sequence[Logprob], *, anew: bool) -> None:
        """Remember those of the last tokens, for streams that lost them; or, anew, of these only."""
        if anew:
            self.logprobs.clear()
        self.logprobs.extend(logprobs)
        if len(self.logprobs) > 2 * _MAX_LOGPROBS:
            del self.logprobs[:-_MAX_LOGPROBS]

    def logprobs_of(self, start: int, end: int) -> list[Logprob]:
        """Those of the tokens at these positions; none if they are forgotten."""
        first = len(self.history) - len(self.logprobs)
        return self.logprobs[start - first : end - first] if start >= first else []


@dataclass(slots=True)
class Step(Generic[Ticket]):
    """One forward: the chunks for the target, the rounds it decides, and whose they are.

    `faults` holds what is told instead of the decision to the session at this index of `chunks`.
    """

    chunks: list[Chunk] = field(default_factory=list)
    rounds: list[RoundRows] = field(default_factory=list)
    sessions: list[Session[Ticket]] = field(default_factory=list)
    verify: list[bool] = field(default_factory=list)
    faults: dict[int, Refusal] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Tokens computed."""
        return sum(len(chunk.tokens) for chunk in self.chunks)

    def parts(self) -> list[Step[Ticket]]:
        """The same work chunk by chunk."""
        rounds = iter(self.rounds)
        return [
            Step(
                [chunk],
                [next(rounds)] if verify else [],
                [session],
                [verify],
                {0: self.faults[index]} if index in self.faults else {},
            )
            for index, (chunk, session, verify) in enumerate(zip(self.chunks, self.sessions, self.verify, strict=True))
        ]
