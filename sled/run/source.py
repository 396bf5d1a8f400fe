"""A drafter that is asked for one thing after the other, and what each took."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence

from sled.drafters import Drafter
from sled.drafters.protocol import unread_of
from sled.pace import Pace
from sled.proposal import Proposal, Reading, as_proposal

_NOT_YET = Reading(0)


class Source:
    """What a drafter says to a text; the pace is told what reading takes, and what drafting does.

    Args:
        drafter: proposes; nobody else may use it until `close`.
        pace: is told.
        clock: seconds.

    Attributes:
        left: tokens of the text that it says it reads before its next proposal.
        busy: it is at work on another thread. Whatever it is asked next, that is waited for first: what it reads then
            is read, whichever text comes after it.
    """

    def __init__(self, drafter: Drafter, pace: Pace, clock: Callable[[], float]) -> None:
        self._drafter, self._pace, self._clock = drafter, pace, clock
        self._drafts: Iterator[int | Proposal | Reading] = iter(())
        self._next: tuple[Sequence[int], int] | None = None  # what to ask as soon as it is not busy any more
        self._unread_of = (-1, -1, 0)
        self._spent_s = 0.0
        self.left, self.busy = 0, False

    def unread(self, text: Sequence[int], cuts: int = 0) -> int:
        """Tokens of a text that would be read before the first draft; while it is busy, those that it is at.

        Args:
            text: not asked about yet.
            cuts: how often it became another one.
        """
        if self.busy:
            return self.left
        if self._unread_of[:2] != (len(text), cuts):
            self._unread_of = (len(text), cuts, unread_of(self._drafter, text))
        return self._unread_of[2]

    def ask(self, text: Sequence[int], limit: int) -> None:
        """From now on the text is continued, by so many tokens at most."""
        if self.busy:
            self._next = (text, limit)
            return
        self.close()
        self._drafts = iter(self._drafter.draft(text, limit))

    def next(self) -> Proposal | Reading | None:
        """One more token, or None where there is none, or Reading: not yet; ask again, or leave it."""
        began_at = self._clock()
        found = next(self._drafts, None)
        self._spent_s += self._clock() - began_at
        if isinstance(found, Reading) and found.busy:
            self.busy = True
            return found
        read, took_s = self.left, self._took_s()
        self.left = found.left if isinstance(found, Reading) else 0
        if isinstance(found, Reading):
            if read > self.left:
                self._pace.read(read - self.left, took_s)
        elif found is not None:
            self._pace.drafted(1, took_s, max(read - 1, 0))
        if self._next is not None:  # that was to another text
            following, self._next = self._next, None
            self.ask(*following)
            return _NOT_YET
        return found if found is None or isinstance(found, Reading) else as_proposal(found)

    def _took_s(self) -> float:
        spent_s, self._spent_s = self._spent_s, 0.0
        was_busy, self.busy = self.busy, False
        if was_busy:  # how often it was looked for says nothing
            spent_s = getattr(self._drafter, "job_s", None) or spent_s
        return spent_s

    def close(self) -> None:
        """Let the drafter go."""
        drafts, self._drafts, self._next = self._drafts, iter(()), None
        self.left, self.busy, self._spent_s = 0, False, 0.0
        self._unread_of = (-1, -1, 0)
        if isinstance(drafts, Generator):
            drafts.close()
