"""A drafter that costs nothing: it knows the answer and errs as often as a real one. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


class Replay:
    """Drafts known answers, each position wrong with probability 1 - `acceptance`, independently.

    The two cores of the machine belong to the server then, as they would with real devices; what a drafter costs is no
    part of this benchmark.

    Args:
        answers: tokens of the whole answer by number of the prompt.
        acceptance: probability that a draft is right, 0 .. 1.
        vocab_size: ids of wrong drafts stay below it.
        seed: of the errors; every position of a prompt has its own, whatever the rounds.
    """

    def __init__(self, answers: Mapping[int, Sequence[int]], *, acceptance: float, vocab_size: int, seed: int) -> None:
        self._drafts: dict[int, list[int]] = {}
        for prompt, answer in answers.items():
            right = np.random.default_rng((seed, prompt)).random(len(answer)) < acceptance
            self._drafts[prompt] = [
                token if hit else (token + 1) % vocab_size for token, hit in zip(answer, right.tolist(), strict=True)
            ]

    def draft(self, prompt: int, done: int, limit: int) -> list[int]:
        """At most `limit` drafts after the first `done` tokens of the answer; none where it is not known."""
        return self._drafts.get(prompt, [])[done : done + max(0, limit)]
