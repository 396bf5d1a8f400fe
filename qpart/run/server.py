"""The server's shell: requests from the bus to the models, answers back.

Three kinds of work. What takes no time is answered at once. Inference waits in the batcher, and whatever waits there
when the loop is free is computed in one forward. Plans, for which patterns are run, are made on a thread of their own;
so are pieces, which are blobs.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from edgebus import Inbox, Request
from edgebus.arrays import Array
from edgebus.payloads import Payload, decode, encode
from edgebus.serving import refuse, reply
from qpart import messages
from qpart.batching import Batch, Batcher, BatchLimits, Job
from qpart.errors import Infeasible, RequestError, ShapeMismatch
from qpart.messages import Answered, Ask, Busy, Chosen, Described, InfeasibleInfo, Infer
from qpart.metrics import Board, ServerReport
from qpart.run.served import ServedModel
from qpart.run.worker import Worker
from qpart.tail import Work

log = logging.getLogger(__name__)

_IDLE_WAIT_S = 0.2
_REQUESTS_S = 0.02
_REPORT_EVERY_S = 0.25
_CLOSING = "the server is stopping; go on at another one, or here when it is back"
_P = TypeVar("_P", bound=Payload)
Reply = tuple[bytes, Sequence[Array]]


class UnknownModelAsked(Exception):
    """A device asks for a model that is not served here."""


class Ticket(NamedTuple):
    """An inference request that was checked."""

    request: Request
    model: ServedModel
    work: Work


class PlanServer:
    """Plans for devices, ships heads, runs tails; `run` is its loop.

    It keeps nothing about devices: any server with the same artefacts can answer the next request.

    Args:
        inbox: where the services of `qpart.messages` arrive, `node.serve(*messages.SERVICES)`. Pieces are blobs: beside
            it, `serve_pieces(node, ...)` of the same models.
        models: what is served, each name once.
        limits: of batches and of the queue in front of them.
        join_cuts: requests at different cuts of a model share a forward from the later cut on.
        drain_s: after `drain`, what was accepted is finished within so long.
        on_report: called about four times a second, on the loop's thread, with the server's numbers.
        clock: seconds.
    """

    def __init__(
        self,
        inbox: Inbox,
        models: Sequence[ServedModel],
        limits: BatchLimits | None = None,
        *,
        join_cuts: bool = True,
        drain_s: float = 10.0,
        on_report: Callable[[ServerReport], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inbox, self._clock = inbox, clock
        self._models = {model.artefact.model_id: model for model in models}
        self._described = encode(Described(tuple(model.info for model in models)))
        self._batcher: Batcher[Ticket] = Batcher(limits)
        self._worker = Worker(self._work, self._refuse)
        self._join_cuts, self._drain_s = join_cuts, drain_s
        self._board, self._counting = Board(), threading.Lock()
        self._on_report, self._reported_at = on_report, -math.inf
        self._started_at = clock()
        self._stopping = self._draining = False
        self._drained_by = math.inf

    def run(self) -> None:
        """Serve until `stop` is called or a drain has ended. A request that fails costs itself, never the loop."""
        self._worker.start()
        try:
            while not self._over():
                self._take_requests()
                self.step()
                self._tell()
        finally:
            self._end()

    def stop(self) -> None:
        """End `run` after the forward in hand; safe from signal handlers and other threads."""
        self._stopping = True

    def drain(self) -> None:
        """Accept nothing more, and end `run` when what was accepted is answered, or `drain_s` are over.

        The numbers are told until then.
        """
        self._draining = True

    def handle(self, request: Request) -> None:
        """Answer or refuse one request, or put it where it waits for its turn."""
        if self._drained_by < math.inf and request.service != messages.STATS:
            self._refuse(request, "closing", _CLOSING)
        elif request.service == messages.PLAN:
            self._worker.submit(request)
        else:
            self._guarded(request, self._at_once)

    def step(self) -> bool:
        """Compute one forward and send its answers; False if there was nothing to do."""
        now = self._clock()
        for job in self._batcher.sweep(now=now, gone=lambda ticket: ticket.request.remaining_s() <= 0):
            self._refuse(job.ticket.request, "expired", "the deadline passed while the request waited for its turn")
        batch = self._batcher.next_batch(now=now)
        if batch is None:
            return False
        self._compute(batch)
        return True

    def report(self) -> ServerReport:
        """The server's numbers now."""
        totals = self._batcher.totals
        phase = "serving" if self._drained_by == math.inf else "closing" if self._is_over() else "draining"
        with self._counting:
            counters = {name: float(self._board.counters[name]) for name in ("plans", "received_bytes", "sent_bytes")}
            refusals = {code: float(count) for code, count in self._board.refusals.items()}
            histograms = self._board.histograms()
        for name in ("accepted", "answered", "failed", "expired", "withdrawn", "batches", "samples"):
            counters[name] = float(getattr(totals, name))
        return ServerReport(
            [model.artefact.name for model in self._models.values()],
            phase,
            self._clock() - self._started_at,
            {
                "waiting": float(len(self._batcher)),
                "running": float(self._batcher.running),
                "planning": float(len(self._worker)),
            },
            counters,
            refusals,
            histograms,
        )

    # -- inside -------------------------------------------------------------------------------------

    def _take_requests(self) -> None:
        """Handle what has arrived, for a bounded time: forwards must not wait for a queue of other things."""
        now = self._clock()
        request = self._inbox.get(timeout_s=max(0.0, min(_IDLE_WAIT_S, self._batcher.next_timer() - now)))
        until = self._clock() + _REQUESTS_S
        while request is not None:
            self.handle(request)
            request = self._inbox.get(timeout_s=0.0) if self._clock() < until else None

    def _at_once(self, request: Request) -> Reply | None:
        match request.service:
            case messages.DESCRIBE:
                return self._described, ()
            case messages.SEGMENT:
                chosen = _decoded(Chosen, request.payload)
                return self._model(chosen.model_id).segment(chosen), ()
            case messages.STATS:
                return encode(self.report()), ()
            case _:
                self._offer(request, _decoded(Infer, request.payload))
                return None

    def _offer(self, request: Request, infer: Infer) -> None:
        """Have an inference request wait for its forward."""
        model, now = self._model(infer.model_id), self._clock()
        work = model.tail.check(infer, request.arrays)
        left_s = request.remaining_s()
        with self._counting:
            self._board.counters["received_bytes"] += sum(array.nbytes for array in work.arrays)
        retry_after_s = self._batcher.offer(
            Job(
                Ticket(request, model, work),
                request.owner,
                infer.model_id if self._join_cuts else (infer.model_id, infer.cut),
                work.samples,
                work.samples * model.tail.widest,
                model.tail.cost(work),
                now,
                now + left_s,
            )
        )
        if retry_after_s is not None:
            detail = f"too many requests wait, of all or of this device; ask again in {retry_after_s:.2f} s"
            self._refuse(request, "busy", detail, encode(Busy(retry_after_s)))

    def _compute(self, batch: Batch[Ticket]) -> None:
        """Compute a batch; one that fails is divided until it is known whose request it is."""
        parts = [batch]
        while parts:
            part = parts.pop()
            began = self._clock()
            try:
                answers = part.jobs[0].ticket.model.tail.answers([job.ticket.work for job in part.jobs])
            except Exception as error:
                if len(part.jobs) > 1:
                    log.warning("a forward of %d requests failed and is divided: %s", len(part.jobs), str(error)[:200])
                    parts += part.halves()[::-1]
                    continue
                log.exception("a forward failed")
                self._batcher.failed(part)
                self._refuse(part.jobs[0].ticket.request, "internal", "the tail failed on this request; see the log")
                continue
            self._give(part, answers, began)

    def _give(self, batch: Batch[Ticket], answers: Sequence[Array], began: float) -> None:
        took_s = self._clock() - began
        self._batcher.done(batch, took_s=took_s)
        with self._counting:
            self._board.tail_s.observe(took_s)
            self._board.batch_requests.observe(len(batch.jobs))
            self._board.batch_samples.observe(batch.samples)
            self._board.counters["sent_bytes"] += sum(answer.nbytes for answer in answers)
            for job in batch.jobs:
                self._board.queue_s.observe(max(0.0, began - job.arrived_at))
        for job, answer in zip(batch.jobs, answers, strict=True):
            request = job.ticket.request
            # The inbox saw it arrive, perhaps while the loop was computing: that is waiting too.
            waited_s = max(0.0, began - (request.arrived_at or job.arrived_at))
            reply(request, encode(Answered(waited_s, took_s)), [answer])

    def _work(self, request: Request) -> None:
        """On the worker's thread."""
        began = self._clock()
        self._guarded(request, self._plan)
        with self._counting:
            self._board.counters["plans"] += 1
            self._board.plan_s.observe(self._clock() - began)

    def _plan(self, request: Request) -> Reply:
        ask = _decoded(Ask, request.payload)
        return encode(self._model(ask.model_id).plan(ask.request, ask.cached, explain=ask.explain)), ()

    def _guarded(self, request: Request, answer: Callable[[Request], Reply | None]) -> None:
        """Answer a request; whatever goes wrong becomes its refusal."""
        try:
            found = answer(request)
            if found is not None:
                reply(request, *found)
        except UnknownModelAsked as error:
            self._refuse(request, "unknown_model", str(error))
        except Infeasible as error:
            info = encode(InfeasibleInfo(error.constraint, error.nearest_accuracy))
            self._refuse(request, "infeasible", str(error), info)
        except (RequestError, ShapeMismatch) as error:
            self._refuse(request, "invalid", " ".join(str(error).split()))
        except Exception:
            log.exception("%s failed", request.service)
            self._refuse(request, "internal", "the server failed on this request; its log has the reason")

    def _refuse(self, request: Request, code: str, detail: str, info: bytes = b"") -> None:
        with self._counting:
            self._board.refusals[code] += 1
        refuse(request, code, detail, info)

    def _model(self, model_id: bytes) -> ServedModel:
        if model_id not in self._models:
            raise UnknownModelAsked(
                f"model {model_id.hex()} is not served here (any more): connect again and ask for a plan"
            )
        return self._models[model_id]

    def _over(self) -> bool:
        """Whether the loop ends; begins a drain that was asked for."""
        if self._draining and self._drained_by == math.inf:
            for request in self._inbox.drain():
                self.handle(request)
            self._drained_by = self._clock() + self._drain_s
            log.info("draining", extra={"waiting": len(self._batcher), "at_most_s": self._drain_s})
            self._tell(at_once=True)
        return self._is_over()

    def _is_over(self) -> bool:
        now = self._clock()
        if self._drained_by == math.inf:
            return self._stopping
        return self._stopping or now >= self._drained_by or not (len(self._batcher) or len(self._worker))

    def _tell(self, *, at_once: bool = False) -> None:
        now = self._clock()
        if self._on_report is not None and (at_once or now - self._reported_at >= _REPORT_EVERY_S):
            self._reported_at = now
            self._on_report(self.report())

    def _end(self) -> None:
        """Nobody waits in vain: what is open is refused, so that devices go on elsewhere."""
        for job in self._batcher.give_up():
            self._refuse(job.ticket.request, "closing", _CLOSING)
        self._worker.close(_CLOSING)
        self._inbox.close()


def _decoded(kind: type[_P], payload: bytes) -> _P:
    try:
        return decode(kind, payload)
    except ValueError as error:
        raise RequestError(str(error)) from None
