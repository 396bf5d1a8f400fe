"""What the machine keeps about sessions, and how they come, end, and are told what was committed."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Generic

from sled.history import History
from sled.messages import MAX_WINDOW, Open, Verdict, Verify
from sled.pages import PageTable
from sled.scheduler import Cost, Promise
from sled.server.agenda import Agenda
from sled.server.checks import StopTexts, check_parameters
from sled.server.counts import Gauges, Totals
from sled.server.limits import Refusal, ServerLimits, TargetShape
from sled.server.owners import Owners
from sled.server.session import Answer, Form, Session, Ticket
from sled.server.windows import FixedWindow, WindowPolicy
from sled.types import Constraint, FinishReason

MAX_FAILURES = 3
_STEP_WEIGHT = 0.1
_RETRY_S = (0.05, 60.0)
_AWAY_S = 1.0  # to a device that finds the server full or going away
_PART_TOKENS = MAX_WINDOW + 1
_MIN_RATE = 0.01  # tokens/s; with less, deadlines would leave the numbers


class Book(Generic[Ticket]):
    """The state of a `Server`, and everything it does to it that is neither a request nor a forward."""

    def __init__(
        self,
        shape: TargetShape,
        limits: ServerLimits | None = None,
        *,
        form_of: Callable[[Constraint], Form] | None = None,
        policy: WindowPolicy | None = None,
        cost: Cost | None = None,
    ) -> None:
        self.shape = shape
        self.limits = limits or ServerLimits()
        self.sessions: OrderedDict[bytes, Session[Ticket]] = OrderedDict()  # longest unused first
        lengths = shape.max_window + 1
        self.totals = Totals(drafts_of_length=[0] * lengths, accepted_of_length=[0] * lengths)
        self._form_of = form_of
        self._policy = policy or FixedWindow(shape.max_window)
        self._agenda: Agenda[Ticket] = Agenda(shape, self.limits, cost, self.totals)
        self._owners: Owners[Session[Ticket]] = Owners(self.limits.rejected_burst, self.limits.rejected_per_s)
        self._waiting: dict[Session[Ticket], None] = {}  # with a round, in the order of arrival
        self._streams: dict[int, Session[Ticket]] = {}  # by the ticket's identity
        self._outbox: list[Answer[Ticket]] = []
        self._promised_rate = 0.0
        self._step_s = 0.0
        self._num_computing = 0
        self._num_asked = 0
        self._draining = False
        self._now = 0.0
        self.waits_until = math.inf
        """When the next forward begins, if it waits for rounds that are about to come."""

    @property
    def idle(self) -> bool:
        """Whether nobody waits for anything."""
        return not (self._waiting or self._streams or self._outbox or self._num_computing)

    def retry_after_s(self) -> float:
        """When what waits now will have been computed, by the steps of late."""
        steps = 1 + self._agenda.queued_tokens // self.limits.batch_tokens
        return min(max(_RETRY_S[0], steps * self._step_s), _RETRY_S[1])

    def gauges(self) -> Gauges:
        """How the server stands, by the clock of the last call."""
        pool, oldest = self._agenda.pool, next(iter(self._waiting), None)
        age_s = self._now - oldest.round.asked_at if oldest is not None and oldest.round is not None else 0.0
        limits = [session.limit for session in self.sessions.values()]
        return Gauges(
            sessions=len(self.sessions),
            waiting_rounds=len(self._waiting),
            streams=len(self._streams),
            queued_tokens=self._agenda.queued_tokens,
            queue_age_s=max(0.0, age_s),
            pages_held=pool.num_held,
            pages_shared=pool.num_shared,
            pages_cached=pool.num_cached,
            pages_free=pool.num_free,
            kv_bytes=(pool.num_held + pool.num_cached) * self.shape.page_bytes,
            promised_rate=self._promised_rate,
            mean_window_limit=sum(limits) / len(limits) if limits else 0.0,
            step_s=self._step_s,
            draining=self._draining,
        )

    # -- sessions

    def _new_session(self, owner: str, message: Open, prompt: Sequence[int], now: float) -> Session[Ticket]:
        terms, sampling = message.terms, message.sampling
        rate = max(_MIN_RATE, min(terms.rate or self.limits.rate, self.limits.max_rate))
        check_parameters(self.shape, sampling, terms)
        victim = self._admit(owner, rate)
        max_length = self.shape.max_positions
        session: Session[Ticket] = Session(
            message.session,
            owner,
            sampling,
            terms,
            History(prompt),
            len(prompt),
            min(max_length, len(prompt) + terms.max_tokens) if terms.max_tokens else max_length,
            Promise(rate, now - len(message.answer) / rate),
            PageTable(self._scope(owner, message.session)),
            StopTexts(terms.stop, self.shape.pieces),
            self._form(sampling.constraint),
            now,
            number=self._next_number(),
        )
        self._extend_answer(session, message.answer)
        if victim is not None:
            self._forget(victim)
        self.sessions[session.id] = session
        self._owners.add_session(owner, now=now)
        self._promised_rate += rate
        self.totals.sessions += 1
        self._policy.opened(session.id, rate, owner)
        self._agenda.find(session)
        return session

    def _scope(self, owner: str, session_id: bytes) -> Hashable:
        return {"all": None, "owner": owner, "none": (owner, session_id)}[self.limits.share]

    def _form(self, constraint: Constraint | None) -> Form | None:
        if constraint is None:
            return None
        if self._form_of is None:
            raise Refusal("invalid", "this server takes no constraints; check the answer's form yourself")
        try:
            return self._form_of(constraint)
        except ValueError as error:
            raise Refusal("invalid", f"the constraint: {' '.join(str(error).split())}") from None

    def _extend_answer(self, session: Session[Ticket], answer: Sequence[int]) -> None:
        """Take over tokens that were committed elsewhere; what follows an end is kept, for the lengths to agree."""
        try:
            count = session.extend(answer, self.shape.stop_ids)
        except ValueError as error:
            raise Refusal("invalid", f"the answer breaks its form: {' '.join(str(error).split())}") from None
        session.history.extend(answer[count:])

    def _compute_ahead(self, session: Session[Ticket]) -> None:
        """One text of each device is computed ahead of its first round: the last one it opened."""
        owner = self._owners[session.owner]
        if owner.ahead is not None and owner.ahead is not session:
            owner.ahead.prefill_ahead = False
            self._agenda.put(owner.ahead)
        owner.ahead = session
        self._agenda.put(session)

    def _use(self, session: Session[Ticket], now: float) -> None:
        self._now = max(self._now, now)
        session.used_at = self._now
        self.sessions.move_to_end(session.id)

    def _forget(self, session: Session[Ticket]) -> list[Ticket]:
        tickets = session.tickets
        session.held = None
        self._end_round(session)
        self._drop_stream(session)
        session.gone = True
        del self.sessions[session.id]
        self._owners.remove_session(session.owner, session)
        self._promised_rate -= session.promise.rate
        self._policy.closed(session.id)
        if not session.computing:  # else its pages are being written
            self._agenda.drop(session)
        return tickets

    def _give_up(self, session: Session[Ticket]) -> list[Ticket]:
        """Its forward failed: whoever waits for it is told so, and what was computed is not trusted."""
        tickets = session.tickets
        self.totals.failed_rounds += bool(tickets)
        session.held = None
        self._end_round(session)
        self._drop_stream(session)
        session.failures += 1
        session.told_at = None
        self._agenda.evict(session, forget=True)
        if session.failures >= MAX_FAILURES:
            self._forget(session)
        return tickets

    # -- rounds and streams

    def _ask(self, session: Session[Ticket], now: float) -> None:
        """A token is wanted: file the session under the time it is due."""
        self._agenda.take(session)
        session.due = session.promise.due(len(session.history) - session.num_prompt, now=now)
        session.number = self._next_number()
        if not session.table.pages and not session.computing:
            self._agenda.find(session)
        self._agenda.put(session)

    def _next_number(self) -> int:
        self._num_asked += 1
        return self._num_asked

    def _drop_held(self, session: Session[Ticket]) -> None:
        """A round that hung on hope is not waited for any longer; whoever asked is told so."""
        if session.held is not None:
            tickets, refusal = session.held.round.tickets, self._stale(session, session.held.base)
            session.held = None
            self._outbox.append(Answer(tickets, self._empty(session), refusal=refusal))

    def _end_round(self, session: Session[Ticket]) -> None:
        session.round = None
        self._waiting.pop(session, None)

    def _drop_stream(self, session: Session[Ticket]) -> None:
        if session.stream is not None:
            del self._streams[id(session.stream.ticket)]
            session.stream = None
            session.told_at = None

    def _end_stream(self, session: Session[Ticket]) -> None:
        """The device goes on otherwise: the stream ends where it is."""
        if session.stream is not None:
            ticket, verdict = session.stream.ticket, self._empty(session)
            self._drop_stream(session)
            self._outbox.append(Answer([ticket], verdict))

    def _set_paused(self, ticket: Ticket, paused: bool) -> None:
        session = self._streams.get(id(ticket))
        if session is not None and session.stream is not None and session.stream.paused != paused:
            session.stream.paused = paused
            if paused or session.round is not None:
                self._agenda.put(session)
            else:
                self._ask(session, self._now)

    def _tell(self, session: Session[Ticket], batch: int) -> list[Answer[Ticket]]:
        """What a stream is told of the tokens committed since, and its end if it comes to one."""
        stream = session.stream
        if stream is None:
            return []
        answers: list[Answer[Ticket]] = []
        length, last = len(session.history), False
        while stream.told < min(length, stream.end):
            start, stream.told = stream.told, min(length, stream.end, stream.told + _PART_TOKENS)
            verdict = self._told(session, start, stream.told, 0, batch)
            last = bool(verdict.finish) or stream.told == stream.end
            answers.append(Answer([stream.ticket], verdict, last))
        rises = session.limit > 0 and not stream.may_draft
        if not last and (session.finish or rises or length > self.shape.pool_tokens):
            refusal = None if session.finish or rises else self._outgrown(length)
            answers.append(Answer([stream.ticket], self._empty(session), refusal=refusal))
            last = True
        stream.may_draft = session.limit > 0
        if last:
            self._drop_stream(session)
        return answers

    def _told(self, session: Session[Ticket], start: int, end: int, accepted: int, batch: int) -> Verdict:
        tokens = session.history.tokens[start:end]
        finish: FinishReason = session.finish if end == len(session.history) else ""
        logprobs = session.logprobs_of(start, end)
        return Verdict(start, tokens, accepted, finish, session.limit, batch, logprobs)

    def _empty(self, session: Session[Ticket]) -> Verdict:
        return Verdict(len(session.history), [], 0, session.finish, session.limit, 0)

    def _told_before(self, session: Session[Ticket], message: Verify) -> Verdict:
        """The answer to a round that starts where the text has been already."""
        base, last = message.base, session.last
        if last is not None and base == last.base:
            self._check_digest(session, base, message.digest)
            return last
        if not self._can_retell(session, base):
            raise self._stale(session, base)
        self._check_digest(session, base, message.digest)
        end = min(len(session.history), base + _PART_TOKENS)
        return self._told(session, base, end, agreeing(message.draft, session.history.tokens[base:end]), 0)

    def _can_retell(self, session: Session[Ticket], base: int) -> bool:
        """Whether the device may have lost what follows `base`: it is of the last round or stream."""
        length, first = len(session.history), session.retold_from
        if first is None or not first <= base < length:
            return False
        return session.terms.logprobs < 0 or length - base <= len(session.logprobs)

    def _update_limit(self, session: Session[Ticket], now: float) -> int:
        shut = self._owners[session.owner].bucket.shut(now=now)
        limit = 0 if shut else self._policy.limit(session.id, now)
        session.limit = max(0, min(limit, self.shape.max_window))
        return session.limit

    # -- refusals

    def _owned(self, owner: str, session_id: bytes) -> Session[Ticket]:
        session = self.sessions.get(session_id)
        if session is None or session.owner != owner:
            raise Refusal("session_unknown", "no such session here; open it again with the committed tokens")
        return session

    def _admit(self, owner: str, rate: float) -> Session[Ticket] | None:
        """Whether a new session may come in; returns the silent one that has to go for it, if there is no room else.

        Raises:
            Refusal: draining or busy.
        """
        mine, limits = self._owners.num_sessions(owner), self.limits
        wait_s = max(_AWAY_S, self.retry_after_s())
        if self._draining:
            raise Refusal("draining", "this server is going away; open the session at another one", _AWAY_S)
        self._check_queue()
        victim, mine_full = None, mine >= limits.max_sessions_per_owner
        if mine_full or len(self.sessions) >= limits.max_sessions:
            victim = next(self._silent(owner if mine_full else None), None)
            if victim is None:
                raise Refusal(
                    "busy", f"{len(self.sessions)} sessions are open, {mine} of them yours; close one or wait", wait_s
                )
        promised = self._promised_rate - (victim.promise.rate if victim is not None else 0.0)
        if limits.max_promised_rate and promised + rate > limits.max_promised_rate * (1 + 1e-9):
            raise Refusal(
                "busy",
                f"{promised:.0f} of {limits.max_promised_rate:.0f} tokens/s are promised, no {rate:.0f} "
                "more; ask for a lower rate or wait",
                wait_s,
            )
        return victim

    def _silent(self, owner: str | None) -> Iterator[Session[Ticket]]:
        """Sessions of an owner, or of all, whose devices may be gone: longest unused first, and nobody waits."""
        since = self._now - self.limits.spare_s
        for session in self.sessions.values():
            if session.used_at > since:
                return
            if (owner is None or session.owner == owner) and session.is_idle:
                yield session

    def _check_queue(self) -> None:
        num_waiting = len(self._waiting) + len(self._streams)
        if num_waiting >= self.limits.max_waiting:
            wait_s = self.retry_after_s()
            raise Refusal("busy", f"{num_waiting} rounds and streams wait already; try again in {wait_s:.2f} s", wait_s)

    def _check_fits(self, session: Session[Ticket]) -> None:
        if len(session.history) > self.shape.pool_tokens:
            raise self._outgrown(len(session.history))

    def _outgrown(self, length: int) -> Refusal:
        room = self.shape.pool_tokens
        return Refusal("out_of_memory", f"the text has {length} tokens, all pages hold {room}; go on at another server")

    @staticmethod
    def _check_digest(session: Session[Ticket], base: int, digest: bytes) -> None:
        if session.history.digest(base) != digest:
            raise Refusal("prefix_mismatch", "the committed text differs from the server's; open a new session")

    @staticmethod
    def _stale(session: Session[Ticket], base: int) -> Refusal:
        length = len(session.history)
        return Refusal(
            "stale_base", f"the round starts at length {base}, committed are {length}; go on from there", length
        )


def agreeing(draft: Sequence[int], tokens: Sequence[int]) -> int:
    """How many of the first tokens are the draft's."""
    pairs = enumerate(zip(draft, tokens, strict=False))
    return next((index for index, (ours, theirs) in pairs if ours != theirs), min(len(draft), len(tokens)))


def mean_of(old: float, new: float) -> float:
    """A mean of late; the first value as it is."""
    return new if math.isclose(old, 0.0) else old + _STEP_WEIGHT * (new - old)
