"""Targets: models that decide. torch and transformers are imported here, when a target is loaded, never before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from sled.acceptance import Decision, RoundRows
from sled.types import Chunk


class Target(Protocol):
    """What the server asks of a model."""

    def verify(self, chunks: Sequence[Chunk], rounds: Sequence[RoundRows]) -> list[Decision]:
        """Compute one packed forward and decide its rounds.

        Keys and values of every chunk's tokens are written to its pages at positions from `past` on; what stood there
        is overwritten, which is how a rejected draft is rolled back. Pages are the caller's to hand out.

        Args:
            chunks: every session once at most.
            rounds: one for each chunk with `num_logits` > 0, in their order; it decides `num_logits` rows.

        Raises:
            OutOfMemory: this batch does not fit; smaller ones may.
            TargetLost: nothing will be computed any more.
        """
