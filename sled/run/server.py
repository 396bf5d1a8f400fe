"""The server's loop: requests from the bus into the machine, its steps through the target, verdicts back."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence

from edgebus import Inbox, Request
from edgebus.payloads import encode
from sled.acceptance import Decision
from sled.drain import Drain, Phase
from sled.errors import OutOfMemory, TargetLost
from sled.messages import Verdict
from sled.metrics import Board, ServerReport, trimmed
from sled.run.answers import Desk, FormShelf, PromptEncoder, ServedTarget, prompt_ids
from sled.run.preparing import Preparer
from sled.run.shortage import Shortage
from sled.run.streams import Asked, Streamed
from sled.scheduler import Cost
from sled.server import Answer, Form, Server, ServerLimits, Step, WindowPolicy
from sled.traces import Traces
from sled.types import Constraint

__all__ = ["PromptEncoder", "ServedTarget", "TargetServer"]

log = logging.getLogger("sled.server")

_IDLE_WAIT_S = 0.2
_REQUESTS_S = 0.02
_REPORT_EVERY_S = 0.25
_RETRY_MEMORY_S = 1.0
_CLOSING = "the server is stopping; go on at another one, or here when it is back"


class TargetServer:
    """Serves one target to every device; `run` is its loop.

    Args:
        inbox: where the services of `sled.messages` arrive, `node.serve(*messages.SERVICES)`.
        target: the model.
        limits: bounds on sessions and batches.
        clock: seconds.
        form_of: compiles constraints; None refuses them.
        drain_s: after `drain`, sessions go on for so long.
        others: further servers of the same target, (endpoint, public key), told to devices that have to go elsewhere.
        on_report: called about four times a second, on the loop's thread, with the server's numbers.
        policy: says how many tokens each session may draft; None lets everybody draft what the target allows.
        cost: what a forward takes, for the order of work.
    """

    def __init__(
        self,
        inbox: Inbox,
        target: ServedTarget,
        limits: ServerLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        form_of: Callable[[Constraint], Form] | None = None,
        drain_s: float = 0.0,
        others: Sequence[tuple[str, str]] = (),
        on_report: Callable[[ServerReport], None] | None = None,
        policy: WindowPolicy | None = None,
        cost: Cost | None = None,
    ) -> None:
        self._target, self._inbox, self._clock = target, inbox, clock
        shelf = FormShelf(form_of)
        self._machine: Server[Asked] = Server(target.shape, limits, form_of=shelf, policy=policy, cost=cost)
        self._board, self._traces, self._drain = Board(), Traces(), Drain(drain_s)
        self._roomy: deque[Streamed] = deque()  # streams that have room again; filled on any thread
        self._preparer = Preparer(lambda message: prompt_ids(target.codec, message), form_of, self._wake)
        self._desk = Desk(
            self._machine,
            target,
            self._preparer,
            shelf,
            board=self._board,
            traces=self._traces,
            clock=clock,
            report=self.report,
            on_room=self._on_room,
            others=others,
        )
        self._on_report, self._reported_at = on_report, -math.inf
        self._started_at = clock()
        self._stopping = self._draining = False
        self._shortage = Shortage(self._machine.limits.batch_tokens)

    def run(self) -> None:
        """Serve until `stop` is called or a drain has ended. What fails costs itself, never the loop.

        Raises:
            TargetLost: the target is of no use any more; what waited has been refused, to go on elsewhere.
        """
        busy = False
        self._preparer.start()
        try:
            while not self._stopping and self._look_at_drain() is not Phase.CLOSING:
                self._take_requests(0.0 if busy else self._idle_s())
                busy = self.step()
                self._tell()
        finally:
            self._end()

    def stop(self) -> None:
        """End `run` after the step in flight; safe from signal handlers and other threads."""
        self._stopping = True

    def drain(self) -> None:
        """Take no more sessions, and end `run` when those that run are done or `drain_s` are over; safe as `stop`."""
        self._draining = True

    @property
    def phase(self) -> Phase:
        """Whether it serves, drains, or has ended."""
        return self._drain.phase

    def handle(self, request: Request) -> None:
        """Answer a request, or put its round where the next step finds it."""
        self._desk.handle(request)

    def step(self) -> bool:
        """Compute one forward and send its verdicts; False if there was nothing to do."""
        self._desk.handle_prepared()
        self._resume_streams()
        self._machine.withdraw(lambda ticket: ticket.gone)
        now = self._clock()
        step = self._machine.next_step(now=now, at_most=self._shortage.most)
        for answer in self._machine.take_answers():  # what needed no forward
            self._answer(answer, now, 0.0)
        if step is None:
            self._machine.expire(now=now)
            return False
        self._compute(step)
        return True

    def report(self) -> ServerReport:
        """The server's numbers now; to be called on the thread that runs it."""
        now, described = self._clock(), self._target.described
        gauges, totals = self._machine.gauges(), self._machine.totals
        shape, counters = self._machine.shape, self._board.counters
        return ServerReport(
            described.name,
            described.dtype,
            self._drain.phase.value,
            now - self._started_at,
            {
                "sessions": gauges.sessions,
                "waiting_rounds": gauges.waiting_rounds,
                "streams": gauges.streams,
                "queued_tokens": gauges.queued_tokens,
                "queue_age_seconds": gauges.queue_age_s,
                "kv_bytes_used": gauges.kv_bytes,
                "kv_bytes_shared": gauges.pages_shared * shape.page_bytes,
                "kv_bytes_cached": gauges.pages_cached * shape.page_bytes,
                "kv_bytes_budget": shape.num_pages * shape.page_bytes,
                "goodput": self._board.goodput(now=now),
                "promised_rate": gauges.promised_rate,
                "window_limit_mean": gauges.mean_window_limit,
                "preparing": len(self._preparer),
            },
            {
                **{name: float(counters[name]) for name in _COUNTERS},
                "opened": totals.sessions,
                "evictions": totals.evictions,
                "prefill": totals.prefill_tokens,
                "prefix_tokens": totals.found_tokens,
                "cut_drafts": totals.cut_drafts,
            },
            {code: float(number) for code, number in self._board.refusals.items()},
            trimmed(self._board.drafted_at),
            trimmed(self._board.accepted_at)[: len(trimmed(self._board.drafted_at))],
            self._board.histograms(),
            self._target.engine,
        )

    # -- inside -------------------------------------------------------------------------------------

    def _idle_s(self) -> float:
        """How long to wait for a request: a step may wait for rounds, and begins without them."""
        return max(0.0, min(_IDLE_WAIT_S, self._machine.waits_until - self._clock()))

    def _take_requests(self, wait_s: float) -> None:
        """Handle what has arrived, for a bounded time: rounds that wait must not wait for a queue of others."""
        request = self._inbox.get(timeout_s=wait_s)
        until = self._clock() + _REQUESTS_S
        while request is not None:
            self.handle(request)
            request = self._inbox.get(timeout_s=0.0) if self._clock() < until else None

    def _compute(self, step: Step[Asked]) -> None:
        """Compute a step; what fails is divided until it is known whose chunk it is, or until it fits."""
        parts = [step]
        while parts:
            part = parts.pop()
            if len(part.chunks) > 1 and part.num_tokens > self._shortage.most:
                parts += halves(self._machine.isolate(part))[::-1]
                continue
            started_at = self._clock()
            try:
                decisions = self._target.verify(part.chunks, part.rounds)
            except TargetLost:
                raise  # `run` ends: every device goes on elsewhere
            except Exception as error:
                parts += self._divide(part, error)
                continue
            self._shortage.fitted(part.num_tokens)
            self._give(part, decisions, started_at)

    def _divide(self, part: Step[Asked], error: Exception) -> list[Step[Asked]]:
        """Smaller steps to try after a failure, the first one last; a chunk that fails alone is refused."""
        memory = isinstance(error, OutOfMemory)
        self._board.counters["out_of_memory" if memory else "failed_steps"] += 1
        if len(part.chunks) > 1:
            log.warning("a forward failed and is divided", extra={"chunks": len(part.chunks), "why": str(error)[:200]})
            pieces = self._machine.isolate(part)
            if not memory:
                return pieces[::-1]
            self._shortage.failed(part.num_tokens)  # the next steps are not to fail first, each of them
            return halves(pieces)[::-1]
        if memory and self._machine.put_back(part):
            self._shortage.failed(part.num_tokens)
            return []
        if memory:
            self._shortage.forget()  # one that never fits says nothing of what the forwards of others take
            log.warning("no memory for a chunk", extra={"tokens": len(part.chunks[0].tokens), "why": str(error)[:200]})
            for ticket in self._machine.fail(part, code="out_of_memory"):
                detail = "the target has no memory for this text now; ask again later, or elsewhere"
                self._desk.refuse(ticket, "out_of_memory", detail, _RETRY_MEMORY_S)
            return []
        log.error("a forward failed", exc_info=error, extra={"rounds": len(part.rounds)})
        for ticket in self._machine.fail(part):
            self._desk.refuse(ticket, "target_failed", "the target could not compute this round; try again")
        return []

    def _give(self, step: Step[Asked], decisions: Sequence[Decision], started_at: float) -> None:
        """Commit a step's decisions and give out its verdicts."""
        now = self._clock()
        took_s = now - started_at
        self._board.step(step.num_tokens, step.rounds, decisions, took_s)
        before = self._machine.totals.tokens
        answers = self._machine.complete(step, decisions, now=now, took_s=took_s)
        self._board.committed(self._machine.totals.tokens - before, now=now)
        for answer in answers:
            self._answer(answer, started_at, took_s)

    def _answer(self, answer: Answer[Asked], started_at: float, took_s: float) -> None:
        """Tell everybody who waits for it, and note it."""
        if answer.refusal is not None:
            for ticket in answer.tickets:
                self._desk.refuse_with(ticket, answer.refusal)
            return
        verdict, content = answer.verdict, encode(answer.verdict)
        if answer.tickets and verdict.tokens and verdict.batch:  # not what is told again
            self._note(answer.tickets[0], verdict, started_at, took_s)
        for ticket in answer.tickets:
            ticket.arrived_at = started_at + took_s
            if not ticket.give(content, last=answer.last):
                self._machine.pause(ticket)

    def _note(self, ticket: Asked, verdict: Verdict, started_at: float, took_s: float) -> None:
        queued_s = max(0.0, started_at - ticket.arrived_at)
        tokens, limit = len(verdict.tokens), verdict.window_limit
        self._board.verdict(limit, queued_s)
        counts = (ticket.drafted, verdict.accepted, tokens, limit, verdict.batch)
        self._traces.add(ticket.session, (verdict.base, ticket.arrived_at, queued_s, took_s, *counts))

    def _on_room(self, stream: Streamed) -> None:
        self._roomy.append(stream)
        self._wake()

    def _resume_streams(self) -> None:
        while self._roomy:
            stream = self._roomy.popleft()
            if stream.flush():
                stream.arrived_at = self._clock()
                self._machine.resume(stream)

    def _wake(self) -> None:
        if self._inbox is not None:  # a simulation drives us without one
            self._inbox.wake()

    def _look_at_drain(self) -> Phase:
        now = self._clock()
        if self._draining and self._drain.phase is Phase.SERVING:
            self._drain.begin(now=now)
            self._machine.drain()
            at_most_s = self._drain.remaining_s(now=now)
            log.info("draining", extra={"sessions": len(self._machine.sessions), "at_most_s": at_most_s})
            self._tell(at_once=True)
        return self._drain.look(num_sessions=len(self._machine.sessions) + len(self._preparer), now=now)

    def _tell(self, *, at_once: bool = False) -> None:
        now = self._clock()
        if self._on_report is not None and (at_once or now - self._reported_at >= _REPORT_EVERY_S):
            self._reported_at = now
            self._on_report(self.report())

    def _end(self) -> None:
        """Nobody waits in vain: what is open is refused, so that devices go on elsewhere."""
        left = self._preparer.close()
        tickets = [*self._machine.give_up(), *(Asked(job.request, 0.0) for job in left)]
        for ticket in tickets:
            self._desk.refuse(ticket, "closing", _CLOSING, 0.0)
        self._inbox.close()
        log.info("ended", extra={"rounds_refused": len(tickets)})


def halves(pieces: Sequence[Step[Asked]]) -> list[Step[Asked]]:
    """Steps of one chunk each as two steps, the first with the larger half."""
    middle = (len(pieces) + 1) // 2
    return [_joined(part) for part in (pieces[:middle], pieces[middle:]) if part]


def _joined(pieces: Sequence[Step[Asked]]) -> Step[Asked]:
    whole: Step[Asked] = Step()
    for index, piece in enumerate(pieces):
        whole.chunks += piece.chunks
        whole.rounds += piece.rounds
        whole.sessions += piece.sessions
        whole.verify += piece.verify
        if piece.faults:
            whole.faults[index] = piece.faults[0]
    return whole


_COUNTERS = (
    "steps", "tokens", "rounds", "drafted", "accepted", "wasted", "committed", "failed_steps", "out_of_memory",
    "not_finite",
)  # fmt: skip
