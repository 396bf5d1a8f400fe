"""Drafters that somebody else wrote: whatever they do costs speed only."""

from __future__ import annotations

import logging
import math
import operator
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from sled.drafters.chain import Chain
from sled.drafters.following import agreed
from sled.drafters.protocol import Drafter, unread_of
from sled.law import Law
from sled.messages import Described
from sled.proposal import LITTLE, Proposal, Reading
from sled.types import MAX_LAW_IDS, Sampling

PATIENCE_S = 2.0
LOOK_S = 0.002  # how long a drafter in a thread is waited for before others have their turn
log = logging.getLogger("sled.drafters")
_MOST_LEFT = 1 << 24
_END = object()  # there are no more drafts
_Job: TypeAlias = Callable[[], Any]


class Fault(Exception):
    """What a drafter did that it may not do."""


def guarded(drafter: Drafter, target: Described, *, patience_s: float = PATIENCE_S) -> Guard:
    """The drafter behind a guard; one that is not ours drafts in a thread of its own, so that it cannot hold us up.

    Args:
        drafter: any.
        target: whose ids it must propose.
        patience_s: how long a draft of somebody else's drafter may take before the round goes without it.
    """
    return Guard(drafter, vocab_size=target.vocab_size, patience_s=None if _is_ours(drafter) else patience_s)


def _is_ours(drafter: Drafter) -> bool:
    if isinstance(drafter, Chain):
        return _is_ours(drafter.first) and _is_ours(drafter.second)
    return type(drafter).__module__.startswith("sled.drafters.")


def _reencodes(drafter: Drafter) -> bool:
    if isinstance(drafter, Chain):
        return _reencodes(drafter.first) or _reencodes(drafter.second)
    return bool(getattr(drafter, "reencodes", False))


