"""Who has something to compute, in what order, and who must give up pages when there is no room."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Generic

import numpy as np
from numpy.typing import NDArray

from sled.acceptance import RoundRows
from sled.errors import FormBroken
from sled.pages import PagePool
from sled.scheduler import Cost, Queue, Share, plan
from sled.server.counts import Totals
from sled.server.limits import Refusal, ServerLimits, TargetShape
from sled.server.session import Form, Session, Step, Ticket
from sled.types import Chunk

_ALMOST_COMPUTED = 32
_LATER = float("inf")
_DRAFTING_S = 1.0  # without a request, after which a session is not thought to draft its next round


class Agenda(Generic[Ticket]):
    """Sessions by what there is to do: verify now, compute their text first, nothing.

    Every session is in one of the three or in a forward; nothing is sorted or searched anew for a step.

    Args:
        shape: the target's numbers.
        limits: bounds on work.
        cost: what a forward takes, if that is known.
        totals: where evictions and found texts are counted.
    """

    def __init__(self, shape: TargetShape, limits: ServerLimits, cost: Cost | None, totals: Totals) -> None:
        self.pool = PagePool(shape.num_pages, shape.page_tokens)
        self.queued_tokens = 0
        self._limits, self._cost, self._totals = limits, cost, totals
        self._ready: Queue[Session[Ticket]] = Queue()
        self._behind: Queue[Session[Ticket]] = Queue()
        self._idle: OrderedDict[Session[Ticket], None] = OrderedDict()  # with pages, longest idle first

    def put(self, session: Session[Ticket]) -> None:
        """File a session by what there is to do for it; to be called whenever that changed."""
        self.take(session)
        if session.computing or session.gone:
            return
        if session.wants_token:
            queue = self._ready if session.uncached <= _ALMOST_COMPUTED else self._behind
            session.queued_tokens = session.uncached + (session.num_drafts or 0)
            self._add(queue, session)
        elif session.prefill_ahead and session.uncached > 1 and not session.finish:
            session.due = _LATER
            self._add(self._behind, session)
        elif session.table.pages:
            self._idle[session] = None

    def take(self, session: Session[Ticket]) -> None:
        """Take a session out of the order."""
        if session.queue is not None:
            session.queue.remove(session.due, session.number)
            session.queue = None
            self.queued_tokens -= session.queued_tokens
            session.queued_tokens = 0
        else:
            self._idle.pop(session, None)

    def settle(self, session: Session[Ticket]) -> None:
        """More of a session's text is computed: let others find it, give back what rejected drafts took."""
        self.pool.name(session.table, session.history.tokens, session.cached)
        self.pool.trim(session.table, len(session.history))
        self.put(session)

    def drop(self, session: Session[Ticket]) -> None:
        """A session is gone; what it computed can be found until the pages are needed."""
        self.take(session)
        self.pool.release(session.table)

    def evict(self, session: Session[Ticket], *, forget: bool = False) -> None:
        """Give a session's pages back; its text is computed again when a round asks for it, not before."""
        self.pool.release(session.table, forget=forget)
        session.cached, session.prefill_ahead = 0, False
        self._totals.evictions += 1
        self.put(session)

    def may_wait_until(self, step_s: float, *, now: float) -> float:
        """How long the next forward may be put off: `now` if texts are to be computed or there is nothing to do.

        No deadline that can be kept is missed for it.

        Args:
            step_s: what the forward will take.
            now: seconds.
        """
        if len(self._behind) or not len(self._ready):
            return now
        latest = (session.due - step_s for session in self._ready)  # the earliest deadline first
        return next((at for at in latest if at > now), math.inf)

    def next_step(self, *, now: float, at_most: float = math.inf) -> Step[Ticket]:
        """Compose a forward, of about `at_most` tokens; empty if there is nothing to compute."""
        done: list[Session[Ticket]] = []
        shares = plan(
            self._ready,
            self._found(done),
            budget=max(1, int(min(self._limits.batch_tokens, at_most))),
            prefill_beside_rounds=self._limits.prefill_beside_rounds,
            now=now,
            cost=self._cost,
            away_s=1.0 / self._limits.rate if self._somebody_drafts(now) else math.inf,
        )
        for session in done:
            self.put(session)
        step: Step[Ticket] = Step()
        begun: set[object] = set()
        for share in shares:
            self._place(step, share, begun)
        return step

    def _found(self, done: list[Session[Ticket]]) -> Iterator[Session[Ticket]]:
        """Texts that are behind; in `done` those of which nothing is, once found, until a token is wanted."""
        for session in map(self.find, self._behind):
            if session.uncached > 1 or session.wants_token:
                yield session
            else:
                done.append(session)

    def _somebody_drafts(self, now: float) -> bool:
        """Whether a round is about to come: of a session that has neither ended nor fallen silent."""
        return any(not session.finish and now - session.used_at < _DRAFTING_S for session in self._idle)

    def _place(self, step: Step[Ticket], share: Share[Session[Ticket]], begun: set[object]) -> None:
        """Put a session's share into the step, if there is room for it."""
        session = share.work
        committed, verify = share.committed, share.verify
        if session.cached + committed > len(session.history) - (not verify) or (
            verify and session.uncached != committed
        ):
            return  # it was evicted for a more urgent one of this step
        size = self.pool.page_tokens
        if session.uncached > size and session.cached == session.table.num_named * size:
            name = self.pool.next_name(session.table, session.history.tokens)
            if name in begun:
                return  # this step computes the very page for another text: next time it is found
            begun.add(name)
        drafts = session.round.draft if verify and session.round is not None else ()
        end = session.cached + committed
        if committed <= 0 or not self._make_room(session, end + len(drafts)):
            self.put(session)
            return
        allowed, fault = None, None
        if verify and session.form is not None:
            drafts, allowed, fault = _follow(session.form, drafts)
        tokens = session.history.tokens[session.cached : end]
        table = session.table.frozen()
        step.chunks.append(Chunk(session.id, (*tokens, *drafts), session.cached, (len(drafts) + 1) * verify, table))
        step.sessions.append(session)
        step.verify.append(verify)
        if fault is not None:
            step.faults[len(step.chunks) - 1] = fault
        if verify:
            step.rounds.append(_rows(session, drafts, allowed))
        self.take(session)
        session.computing = True

    def find(self, session: Session[Ticket]) -> Session[Ticket]:
        """Hold the pages that carry the session's text already; the last token is always fed."""
        table = session.table
        if session.cached == table.num_named * self.pool.page_tokens:
            found = self.pool.find(table, session.history.tokens, len(session.history) - 1)
            self._totals.found_tokens += found - session.cached
            session.cached = found
        return session

    def _make_room(self, session: Session[Ticket], num_tokens: int) -> bool:
        """Get pages for so many positions: free ones, those of idle sessions, those of less urgent ones."""
        while not self.pool.extend(session.table, num_tokens):
            victim = next(self._victims(session), None)
            if victim is None:
                return False
            self.evict(victim)
        return True

    def _victims(self, session: Session[Ticket]) -> Iterator[Session[Ticket]]:
        yield from self._idle
        for queue in (self._behind, self._ready):
            for other in reversed(queue):
                if (other.due, other.number) <= (session.due, session.number):
                    break
                if other.table.pages:
                    yield other

    def _add(self, queue: Queue[Session[Ticket]], session: Session[Ticket]) -> None:
        queue.add(session.due, session.number, session)
        session.queue = queue
        self.queued_tokens += session.queued_tokens


def _follow(form: Form, drafts: tuple[int, ...]) -> tuple[tuple[int, ...], NDArray[np.uint32] | None, Refusal | None]:
    """What a form allows along some drafts, or along those of them that are not more work than a form may cost."""
    try:
        return drafts, form.allowed(drafts), None
    except FormBroken as broken:
        if 0 <= broken.usable < len(drafts):
            return _follow(form, drafts[: broken.usable])
        error: Exception = broken
    except Exception as failed:  # of a library: this session's own misfortune
        error = failed
    reason = " ".join(str(error).split())
    return drafts, None, Refusal("target_failed", f"the form cannot be followed: {reason}")


def _rows(session: Session[Ticket], drafts: Sequence[int], allowed: NDArray[np.uint32] | None) -> RoundRows:
    history, law = session.history, session.round.law if session.round is not None else None
    return RoundRows(
        drafts,
        session.sampling,
        len(history),
        history.tokens,
        session.num_prompt,
        law if law is None or len(law.counts) == len(drafts) else law.first(len(drafts)),
        session.terms.logprobs,
        allowed,
    )
