"""Two drafters, one after the other: the cheap one where it is sure, the other one everywhere else."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Sequence

from sled.drafters.protocol import Drafter, unread_of
from sled.proposal import Proposal, Reading, as_proposal, proposals
from sled.types import Sampling

SURE = 0.6


class Chain:
    """Tokens of the first drafter while it is sure, and of the second where it is not, also behind the first's end.

    Both see the whole text with what was drafted so far, so each keeps its state as if it drafted alone; tokens that
    the first found are read by the second in one go when its turn comes.

    Args:
        first: costs next to nothing and often knows nothing, such as an `NgramDrafter`.
        second: a model.
        sure: confidence from which the first's tokens are taken.
    """

    def __init__(self, first: Drafter, second: Drafter, *, sure: float = SURE) -> None:
        self.name = f"{first.name}+{second.name}"
        self.first, self.second, self._sure = first, second, sure

    def start(self, sampling: Sampling, num_prompt: int) -> None:
        """See Drafter."""
        self.first.start(sampling, num_prompt)
        self.second.start(sampling, num_prompt)

    def unread(self, text: Sequence[int]) -> int:
        """What the second would have to read, if it is its turn: the first reads as it goes."""
        left = unread_of(self.second, text)
        return left if left and not self._first_is_sure(text) else 0

    def draft(self, text: Sequence[int], limit: int) -> Iterator[Proposal | Reading]:
        """See Drafter."""
        text, most = list(text), len(text) + limit
        while len(text) < most:
            yield from self._of_first(text, most)
            before = len(text)
            yield from self._of_second(text, most)
            if len(text) == before:
                return

    def _of_first(self, text: list[int], most: int) -> Iterator[Proposal]:
        """Tokens that the first is sure of, appended to the text."""
        with _one_by_one(self.first.draft(text[:], most - len(text))) as drafts:
            for proposal in proposals(drafts):
                if proposal.confidence < self._sure or len(text) >= most:
                    return
                text.append(proposal.token)
                yield proposal

    def _of_second(self, text: list[int], most: int) -> Iterator[Proposal | Reading]:
        """Tokens of the second, appended to the text, until the first is sure how it goes on."""
        if len(text) >= most:
            return
        with _one_by_one(self.second.draft(text[:], most - len(text))) as drafts:
            for draft in drafts:
                if len(text) >= most:
                    return
                if isinstance(draft, Reading):
                    yield draft
                    continue
                proposal = as_proposal(draft)
                text.append(proposal.token)
                yield proposal
                if self._first_is_sure(text):
                    return

    def _first_is_sure(self, text: Sequence[int]) -> bool:
        with _one_by_one(self.first.draft(text, 1)) as drafts:
            return any(proposal.confidence >= self._sure for proposal in proposals(drafts))


@contextlib.contextmanager
def _one_by_one(drafts: Iterable[int | Proposal | Reading]) -> Generator[Iterable[int | Proposal | Reading]]:
    """Drafts whose generator is closed in the end."""
    try:
        yield drafts
    finally:
        close = getattr(drafts, "close", None)
        if close is not None:
            close()
