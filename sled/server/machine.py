"""The machine: requests and decisions go in, forwards and answers come out.

A session's answer is a function of (target, prompt, sampling, terms), so a round that is asked twice is answered twice
with the same tokens, whatever was drafted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from sled.acceptance import Decision, RoundRows
from sled.messages import Decode, Open, Opened, Verdict, Verify
from sled.server.book import Book, agreeing, mean_of
from sled.server.checks import check_draft, check_law, check_text
from sled.server.limits import Refusal
from sled.server.session import Answer, Held, Round, Session, Step, Stream, Ticket
from sled.server.windows import forward_s


class Server(Book[Ticket]):
    """Sessions, their rounds and streams, and their limits.

    Args:
        shape: the target's numbers.
        limits: bounds on memory and work.
        form_of: makes a form of a constraint; ValueError says why it cannot. None: no constraints are taken.
        policy: says how many tokens each session may draft.
        cost: what a forward takes; without it, prefill beside rounds has a fixed share.

    A `ticket` is whatever the caller needs to answer a request later; the machine only hands it back.
    """

    # -- requests

    def open(self, owner: str, message: Open, prompt: Sequence[int], *, now: float) -> Opened:
        """Open a session on `prompt` (token ids), or find it again; asking twice changes nothing.

        Raises:
            Refusal: prompt_too_long, invalid, target_changed, busy, draining, or session_exists (the id is taken by
                another text or owner).
        """
        self.expire(now=now)
        tokens = [*prompt, *message.answer]
        check_text(self.shape, tokens, len(message.answer))
        if message.target_id not in (b"", self.shape.target_id):
            raise Refusal("target_changed", "this server's target is not the one the answer began with; start again")
        session = self.sessions.get(message.session)
        if session is None:
            session = self._new_session(owner, message, prompt, now)
        elif (
            session.owner != owner
            or session.sampling != message.sampling
            or session.terms != message.terms
            or session.num_prompt != len(prompt)
            or session.history.tokens[: len(tokens)] != tokens[: len(session.history)]
        ):
            raise Refusal("session_exists", "this session id is in use for another text; choose a new random id")
        elif session.round is None and len(tokens) > len(session.history):  # the device went on elsewhere meanwhile
            session.last, session.retold_from, session.logprobs = None, None, []
            session.history.tokens = list(session.history.tokens)  # a forward may be reading the text as it was
            self._extend_answer(session, tokens[len(session.history) :])
        self._compute_ahead(session)
        self._use(session, now)
        limit = self._update_limit(session, now)
        length, others = len(session.history), len(self._waiting) + len(self._streams)
        return Opened(list(prompt), length, limit, forward_s(self._policy.cost, length, others))

    def verify(
        self, owner: str, message: Verify, ticket: Ticket, *, now: float, arrived_at: float | None = None
    ) -> Verdict | None:
        """Take a round; None means its verdict comes out of a later `complete`.

        `arrived_at` is when it came, by the same clock, if a forward has put off its handling.

        Raises:
            Refusal: session_unknown, stale_base, prefix_mismatch, invalid, window_too_long, out_of_memory or busy.
        """
        session = self._owned(owner, message.session)
        self._use(session, now)
        length = len(session.history)
        if session.round is not None and message.base > length:
            self._hold(session, message, ticket, now)
            return None
        if message.base != length:
            return self._told_before(session, message)
        self._check_digest(session, message.base, message.digest)
        asked = self._round_of(session, message, ticket, now)
        if session.finish:
            return self._empty(session)
        if session.round is not None:
            session.round.tickets.append(ticket)
            return None
        self._check_fits(session)
        self._check_queue()
        self._end_stream(session)
        self._begin(session, asked, now, now if arrived_at is None else min(now, arrived_at))
        return None

    def decode(self, owner: str, message: Decode, ticket: Ticket, *, now: float) -> None:
        """Begin a stream; its parts are answers, and the first ones may tell again what another stream lost.

        Raises:
            Refusal: session_unknown, stale_base, prefix_mismatch, out_of_memory or busy.
        """
        session = self._owned(owner, message.session)
        self._use(session, now)
        base = message.base
        if base != len(session.history) and not self._can_retell(session, base):
            raise self._stale(session, base)
        self._check_digest(session, base, message.digest)
        if not session.finish:
            self._check_fits(session)
            self._check_queue()
        self._end_stream(session)
        if base == len(session.history):
            session.retold_from, session.logprobs = base, []
        may_draft = self._update_limit(session, now) > 0
        session.stream = Stream(ticket, base, base + message.max_tokens, now, may_draft)
        self._streams[id(ticket)] = session
        self._outbox += self._tell(session, 0)
        if session.stream is not None and session.round is None:
            self._ask(session, now)

    def _round_of(self, session: Session[Ticket], message: Verify, ticket: Ticket, now: float) -> Round[Ticket]:
        check_draft(self.shape, message.draft)
        law = message.law if session.sampling.rule == "rejection" else None
        if law is not None:
            check_law(self.shape, message.draft, law)
        return Round(tuple(message.draft), [ticket], law, now)

    def _begin(self, session: Session[Ticket], asked: Round[Ticket], now: float, arrived_at: float) -> None:
        """A round continues the committed text: it waits for a forward from now on."""
        think_s = max(0.0, arrived_at - session.told_at) if session.told_at is not None else None
        self._policy.round(session.id, len(asked.draft), think_s)
        draft = self._cut_draft(session, asked.draft, now)
        law = asked.law.first(len(draft)) if asked.law is not None and draft else None
        session.round = Round(draft, asked.tickets, law, now)
        self._waiting[session] = None
        self._ask(session, now)

    def _hold(self, session: Session[Ticket], message: Verify, ticket: Ticket, now: float) -> None:
        """A round ahead of the text, while another one of its session is decided: it may be right by then.

        Raises:
            Refusal: stale_base (the round that is decided cannot lead there), invalid or window_too_long.
        """
        assert session.round is not None
        if message.base > len(session.history) + self.shape.max_window + 1:
            raise self._stale(session, message.base)
        asked = self._round_of(session, message, ticket, now)
        held = session.held
        if held is not None and (held.base, held.digest) == (message.base, message.digest):
            held.round.tickets.append(ticket)  # asked twice
            return
        self._drop_held(session)
        session.held = Held(asked, message.base, message.digest)

    def _take_held(self, session: Session[Ticket], now: float) -> list[Answer[Ticket]]:
        """The round that hung on hope goes on now, or its hope has failed."""
        held, session.held = session.held, None
        if held is None:
            return []
        base, right = len(session.history), False
        if held.base == base and not session.finish and session.stream is None:
            right = session.history.digest(base) == held.digest
        if right and base <= self.shape.pool_tokens:
            self._begin(session, held.round, now, now)
            return []
        return [Answer(held.round.tickets, self._empty(session), refusal=self._stale(session, held.base))]

    def pause(self, ticket: Ticket) -> None:
        """The receiver of this stream has no room: nothing is decoded for it until `resume`."""
        self._set_paused(ticket, True)

    def resume(self, ticket: Ticket) -> None:
        """The receiver of this stream has room again."""
        self._set_paused(ticket, False)

    def close(self, owner: str, session_id: bytes) -> list[Ticket]:
        """Forget a session; returns the tickets of whoever still waited."""
        return self._forget(self._owned(owner, session_id))

    def expire(self, *, now: float) -> None:
        """Forget sessions idle for longer than the limit; a round or stream keeps its session."""
        self._now = max(self._now, now)
        idle = []
        for session in self.sessions.values():
            if now - session.used_at <= self.limits.idle_s:
                break
            if session.is_idle:
                idle.append(session)
        for session in idle:
            self._forget(session)

    def withdraw(self, gone: Callable[[Ticket], bool]) -> None:
        """Forget rounds and streams that nobody waits for any more."""
        for session in list(self._waiting):
            if session.held is not None and all(map(gone, session.held.round.tickets)):
                session.held = None
            if session.round is not None and any(map(gone, session.round.tickets)):
                session.round.tickets = [ticket for ticket in session.round.tickets if not gone(ticket)]
                if not session.round.tickets and not session.computing:  # what is being computed is kept
                    self._drop_held(session)
                    self._end_round(session)
                    self._agenda.put(session)
        for session in list(self._streams.values()):
            if session.stream is not None and gone(session.stream.ticket):
                self._drop_stream(session)
                self._agenda.put(session)

    def drain(self) -> None:
        """Take no new sessions from now on; those that are open go on."""
        self._draining = True

    def give_up(self) -> list[Ticket]:
        """The server stops: every session is forgotten; returns the tickets of whoever waits."""
        return [ticket for session in list(self.sessions.values()) for ticket in self._forget(session)]

    # -- forwards

    def next_step(self, *, now: float, at_most: float = math.inf) -> Step[Ticket] | None:
        """The next forward, or None when there is nothing to compute yet: `waits_until` says when there is.

        `at_most`: about so many tokens, where memory is short.
        """
        self._now = max(self._now, now)
        begins, self.waits_until = self.waits_until, math.inf
        if begins > now:  # else it has waited for long enough, be it looked at a moment later than it was to begin
            may_wait = self._agenda.may_wait_until(self._step_s, now=now)
            if may_wait > now and (begins := min(may_wait, self._policy.begins(now))) > now:
                self.waits_until = begins
                return None
        step = self._agenda.next_step(now=now, at_most=at_most)
        self._num_computing += len(step.chunks)
        return step if step.chunks else None

    def complete(
        self, step: Step[Ticket], decisions: Sequence[Decision], *, now: float, took_s: float = 0.0
    ) -> list[Answer[Ticket]]:
        """Commit what the target decided.

        Args:
            step: what `next_step` gave.
            decisions: one for each of the step's rounds.
            now: seconds.
            took_s: what the forward took.

        Returns:
            What rounds and streams are told.
        """
        assert len(decisions) == len(step.rounds)
        self._now = max(self._now, now)
        answers = self.take_answers()
        pairs = iter(zip(step.rounds, decisions, strict=True))
        for index, (chunk, session, verify) in enumerate(zip(step.chunks, step.sessions, step.verify, strict=True)):
            rows, decision = next(pairs) if verify else (None, None)
            # With a round comes the last token of the text, and whatever else was not computed yet.
            self.totals.prefill_tokens += len(chunk.tokens) - chunk.num_logits
            if not self._computed(session):
                continue
            if rows is None or decision is None:
                session.cached = chunk.past + len(chunk.tokens)
                self._agenda.settle(session)
            elif index in step.faults or not decision.finite:
                answers += self._refuse(session, step.faults.get(index) or _NOT_A_NUMBER)
            else:
                answers += self._commit(session, rows, decision, len(step.rounds), now)
        self._count_step(step, took_s)
        return answers

    def take_answers(self) -> list[Answer[Ticket]]:
        """What is to be told without a forward; ask after requests were handled."""
        answers, self._outbox = self._outbox, []
        return answers

    @staticmethod
    def isolate(step: Step[Ticket]) -> list[Step[Ticket]]:
        """The step's chunks one by one, to find out which of them makes the forward fail."""
        return step.parts()

    def put_back(self, step: Step[Ticket]) -> bool:
        """Compute the text of a step's only chunk in smaller pieces, by `at_most` of the next ones.

        Returns:
            False, and nothing is done, where there are none: a round and the last token of its text go together.
        """
        (chunk,), (session,) = step.chunks, step.sessions
        if len(chunk.tokens) <= max(chunk.num_logits, 1):
            return False
        if self._computed(session):
            self._agenda.put(session)
        return True

    def fail(self, step: Step[Ticket], code: str = "target_failed") -> list[Ticket]:
        """The forward of these chunks failed: whoever waits is given up, returned as tickets, and pages are freed.

        The sessions can be asked again; one that keeps failing is forgotten.

        Args:
            step: the forward, or a part of it.
            code: what the tickets are told, "target_failed" or "out_of_memory".
        """
        self.totals.failed_steps[code] = self.totals.failed_steps.get(code, 0) + 1
        tickets: list[Ticket] = []
        for session in step.sessions:
            if self._computed(session):
                tickets += self._give_up(session)
        return tickets

    def _computed(self, session: Session[Ticket]) -> bool:
        """Its forward is over; False if the session is gone meanwhile."""
        session.computing = False
        self._num_computing -= 1
        if session.gone:
            self._agenda.drop(session)
        return not session.gone

    def _refuse(self, session: Session[Ticket], refusal: Refusal) -> list[Answer[Ticket]]:
        verdict, tickets = self._empty(session), self._give_up(session)
        return [Answer(tickets, verdict, refusal=refusal)] if tickets else []

    def _commit(
        self, session: Session[Ticket], rows: RoundRows, decision: Decision, batch: int, now: float
    ) -> list[Answer[Ticket]]:
        base, drafts, accepted = rows.position, rows.draft, decision.accepted
        if base != len(session.history):  # the text was taken up further on meanwhile
            session.cached = base
            self._agenda.settle(session)
            return []
        tokens = [*drafts[:accepted], decision.next_token]
        try:
            count = session.extend(tokens, self.shape.stop_ids)
        except ValueError as error:
            return self._refuse(session, Refusal("target_failed", f"the form: {' '.join(str(error).split())}"))
        # The last token was chosen, not fed: its keys and values come with the next round.
        session.cached = base + count - 1
        session.failures = 0
        self._count_round(session, len(drafts), accepted, count, now)
        if not session.finish:  # no round will come
            self._update_limit(session, now)
        if session.terms.logprobs >= 0:
            # A token that was computed for a stream given up meanwhile may be told again with those before it.
            anew = session.stream is None and session.round is not None
            session.keep_logprobs(decision.logprobs[:count], anew=anew)
        answers = []
        answers = self._tell_round(session, rows, accepted, count, batch, now)
        answers += self._tell(session, batch)
        self._use(session, now)
        self._agenda.settle(session)
        answers += self._take_held(session, now)
        if session.round is None and session.wants_token:
            self._ask(session, now)
        return answers

    def _tell_round(
        self, session: Session[Ticket], rows: RoundRows, accepted: int, count: int, batch: int, now: float
    ) -> list[Answer[Ticket]]:
        """The verdict of the round that waits, if one does; it may have drafted something else than was computed."""
        if session.round is None:
            return []
        base, mine, tickets = rows.position, session.round.draft, session.round.tickets
        told = min(accepted, count) if mine is rows.draft else agreeing(mine, session.history.tokens[base:])
        session.last = self._told(session, base, base + count, told, batch)
        session.told_at = now
        if session.stream is None:
            session.retold_from = base
        self._end_round(session)
        return [Answer(tickets, session.last)] if tickets else []

    def _cut_draft(self, session: Session[Ticket], draft: Sequence[int], now: float) -> tuple[int, ...]:
        """As much of a draft as the answer, the pages and the device's budget of rejections have room for."""
        room = min(session.max_length, self.shape.pool_tokens + 1) - len(session.history) - 1
        if self._owners[session.owner].bucket.shut(now=now):
            room = 0
        self.totals.cut_drafts += max(0, len(draft) - max(0, room))
        return tuple(draft[: max(0, room)])

    def _count_round(self, session: Session[Ticket], drafted: int, accepted: int, count: int, now: float) -> None:
        self._owners[session.owner].bucket.take(drafted - accepted, now=now)
        self._policy.verdict(session.id, drafted, accepted)
        self.totals.count_round(drafted, min(accepted, count), count)
        self.totals.rounds += session.round is not None
        self.totals.decoded += session.round is None

    def _count_step(self, step: Step[Ticket], took_s: float) -> None:
        num_tokens = step.num_tokens
        self.totals.steps += 1
        self.totals.step_tokens += num_tokens
        self.totals.step_s += took_s
        self._step_s = mean_of(self._step_s, took_s)
        self._policy.step(num_tokens, len(step.rounds), sum(chunk.past for chunk in step.chunks), took_s)


_NOT_A_NUMBER = Refusal(
    "target_failed", "the target's logits are not-a-number for this text; try again, or another prompt or server"
)
