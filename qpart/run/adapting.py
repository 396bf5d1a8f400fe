"""Another plan in the background: inference goes on with the one there is until the other is ready to run."""

from __future__ import annotations

import logging
import threading
import time
from typing import NamedTuple

import edgebus
from qpart.drift import Drift, DriftLimits, Seen
from qpart.messages import ModelInfo
from qpart.profile import Request
from qpart.run.preparing import Prepared, Preparer
from qpart.run.traffic import Traffic

log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """What came of asking: for which request, a plan that can run or None, and what asking has moved."""

    request: Request
    prepared: Prepared | None
    failed: bool
    traffic: Traffic


class Adapter:
    """Watches the channel, and has a thread prepare another plan when that is worth it.

    While plans change, the heads of both are held.

    Args:
        preparer: over a line of its own, so that its bytes are counted apart.
        model: what is run.
        limits: how sure to be.

    Attributes:
        asked, switches: how often another plan was asked for, and taken.
    """

    def __init__(self, preparer: Preparer, model: ModelInfo, limits: DriftLimits | None = None) -> None:
        self._preparer, self._model, self._limits = preparer, model, limits
        self._drift: Drift | None = None
        self._thread: threading.Thread | None = None
        self._answer: Answer | None = None  # set by the thread when it ends
        self.asked = self.switches = 0

    def start(self, prepared: Prepared) -> None:
        """This plan is in use from now on."""
        self._drift = Drift(prepared.request, prepared.planned.plan, self._limits)

    def see(self, seen: Seen) -> None:
        """A request was answered; perhaps another plan is asked for."""
        drift = self._drift
        if drift is None:
            return
        drift.see(seen)
        if self._thread is None and drift.wants_plan(now=seen.at):
            self.asked += 1
            arguments = drift, drift.measured()
            self._thread = threading.Thread(target=self._prepare, args=arguments, name="qpart-adapt", daemon=True)
            self._thread.start()

    def take(self, traffic: Traffic) -> Prepared | None:
        """The plan to use from now on, if another one is ready and worth having.

        Args:
            traffic: what asking has moved is added.
        """
        answer, drift = self._answer, self._drift
        if answer is None or drift is None:
            return None
        self.wait()
        self._answer = None
        traffic.add(answer.traffic)
        now = time.monotonic()
        if answer.prepared is not None:
            self.switches += 1
            drift.take(answer.request, answer.prepared.planned.plan, now=now)
        elif answer.failed:
            drift.failed(now=now)
        else:
            drift.decline(answer.request, now=now)
        return answer.prepared

    def forget(self, traffic: Traffic, timeout_s: float) -> None:
        """Wait for what is being prepared and do without it; what it has moved is added.

        Raises:
            edgebus.DeadlineExceeded: it takes longer than that; it goes on, and is worth a switch as before.
        """
        if not self.wait(timeout_s):
            raise edgebus.DeadlineExceeded(
                f"another plan is still being prepared in the background after {timeout_s:.3g} s: "
                "ask again later, or give the device a longer timeout_s"
            )
        answer, self._answer = self._answer, None
        if answer is not None:
            traffic.add(answer.traffic)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing is being prepared; False if something still is after so many seconds."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return False
            self._thread = None
        return True

    def _prepare(self, drift: Drift, request: Request) -> None:
        traffic, prepared, failed = Traffic(), None, True
        try:
            planned = self._preparer.ask(self._model, request, traffic)
            if drift.worth(request, planned.plan):
                prepared = self._preparer.fetch(self._model, request, planned, traffic)
            failed = False
        except edgebus.EdgebusError as error:
            log.info("no other plan: %s", error)
        except Exception:
            log.exception("planning anew failed")
        self._answer = Answer(request, prepared, failed, traffic)
