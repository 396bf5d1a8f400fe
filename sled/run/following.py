"""A stream that the server decodes without drafts, as its device reads it, and what it drafts meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from itertools import islice
from typing import TYPE_CHECKING

import edgebus
from sled.device import Generation
from sled.drafters import Drafter
from sled.messages import Verdict
from sled.pace import Pace
from sled.proposal import Proposal, as_proposals
from sled.run.around import Around
from sled.run.refusals import as_error, decoded
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
        part, waited = stream.get(0.0), False
        if part is None and step():
            yield None  # a drafter may be slow: whoever reads looks up after each token
            continue
        if part is None:
            part, waited = stream.get(around.look_s), True
        if part is not None:
            yield decoded(Verdict, bytes(part.payload)), waited
            until = around.clock() + timeout_s
            absence.asked()
            continue
        if stream.ended:
            try:
                stream.result()
            except edgebus.Refused as refused:
                raise as_error(refused) from None
            return
        if (lost := absence.look()) is not None:
            raise edgebus.LinkLost(f"{lost.server} is down: it, or another server, may go on")
        if around.clock() > until:
            raise edgebus.DeadlineExceeded(f"no token within {timeout_s:.3g} s; see that the server runs")
        yield None


class Shadowing:
    """Rounds that are drafted while the server decodes, and compared with what it says; none of them is sent.

    Args:
        drafter: proposes; nobody else may use it until `close`.
        machine: the answer.
        pace: says when, and is told what came of it.
        clock: seconds.
    """

    def __init__(self, drafter: Drafter, machine: Generation, pace: Pace, clock: Callable[[], float]) -> None:
        self._drafter, self._machine, self._pace, self._clock = drafter, machine, pace, clock
        self._round: Shadow | None = None
        self._limit = 0
        self._drafts: Iterator[Proposal] = iter(())
        self._source: object = None

    def step(self) -> bool:
        """Draft a token, if one is wanted now."""
        if self._round is None and not self._begin():
            return False
        round_ = self._round
        assert round_ is not None
        if not round_.wants(self._limit):
            return False
        began_at = self._clock()
        proposal = next(self._drafts, None)
        if proposal is None:
            round_.end()
        else:
            self._pace.drafted(1, self._clock() - began_at)
            round_.add(proposal.token, proposal.confidence)
        return True

    def _begin(self) -> bool:
        # Under the rejection rule a draft is right more often than it is the token that the target samples by itself.
        machine = self._machine
        self._limit = machine.draft_limit() if machine.sampling.rule != "rejection" else 0
        if self._limit < 1 or not self._pace.shadows():
            return False
        self.close()
        text = machine.history.tokens
        self._round = Shadow(self._pace, len(text))
        source = iter(self._drafter.draft(list(text), self._limit))
        self._source = source
        self._drafts = islice((proposal for draft in source for proposal in as_proposals([draft])), self._limit)
        return True

    def compare(self) -> None:
        """Further tokens were committed."""
        if self._round is not None and self._round.compared(self._machine.history.tokens[self._round.base :]):
            self._round = None

    def close(self) -> None:
        """Let the drafter go."""
        self._round, source, self._source = None, self._source, None
        if isinstance(source, Generator):
            source.close()
