"""A drafter that costs nothing: it knows the answer and errs as often as a real one. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


class Replay:
    """Drafts known answers with errors, independent of each other.

    The processor belongs to the server then, as it would with real devices.

    Args:
        answers: tokens of the whole answer by number of the prompt; more may be added.
        acceptance: probability that a draft is right, 0 .. 1, by its position in the round; the last one holds from
            there on.
        vocab_size: ids of wrong drafts stay below it.
        seed: of the errors; every position of a prompt has its own, whatever the rounds.
    """

    def __init__(
        self,
        answers: Mapping[int, Sequence[int]],
        *,
        acceptance: float | Sequence[float],
        vocab_size: int,
        seed: int | Sequence[int],
    ) -> None:
        self._answers, self._vocab_size = answers, vocab_size
        self._acceptance = (acceptance,) if isinstance(acceptance, float | int) else tuple(acceptance)
        self._seed = (seed,) if isinstance(seed, int) else tuple(seed)
        self._luck: dict[int, list[float]] = {}

    def draft(self, prompt: int, done: int, limit: int) -> list[int]:
        """At most `limit` drafts after the first `done` tokens of the answer; none where it is not known."""
        answer = self._answers.get(prompt, ())[done : done + max(0, limit)]
        luck = self._luck_of(prompt, done + len(answer))[done:]
        last = len(self._acceptance) - 1
        return [
            token if chance < self._acceptance[min(at, last)] else (token + 1) % self._vocab_size
            for at, (token, chance) in enumerate(zip(answer, luck, strict=False))
        ]

    def _luck_of(self, prompt: int, length: int) -> list[float]:
        luck = self._luck.get(prompt, [])
        if len(luck) < length:
            size = max(256, 2 * length)
            luck = self._luck[prompt] = np.random.default_rng((*self._seed, prompt)).random(size).tolist()
        return luck
