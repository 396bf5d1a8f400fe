"""Where a fleet's drafts come from: answers that are known, or one real drafter for all devices."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import islice

from sled.drafters import Drafter
from sled.proposal import proposals
from sled.swarm.guest import Question
from sled.swarm.profiles import Profile
from sled.swarm.replay import Replay


class ReplayedDrafts:
    """Known answers with a board's errors, which every device makes in its own places.

    Args:
        answers: by number of the question; more may be added.
        profile: of the board.
        vocab_size: of the target.
        seed: of the errors.
    """

    def __init__(
        self, answers: Mapping[int, Sequence[int]], profile: Profile, *, vocab_size: int, seed: Sequence[int]
    ) -> None:
        self._replay = Replay(answers, acceptance=profile.acceptance, vocab_size=vocab_size, seed=seed)

    async def draft(self, question: Question, text: Sequence[int], done: int, limit: int) -> list[int]:
        """See Drafts."""
        return self._replay.draft(question.number, done, limit)


class SharedDrafts:
    """One real drafter, which reads another text for every device: that costs this machine what it costs.

    Args:
        drafter: whose turn it is at a time.
    """

    def __init__(self, drafter: Drafter) -> None:
        self._drafter, self._turn = drafter, asyncio.Lock()

    async def draft(self, question: Question, text: Sequence[int], done: int, limit: int) -> list[int]:
        """See Drafts."""

        def draft() -> list[int]:
            self._drafter.start(question.sampling, len(text) - done)
            return [proposal.token for proposal in islice(proposals(self._drafter.draft(text, limit)), limit)]

        async with self._turn:
            return await asyncio.to_thread(draft)
