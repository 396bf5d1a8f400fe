"""The drafter at work: it continues the chain token by token, as far as the pace finds it worth while."""

from __future__ import annotations

import time
from collections.abc import Callable

from sled.device import Generation
from sled.drafters import Drafter
from sled.pace import Pace
from sled.proposal import Proposal, Reading
from sled.run.source import Source


class Drafting:
    """Prepares the next round of an answer.

    A round takes its tokens from the chain behind those of the rounds in flight and the token hoped for as the target's
    own. One that the pace finds not worth sending stays in the chain as the hope of the round after it.

    Args:
        drafter: proposes.
        machine: whose chain it continues.
        pace: says how many tokens are worth sending, and is told what they took.
        clock: seconds.
    """

    def __init__(
        self, drafter: Drafter, machine: Generation, pace: Pace, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._machine, self._pace = machine, pace
        self._source = Source(drafter, pace, clock)
        self._left = 0  # proposals that may still come out of it
        self._source_cuts = -1
        self._dry_cuts = -1  # the drafter has nothing to say to this text
        self._dry_length = -1
        self._size = 0  # tokens of the next round
        self._full = False
        self._planned_from = (-1, -1, -1)

    @property
    def size(self) -> int:
        """How many tokens the next round holds."""
        self._plan()
        return self._size

    @property
    def ready(self) -> bool:
        """Whether the next round is as long as it will be: the pace, a limit, or the drafter has ended it."""
        self._plan()
        return self._full or self._size >= self._machine.draft_limit() or self._dry

    def step(self, waited_s: float | None = None) -> bool:
        """Draft one more token for the next round, or read for it; False if none is wanted, or the drafter has none.

        Args:
            waited_s: since the oldest round in flight was sent; None if nothing is in flight.
        """
        if self.ready or not self._wants(waited_s):
            return False
        found = self._next(self._machine.draft_limit() - self._size)
        return isinstance(found, Reading) or self._append(found)

    def further(self, limit: int) -> bool:
        """Draft one more token that no round asks for, or read for it; False if the drafter has none.

        Args:
            limit: how many may be wanted.
        """
        if self._dry:
            return False
        found = self._next(limit)
        return isinstance(found, Reading) or self._append(found)

    def _append(self, proposal: Proposal | None) -> bool:
        if proposal is not None:
            self._machine.chain.proposals.append(proposal)
        return proposal is not None

    def close(self) -> None:
        """Let the drafter go."""
        self._left = 0
        self._source.close()

    @property
    def unread(self) -> int:
        """Tokens that the drafter would read before it drafts."""
        chain = self._machine.chain
        if self._left and self._source_cuts == chain.cuts:
            return self._source.left
        return self._source.unread(self._text(), chain.cuts)

    @property
    def _text_length(self) -> int:
        return self._machine.chain.length + len(self._machine.chain.proposals)

    @property
    def _dry(self) -> bool:
        return (self._dry_cuts, self._dry_length) == (self._machine.chain.cuts, self._text_length)

    def _plan(self) -> None:
        """Ask the pace about every token that has come since it was asked last."""
        machine = self._machine
        chain = machine.chain
        here = (chain.cuts, chain.next_base, len(chain.flights))
        if here != self._planned_from:
            self._planned_from, self._size, self._full = here, 0, False
        if self._full:
            return
        start, limit = chain.start, machine.draft_limit()
        while self._size < limit and start + self._size < len(chain.proposals):
            round_ = [proposal.confidence for proposal in chain.proposals[start : start + self._size]]
            if not self._pace.more(round_, chain.proposals[start + self._size].confidence, chain.hoped()):
                self._full = True
                return
            self._size += 1

    def _wants(self, waited_s: float | None) -> bool:
        chain = self._machine.chain
        start = chain.start
        round_ = [proposal.confidence for proposal in chain.proposals[start : start + self._size]]
        hop = len(chain.proposals) < start
        return self._pace.another(round_, chain.hoped(), waited_s, hop=hop, unread=self.unread)

    def _next(self, wanted: int) -> Proposal | Reading | None:
        """The drafter's next proposal, or that it reads; so many are wanted behind the token hoped for."""
        chain = self._machine.chain
        if self._source_cuts != chain.cuts or not self._left:
            hope = max(0, chain.start - len(chain.proposals))
            # What the next round may still take, the token hoped for before it, and the one behind it.
            self._left = wanted + hope + 1
            self._source.ask(self._text(), self._left)
            self._source_cuts = chain.cuts
        found = self._source.next()
        if isinstance(found, Reading):
            return found
        self._left -= 1
        if found is None:
            self._left = 0
            self._dry_cuts, self._dry_length = chain.cuts, self._text_length
        return found

    def _text(self) -> list[int]:
        return [*self._machine.history.tokens, *(proposal.token for proposal in self._machine.chain.proposals)]
