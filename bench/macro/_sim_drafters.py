"""Drafters of simulated answers: good ones, poor ones, noise, and none; all of them take their time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bench.macro._sim_plan import TARGET, Plan
from sled.drafters import Drafter
from sled.drafters.ngram import NgramDrafter
from sled.testing import ToyDrafter
from sled.types import Sampling


class Slow:
    """A drafter that takes its time.

    Args:
        let_pass: lets so many seconds of virtual time pass, or until something has happened.
        drafter: drafts.
        draft_s: for each token.
    """

    def __init__(
        self, let_pass: Callable[[float, Callable[[], bool]], None], drafter: Drafter | None, draft_s: float
    ) -> None:
        self._let_pass, self._drafter, self._draft_s = let_pass, drafter, draft_s
        self.name = "none" if drafter is None else drafter.name

    def start(self, sampling: Sampling, num_prompt: int) -> None:
        """See Drafter."""
        if self._drafter is not None:
            self._drafter.start(sampling, num_prompt)

    def draft(self, text: Sequence[int], limit: int) -> Iterator[Any]:
        """See Drafter."""
        if self._drafter is not None:
            for one in self._drafter.draft(text, limit):
                if self._draft_s:
                    self._let_pass(self._draft_s, lambda: False)
                yield one


class Junk:
    """Random tokens."""

    name = "junk"

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def start(self, sampling: Sampling, num_prompt: int) -> None:
        """Nothing to remember."""

    def draft(self, text: Sequence[int], limit: int) -> list[int]:
        """Noise, 0 among it."""
        return [self._chance.randrange(TARGET.shape.vocab_size) for _ in range(limit)]


def drafter_of(plan: Plan, chance: random.Random) -> Drafter | None:
    """The drafter that a plan names, None for "none"."""
    match plan.drafter:
        case "good":
            return ToyDrafter(TARGET, error=0.1, seed=plan.seed)
        case "poor":
            return ToyDrafter(TARGET, error=0.6, seed=plan.seed)
        case "junk":
            return Junk(chance)
        case "ngram":
            return NgramDrafter()
    return None
