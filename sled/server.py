"""The server's side of the verification protocol as a state machine.

Pure: requests and logits go in, chunks of work and verdicts come out; sockets, models and clocks live elsewhere.
A session's answer is a function of (target, prompt, sampling), so a round that is asked twice is answered twice
with the same tokens, whatever was drafted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from sled import scheduler
from sled.acceptance import RoundRows, decide
from sled.history import History
from sled.messages import Open, Opened, Verdict, Verify
from sled.types import Chunk, FinishReason, Sampling

Ticket = TypeVar("Ticket")
MAX_FAILURES = 3


class Refusal(Exception):
    """A request is answered with this code and sentence; `committed` goes along with a stale base."""

    def __init__(self, code: str, detail: str, committed: int | None = None) -> None:
        super().__init__(detail)
        self.code, self.detail, self.committed = code, detail, committed


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds on what devices can make the server hold or do.

    Args:
        max_sessions: sessions held, over all devices.
        max_sessions_per_owner: sessions held for one device.
        max_cached_tokens: tokens whose keys and values are kept (a target may round each session up); beyond, those of
            the longest idle session are dropped, and rounds wait for room.
        idle_s: a session without a request for so many seconds is forgotten.
        batch_tokens: tokens in one forward.
        prefill_beside_rounds: tokens of prefill in a forward that also carries rounds.
    """

    max_sessions: int = 256
    max_sessions_per_owner: int = 32
    max_cached_tokens: int = 1 << 16
    idle_s: float = 600.0
    batch_tokens: int = 512
    prefill_beside_rounds: int = 128


@dataclass(frozen=True, slots=True)
class TargetShape:
    """What the machine must know of the target.

    Args:
        vocab_size: width of the logits.
        max_positions: context length.
        max_window: drafts per round that devices may send.
        stop_ids: tokens that end an answer.
        target_id: see `sled.messages.Described`.
        pieces: the bytes of every id, for stop texts.
        page_tokens: positions in one page of keys and values.
        num_pages: pages there are.
        page_bytes: memory of one page over all layers.
    """

    vocab_size: int
    max_positions: int
    max_window: int
    stop_ids: frozenset[int]
    target_id: bytes = b""
    pieces: Sequence[bytes] = ()
    page_tokens: int = 16
    num_pages: int = 4096
    page_bytes: int = 0


@dataclass(slots=True)
class Round(Generic[Ticket]):
    """A round that waits; a retry of it joins its tickets."""

    draft: Sequence[int]
    tickets: list[Ticket]
    number: int


@dataclass(slots=True, eq=False)
class Session(Generic[Ticket]):
    """One device's text on the server."""

    id: bytes
    owner: str
    sampling: Sampling
    history: History
    num_prompt: int
    used_at: float
    cached: int = 0
    prefill_ahead: bool = True
    failures: int = 0
    finish: FinishReason = ""
    round: Round[Ticket] | None = None
    last: Verdict | None = None

    @property
    def uncached(self) -> int:
        return len(self.history) - self.cached

    @property
    def waiting_draft(self) -> Sequence[int] | None:
        return self.round.draft if self.round else None


@dataclass(slots=True)
class Step(Generic[Ticket]):
    """One forward: the chunks for the target, and which of them carry a round."""

    chunks: list[Chunk] = field(default_factory=list)
    sessions: list[Session[Ticket]] = field(default_factory=list)
    verify: list[bool] = field(default_factory=list)


