"""Tokenising and compiling on a thread of its own, so that rounds do not wait for somebody's long prompt."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from edgebus import Request
from sled.messages import Open
from sled.server import Form
from sled.types import Constraint

log = logging.getLogger("sled.server")

MAX_WAITING = 256
MAX_WAITING_EACH = 16


@dataclass(slots=True)
class Prepared:
    """An opening whose prompt is token ids and whose constraint is compiled, or why that cannot be."""

    request: Request
    owner: str
    message: Open
    tokens: list[int] | None = None
    form: Form | None = None
    error: Exception | None = None


class Preparer:
    """A queue of openings and the thread that works it; `take` gives what is done.

    Before `start` everything is done at once, by whoever submits it.

    Args:
        encode: the token ids of an opening's prompt; raises ValueError if the model cannot take it so.
        form_of: compiles a constraint; None where there are none.
        ring: called, on the thread, when something is done.
    """

    def __init__(
        self,
        encode: Callable[[Open], list[int]],
        form_of: Callable[[Constraint], Form] | None,
        ring: Callable[[], object],
    ) -> None:
        self._encode, self._form_of, self._ring = encode, form_of, ring
        self._jobs: SimpleQueue[Prepared | None] = SimpleQueue()
        self._done: deque[Prepared] = deque()
        self._waiting: Counter[str] = Counter()  # by owner; touched by the server's thread only
        self._working: Prepared | None = None
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        """Openings that wait or are worked on."""
        return self._waiting.total()

    def start(self) -> None:
        """From now on a thread does the work."""
        self._thread = threading.Thread(target=self._run, name="sled-prepare", daemon=True)
        self._thread.start()

    def submit(self, request: Request, owner: str, message: Open) -> bool:
        """Take an opening; False if too many wait already, of all or of this owner."""
        if len(self) >= MAX_WAITING or self._waiting[owner] >= MAX_WAITING_EACH:
            return False
        self._waiting[owner] += 1
        job = Prepared(request, owner, message)
        if self._thread is None:
            self._work(job)
            self._done.append(job)
        else:
            self._jobs.put(job)
        return True

    def take(self) -> Prepared | None:
        """The next opening that is done, if there is one."""
        if not self._done:
            return None
        job = self._done.popleft()
        self._waiting[job.owner] -= 1
        if not self._waiting[job.owner]:
            del self._waiting[job.owner]
        return job

    def remind(self) -> None:
        """Ring again if something done was not taken."""
        if self._done:
            self._ring()

    def close(self, within_s: float = 2.0) -> list[Prepared]:
        """End the thread; returns every opening that `take` has not given. A job that takes longer is left behind."""
        left: list[Prepared] = []
        with contextlib.suppress(Empty):
            while True:
                job = self._jobs.get_nowait()
                left += [job] if job is not None else []
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join(within_s)
            if self._thread.is_alive():
                log.warning("a prompt is still being tokenised: its thread is left behind")
        working = self._working
        left += iter(self.take, None)
        return left if working is None or any(working is job for job in left) else [*left, working]

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._working = job
            self._work(job)
            self._done.append(job)
            self._working = None
            self._ring()

    def _work(self, job: Prepared) -> None:
        if job.request.remaining_s() <= 0:
            return  # nobody waits for it any more
        message = job.message
        try:
            job.tokens = self._encode(message)
            if message.sampling.constraint is not None and self._form_of is not None:
                job.form = self._form_of(message.sampling.constraint)
        except Exception as error:  # told to whoever asked, by the server's thread
            job.error = error
