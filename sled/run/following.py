"""A stream that the server decodes without drafts, as its device reads it, and what it drafts meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import edgebus
from sled.device import Generation
from sled.drafters import Drafter
from sled.messages import Verdict
from sled.pace import Pace
from sled.proposal import LITTLE, Reading
from sled.run.around import Around
from sled.run.refusals import as_error, decoded
from sled.run.source import Source
from sled.shadow import Shadow

if TYPE_CHECKING:
    from sled.run.losing import Absence


def verdicts(
    stream: edgebus.Stream, absence: Absence, around: Around, timeout_s: float, step: Callable[[], bool]
) -> Iterator[tuple[Verdict, bool] | None]:
    """Its parts until it ends, each with whether it was waited for, and None after each `step` or while none comes.

    Args:
        stream: of `sled.decode`.
        absence: looks after the server meanwhile.
        around: the clock.
        timeout_s: how long to wait for each part.
        step: something short to do while none is there; False if there is nothing.

    Raises:
        EdgebusError: the server is lost, says no, or is too slow.
    """
    until = around.clock() + timeout_s
    absence.asked()
    while True:
        ended, waited = stream.ended, False  # in this order: its last part may come just now
        part = stream.get(0.0)
        if part is None and ended:
            try:
                stream.result()
            except edgebus.Refused as refused:
                raise as_error(refused) from None
            return
        if part is None:
            if absence.due() and (lost := absence.look()) is not None:
                raise edgebus.LinkLost(f"{lost.server} is down: it, or another server, may go on")
            if around.clock() > until:
                raise edgebus.DeadlineExceeded(f"no token within {timeout_s:.3g} s; see that the server runs")
            if step():
                yield None  # a drafter may be slow: whoever reads looks up after each token
                continue
            part, waited = stream.get(around.look_s), True
        if part is None:
            yield None
            continue
        yield decoded(Verdict, bytes(part.payload)), waited
        until = around.clock() + timeout_s
        absence.asked()


class Shadowing:
    """Rounds that are drafted while the server decodes, and compared with what it says; none of them is sent.

    Args:
        drafter: proposes; nobody else may use it until `close`.
        machine: the answer.
        pace: says when, and is told what came of it.
        clock: seconds.
    """

    def __init__(self, drafter: Drafter, machine: Generation, pace: Pace, clock: Callable[[], float]) -> None:
        self._machine, self._pace = machine, pace
        self._source = Source(drafter, pace, clock)
        self._round: Shadow | None = None
        self._limit = 0

    @property
    def unread(self) -> int:
        """Tokens that the drafter would read before it drafts."""
        if self._round is not None:
            return self._source.left
        return self._source.unread(self._machine.history.tokens)

    def step(self) -> bool:
        """Draft a token, or read on, if that is wanted now."""
        if self._round is None and not self._begin():
            return False
        round_ = self._round
        assert round_ is not None
        if not round_.wants(self._limit):
            return False
        found = self._source.next()
        if found is None:
            round_.end()
        elif isinstance(found, Reading):
            if not found.busy and round_.base < len(self._machine.history):
                self._round = None  # what came meanwhile is read with the rest
        elif self._by_rejection:
            self._round = None  # all was read, and nothing is compared
        else:
            round_.add(found.token, found.confidence)
        return True

    @property
    def _by_rejection(self) -> bool:
        # A draft is right more often then than it is the token that the target samples by itself.
        return self._machine.sampling.rule == "rejection"

    def _begin(self) -> bool:
        self._limit = self._machine.draft_limit()
        unread = self.unread
        if self._by_rejection and unread <= LITTLE:
            return False
        if self._limit < 1 or not self._pace.shadows(unread):
            return False
        text = self._machine.history.tokens
        self._round = Shadow(self._pace, len(text))
        self._source.ask(list(text), self._limit)
        return True

    def compare(self) -> None:
        """Further tokens were committed."""
        round_ = self._round
        if round_ is None or self._source.left or self._source.busy:
            return
        if round_.compared(self._machine.history.tokens[round_.base :]):
            self._round = None

    def close(self) -> None:
        """Let the drafter go."""
        self._round = None
        self._source.close()