class Guard:
    """A drafter that never raises, never hangs and proposes nothing but tokens of the target.

    A fault (an exception, something that is no token, a law that is none) is logged once and switches the drafter off
    until the next answer. One that is too slow loses the round, and may draft again when it has come back.

    Args:
        drafter: any.
        vocab_size: ids the target knows.
        patience_s: how long it may take for one token; None calls it in our own thread and waits.

    Attributes:
        reencodes: whether it drafts in tokens of its own (`ReencodingDrafter`).
        job_s: what the last thing it was asked for in its thread took, with what it was at before and nobody waited for
            any more; None for one that has no thread.
        fault: why it is off for this answer; empty while it is on.
        num_faults: in all answers.
        num_late: rounds that went without it because it took too long.
    """

    def __init__(self, drafter: Drafter, *, vocab_size: int, patience_s: float | None = None) -> None:
        self.name = str(getattr(drafter, "name", type(drafter).__name__))
        self.drafter, self.reencodes = drafter, _reencodes(drafter)
        self.fault, self.num_faults, self.num_late = "", 0, 0
        self._vocab_size = vocab_size
        self._calls = _Inline() if patience_s is None else _InThread(patience_s)
        self._begin: tuple[Sampling, int] | None = None
        self._seen: list[int] = []  # what it was asked to continue, and said
        self._is_new = True
        self._reading = (0, 0)  # a job, and what it reads of the text

    def start(self, sampling: Sampling, num_prompt: int) -> None:
        """A new answer: the drafter is on again; it hears of the answer when it is asked first."""
        self.fault = ""
        self._begin, self._is_new = (sampling, num_prompt), True

    @property
    def job_s(self) -> float | None:
        """See the class."""
        return self._calls.job_s

    def unread(self, text: Sequence[int]) -> int:
        """Tokens it would read before its first draft: as it says; in a thread, what is new to it and what it is at."""
        if self.fault:
            return 0
        if self._calls.job_s is not None:
            return len(text) - agreed(self._seen, text, whole=self._is_new) + self._still_reads()
        try:
            if self._begin is not None:
                begin, self._begin = self._begin, None
                self.drafter.start(*begin)
            return unread_of(self.drafter, text)
        except Exception as error:
            self._switch_off(error)
            return 0

    def _still_reads(self) -> int:
        """What it was left at; nothing of what came too late: no round waits for that."""
        number, left = self._reading
        return left if not self._calls.late() and self._calls.runs(number) else 0

    def draft(self, text: Sequence[int], limit: int) -> Iterator[Proposal | Reading]:
        """What the drafter proposes, as far as it is sound; meanwhile that it is at work, for others to have a turn."""
        if self.fault or limit <= 0:
            return
        if self._calls.late():
            self.num_late += 1
            return  # still at work on an earlier round
        text = self._calls.own(text)
        left = self.unread(text) if self._calls.job_s is not None else 0
        if left > LITTLE:
            yield Reading(left)  # left here, it has heard of nothing yet
        if self._calls.job_s is not None:
            self._follow(text)
        drafts = _Drafts(self.drafter, self._begin, text, limit)
        self._begin = None
        num_drafts, read_to = 0, _MOST_LEFT
        try:
            while num_drafts < limit:
                looks = self._calls.wait_for(drafts.next, left)
                self._reading = (self._calls.number, left)
                yield from looks
                found = self._calls.result()
                if found is _END:
                    return
                if isinstance(found, Reading):
                    left = read_to = self._left(found, read_to)
                    yield Reading(left)
                    continue
                num_drafts, left, read_to = num_drafts + 1, 0, _MOST_LEFT
                proposal = self._checked(found)
                if self._calls.job_s is not None:
                    self._seen.append(proposal.token)
                yield proposal
        except _Late:
            self.num_late += 1
            log.info("drafter %s took too long; the round goes without it", self.name)
        except Exception as error:  # whatever it was
            self._switch_off(error)
        finally:
            self._calls.last(drafts.close)

    def _follow(self, text: Sequence[int]) -> None:
        """The text is what it is asked to continue from now on."""
        keep = agreed(self._seen, text, whole=self._is_new)
        self._is_new = False
        del self._seen[keep:]
        self._seen.extend(text[keep:])

    def close(self) -> None:
        """Let go of the drafter's thread."""
        self._calls.stop()

    def _switch_off(self, error: Exception) -> None:
        try:
            what = str(error) if isinstance(error, Fault) else f"{type(error).__name__}: {error}"
        except Exception:  # of whoever wrote it, too
            what = type(error).__name__
        self.fault = what[:500]
        self.num_faults += 1
        log.warning("drafter %s is off for this answer: %s", self.name, self.fault)

    def _left(self, reading: Reading, before: int) -> int:
        try:
            left = -1 if isinstance(reading.left, bool) else operator.index(reading.left)
        except TypeError:
            left = -1
        if not 0 <= left < before:
            raise Fault(f"it has {reading.left!r} tokens left to read"[:200] + ", fewer each time are needed")
        return left

    def _checked(self, found: Any) -> Proposal:
        token, confidence, law = found if isinstance(found, Proposal) else (found, 1.0, None)
        try:
            number = operator.index(token)
        except TypeError:
            raise Fault(f"it proposed {token!r}"[:200] + ", token ids are whole numbers") from None
        if isinstance(token, bool) or not 0 <= number < self._vocab_size:
            raise Fault(f"it proposed {token!r}"[:200] + f", token ids are 0 to {self._vocab_size - 1}")
        try:
            share = float(confidence)
        except (TypeError, ValueError, OverflowError):
            share = math.nan
        if not -1e-6 <= share <= 1 + 1e-6:
            raise Fault(f"its confidence is {confidence!r}"[:200] + ", a probability is needed")
        if law is not None:
            _check_law(law, number, self._vocab_size)
        return Proposal(number, min(max(share, 0.0), 1.0), law)


def _check_law(law: Any, token: int, vocab_size: int) -> None:
    """Insist on a law of the kind that travels.

    Raises:
        Fault: it is none.
    """
    if not isinstance(law, Law):
        raise Fault(f"its law is a {type(law).__name__}, a sled.law.Law is needed")
    ids, probabilities = law.ids, law.probabilities
    sound = (
        all(isinstance(part, np.ndarray) and part.ndim == 1 for part in (ids, probabilities))
        and ids.dtype == np.int32
        and probabilities.dtype == np.float32
        and 1 <= len(ids) == len(probabilities) <= MAX_LAW_IDS
        and bool((np.diff(ids) > 0).all())
        and ids[0] >= 0
        and ids[-1] < vocab_size
        and bool((probabilities > 0).all())
        and abs(float(probabilities.sum(dtype=np.float64)) - 1) < 1e-3
        and token in ids
    )
    if not sound:
        raise Fault("its law is not one of rising int32 ids and positive float32 probabilities that holds the token")


