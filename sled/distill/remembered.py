"""The target's hidden states of the corpus, computed once and kept where that is cheaper than computing them again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sled.distill.teacher import Teacher

Tensor = Any  # torch.Tensor
_MOST_BYTES = {"cpu": 2 << 30}  # elsewhere computing is quick and memory is dear: nothing is kept


class Remembered:
    """Hidden states by row of the corpus.

    On a CPU the target's forward is most of a step; a corpus is read a dozen times. What fits is kept in its dtype.

    Args:
        teacher: the target.
        most_bytes: kept at most; None takes what suits the device.
    """

    def __init__(self, teacher: Teacher, most_bytes: int | None = None) -> None:
        self._teacher = teacher
        self._left = _MOST_BYTES.get(teacher.device.type, 0) if most_bytes is None else most_bytes
        self._kept: dict[int, Tensor] = {}

    @torch.no_grad()
    def hidden(self, numbers: Sequence[int], tokens: Tensor) -> Tensor:
        """Hidden states (n, length, width).

        Args:
            numbers: of the rows (n,).
            tokens: theirs, int64 (n, length), on the device.
        """
        missing = [place for place, number in enumerate(numbers) if number not in self._kept]
        if len(missing) == len(numbers):
            found = self._teacher.hidden(tokens)
            self._keep(numbers, found)
            return found
        if missing:
            fresh = self._teacher.hidden(tokens[missing])
            parts = dict(zip(missing, fresh, strict=True))
            found = torch.stack([parts[p] if p in parts else self._kept[n] for p, n in enumerate(numbers)])
            self._keep([numbers[place] for place in missing], fresh)
            return found
        return torch.stack([self._kept[number] for number in numbers])

    def _keep(self, numbers: Sequence[int], states: Tensor) -> None:
        for number, state in zip(numbers, states, strict=True):
            size = state.numel() * state.element_size()
            if size > self._left:
                return
            self._left -= size
            self._kept[number] = state.clone()