class Server(Generic[Ticket]):
    """Sessions, their rounds and their limits.

    Args:
        shape: the target's numbers.
        limits: bounds on memory and work.

    A `ticket` is whatever the caller needs to answer a request later; the machine only hands it back.
    """

    def __init__(self, shape: TargetShape, limits: ServerLimits | None = None) -> None:
        self.shape = shape
        self.limits = limits or ServerLimits()
        self.sessions: dict[bytes, Session[Ticket]] = {}
        self.dropped: list[bytes] = []
        self._num_rounds = 0

    def open(self, owner: str, message: Open, prompt: Sequence[int], *, now: float) -> Opened:
        """Open a session on `prompt` (token ids), or find it again; asking twice changes nothing.

        Raises:
            Refusal: prompt_too_long, invalid, busy, or session_exists (the id is taken by another text or owner).
        """
        self.expire(now=now)
        tokens = [*prompt, *message.answer]
        self._check_tokens(tokens)
        if message.target_id not in (b"", self.shape.target_id):
            raise Refusal("target_changed", "this server's target is not the one the answer began with; start again")
        session = self.sessions.get(message.session)
        if session is None:
            self._check_room(owner)
            session = Session(message.session, owner, message.sampling, History(tokens), len(prompt), now)
            session.finish = self._finish(session, message.answer)
            self.sessions[message.session] = session
        elif (
            session.owner != owner
            or session.sampling != message.sampling
            or any(ours != theirs for ours, theirs in zip(session.history.tokens, tokens, strict=False))
        ):
            raise Refusal("session_exists", "this session id is in use for another text; choose a new random id")
        elif session.round is None:  # the device went on elsewhere meanwhile
            session.history.extend(tokens[len(session.history) :])
            session.finish = session.finish or self._finish(session, message.answer)
        for other in self.sessions.values():  # one text per device is computed ahead of its first round
            other.prefill_ahead &= other is session or other.owner != owner
        session.used_at = now
        return Opened(list(prompt), len(session.history), self.shape.max_window)

    def verify(self, owner: str, message: Verify, ticket: Ticket, *, now: float) -> Verdict | None:
        """Take a round; None means its verdict comes out of a later `complete`.

        Raises:
            Refusal: session_unknown, stale_base, prefix_mismatch, invalid or window_too_long.
        """
        session = self._owned(owner, message.session)
        session.used_at = now
        length = len(session.history)
        if session.last is not None and message.base == session.last.base and message.base != length:
            self._check_digest(session, message)
            return session.last
        if message.base != length:
            raise Refusal(
                "stale_base",
                f"the round starts at length {message.base}, committed are {length}; go on from there",
                committed=length,
            )
        self._check_digest(session, message)
        self._check_draft(message.draft)
        if session.finish:
            return Verdict(length, [], 0, session.finish, self.shape.max_window, 0)
        if session.round is not None:
            session.round.tickets.append(ticket)
        else:
            room = self.shape.max_positions - length - 1
            session.round = Round(message.draft[: max(0, room)], [ticket], self._num_rounds)
            self._num_rounds += 1
        return None

    def close(self, owner: str, session_id: bytes) -> list[Ticket]:
        """Forget a session; returns the tickets of a round that still waited."""
        return self._forget(self._owned(owner, session_id))

    def expire(self, *, now: float) -> None:
        """Forget sessions idle for longer than the limit; a round that waits keeps its session."""
        for session in list(self.sessions.values()):
            if session.round is None and now - session.used_at > self.limits.idle_s:
                self._forget(session)

    def withdraw(self, gone: Callable[[Ticket], bool]) -> None:
        """Forget rounds that nobody waits for any more."""
        for session in self.sessions.values():
            if session.round is not None:
                session.round.tickets = [ticket for ticket in session.round.tickets if not gone(ticket)]
                session.round = session.round if session.round.tickets else None

    def next_step(self) -> Step[Ticket] | None:
        """The next forward, or None when there is nothing to compute."""
        sessions = sorted(self.sessions.values(), key=lambda s: s.round.number if s.round else self._num_rounds)
        shares = scheduler.plan(
            sessions,
            budget=self.limits.batch_tokens,
            prefill_beside_rounds=self.limits.prefill_beside_rounds,
        )
        step: Step[Ticket] = Step()
        for share in shares:
            session = sessions[share.index]
            end = session.cached + share.committed
            tokens = session.history.tokens[session.cached : end]
            draft = session.round.draft if share.verify and session.round else ()
            num_logits = len(draft) + 1 if share.verify else 0
            step.chunks.append(Chunk(session.id, (*tokens, *draft), session.cached, num_logits))
            step.sessions.append(session)
            step.verify.append(share.verify)
        if not step.chunks:
            return None
        self._make_room(step)
        return step

    def complete(self, step: Step[Ticket], logits: NDArray[np.float32]) -> list[tuple[list[Ticket], Verdict]]:
        """Apply the acceptance rule to a forward's logits and commit.

        Args:
            step: what `next_step` gave.
            logits: (rows, vocab), `num_logits` rows per chunk in order.

        Returns:
            For every round its tickets and its verdict.
        """
        rounds = [
            RoundRows(session.round.draft, session.sampling, len(session.history))
            for session, verify in zip(step.sessions, step.verify, strict=True)
            if verify and session.round
        ]
        decisions = iter(decide(logits, rounds))
        answers = []
        for chunk, session, verify in zip(step.chunks, step.sessions, step.verify, strict=True):
            if not verify or session.round is None:
                session.cached = chunk.past + len(chunk.tokens)
                continue
            accepted, next_token = next(decisions)
            answers.append((session.round.tickets, self._commit(session, accepted, next_token, len(rounds))))
        return answers

    @staticmethod
    def isolate(step: Step[Ticket]) -> list[Step[Ticket]]:
        """The step's chunks one by one, to find out which of them makes the forward fail."""
        parts = zip(step.chunks, step.sessions, step.verify, strict=True)
        return [Step([chunk], [session], [verify]) for chunk, session, verify in parts]

    def fail(self, step: Step[Ticket]) -> list[Ticket]:
        """The forward of these chunks failed: their rounds are given up, returned as tickets, and their caches dropped.

        The sessions can be asked again; one that keeps failing is forgotten.
        """
        tickets = []
        for session in step.sessions:
            if session.round is not None:
                tickets += session.round.tickets
                session.round = None
            session.failures += 1
            if session.failures >= MAX_FAILURES:
                self._forget(session)
            else:
                self._evict(session)
        return tickets

    def give_up(self) -> list[Ticket]:
        """The server stops: every session is forgotten; returns the tickets of the rounds that wait."""
        return [ticket for session in list(self.sessions.values()) for ticket in self._forget(session)]

    def take_dropped(self) -> list[bytes]:
        """Sessions whose keys and values the target may free, since the last call."""
        dropped, self.dropped = self.dropped, []
        return dropped

    def _commit(self, session: Session[Ticket], accepted: int, next_token: int, batch: int) -> Verdict:
        assert session.round is not None
        base = len(session.history)
        tokens = [*session.round.draft[:accepted], next_token]
        for index, token in enumerate(tokens):
            if token in self.shape.stop_ids:
                tokens = tokens[: index + 1]
                accepted = min(accepted, index + 1)
                break
        session.history.extend(tokens)
        # The last token was chosen, not fed: its keys and values come with the next round.
        session.cached = base + len(tokens) - 1
        session.finish = self._finish(session, tokens)
        session.round = None
        session.failures = 0
        verdict = Verdict(base, tokens, accepted, session.finish, self.shape.max_window, batch)
        session.last = verdict
        return verdict

    def _finish(self, session: Session[Ticket], new: Iterable[int]) -> FinishReason:
        if any(token in self.shape.stop_ids for token in new):
            return "stop"
        return "length" if len(session.history) >= self.shape.max_positions else ""

    def _make_room(self, step: Step[Ticket]) -> None:
        """Keep to the budget of cached tokens: drop caches of idle sessions, then take work out of the step."""
        while len(step.chunks) > 1 or step.sessions[0].cached < sum(s.cached for s in self.sessions.values()):
            held = sum(s.cached for s in self.sessions.values())
            if held + sum(len(chunk.tokens) for chunk in step.chunks) <= self.limits.max_cached_tokens:
                return
            busy = set(map(id, step.sessions))
            idle = [s for s in self.sessions.values() if s.cached and id(s) not in busy]
            if idle:
                self._evict(min(idle, key=lambda s: s.used_at))
            else:
                for part in (step.chunks, step.sessions, step.verify):
                    part.pop()

    def _evict(self, session: Session[Ticket]) -> None:
        """Drop a session's cache; it is computed again when a round asks for it, not before."""
        session.cached = 0
        session.prefill_ahead = False
        self.dropped.append(session.id)

    def _owned(self, owner: str, session_id: bytes) -> Session[Ticket]:
        session = self.sessions.get(session_id)
        if session is None or session.owner != owner:
            raise Refusal("session_unknown", "no such session here; open it again with the committed tokens")
        return session

    def _forget(self, session: Session[Ticket]) -> list[Ticket]:
        del self.sessions[session.id]
        self.dropped.append(session.id)
        return session.round.tickets if session.round else []

    def _check_room(self, owner: str) -> None:
        mine = sum(1 for s in self.sessions.values() if s.owner == owner)
        if len(self.sessions) >= self.limits.max_sessions or mine >= self.limits.max_sessions_per_owner:
            raise Refusal("busy", f"{len(self.sessions)} sessions are open, {mine} of them yours; close one or wait")

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        limit = min(self.shape.max_positions, self.limits.max_cached_tokens) - 1
        if not tokens:
            raise Refusal("invalid", "the prompt is empty; give at least one token")
        if len(tokens) > limit:
            raise Refusal("prompt_too_long", f"{len(tokens)} tokens, the target takes {limit}; shorten the prompt")
        self._check_ids(tokens)

    def _check_draft(self, draft: Sequence[int]) -> None:
        if len(draft) > self.shape.max_window:
            raise Refusal("window_too_long", f"{len(draft)} drafts, the limit is {self.shape.max_window}")
        self._check_ids(draft)

    def _check_ids(self, tokens: Sequence[int]) -> None:
        if tokens and max(tokens) >= self.shape.vocab_size:
            raise Refusal(
                "invalid",
                f"token id {max(tokens)} is outside the target's vocabulary of {self.shape.vocab_size}",
            )

    @staticmethod
    def _check_digest(session: Session[Ticket], message: Verify) -> None:
        if session.history.digest(message.base) != message.digest:
            raise Refusal("prefix_mismatch", "the committed text differs from the server's; open a new session")