class _Drafts:
    """One call of `draft`, made and advanced by whoever runs the jobs."""

    def __init__(self, drafter: Drafter, begin: tuple[Sampling, int] | None, text: Sequence[int], limit: int) -> None:
        self._drafter, self._begin, self._text, self._limit = drafter, begin, text, limit
        self._made: Iterable[Any] | None = None
        self._iterator: Iterator[Any] | None = None

    def next(self) -> Any:
        if self._iterator is None:
            if self._begin is not None:
                self._drafter.start(*self._begin)
            self._made = self._drafter.draft(self._text, self._limit)
            if self._made is None:
                raise Fault("it returned None, token ids one after the other are needed")
            self._iterator = iter(self._made)
        return next(self._iterator, _END)

    def close(self) -> None:
        close = getattr(self._made, "close", None)
        if close is not None:
            close()


class _Result(NamedTuple):
    """What a job has brought, or what it failed of, and the seconds that it took."""

    number: int
    found: Any
    error: BaseException | None
    took_s: float


class _Late(Exception):
    """A job has not come back in time."""


class _Inline:
    """Runs jobs at once."""

    job_s: float | None = None
    number = 0
    _result: Any = None

    def late(self) -> bool:
        return False

    def runs(self, number: int) -> bool:
        return False

    def own(self, text: Sequence[int]) -> Sequence[int]:
        return text

    def wait_for(self, job: _Job, left: int) -> Iterator[Reading]:
        self._result = job()
        return iter(())

    def result(self) -> Any:
        return self._result

    def last(self, job: _Job) -> None:
        try:
            job()
        except Exception as error:
            log.debug("a drafter failed at its end: %s", error)

    def stop(self) -> None:
        """Nothing to stop."""


class _InThread:
    """Runs jobs in a thread, one after the other, and waits for each so long and no longer.

    Attributes:
        job_s: what the last one that was waited for took, and those before it that it had to wait for.
        number: of the last one.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._jobs: queue.SimpleQueue[tuple[int, _Job] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[_Result] = queue.SimpleQueue()
        self._last = _Result(0, None, None, 0.0)
        self.number = self._late = 0
        self.job_s: float | None = 0.0
        self._stop: Callable[[], Any] | None = None

    def late(self) -> bool:
        """Whether it is still at what was waited for in vain."""
        return self.runs(self._late)

    def runs(self, number: int) -> bool:
        """Whether a job has not come back yet."""
        while not self._results.empty():
            self._last = self._results.get()
        return self._last.number < number

    def own(self, text: Sequence[int]) -> Sequence[int]:
        return list(text)  # the device's own grows meanwhile

    def wait_for(self, job: _Job, left: int) -> Iterator[Reading]:
        """Until the job, and what was left behind before it, has come back; every now and then others have a turn.

        Raises:
            _Late: it took too long, as far as it was waited for.
        """
        self._send(job)
        return self._look(left)

    def _look(self, left: int) -> Iterator[Reading]:
        waited_s, self.job_s = 0.0, 0.0
        while self._last.number < self.number:
            try:
                self._last = self._results.get(timeout=min(LOOK_S, self._patience_s))
            except queue.Empty:
                waited_s += LOOK_S
                if waited_s >= self._patience_s:
                    self._late = self.number
                    raise _Late from None
                yield Reading(left, busy=True)
            else:
                self.job_s += self._last.took_s

    def result(self) -> Any:
        """What the last job has brought."""
        error = self._last.error
        if isinstance(error, Exception):
            raise error
        if error is not None:
            raise Fault(f"it ended with {type(error).__name__}")
        return self._last.found

    def last(self, job: _Job) -> None:
        self._send(job)

    def stop(self) -> None:
        if self._stop is not None:
            self._stop()

    def _send(self, job: _Job) -> None:
        if self._stop is None:
            threading.Thread(target=_work, args=(self._jobs, self._results), name="sled-drafter", daemon=True).start()
            self._stop = weakref.finalize(self, self._jobs.put, None)
        self.number += 1
        self._jobs.put((self.number, job))


def _work(jobs: queue.SimpleQueue[tuple[int, _Job] | None], results: queue.SimpleQueue[_Result]) -> None:
    while (entry := jobs.get()) is not None:
        number, job = entry
        began_at = time.monotonic()
        try:
            found = job()
            results.put(_Result(number, found, None, time.monotonic() - began_at))
            del found
        except BaseException as error:  # whatever it was, others wait for us
            results.put(_Result(number, None, error, time.monotonic() - began_at))
        del entry, job
